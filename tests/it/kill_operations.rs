//! kill -9 in the middle of feedback and uploads: what was acknowledged is there afterwards, and nothing is half there.
//!
//! `EXPANDR_KILL_ROUNDS` sets the number of rounds (default 2).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::process::Server;

const KEY: &str = "admin-key-0123456789";
const FLAGS: [&str; 6] = ["--expander", "none", "--feedback", "on", "--admin-keys", KEY];

/// Lines of dataset `name` in its version `version`: as many as its number, so that a mixture would be noticed.
fn lines(version: usize) -> String {
    let pair = json!({"query": format!("query of version {version}"), "positive": "x".repeat(2000)});
    format!("{pair}\n").repeat(version % 40 + 1)
}

async fn exported(server: &Server) -> Vec<Value> {
    let request = server.client.get(format!("{}/admin/feedback", server.url)).bearer_auth(KEY);
    let text = request.send().await.unwrap().text().await.unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_feedback_and_datasets_survive_kill_9() {
    let rounds: usize =
        std::env::var("EXPANDR_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2);
    let folder = tempfile::tempdir().unwrap();
    let (clicks, versions) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for round in 0..rounds {
        let server = Server::start(folder.path(), &FLAGS);
        server.put(&[("a", "red apples grow on trees"), ("b", "blue whales swim in oceans")]).await;
        let before = (clicks.load(Ordering::SeqCst), versions.load(Ordering::SeqCst));
        let clicking = tokio::spawn(click(server.client.clone(), server.url.clone(), clicks.clone()));
        let uploading = tokio::spawn(upload(server.client.clone(), server.url.clone(), versions.clone()));
        while clicks.load(Ordering::SeqCst) == before.0 || versions.load(Ordering::SeqCst) == before.1 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::time::sleep(Duration::from_millis(93 * (round as u64 % 7) + 17)).await;
        server.kill();
        clicking.await.unwrap();
        uploading.await.unwrap();

        let server = Server::start(folder.path(), &FLAGS);
        let (clicked, version) = (clicks.load(Ordering::SeqCst), versions.load(Ordering::SeqCst));
        println!("round {round}: {clicked} clicks and {version} uploads acknowledged");
        let events = exported(&server).await;
        for number in 0..clicked {
            let query = format!("click {number}");
            assert!(
                events.iter().any(|event| event["query"] == query),
                "round {round}: {query} of {clicked} is lost"
            );
        }
        // The last upload that was acknowledged, or the one that the kill interrupted.
        let request = server.client.get(format!("{}/admin/datasets/mine", server.url)).bearer_auth(KEY);
        let text =
            request.header("accept", "application/x-ndjson").send().await.unwrap().text().await.unwrap();
        let whole = [version, version + 1].map(lines).contains(&text);
        assert!(whole, "round {round}: after {version} uploads the dataset is {} bytes", text.len());
        let files = fs_err::read_dir(folder.path().join("datasets")).unwrap().count();
        assert_eq!(files, 2, "round {round}: nothing else is left");
        assert_eq!(server.terminate(), 0);
    }
}

/// Searches and clicks, one query after another, until the server is gone.
async fn click(client: reqwest::Client, url: String, done: Arc<AtomicUsize>) {
    loop {
        let number = done.load(Ordering::SeqCst);
        let search = json!({"query": format!("click {number}"), "ranking": "dense"});
        let Ok(answer) = client.post(format!("{url}/search")).json(&search).send().await else { return };
        let Ok(answer) = answer.json::<Value>().await else { return };
        let body = json!({"request_id": answer["request_id"], "document_id": "a", "kind": "clicked"});
        match client.post(format!("{url}/feedback")).json(&body).send().await {
            Ok(response) if response.status() == 201 => done.fetch_add(1, Ordering::SeqCst),
            Ok(response) => panic!("{}", response.text().await.unwrap_or_default()),
            Err(_) => return,
        };
    }
}

/// Uploads one version after another until the server is gone.
async fn upload(client: reqwest::Client, url: String, done: Arc<AtomicUsize>) {
    loop {
        let version = done.load(Ordering::SeqCst) + 1;
        let request = client.put(format!("{url}/admin/datasets/mine")).bearer_auth(KEY);
        match request.header("content-type", "application/x-ndjson").body(lines(version)).send().await {
            Ok(response) if response.status().is_success() => done.store(version, Ordering::SeqCst),
            Ok(response) => panic!("{}", response.text().await.unwrap_or_default()),
            Err(_) => return,
        }
    }
}
