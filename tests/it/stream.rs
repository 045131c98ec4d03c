//! Searches as server-sent events, over doubles of encoder and expander.

use std::time::{Duration, Instant};

use axum::{body::Body, http::Request};
use expandr::http::auth::Keys;
use expandr_models::testing::{Script, ScriptedFailure};
use futures::{StreamExt, future::join_all};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::service::{Double, Setup};

type Event = (String, Value);

fn slow() -> Script {
    Script { token_delay: Duration::from_millis(20), natural_length: 40, ..Script::default() }
}

fn request(body: &Value) -> Request<Body> {
    Request::post("/search")
        .header("content-type", "application/json")
        .header("accept", "text/event-stream")
        .header("x-request-id", "r-1")
        .body(Body::from(body.to_string()))
        .unwrap()
}

/// Whole events of a stream's text, without comments.
fn parse(text: &str) -> Vec<Event> {
    let mut events = Vec::new();
    for block in text.split_terminator("\n\n") {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let (Some(event), Some(data)) = (field("event:"), field("data:")) {
            events.push((event.to_owned(), serde_json::from_str(data).unwrap()));
        }
    }
    events
}

/// Status, content type and text of a streamed search.
async fn text_of(double: &Double, body: &Value) -> (u16, String, String) {
    let response = double.router.clone().oneshot(request(body)).await.unwrap();
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    let status = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, kind, String::from_utf8(bytes.to_vec()).unwrap())
}

async fn events(double: &Double, body: Value) -> Vec<Event> {
    let (status, kind, text) = text_of(double, &body).await;
    assert_eq!((status, kind.as_str()), (200, "text/event-stream"), "{text}");
    parse(&text)
}

/// The events' names, repetitions left out.
fn order(events: &[Event]) -> Vec<&str> {
    let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    names
}

/// What the pieces of one passage make together.
fn written(events: &[Event], passage: usize) -> String {
    let of = |event: &&Event| event.0 == "expansion" && event.1["passage"] == passage;
    events.iter().filter(of).map(|(_, data)| data["text"].as_str().unwrap()).collect()
}

/// An answer without what differs from time to time.
fn lasting(answer: &Value) -> Value {
    let mut answer = answer.clone();
    for member in ["timings", "took_ms", "request_id"] {
        assert!(answer.as_object_mut().unwrap().remove(member).is_some(), "{member} is missing: {answer}");
    }
    answer
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn raw_hits_then_the_passage_then_the_very_answer_that_a_plain_search_gives() {
    for body in [
        json!({"query": "apples on trees"}),
        json!({"query": "apples on trees", "explain": true, "top_k": 2, "expansion": {"count": 2, "temperature": 1, "seed": 3}}),
        json!({"query": "whales in oceans", "ranking": "hybrid", "explain": true, "filter": {"eq": {"kind": "animal"}}}),
        json!({"query": "frogs", "expansion": {"texts": ["ponds are wet", "frogs jump"]}, "include_text": false}),
        json!({"query": "green frogs", "ranking": "lexical", "explain": true}),
        json!({"query": "green frogs", "expansion": false}),
    ] {
        let setup = || Setup { script: slow(), ..Setup::default() };
        let (plain, streamed) = tokio::join!(Double::filled(setup()), Double::filled(setup()));
        let ((status, expected), told) =
            tokio::join!(plain.search(body.clone()), events(&streamed, body.clone()));
        assert_eq!(status, 200, "{expected}");
        let (name, answer) = told.last().unwrap();
        assert_eq!((name.as_str(), &answer["request_id"]), ("answer", &json!("r-1")), "{body}");
        assert!(answer["timings"]["total_ms"].as_f64().unwrap() > 0.0, "{answer}");
        assert_eq!(lasting(answer), lasting(&expected), "{body}");

        let texts = answer["expansion"]["texts"].as_array().unwrap();
        let names: &[&str] =
            if texts.is_empty() { &["raw", "answer"] } else { &["raw", "expansion", "answer"] };
        assert_eq!(order(&told), names, "{body}");
        for (passage, text) in texts.iter().enumerate() {
            assert_eq!(&json!(written(&told, passage)), text, "{body}");
        }

        let mut without = body.as_object().unwrap().clone();
        without.insert("expansion".into(), json!(false));
        let (_, alone) = plain.search(Value::Object(without)).await;
        for member in ["hits", "ranking", "searched", "bundle"] {
            assert_eq!(told[0].1[member], alone[member], "{member} of {body}");
        }
    }
}

#[tokio::test]
async fn a_written_passage_comes_in_pieces_and_a_cached_one_at_once() {
    let double = Double::filled(Setup { script: slow(), ..Setup::default() }).await;
    let body = json!({"query": "red apples"});
    let first = events(&double, body.clone()).await;
    let again = events(&double, body).await;
    let pieces = |events: &[Event]| events.iter().filter(|(name, _)| name == "expansion").count();
    assert!(pieces(&first) > 10, "{} pieces", pieces(&first));
    assert_eq!(
        (pieces(&again), again.last().unwrap().1["expansion"]["status"].as_str()),
        (1, Some("cached"))
    );
    assert_eq!(written(&first, 0), written(&again, 0));
    assert_eq!(order(&again), ["raw", "expansion", "answer"], "raw hits are always the first");
}

#[tokio::test]
async fn raw_hits_do_not_wait_for_the_language_model() {
    let script = Script { first_token_delay: Duration::from_millis(1500), ..Script::default() };
    let double = Double::filled(Setup { script, ..Setup::default() }).await;
    let start = Instant::now();
    let response = double.router.clone().oneshot(request(&json!({"query": "blue whales"}))).await.unwrap();
    let mut pieces = response.into_body().into_data_stream();
    let first = pieces.next().await.unwrap().unwrap();
    let took = start.elapsed();
    assert!(took < Duration::from_millis(1000), "{took:?}");
    let first = parse(std::str::from_utf8(&first).unwrap());
    assert_eq!((first[0].0.as_str(), &first[0].1["hits"][0]["id"]), ("raw", &json!("b")));
}

#[tokio::test]
async fn what_goes_wrong_under_way_is_an_error_event() {
    let script = Script { failure: ScriptedFailure::After(3), ..Script::default() };
    let double = Double::filled(Setup { script, ..Setup::default() }).await;
    let told = events(&double, json!({"query": "whales", "expansion": {"on_failure": "fail"}})).await;
    assert_eq!(order(&told), ["raw", "expansion", "error"], "{told:?}");
    let problem = &told.last().unwrap().1;
    assert_eq!(
        (&problem["status"], &problem["code"], &problem["request_id"]),
        (&json!(503), &json!("expansion_failed"), &json!("r-1"))
    );
    double.encoder.set_failing(true);
    let told = events(&double, json!({"query": "whales"})).await;
    assert_eq!((order(&told), &told[0].1["code"]), (vec!["error"], &json!("internal")), "{told:?}");
}

#[tokio::test]
async fn a_degraded_answer_says_so() {
    for (failure, reason, told_words) in
        [(ScriptedFailure::After(3), "llm_error", 3), (ScriptedFailure::Hang, "timeout", 0)]
    {
        let script = Script { failure, ..Script::default() };
        let double = Double::filled(Setup { script, ..Setup::default() }).await;
        let told = events(&double, json!({"query": "green frogs", "expansion": {"timeout_ms": 200}})).await;
        let answer = &told.last().unwrap().1;
        let expansion = &answer["expansion"];
        assert_eq!(
            (&expansion["status"], &expansion["reason"]),
            (&json!("degraded"), &json!(reason)),
            "{answer}"
        );
        assert_eq!(answer["hits"], told[0].1["hits"], "the raw hits answer");
        assert_eq!(written(&told, 0).split_whitespace().count(), told_words, "{told:?}");
    }
}

#[tokio::test]
async fn what_is_refused_is_refused_before_a_stream_begins() {
    let key = |name: &str| vec![format!("{name}-key-0123456789")];
    let keys = Keys::new(&key("read"), &[], &[], true).unwrap();
    let guarded = Double::new(Setup { keys, ..Setup::default() }).await;
    let open = Double::filled(Setup::default()).await;
    let query = json!({"query": "q"});
    for (double, body, expected) in [
        (&guarded, query.clone(), 401),
        (&open, json!({"query": "q", "top_k": 0}), 422),
        (&open, json!({"q": 1}), 422),
    ] {
        let (status, kind, text) = text_of(double, &body).await;
        assert_eq!((status, kind.as_str()), (expected, "application/problem+json"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["request_id"], "r-1");
    }
    open.encoder.set_expected_wait_ms(10_000);
    let (status, _, text) = text_of(&open, &query).await;
    assert_eq!(status, 429, "{text}");
}

#[tokio::test]
async fn a_stream_holds_its_place_to_the_end() {
    let double = Double::filled(Setup { script: slow(), permits: 1, ..Setup::default() }).await;
    let response = double.router.clone().oneshot(request(&json!({"query": "red apples"}))).await.unwrap();
    let mut pieces = response.into_body().into_data_stream();
    pieces.next().await.unwrap().unwrap();
    let other = json!({"query": "q", "expansion": false});
    assert_eq!(double.search(other.clone()).await.0, 429);
    let mut text = String::new();
    while let Some(piece) = pieces.next().await {
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    assert_eq!(parse(&text).last().unwrap().0, "answer");
    assert_eq!(double.search(other).await.0, 200);
}

#[tokio::test]
async fn a_client_that_goes_away_stops_its_search_but_not_its_neighbours() {
    let script = Script { natural_length: 200, ..slow() };
    let double = Double::filled(Setup { script, ..Setup::default() }).await;
    let url = format!("{}/search", double.serve().await);
    let client = reqwest::Client::new();
    let begin = |query: &str| {
        let request = client.post(&url).json(&json!({"query": query, "expansion": {"max_tokens": 60}}));
        async { request.header("accept", "text/event-stream").send().await.unwrap().bytes_stream() }
    };
    let mut streams = join_all(["alone", "shared", "shared"].map(begin)).await;
    for stream in &mut streams {
        let mut text = String::new();
        while !text.contains("event: expansion") {
            text.push_str(std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
        }
    }
    assert_eq!((double.expander.counts().started, double.state.service.admission().in_use()), (2, 3));
    let mut stays = streams.pop().unwrap();
    drop(streams);
    until("the generation of the client that left goes on", || double.expander.counts().cancelled == 1).await;
    until("its place is still taken", || double.state.service.admission().in_use() == 1).await;
    let mut rest = String::new();
    while let Some(piece) = stays.next().await {
        rest.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    let told = parse(&rest);
    let answer = &told.last().unwrap().1;
    assert_eq!(
        (&answer["expansion"]["status"], &answer["expansion"]["output_tokens"]),
        (&json!("applied"), &json!(60))
    );
    let counts = double.expander.counts();
    assert_eq!((counts.started, counts.cancelled, counts.finished), (2, 1, 1), "{counts:?}");
}

#[tokio::test]
async fn silence_is_filled_with_comments() {
    let script = Script { failure: ScriptedFailure::Hang, ..Script::default() };
    let double = Double::filled(Setup { script, ..Setup::default() }).await;
    let (_, _, text) = text_of(&double, &json!({"query": "q", "expansion": {"timeout_ms": 6500}})).await;
    assert!(text.contains("\n: still here\n"), "{text}");
    assert_eq!(order(&parse(&text)), ["raw", "answer"]);
}

#[tokio::test]
async fn feedback_knows_streamed_answers() {
    let mut setup = Setup::default();
    setup.feedback.on = true;
    let double = Double::filled(setup).await;
    let told = events(&double, json!({"query": "red apples"})).await;
    let hit = &told.last().unwrap().1["hits"][0]["id"];
    let click = json!({"request_id": "r-1", "document_id": hit, "kind": "clicked"});
    let (status, answer) = double.send("POST", "/feedback", Some(click), None).await;
    assert_eq!(status, 201, "{answer}");
}
