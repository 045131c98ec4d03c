//! The real binary as a child process.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_expandr");

/// The folder of the default weights, which are pulled there once if they are missing.
pub(crate) fn models_dir() -> &'static Path {
    static PULLED: OnceLock<PathBuf> = OnceLock::new();
    PULLED.get_or_init(|| {
        let folder = std::env::var_os("EXPANDR_MODELS_DIR")
            .map(PathBuf::from)
            .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("models/store"));
        let output =
            Command::new(BINARY).args(["models", "pull", "--models-dir"]).arg(&folder).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "these tests need the default weights; `expandr models pull` said: {said}"
        );
        folder
    })
}

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    pub(crate) client: reqwest::Client,
}

impl Server {
    /// Starts `expandr serve` on a free port and waits until it listens.
    pub(crate) fn start(index_dir: &Path, flags: &[&str]) -> Self {
        let mut child = Command::new(BINARY)
            .args(["--log-format", "json", "serve", "--listen", "127.0.0.1:0"])
            .arg("--models-dir")
            .arg(models_dir())
            .arg("--index-dir")
            .arg(index_dir)
            .args(flags)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = Vec::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else { panic!("the server ended early:\n{}", log.join("\n")) };
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            if event["message"] == "listening" {
                break event["address"].as_str().unwrap().to_owned();
            }
            log.push(line);
        };
        std::thread::spawn(move || lines.for_each(drop)); // a full pipe would stop the server
        Self { child, url: format!("http://{address}"), client: reqwest::Client::new() }
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Posts JSON and gives status and body.
    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let response = self.client.post(format!("{}{path}", self.url)).json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// Gets JSON.
    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.client.get(format!("{}{path}", self.url)).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap_or_default())
    }

    /// Stores `(id, text)` documents.
    pub(crate) async fn put(&self, documents: &[(&str, &str)]) {
        let documents: Vec<Value> =
            documents.iter().map(|(id, text)| json!({"id": id, "text": text})).collect();
        let request =
            self.client.put(format!("{}/documents", self.url)).json(&json!({ "documents": documents }));
        let response = request.send().await.unwrap();
        assert!(response.status().is_success(), "{}", response.text().await.unwrap());
    }

    /// Asks the server to stop (SIGTERM) and waits for its end; gives its exit code.
    pub(crate) fn terminate(mut self) -> i32 {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(start.elapsed() < Duration::from_secs(60), "the server did not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
