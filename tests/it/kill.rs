//! kill -9 in the middle of a bulk ingest: every acknowledged document is there afterwards, and searchable.
//!
//! `EXPANDR_KILL_ROUNDS` sets the number of rounds (default 2).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;

use crate::process::Server;

const FLAGS: [&str; 2] = ["--expander", "none"];
const CHUNK: usize = 40;

fn line(id: usize) -> String {
    let topic = ["rivers", "engines", "violins", "proteins", "markets", "comets", "bridges"][id % 7];
    json!({"id": format!("doc-{id}"), "text": format!("Document number {id} is about {topic} and mentions token{id}.")})
        .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_documents_survive_kill_9() {
    let rounds: usize =
        std::env::var("EXPANDR_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2);
    let folder = tempfile::tempdir().unwrap();
    let acknowledged = Arc::new(AtomicUsize::new(0));
    for round in 0..rounds {
        let server = Server::start(folder.path(), &FLAGS);
        let before = acknowledged.load(Ordering::SeqCst);
        let (client, url, counter) = (server.client.clone(), server.url.clone(), acknowledged.clone());
        let writer = tokio::spawn(async move {
            loop {
                let first = counter.load(Ordering::SeqCst);
                let body = (first..first + CHUNK).map(line).collect::<Vec<_>>().join("\n");
                let request = client
                    .post(format!("{url}/documents/bulk"))
                    .header("content-type", "application/x-ndjson");
                match request.body(body).send().await {
                    Ok(response) if response.status() == 200 => {
                        counter.store(first + CHUNK, Ordering::SeqCst);
                    }
                    _ => return, // killed
                }
            }
        });
        // Another moment in every round, but not before something was acknowledged.
        while acknowledged.load(Ordering::SeqCst) == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(137 * (round as u64 % 7) + 31)).await;
        server.kill();
        writer.await.unwrap();

        let server = Server::start(folder.path(), &FLAGS);
        let count = acknowledged.load(Ordering::SeqCst);
        println!("round {round}: {count} documents acknowledged");
        for id in 0..count {
            let (status, document) = server.get(&format!("/documents/doc-{id}")).await;
            assert_eq!(status, 200, "round {round}: document {id} of {count} is lost");
            assert_eq!(document["id"], format!("doc-{id}"));
        }
        for id in (0..count).rev().step_by((count / 25).max(1)) {
            let text = format!("Document number {id} is about and mentions token{id}.");
            let (_, answer) = server.post("/search", json!({"query": text, "top_k": 50})).await;
            let found = answer["hits"].as_array().unwrap().iter().any(|hit| hit["id"] == format!("doc-{id}"));
            assert!(found, "round {round}: document {id} of {count} is not found by a search");
            let words = json!({"query": format!("token{id}"), "ranking": "lexical"});
            let (_, answer) = server.post("/search", words).await;
            let hits: Vec<&str> =
                answer["hits"].as_array().unwrap().iter().filter_map(|hit| hit["id"].as_str()).collect();
            assert_eq!(hits, [format!("doc-{id}")], "round {round}: document {id} of {count} by its words");
        }
        assert_eq!(server.terminate(), 0);
    }
}
