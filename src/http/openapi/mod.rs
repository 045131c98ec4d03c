//! The description of the HTTP interface in the form of OpenAPI 3.1: the schemas are derived from the types that handlers
//! read and write, the routes are told in `routes` and `admin`. `GET /openapi.json` serves it and `docs/openapi.json` is it.
//!
//! - `routes`: what clients use, `admin`: what operators use; `operation`: what describing one takes.
//! - `schemas`: from Rust types to JSON schemas.

mod admin;
mod operation;
mod routes;
mod schemas;

use std::sync::LazyLock;

use axum::{
    body::Bytes,
    http::header,
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use self::operation::{Routes, request_id, response_name};
use super::problem::Code;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    // Schemas are plain data, which always can be written as JSON; a test reads the whole.
    describe().unwrap_or_else(|error| json!({ "error": error.to_string() }))
});

static TEXT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(text()));

/// The description.
pub fn document() -> &'static Value {
    &DOCUMENT
}

/// The description as a file.
pub fn text() -> String {
    let mut text = serde_json::to_string_pretty(document()).unwrap_or_default();
    text.push('\n');
    text
}

/// `GET /openapi.json`.
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], TEXT.clone()).into_response()
}

fn describe() -> serde_json::Result<Value> {
    let mut routes = Routes::default();
    routes.schemas.of::<super::problem::ProblemBody<'_>>();
    routes::all(&mut routes);
    let (paths, schemas) = routes.finish()?;
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "expandr",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Retrieval that asks a language model first",
            "description": INTRODUCTION,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/", "description": "The server that gives this description" }],
        "tags": tags(),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": problems(),
            "headers": {
                "RequestId": {
                    "description": "Names this request in logs: the request's own `x-request-id`, where it sent a printable one \
                                    of at most 128 characters.",
                    "required": true,
                    "schema": { "type": "string", "minLength": 1, "maxLength": 128 },
                },
            },
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key of the role that stands at the route. `read`: searches; `write`: documents, and all that \
                                    read may; `admin`: everything. A role without a key is open where the server listens on \
                                    loopback only, and closed otherwise; without an admin key there are no routes under `/admin`.",
                },
            },
        },
    }))
}

const INTRODUCTION: &str = "A client sends a query; expandr lets a language model write the passage that would answer it, \
    averages the embeddings of query and passage, and searches a vector index with the result.\n\n\
    JSON in, JSON out. Bodies and parameters refuse unknown members. Errors are RFC 9457 `application/problem+json`; their \
    `code` is for programs, their `detail` names the remedy, and `errors` points at everything that is wrong with a request. \
    A `traceparent` header (W3C Trace Context) makes the request part of the caller's trace. Limits that depend on the \
    server's configuration are in `GET /info` under `limits`.";

fn tags() -> Value {
    json!([
        { "name": "Search", "description": "Finding documents, and what searches are made of." },
        { "name": "Documents", "description": "What is searched. A 200 or 201 means durable and searchable." },
        { "name": "Feedback", "description": "What users found useful." },
        { "name": "Jobs", "description": "Retraining, evaluating, importing beside the searches." },
        { "name": "Bundles", "description": "Versions of encoder, language model and index that belong together." },
        { "name": "Datasets", "description": "Training pairs." },
        { "name": "Audit", "description": "Who administered the service." },
        { "name": "Service", "description": "What runs, how it is, and this description." },
    ])
}

/// The answers that report a problem, one a status.
fn problems() -> Map<String, Value> {
    let mut problems = Map::new();
    for code in Code::ALL {
        let status = code.status();
        let codes: Vec<Code> = Code::ALL.into_iter().filter(|other| other.status() == status).collect();
        let names: Vec<String> = codes.iter().map(|code| format!("`{}`", code.name())).collect();
        let meanings: Vec<&str> = codes.iter().map(|code| code.title()).collect();
        let mut headers = request_id();
        if code == Code::Overloaded {
            headers["retry-after"] =
                json!({ "description": "Seconds after which to try again.", "schema": { "type": "string" } });
        }
        if code == Code::Unauthorized {
            headers["www-authenticate"] =
                json!({ "description": "`Bearer`.", "schema": { "type": "string" } });
        }
        if code == Code::MethodNotAllowed {
            headers["allow"] =
                json!({ "description": "What the route takes.", "schema": { "type": "string" } });
        }
        let content =
            json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
        let description = format!("{}: {}.", names.join(" or "), meanings.join("; or "));
        problems
            .entry(response_name(code))
            .or_insert_with(|| json!({ "description": description, "headers": headers, "content": content }));
    }
    problems
}
