//! `expandr search`: asks a running server and prints the hits.

use clap::Args;
use serde_json::{Value, json};

use super::client::{self, Server};
use crate::search::request::Ranking;

/// Flags of `expandr search`.
#[derive(Args, Debug)]
pub(super) struct SearchArgs {
    /// The query.
    query: String,

    /// How many hits.
    #[arg(short = 'k', long, default_value_t = 5)]
    top_k: usize,

    /// What ranks the documents; default: as the server is configured.
    #[arg(long, value_enum)]
    ranking: Option<Ranking>,

    /// Search with the query alone.
    #[arg(long)]
    raw: bool,

    /// Budget of the expansion in milliseconds.
    #[arg(long)]
    timeout_ms: Option<u64>,

    /// Say how each hit was found.
    #[arg(long)]
    explain: bool,

    /// Print the server's JSON as it is.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    server: Server,
}

pub(super) async fn run(args: SearchArgs) -> anyhow::Result<()> {
    let mut body = json!({ "query": args.query, "top_k": args.top_k, "explain": args.explain });
    if let Some(ranking) = args.ranking {
        body["ranking"] = json!(ranking);
    }
    if args.raw {
        body["expansion"] = json!(false);
    } else if let Some(timeout_ms) = args.timeout_ms {
        body["expansion"] = json!({ "timeout_ms": timeout_ms });
    }
    let client = reqwest::Client::new();
    let request = args.server.request(&client, reqwest::Method::POST, "/search").json(&body);
    let answer = client::json(args.server.send(request).await?).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        print!("{}", readable(&answer));
    }
    Ok(())
}

/// The answer for people.
fn readable(answer: &Value) -> String {
    let mut text = String::new();
    let expansion = &answer["expansion"];
    let status = expansion["status"].as_str().unwrap_or("?");
    let reason = expansion["reason"].as_str().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let cut = if expansion["cut"].as_bool().unwrap_or(false) { ", cut by its budget" } else { "" };
    let took_ms = answer["took_ms"].as_f64().unwrap_or(0.0);
    let ranking = answer["ranking"].as_str().unwrap_or("?");
    text.push_str(&format!("ranking {ranking}, expansion {status}{reason}{cut}, {took_ms:.0} ms\n"));
    for passage in expansion["texts"].as_array().into_iter().flatten() {
        text.push_str(&format!("  “{}”\n", shorten(passage.as_str().unwrap_or(""), 300)));
    }
    for hit in answer["hits"].as_array().into_iter().flatten() {
        let (rank, score) = (hit["rank"].as_u64().unwrap_or(0), hit["score"].as_f64().unwrap_or(0.0));
        let title =
            hit["title"].as_str().filter(|title| !title.is_empty()).or(hit["id"].as_str()).unwrap_or("");
        text.push_str(&format!("\n{rank:>3}. {score:.3}  {title}\n"));
        text.push_str(&format!("     {}\n", shorten(hit["text"].as_str().unwrap_or(""), 240)));
        if let Some(link) = hit["metadata"]["link"].as_str() {
            text.push_str(&format!("     {link}\n"));
        }
        if hit["explain"].is_object() {
            text.push_str(&format!("     {}\n", explained(&hit["explain"])));
        }
    }
    if answer["hits"].as_array().is_none_or(Vec::is_empty) {
        text.push_str("\nnothing found: is the index empty? `expandr ingest` fills it\n");
    }
    text
}

/// How a hit was found, in one line.
fn explained(explain: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(cosine) = explain["query_cosine"].as_f64() {
        let rank =
            explain["rank_without_expansion"].as_u64().map_or("none".to_owned(), |rank| rank.to_string());
        let cosines = &explain["expansion_cosines"];
        parts.push(format!(
            "cosine with query {cosine:.3}, with expansions {cosines}; rank without expansion {rank}"
        ));
    }
    for (member, name) in [("dense", "vectors"), ("lexical", "words")] {
        match explain.get(member) {
            Some(Value::Null) => parts.push(format!("not found by {name}")),
            Some(place) => {
                let score = place["score"].as_f64().unwrap_or(0.0);
                parts.push(format!("rank {} by {name} ({score:.3})", place["rank"]));
            }
            None => {}
        }
    }
    parts.join("; ")
}

/// One line of at most `longest` characters.
fn shorten(text: &str, longest: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn degraded_answers_say_so() {
        let answer = json!({"expansion": {"status": "degraded", "reason": "timeout", "texts": []}, "hits": [], "took_ms": 12.3});
        let text = readable(&answer);
        assert!(text.contains("degraded (timeout)") && text.contains("index empty"), "{text}");
    }

    #[test]
    fn explanations_name_each_ranking() {
        let explain = json!({"query_cosine": 0.5, "expansion_cosines": [0.25], "rank_without_expansion": 4,
            "dense": null, "lexical": {"rank": 2, "score": 7.25}});
        let expected = "cosine with query 0.500, with expansions [0.25]; rank without expansion 4; \
            not found by vectors; rank 2 by words (7.250)";
        assert_eq!(explained(&explain), expected);
    }

    #[test]
    fn long_text_is_shortened_between_characters() {
        assert_eq!(shorten("äöü  äöü", 4), "äöü …");
        assert_eq!(shorten("short", 10), "short");
    }
}
