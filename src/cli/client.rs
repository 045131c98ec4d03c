//! What commands that talk to a running server share.

use anyhow::{Context, bail};
use clap::Args;
use expandr_evaluation::client::{Endpoint, EndpointOptions};
use reqwest::{RequestBuilder, Response};
use serde_json::Value;

/// Which server to talk to.
#[derive(Args, Clone)]
pub(super) struct Server {
    /// The server's base URL.
    #[arg(long, env = "EXPANDR_ENDPOINT", default_value = "http://127.0.0.1:8080")]
    pub(super) endpoint: String,

    /// Bearer key, where the server wants one.
    #[arg(long, env = "EXPANDR_KEY", hide_env_values = true)]
    pub(super) key: Option<String>,
}

impl std::fmt::Debug for Server {
    /// The key is not printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Server {
    /// The same server for the evaluation client, which waits while the server is overloaded.
    pub(super) fn endpoint(&self) -> anyhow::Result<Endpoint> {
        Ok(Endpoint::new(&self.endpoint, self.key.clone(), EndpointOptions::default())?)
    }

    /// A request to `path`.
    pub(super) fn request(
        &self,
        client: &reqwest::Client,
        method: reqwest::Method,
        path: &str,
    ) -> RequestBuilder {
        let request = client.request(method, format!("{}{path}", self.endpoint.trim_end_matches('/')));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends `request`.
    ///
    /// # Errors
    /// When the server can't be reached.
    pub(super) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        request.send().await.with_context(|| {
            format!(
                "no answer from {}; is `expandr serve` running there? (--endpoint changes the address)",
                self.endpoint
            )
        })
    }
}

/// The JSON of a good answer.
///
/// # Errors
/// What the problem of a bad one says.
pub(super) async fn json(response: Response) -> anyhow::Result<Value> {
    let status = response.status();
    let body: Value =
        response.json().await.with_context(|| format!("status {status}, and no JSON in the answer"))?;
    if status.is_success() {
        return Ok(body);
    }
    let detail = body["detail"].as_str().unwrap_or("no detail");
    let mut message = format!("the server answered {status}: {detail}");
    for error in body["errors"].as_array().into_iter().flatten() {
        let (pointer, detail) =
            (error["pointer"].as_str().unwrap_or(""), error["detail"].as_str().unwrap_or(""));
        if pointer.is_empty() && message.contains(detail) {
            continue;
        }
        let line = error["line"].as_u64().map(|line| format!("line {line} ")).unwrap_or_default();
        let colon = if pointer.is_empty() { "" } else { ": " };
        message.push_str(&format!("\n  {line}{pointer}{colon}{detail}"));
    }
    bail!(message)
}
