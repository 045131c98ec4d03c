//! A small OpenAI-compatible server with the scripted double behind it, which can also misbehave.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use expandr_models::{
    Expander, FinishReason, GenerationRequest, Sampling, StreamEvent,
    testing::{Script, ScriptedExpander},
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};

/// What the server does with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Behaviour {
    /// Answers with what the double writes.
    Serve,
    /// Refuses.
    Status(u16),
    /// Answers with exactly this.
    Raw(&'static str),
    /// Says in the end that so many tokens were written.
    Usage(usize),
    /// Breaks the connection in the middle of the answer.
    Abort,
    /// Never answers.
    Silent,
    /// Answers and says no more.
    SilentAfterStart,
    /// Ends the answer but not the connection.
    OpenEnd,
}

struct Shared {
    double: ScriptedExpander,
    behaviour: Mutex<Behaviour>,
    last_request: Mutex<Option<(HeaderMap, Value)>>,
}

/// The running server; it ends with the test's runtime.
pub(crate) struct MockServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl MockServer {
    pub(crate) async fn start(script: Script) -> Self {
        let shared = Arc::new(Shared {
            double: ScriptedExpander::new(Script { concurrency: 64, ..script }),
            behaviour: Mutex::new(Behaviour::Serve),
            last_request: Mutex::new(None),
        });
        let router =
            Router::new().route("/v1/chat/completions", post(complete)).with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub(crate) fn double(&self) -> &ScriptedExpander {
        &self.shared.double
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap() = behaviour;
    }

    pub(crate) fn last_request(&self) -> (HeaderMap, Value) {
        self.shared.last_request.lock().unwrap().clone().unwrap()
    }
}

async fn complete(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    *shared.last_request.lock().unwrap() = Some((headers, body.clone()));
    let behaviour = *shared.behaviour.lock().unwrap();
    match behaviour {
        Behaviour::Serve => serve(&shared.double, &body, None).await,
        Behaviour::Usage(tokens) => serve(&shared.double, &body, Some(tokens)).await,
        Behaviour::Status(status) => {
            let error = Json(json!({ "error": { "message": "the server's words" } }));
            (StatusCode::from_u16(status).unwrap(), [(header::RETRY_AFTER, "7")], error).into_response()
        }
        Behaviour::Raw(text) => events(stream::iter([text.to_owned()])),
        Behaviour::Abort => {
            let parts =
                stream::iter([Ok(Bytes::from(piece("a", None))), Err(std::io::Error::other("abort"))]);
            // The pause lets the first part leave before the connection breaks.
            let parts = parts.then(|part| async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                part
            });
            ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(parts)).into_response()
        }
        Behaviour::Silent => std::future::pending().await,
        Behaviour::SilentAfterStart => events(stream::iter([piece("a", None)]).chain(stream::pending())),
        Behaviour::OpenEnd => events(stream::iter([piece("whole", Some("stop"))]).chain(stream::pending())),
    }
}

async fn serve(double: &ScriptedExpander, body: &Value, usage: Option<usize>) -> Response {
    let sampling = Sampling {
        max_tokens: body["max_tokens"].as_u64().unwrap() as usize,
        temperature: body["temperature"].as_f64().unwrap() as f32,
        top_p: body["top_p"].as_f64().unwrap() as f32,
        seed: body["seed"].as_u64(),
    };
    let prompt = body["messages"][0]["content"].as_str().unwrap().to_owned();
    let generation = match double.generate(GenerationRequest { prompt, sampling }).await {
        Ok(generation) => generation,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    };
    let written = stream::unfold(generation, |mut generation| async {
        let event = generation.next().await?.ok()?;
        Some((event, generation))
    });
    let texts = written.map(|event| match event {
        StreamEvent::Text { text, .. } => piece(&text, None),
        StreamEvent::Finished(FinishReason::Stop) => piece("", Some("stop")),
        StreamEvent::Finished(FinishReason::Length) => piece("", Some("length")),
    });
    let usage = usage.map(|tokens| {
        let usage = json!({ "choices": [], "usage": { "completion_tokens": tokens } });
        format!("data: {usage}\n\n")
    });
    events(texts.chain(stream::iter(usage)).chain(stream::iter(["data: [DONE]\n\n".to_owned()])))
}

fn piece(text: &str, finish_reason: Option<&str>) -> String {
    let chunk =
        json!({ "choices": [{ "index": 0, "delta": { "content": text }, "finish_reason": finish_reason }] });
    format!("data: {chunk}\n\n")
}

fn events(parts: impl futures::Stream<Item = String> + Send + 'static) -> Response {
    let body = Body::from_stream(parts.map(|part| Ok::<_, Infallible>(Bytes::from(part))));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}
