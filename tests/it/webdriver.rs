//! A browser for tests: as much of WebDriver (W3C) as they need, spoken to chromedriver.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

const CHROMIUM: &[&str] = &["chromium", "chromium-browser", "google-chrome", "chrome"];
const HOW_TO_GET: &str = "Chromium and its driver are not installed, so the web page is NOT tested in a browser. On Debian and \
                          Ubuntu: apt-get install chromium chromium-driver; elsewhere put `chromium` and `chromedriver` of one \
                          version on the PATH. With EXPANDR_BROWSER_TESTS=required this is a failure.";

/// A headless Chromium with a profile of its own; ended when dropped.
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    client: reqwest::Client,
}

fn find(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|file| file.is_file())
}

impl Browser {
    /// A browser with a window of this size; none, said plainly, where there is no Chromium.
    pub(crate) async fn start(width: u32, height: u32) -> Option<Self> {
        let (Some(chromium), Some(chromedriver)) = (find(CHROMIUM), find(&["chromedriver"])) else {
            assert!(std::env::var("EXPANDR_BROWSER_TESTS").as_deref() != Ok("required"), "{HOW_TO_GET}");
            eprintln!("{HOW_TO_GET}");
            return None;
        };
        let mut driver = Command::new(chromedriver)
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().expect("chromedriver ended early").unwrap();
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end_matches('.').parse().unwrap();
            }
        };
        std::thread::spawn(move || lines.for_each(drop)); // a full pipe would stop the driver
        let arguments = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(), // containers have no user namespaces
            "--disable-dev-shm-usage".to_owned(),
            "--disable-gpu".to_owned(),
            format!("--window-size={width},{height}"),
        ];
        let mut browser = Self { driver, port, session: String::new(), client: reqwest::Client::new() };
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": {"binary": chromium, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let session = browser.send("POST", "", capabilities).await;
        browser.session = session["sessionId"].as_str().unwrap().to_owned();
        Some(browser)
    }

    async fn send(&self, method: &str, path: &str, body: Value) -> Value {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let session = if self.session.is_empty() { String::new() } else { format!("/{}", self.session) };
        let url = format!("http://127.0.0.1:{}/session{session}{path}", self.port);
        let mut request = self.client.request(method.clone(), url);
        if method == reqwest::Method::POST {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let is_good = response.status().is_success();
        let mut answer: Value = response.json().await.unwrap();
        assert!(is_good, "{path} {body}: {answer}");
        answer["value"].take()
    }

    /// Opens an address.
    pub(crate) async fn open(&self, url: &str) {
        self.send("POST", "/url", json!({ "url": url })).await;
    }

    /// What a script returns.
    pub(crate) async fn script(&self, script: &str) -> Value {
        self.send("POST", "/execute/sync", json!({"script": script, "args": []})).await
    }

    async fn element(&self, css: &str) -> String {
        let found = self.send("POST", "/element", json!({"using": "css selector", "value": css})).await;
        found.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned()
    }

    /// Clicks as a user does: fails when the element can't be seen or another one covers it.
    pub(crate) async fn click(&self, css: &str) {
        let element = self.element(css).await;
        self.send("POST", &format!("/element/{element}/click"), json!({})).await;
    }

    /// Types into a field, `\u{e007}` being Enter.
    pub(crate) async fn write(&self, css: &str, text: &str) {
        let element = self.element(css).await;
        self.send("POST", &format!("/element/{element}/value"), json!({ "text": text })).await;
    }

    /// Presses a key wherever the focus is.
    pub(crate) async fn press(&self, key: &str) {
        let strokes = json!([{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]);
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": strokes});
        self.send("POST", "/actions", json!({"actions": [keyboard]})).await;
    }

    /// The text of an element as a user sees it.
    pub(crate) async fn text(&self, css: &str) -> String {
        let element = self.element(css).await;
        self.send("GET", &format!("/element/{element}/text"), Value::Null).await.as_str().unwrap().to_owned()
    }

    /// Waits until an element's text contains this; gives the text.
    pub(crate) async fn wait_for(&self, css: &str, part: &str) -> String {
        let start = Instant::now();
        loop {
            let script = format!("return document.querySelector({})?.innerText ?? '(none)'", json!(css));
            let text = self.script(&script).await.as_str().unwrap().to_owned();
            if text.contains(part) {
                return text;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{css} has no `{part}`: {text}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Waits until an expression holds.
    pub(crate) async fn until(&self, expression: &str) {
        let start = Instant::now();
        while self.script(&format!("return {expression}")).await != true {
            assert!(start.elapsed() < Duration::from_secs(20), "it never came to {expression}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// What the browser itself complained of: scripts that failed, what the content security policy forbade.
    pub(crate) async fn complaints(&self) -> Vec<String> {
        let log = self.send("POST", "/se/log", json!({"type": "browser"})).await;
        let severe = |entry: &&Value| entry["level"] == "SEVERE";
        log.as_array().unwrap().iter().filter(severe).map(|entry| entry["message"].to_string()).collect()
    }
}

impl Drop for Browser {
    /// Ends the session first: a driver that is killed leaves its browser behind.
    fn drop(&mut self) {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let request = format!(
                "DELETE /session/{} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
                self.session
            );
            let _ = stream.write_all(request.as_bytes());
            let _ = stream.read(&mut [0; 256]);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
