//! The documentation, run: `tests/docs/run.py` runs its shell, Python and JavaScript against real servers; its Rust is a region of this
//! file. What it says of backups is tried.

use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// A client of one server; `admin_key` is asked for on the routes under /admin.
struct Client {
    http: reqwest::Client,
    endpoint: String,
    admin_key: String,
}

impl Client {
    /// Sends JSON; an answer that isn't 2xx becomes an error with the problem's detail.
    async fn ask(&self, method: reqwest::Method, path: &str, body: Value) -> Outcome<Value> {
        let request = self.http.request(method, format!("{}{path}", self.endpoint));
        let response = request.bearer_auth(&self.admin_key).json(&body).send().await?;
        let status = response.status();
        let answer: Value = response.json().await?;
        if !status.is_success() {
            return Err(format!("{status}: {}", answer["detail"]).into());
        }
        Ok(answer)
    }

    async fn post(&self, path: &str, body: Value) -> Outcome<Value> {
        self.ask(reqwest::Method::POST, path, body).await
    }

    /// The events of a job, until it has ended.
    async fn events(&self, job: &str) -> Outcome<Vec<Value>> {
        let request = self.http.get(format!("{}/admin/jobs/{job}/events", self.endpoint));
        let mut response = request.bearer_auth(&self.admin_key).send().await?.error_for_status()?;
        let (mut events, mut bytes) = (Vec::new(), Vec::new());
        while let Some(chunk) = response.chunk().await? {
            bytes.extend_from_slice(&chunk);
            while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8(bytes.drain(..=end).collect())?;
                if let Some(data) = line.strip_prefix("data:") {
                    events.push(serde_json::from_str(data)?);
                }
            }
        }
        Ok(events)
    }
}

async fn main_flows(client: &Client, bundle_folder: &str) -> Outcome<()> {
    let documents = json!({"documents": [
        {"id": "semaphore", "title": "Semaphores", "text": "A semaphore limits how many tasks run concurrently."},
        {"id": "channel", "title": "Channels", "text": "A channel sends values from one task to another."},
    ]});
    client.ask(reqwest::Method::PUT, "/documents", documents).await?;

    let raw = client.post("/search", json!({"query": "limit parallel work", "expansion": false})).await?;
    println!("without expansion: {}", raw["hits"][0]["id"]);
    let search = json!({"query": "limit parallel work", "expansion": {"max_tokens": 32}});
    let expanded = client.post("/search", search).await?;
    println!("{}: {}", expanded["expansion"]["status"], expanded["hits"][0]["id"]);

    let searches = json!({"searches": [{"query": "tasks", "expansion": false}, {"query": "values", "expansion": false}]});
    let batch = client.post("/search/batch", searches).await?;
    println!("{} results", batch["results"].as_array().map_or(0, Vec::len));

    let (request_id, document_id) = (&expanded["request_id"], &expanded["hits"][0]["id"]);
    let click = json!({"request_id": request_id, "document_id": document_id, "kind": "clicked"});
    client.post("/feedback", click).await?;

    let imported = client.post("/admin/bundles/import", json!({"path": bundle_folder})).await?;
    let bundle = imported["id"].as_str().ok_or("an import gives an id")?;
    client.post(&format!("/admin/bundles/{bundle}/activate"), json!({"wait_ms": 30_000})).await?;
    client.post("/admin/bundles/rollback", json!({})).await?;

    let job = client.post("/admin/jobs", json!({"kind": "snapshot"})).await?;
    for event in client.events(job["id"].as_str().ok_or("a job has an id")?).await? {
        println!("{}", event["event"]);
    }
    Ok(())
}

use std::{path::Path, process::Command};

use crate::process::{BINARY, Server, models_dir};

const KEY: &str = "admin-key-0123456789";
const FLAGS: [&str; 4] = ["--admin-keys", KEY, "--feedback", "on"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Python program of the repository, which must end well; what it says is printed.
fn python(arguments: &[&str]) {
    let output = Command::new("python3").args(arguments).current_dir(repository()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_block_of_the_documentation_runs() {
    let models = models_dir().to_str().unwrap();
    python(&["tests/docs/run.py", "--binary", BINARY, "--models-dir", models]);
}

#[test]
fn what_runs_the_documentation_finds_mistakes() {
    python(&["tests/docs/test_checks.py", BINARY]);
}

/// A bundle that differs from the served one in its query weight alone.
fn another_bundle(index_dir: &Path, folder: &Path) {
    let read = |path: &Path| -> Value { serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap() };
    let active = read(&index_dir.join("active.json"));
    let served = index_dir.join("bundles").join(active["active"].as_str().unwrap());
    let mut manifest = read(&served.join("bundle.json"));
    manifest["ids"] = Value::Null;
    manifest["defaults"]["query_weight"] = json!(0.7);
    fs_err::create_dir_all(folder).unwrap();
    fs_err::write(folder.join("bundle.json"), manifest.to_string()).unwrap();
}

#[tokio::test]
async fn the_rust_of_the_documentation_works() {
    let folder = tempfile::tempdir().unwrap();
    let (index, bundle) = (folder.path().join("index"), folder.path().join("small"));
    let server = Server::start(&index, &FLAGS);
    another_bundle(&index, &bundle);
    let (http, endpoint) = (reqwest::Client::new(), server.url.clone());
    let client = Client { http, endpoint, admin_key: KEY.to_owned() };
    main_flows(&client, bundle.to_str().unwrap()).await.unwrap();
    let refused = client.post("/search", json!({"query": ""})).await.unwrap_err();
    assert!(refused.to_string().starts_with("422"), "{refused}");
    let jobs = client.ask(reqwest::Method::GET, "/admin/jobs", Value::Null).await.unwrap();
    assert_eq!(jobs["jobs"][0]["status"], "succeeded");
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn a_copied_folder_answers_as_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    let documents = [
        ("sky", "Blue light is scattered the most by the molecules of the air."),
        ("vitamin", "Vitamin D helps the body to absorb calcium, which keeps bones strong."),
        ("bread", "Yeast turns sugar into carbon dioxide, whose bubbles make the dough rise."),
    ];
    let searches = [
        json!({"query": "why is the sky blue", "expansion": false}),
        json!({"query": "strong bones", "expansion": {"texts": ["Calcium is what bones are made of."]}, "search_mode": "hnsw"}),
        json!({"query": "yeast", "ranking": "lexical"}),
    ];
    let server = Server::start(&old, &FLAGS);
    server.put(&documents).await;
    let mut before = Vec::new();
    for search in &searches {
        before.push(server.post("/search", search.clone()).await.1);
    }
    let visit = &before[0]["request_id"];
    let click = json!({"request_id": visit, "document_id": "sky", "kind": "clicked"});
    assert_eq!(server.post("/feedback", click).await.0, 201);
    assert_eq!(server.terminate(), 0);
    copy(&old, &new);
    fs_err::remove_dir_all(&old).unwrap();

    let server = Server::start(&new, &FLAGS);
    for (search, before) in searches.iter().zip(&before) {
        let (status, after) = server.post("/search", search.clone()).await;
        assert_eq!(status, 200, "{after}");
        assert_eq!((&after["hits"], &after["bundle"]), (&before["hits"], &before["bundle"]));
        assert!(!after["hits"].as_array().unwrap().is_empty());
    }
    let kept = server.client.get(format!("{}/admin/feedback", server.url)).bearer_auth(KEY);
    let kept = kept.send().await.unwrap().text().await.unwrap();
    assert!(kept.contains("why is the sky blue"), "{kept}");
}
