//! Any OpenAI-compatible server (vLLM, llama.cpp, TGI, Ollama, mistralrs-server, …) as an expander.
//!
//! Each generation is one streaming chat completion over a connection of its own pool. A task of ours reads the
//! server's events and hands them on; it ends, and with it the HTTP request, as soon as nobody listens any more, which
//! makes the server stop too.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use reqwest::{Client, Response, StatusCode, Url, header, redirect};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    Expander, ExpanderInfo, FinishReason, GenerationRequest, GenerationStream, SpecialTokens, StreamEvent,
    gate::{Gate, Place},
    sse::SseParser,
};
use crate::{Error, Result, TraceContext};

const ENGINE: &str = "openai expander";
/// How much of an error answer is read.
const LONGEST_ERROR: usize = 4096;
/// How long the token count may come after the finish reason.
const USAGE_GRACE: Duration = Duration::from_secs(1);
/// Pieces that may wait for a slow reader.
const STREAM_CAPACITY: usize = 32;

/// Where the server is and how it is used.
#[derive(Clone)]
pub struct OpenAiOptions {
    /// Up to and including the version, e.g. `http://127.0.0.1:8000/v1`.
    pub base_url: String,
    /// The model's name on that server.
    pub model: String,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
    /// Generations at once.
    pub max_concurrency: usize,
    /// Generations that may wait.
    pub queue_capacity: usize,
    /// For the connection.
    pub connect_timeout: Duration,
    /// Longest silence, before the answer begins and between two pieces of it.
    pub idle_timeout: Duration,
    /// Whether the server promises that the same seed gives the same sample.
    pub honours_seed: bool,
}

impl OpenAiOptions {
    /// The usual limits: 32 generations at once, 256 waiting, 5 s to connect, 60 s of silence.
    pub fn new(base_url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            model: model.into(),
            api_key: None,
            max_concurrency: 32,
            queue_capacity: 256,
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            honours_seed: true,
        }
    }
}

impl fmt::Debug for OpenAiOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAiOptions")
            .field("base_url", &Url::parse(&self.base_url).map(without_credentials))
            .field("model", &self.model)
            .field("api_key", &self.api_key.as_ref().map(|_| "redacted"))
            .field("max_concurrency", &self.max_concurrency)
            .field("queue_capacity", &self.queue_capacity)
            .field("connect_timeout", &self.connect_timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("honours_seed", &self.honours_seed)
            .finish()
    }
}

/// An expander behind an OpenAI-compatible server.
pub struct OpenAiExpander {
    client: Client,
    endpoint: Url,
    api_key: Option<String>,
    model: String,
    idle_timeout: Duration,
    special: SpecialTokens,
    gate: Gate,
    info: ExpanderInfo,
}

impl OpenAiExpander {
    /// Prepares the client; the server is not asked yet. A loopback server is never reached through a proxy.
    ///
    /// # Errors
    /// When the URL is none, or the client can't be made.
    pub fn new(options: OpenAiOptions) -> Result<Self> {
        let refused = |detail: &str| {
            Error::Input(format!(
                "the expander's URL `{}` {detail}; give e.g. http://host:8000/v1",
                options.base_url
            ))
        };
        let base = Url::parse(&options.base_url).map_err(|error| refused(&error.to_string()))?;
        if !["http", "https"].contains(&base.scheme()) {
            return Err(refused("is neither http nor https"));
        }
        let mut endpoint = base.clone();
        endpoint.set_path(&format!("{}/chat/completions", base.path().trim_end_matches('/')));
        let mut client = Client::builder()
            .connect_timeout(options.connect_timeout)
            .redirect(redirect::Policy::none())
            .user_agent(concat!("expandr/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&base) {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|error| engine_error(format!("no HTTP client: {error}")))?;
        let gate = Gate::new(options.max_concurrency, options.queue_capacity);
        let info = ExpanderInfo {
            engine: "openai",
            id: options.model.clone(),
            honours_seed: options.honours_seed,
            concurrency: gate.concurrency(),
            device: without_credentials(base),
        };
        Ok(Self {
            client,
            endpoint,
            api_key: options.api_key,
            model: options.model,
            idle_timeout: options.idle_timeout,
            special: SpecialTokens::common(),
            gate,
            info,
        })
    }

    async fn start(&self, request: &GenerationRequest) -> Result<Response> {
        let sampling = &request.sampling;
        let mut body = json!({
            "model": self.model,
            "messages": [{ "role": "user", "content": self.special.neutralise(&request.prompt) }],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        if let Some(seed) = sampling.seed {
            // vLLM refuses what does not fit into a signed number of 64 bits.
            body["seed"] = json!(seed & i64::MAX as u64);
        }
        let mut call =
            self.client.post(self.endpoint.clone()).header(header::ACCEPT, "text/event-stream").json(&body);
        if let Some(key) = &self.api_key {
            call = call.bearer_auth(key);
        }
        if let Some(trace) = TraceContext::current() {
            call = call.header("traceparent", trace.traceparent());
            if let Some(state) = &trace.state {
                call = call.header("tracestate", &**state);
            }
        }
        let answer = tokio::time::timeout(self.idle_timeout, call.send()).await;
        let answer = answer.map_err(|_| self.silent())?;
        let answer = answer.map_err(|error| {
            engine_error(format!("{} can't be reached: {}", self.info.device, chain_of(&error.without_url())))
        })?;
        if answer.status().is_success() { Ok(answer) } else { Err(self.refusal(answer).await) }
    }

    fn silent(&self) -> Error {
        engine_error(format!("{} was silent for {:?}", self.info.device, self.idle_timeout))
    }

    /// What an answer with an error status means.
    async fn refusal(&self, answer: Response) -> Error {
        let status = answer.status();
        let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after =
            retry_after.map(|value| format!("; it asks to try again after {value} s")).unwrap_or_default();
        let url = &self.info.device;
        let said = tokio::time::timeout(self.idle_timeout, error_text(answer)).await.unwrap_or_default();
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Error::Overloaded {
                what: "expander",
                detail: format!("{url} answers {status}{retry_after}: {said}"),
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                engine_error(format!("{url} refuses the API key ({status}): {said}; check the key"))
            }
            StatusCode::NOT_FOUND => engine_error(format!(
                "{url} knows no model `{}`, or is no OpenAI-compatible server ({status}): {said}; check the URL (it ends \
                 with the version, as in /v1) and the model's name",
                self.model
            )),
            _ => engine_error(format!("{url} answers {status}: {said}")),
        }
    }
}

#[async_trait]
impl Expander for OpenAiExpander {
    fn info(&self) -> &ExpanderInfo {
        &self.info
    }

    async fn generate(&self, request: GenerationRequest) -> Result<GenerationStream> {
        let place = self.gate.enter().await?;
        let answer = self.start(&request).await?;
        let (events, stream) = mpsc::channel(STREAM_CAPACITY);
        let reader = Reader {
            answer,
            events,
            idle_timeout: self.idle_timeout,
            url: Arc::from(self.info.device.as_str()),
            parser: SseParser::default(),
            tokens: 0,
            finish: None,
        };
        tokio::spawn(reader.run(place));
        Ok(GenerationStream::new(stream))
    }

    fn running(&self) -> usize {
        self.gate.running()
    }

    fn waiting(&self) -> usize {
        self.gate.waiting()
    }
}

/// The task behind one generation.
struct Reader {
    answer: Response,
    events: mpsc::Sender<Result<StreamEvent>>,
    idle_timeout: Duration,
    url: Arc<str>,
    parser: SseParser,
    tokens: usize,
    finish: Option<FinishReason>,
}

/// Whether the reader goes on.
enum Flow {
    Continue,
    /// The stream ended as it should.
    Done,
    /// Nobody listens any more.
    Abandoned,
}

impl Reader {
    /// Reads to the end.
    async fn run(mut self, place: Place) {
        let events = self.events.clone();
        let last = tokio::select! {
            // The other end was dropped: stop at once, even in the middle of a silence.
            () = events.closed() => return,
            outcome = self.read() => match outcome {
                Ok(Flow::Abandoned) => return,
                Ok(Flow::Continue | Flow::Done) => self.finish.map(StreamEvent::Finished).ok_or_else(|| {
                    engine_error(format!("{} ended the stream without a finish reason", self.url))
                }),
                Err(error) => Err(error),
            },
        };
        // Connection and place are free before the reader learns of the end.
        drop((self, place));
        let _nobody_listens = events.send(last).await;
    }

    async fn read(&mut self) -> Result<Flow> {
        loop {
            let patience = if self.finish.is_some() { USAGE_GRACE } else { self.idle_timeout };
            let bytes = match tokio::time::timeout(patience, self.answer.chunk()).await {
                Ok(Ok(Some(bytes))) => bytes,
                // The end of the answer, or no token count within the grace.
                Ok(Ok(None)) => return Ok(Flow::Done),
                Err(_) | Ok(Err(_)) if self.finish.is_some() => return Ok(Flow::Done),
                Err(_) => return Err(engine_error(format!("{} was silent for {patience:?}", self.url))),
                Ok(Err(error)) => {
                    let detail = chain_of(&error.without_url());
                    return Err(engine_error(format!("the connection to {} broke: {detail}", self.url)));
                }
            };
            let events = self.parser.push(&bytes);
            for data in events.map_err(|detail| engine_error(format!("{}: {detail}", self.url)))? {
                match self.event(&data).await? {
                    Flow::Continue => {}
                    other => return Ok(other),
                }
            }
        }
    }

    async fn event(&mut self, data: &str) -> Result<Flow> {
        if data.trim() == "[DONE]" {
            return Ok(Flow::Done);
        }
        let chunk: Chunk = serde_json::from_str(data).map_err(|error| {
            let start: String = data.chars().take(200).collect();
            engine_error(format!("{} sent an event that is no completion chunk ({error}): {start}", self.url))
        })?;
        if let Some(error) = chunk.error {
            return Err(engine_error(format!("{} failed while writing: {}", self.url, message_of(&error))));
        }
        if let Some(choice) = chunk.choices.into_iter().flatten().next() {
            let text = choice.delta.and_then(|delta| delta.content).unwrap_or_default();
            if !text.is_empty() && self.send(text, 1).await.is_abandoned() {
                return Ok(Flow::Abandoned);
            }
            if let Some(reason) = choice.finish_reason {
                self.finish = Some(finish_reason(&reason, &self.url)?);
            }
        }
        // A piece may stand for several tokens; the server's own count, when it comes, corrects ours.
        let counted = chunk.usage.and_then(|usage| usage.completion_tokens).unwrap_or_default();
        if counted > self.tokens && self.finish.is_some() {
            return Ok(self.send(String::new(), counted - self.tokens).await);
        }
        Ok(Flow::Continue)
    }

    async fn send(&mut self, text: String, tokens: usize) -> Flow {
        self.tokens += tokens;
        match self.events.send(Ok(StreamEvent::Text { text, tokens })).await {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Abandoned,
        }
    }
}

impl Flow {
    fn is_abandoned(&self) -> bool {
        matches!(self, Self::Abandoned)
    }
}

#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    completion_tokens: Option<usize>,
}

fn finish_reason(reason: &str, url: &str) -> Result<FinishReason> {
    match reason {
        "stop" | "eos" | "eos_token" | "stop_sequence" => Ok(FinishReason::Stop),
        "length" | "max_tokens" => Ok(FinishReason::Length),
        other => Err(engine_error(format!("{url} broke the generation off with finish reason `{other}`"))),
    }
}

/// The server's own words in an error answer, cut at a few kilobytes.
async fn error_text(mut answer: Response) -> String {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() >= LONGEST_ERROR {
            bytes.truncate(LONGEST_ERROR);
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    match serde_json::from_str::<serde_json::Value>(&text) {
        Ok(json) => message_of(json.get("error").unwrap_or(&json)),
        Err(_) => text,
    }
}

fn message_of(error: &serde_json::Value) -> String {
    let message = error.get("message").or_else(|| error.get("detail")).unwrap_or(error);
    message.as_str().map_or_else(|| message.to_string(), str::to_owned)
}

fn engine_error(detail: String) -> Error {
    Error::Engine { what: ENGINE, detail }
}

/// An error with all its causes; reqwest keeps the telling one inside.
fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

fn without_credentials(mut url: Url) -> String {
    let cleared = url.set_username("").and_then(|()| url.set_password(None));
    url.set_query(None);
    match cleared {
        Ok(()) => url.to_string(),
        Err(()) => url.host_str().unwrap_or_default().to_owned(),
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_and_credentials_never_shown() {
        for url in ["", "host:8000", "ftp://host/v1", "http://"] {
            assert!(OpenAiExpander::new(OpenAiOptions::new(url, "m")).is_err(), "{url}");
        }
        let mut options = OpenAiOptions::new("https://user:word@host:8000/v1/?token=x", "m");
        options.api_key = Some("sk-secret".into());
        let shown = format!("{options:?}");
        let expander = OpenAiExpander::new(options).unwrap();
        assert_eq!(expander.endpoint.path(), "/v1/chat/completions");
        assert_eq!(expander.info().device, "https://host:8000/v1/");
        assert!(!shown.contains("secret") && !shown.contains("word"), "{shown}");
    }
}
