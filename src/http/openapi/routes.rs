//! The routes of searches, documents and feedback, and of the service itself.

use serde_json::{Value, json};

use super::{
    admin,
    operation::{LINES, Routes},
};
use crate::{
    http::{
        auth::Role,
        documents::{BulkAnswer, BulkParameters, PutRequest, QueuedAnswer, SnapshotAnswer, WriteAnswer},
        feedback::{DeleteParameters, KeptFeedback},
        info::{Health, Info},
        problem::Code,
        search::{BatchAnswer, BatchRequest, EmbedRequest, ExpandRequest, Vectors},
    },
    search::{ExpandAnswer, answer::SearchAnswer, request::SearchRequest},
};

/// Describes all of them.
pub(super) fn all(routes: &mut Routes) {
    search(routes);
    documents(routes);
    feedback(routes);
    admin::all(routes);
    service(routes);
}

fn search(routes: &mut Routes) {
    let example = json!({
        "query": "limit how many tasks run concurrently", "top_k": 3, "explain": true,
        "expansion": {"max_tokens": 64, "timeout_ms": 5000}, "filter": {"eq": {"crate": "tokio"}},
    });
    routes
        .route("post", "/search", "Search", "search")
        .says(
            "Search",
            "The query is expanded by a passage that a language model writes, unless the request or the configuration says \
             otherwise. Where no expansion came in time, the raw hits answer, and `expansion` says why. With \
             `accept: text/event-stream` the answer comes in parts, as soon as each is known.",
        )
        .role(Role::Read)
        .body::<SearchRequest>(true, example)
        .answer_with::<SearchAnswer>(200, "The hits, best first, and how they were found.", found())
        .events(EVENTS, &["raw", "expansion", "answer", "error"], "event: expansion\ndata: {\"passage\":0,\"text\":\"A \"}\n\n")
        .header(200, "server-timing", "The milliseconds of every stage.")
        .problems(&[Code::Overloaded, Code::ExpansionFailed])
        .limited()
        .done();
    routes
        .route("post", "/search/batch", "Search", "searchBatch")
        .says(
            "Search for several queries",
            "Each search is answered as by `/search`: with an answer, or with a problem that stands in its place.",
        )
        .role(Role::Read)
        .body::<BatchRequest>(true, json!({"searches": [{"query": "bone health"}, {"query": "red apples", "expansion": false}]}))
        .answer::<BatchAnswer>(200, "Answers and problems, in the order of the searches.")
        .problems(&[Code::Overloaded])
        .limited()
        .done();
    routes
        .route("post", "/expand", "Search", "expand")
        .says("Write the passages of a query", "What `/search` would search with, without searching.")
        .role(Role::Read)
        .body::<ExpandRequest>(
            true,
            json!({"query": "what does vitamin D do to bones?", "expansion": {"max_tokens": 32}}),
        )
        .answer::<ExpandAnswer>(200, "The passages.")
        .problems(&[Code::Overloaded, Code::ExpansionFailed])
        .limited()
        .done();
    routes
        .route("post", "/embed", "Search", "embed")
        .says("Embed texts", "In the shape of text-embeddings-inference.")
        .role(Role::Read)
        .body::<EmbedRequest>(
            true,
            json!({"inputs": ["red apples", "blue whales"], "prompt_name": "document"}),
        )
        .answer_with::<Vectors>(200, "A vector for each text, in order.", json!([[0.6, 0.8], [0.8, -0.6]]))
        .header(
            200,
            "x-expandr-bundle",
            "The bundle whose encoder it was: vectors of different encoders must not meet.",
        )
        .problems(&[Code::Overloaded])
        .limited()
        .done();
}

const EVENTS: &str = "As server-sent events: `raw` (the hits of the query alone), `expansion` (pieces of the passage), `answer` \
     (the whole answer as in JSON), `error` (a problem).";

fn found() -> Value {
    json!({
        "request_id": "6f0c8d1e", "bundle": "bundle-3f9a2c81d07e", "ranking": "dense", "searched": "hnsw", "took_ms": 412.0,
        "hits": [{"rank": 1, "id": "4983", "score": 0.71, "title": "Semaphore", "text": "Counting permits …", "metadata": {"crate": "tokio"}}],
        "expansion": {
            "status": "applied", "texts": ["A semaphore limits …"], "output_tokens": 64, "cut": false, "query_weight": 0.5,
            "query_cosine": 0.81, "raw_overlap_at_10": 0.7,
        },
        "timings": {
            "encode_query_ms": 9.1, "search_raw_ms": 0.4, "search_lexical_ms": 0.0, "expansion_ms": 380.2, "first_token_ms": 21.0,
            "encode_expansion_ms": 17.8, "search_ms": 0.4, "fuse_ms": 0.0, "fetch_ms": 0.2, "own_ms": 0.3, "total_ms": 412.0,
        },
    })
}

fn documents(routes: &mut Routes) {
    let id = || json!({ "type": "string", "minLength": 1, "maxLength": 512 });
    let document = json!({"id": "4983", "title": "Semaphore", "text": "Counting permits …", "metadata": {"crate": "tokio"}});
    routes
        .route("put", "/documents", "Documents", "putDocuments")
        .says("Store documents", "A document with a known id replaces the old one.")
        .role(Role::Write)
        .body::<PutRequest>(true, json!({ "documents": [document] }))
        .answer::<WriteAnswer>(200, "All replaced one of the same id.")
        .answer::<WriteAnswer>(201, "At least one is new.")
        .problems(&[Code::Overloaded])
        .limited()
        .done();
    routes
        .route("post", "/documents/bulk", "Documents", "putManyDocuments")
        .says(
            "Store many documents",
            "The body is read as a stream; lines that are no documents are listed and left out.",
        )
        .role(Role::Write)
        .query::<BulkParameters>()
        .lines(
            "A document a line: `id` (or `_id`), `text`, and if wanted `title` and `metadata`.",
            "{\"_id\": \"4983\", \"title\": \"Semaphore\", \"text\": \"Counting permits …\"}\n",
        )
        .answer::<BulkAnswer>(200, "What became of the lines.")
        .answer::<QueuedAnswer>(202, "With `wait=false`: the body is safe on disk and will be ingested.")
        .answer::<BulkAnswer>(422, "No line could be stored; or the request is not valid.")
        .done();
    routes
        .route("get", "/documents/{id}", "Documents", "getDocument")
        .says("Read a document", "")
        .role(Role::Read)
        .parameter("path", "id", "The document's id; it may contain slashes.", id())
        .answer::<expandr_index::Document>(200, "The document, as it was given.")
        .problems(&[Code::NotFound])
        .limited()
        .done();
    routes
        .route("delete", "/documents/{id}", "Documents", "deleteDocument")
        .says("Delete a document", "")
        .role(Role::Write)
        .parameter("path", "id", "The document's id; it may contain slashes.", id())
        .empty(204, "It is gone.")
        .problems(&[Code::NotFound])
        .limited()
        .done();
    routes
        .route("post", "/admin/snapshot", "Documents", "writeSnapshot")
        .says("Write the HNSW snapshot now", "")
        .role(Role::Admin)
        .answer::<SnapshotAnswer>(200, "It is written.")
        .problems(&[Code::MalformedJson, Code::BodyTooLarge])
        .limited()
        .done();
}

fn feedback(routes: &mut Routes) {
    routes
        .route("post", "/feedback", "Feedback", "giveFeedback")
        .says("Say what a user did with a document of an answer", "Off by default: then 404.")
        .role(Role::Read)
        .body::<crate::feedback::GivenFeedback>(
            true,
            json!({"request_id": "6f0c8d1e", "document_id": "4983", "kind": "judged", "relevant": true}),
        )
        .answer::<KeptFeedback>(201, "It is durable.")
        .problems(&[Code::NotFound, Code::Overloaded])
        .limited()
        .done();
    routes
        .route("get", "/admin/feedback", "Feedback", "exportFeedback")
        .says("Export all feedback", "An event a line, oldest first: see the schema FeedbackEvent.")
        .role(Role::Admin)
        .text(
            200,
            "The events.",
            LINES,
            "{\"at\":\"2026-11-26T15:00:00.000Z\",\"request_id\":\"6f0c8d1e\",\"query\":\"bone health\",\"document_id\":\"4983\",\
             \"kind\":\"clicked\",\"relevant\":null,\"rank\":1,\"bundle\":\"bundle-3f9a2c81d07e\"}\n",
        )
        .problems(&[Code::MalformedJson, Code::BodyTooLarge])
        .done();
    routes
        .route("delete", "/admin/feedback", "Feedback", "deleteFeedback")
        .says(
            "Delete feedback",
            "The events to which all of the parameters apply; without parameters every event.",
        )
        .role(Role::Admin)
        .query::<DeleteParameters>()
        .answer::<crate::feedback::Deleted>(200, "They are off the disk.")
        .problems(&[Code::MalformedJson, Code::BodyTooLarge])
        .done();
    routes.schemas.of::<crate::feedback::Event>();
}

fn service(routes: &mut Routes) {
    routes
        .route("get", "/info", "Service", "info")
        .says("What runs here, what it grants, and how far queued work is", "")
        .role(Role::Read)
        .answer::<Info<'_>>(200, "All of it.")
        .limited()
        .done();
    let probe = |routes: &mut Routes, path: &'static str, name: &str, summary: &str| {
        routes
            .route("get", path, "Service", name)
            .says(summary, "")
            .text(200, "It does.", "text/plain", "ok\n")
            .limited()
            .done();
    };
    probe(routes, "/livez", "livez", "Whether the process answers");
    probe(routes, "/readyz", "readyz", "Whether the server takes traffic");
    routes
        .route("get", "/health", "Service", "health")
        .says("Liveness and readiness with a few figures", "")
        .answer::<Health>(200, "The server takes traffic.")
        .answer::<Health>(503, "The server is shutting down; or it is starting.")
        .limited()
        .done();
    routes
        .route("get", "/metrics", "Service", "metrics")
        .says("Metrics in Prometheus' text form", "")
        .text(200, "All metrics.", "text/plain", "expandr_index_documents 4000\n")
        .limited()
        .done();
    routes
        .route("get", "/", "Service", "page")
        .says("A page for people: search, bundles, jobs", "")
        .parameter("header", "if-none-match", "What the client has.", json!({ "type": "string" }))
        .text(200, "The page.", "text/html", "<!DOCTYPE html>")
        .empty(304, "The client has it.")
        .limited()
        .done();
    let assets = routes
        .route("get", "/assets/{name}", "Service", "asset")
        .says("A file of the page", "")
        .parameter("path", "name", "Its name.", json!({ "type": "string", "minLength": 1 }))
        .parameter("header", "if-none-match", "What the client has.", json!({ "type": "string" }));
    let kinds = ["text/html", "text/css", "text/javascript", "image/svg+xml"];
    let assets = kinds.into_iter().fold(assets, |assets, kind| assets.text(200, "", kind, ""));
    assets.empty(304, "The client has it.").problems(&[Code::NotFound]).limited().done();
    routes
        .route("get", "/openapi.json", "Service", "openapi")
        .says("This description", "")
        .object(200, "OpenAPI 3.1.")
        .limited()
        .done();
    routes
        .route("get", "/docs", "Service", "docs")
        .says("This description for people", "")
        .text(200, "A page.", "text/html", "<!DOCTYPE html>")
        .limited()
        .done();
}
