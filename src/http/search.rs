//! `POST /search`, `/search/batch`, `/expand` and `/embed`.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use expandr_models::{Priority, TextKind};
use futures::future::join_all;
use serde::{Deserialize, Serialize, Serializer};

use super::{AppState, body::JsonBody, layers::RequestContext, problem::Problem};
use crate::bundle::Bundle;
use crate::search::{
    ExpandAnswer,
    answer::SearchAnswer,
    average::normalize,
    check::{check_expansion, check_query},
    request::{ExpansionChoice, ExpansionMode, SearchRequest},
};

static SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// Names the bundle where the body can't: vectors of different encoders must not meet.
static BUNDLE: HeaderName = HeaderName::from_static("x-expandr-bundle");

pub(super) async fn search(
    State(state): State<Arc<AppState>>,
    Extension(context): Extension<RequestContext>,
    JsonBody(request): JsonBody<SearchRequest>,
) -> Result<Response, Problem> {
    let cost = request.cost();
    let query = state.feedback.is_on().then(|| request.query.clone());
    let bundle = state.service.bundle();
    let checked = state.service.check(&bundle, request)?;
    let _permit = state.service.admission().admit(cost)?;
    let answer = state.service.search(&bundle, checked, context.started, &context.id).await?;
    if let Some(query) = query {
        state.feedback.remember(&query, &answer);
    }
    let timing = HeaderValue::from_str(&answer.timings.server_timing());
    let mut response = Json(answer).into_response();
    if let Ok(timing) = timing {
        response.headers_mut().insert(SERVER_TIMING.clone(), timing);
    }
    Ok(response)
}

/// Several searches at once.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchRequest {
    searches: Vec<SearchRequest>,
}

/// Their answers, in order.
#[derive(Debug, Serialize)]
pub(super) struct BatchAnswer {
    results: Vec<BatchResult>,
}

/// One search's answer, exactly as `/search` gives it, or its problem.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum BatchResult {
    Answer(Box<SearchAnswer>),
    Problem(FailedSearch),
}

#[derive(Debug)]
struct FailedSearch {
    problem: Problem,
    request_id: String,
}

impl Serialize for FailedSearch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.problem.body(&self.request_id).serialize(serializer)
    }
}

pub(super) async fn batch(
    State(state): State<Arc<AppState>>,
    Extension(context): Extension<RequestContext>,
    JsonBody(request): JsonBody<BatchRequest>,
) -> Result<Json<BatchAnswer>, Problem> {
    let count = request.searches.len();
    if !(1..=state.limits.batch_searches).contains(&count) {
        let detail = format!("{count} searches are not between 1 and {}", state.limits.batch_searches);
        return Err(Problem::field("/searches", detail));
    }
    let cost = request.searches.iter().map(SearchRequest::cost).sum();
    let _permit = state.service.admission().admit(cost)?;
    let bundle = state.service.bundle();
    let searches = request
        .searches
        .into_iter()
        .enumerate()
        .map(|(i, request)| one_of_batch(&state, &bundle, &context, i, request));
    Ok(Json(BatchAnswer { results: join_all(searches).await }))
}

async fn one_of_batch(
    state: &AppState,
    bundle: &Arc<Bundle>,
    context: &RequestContext,
    i: usize,
    request: SearchRequest,
) -> BatchResult {
    let request_id = format!("{}/{i}", context.id);
    let query = state.feedback.is_on().then(|| request.query.clone());
    let answer = async {
        let checked = state.service.check(bundle, request)?;
        state.service.search(bundle, checked, context.started, &request_id).await
    };
    match answer.await {
        Ok(answer) => {
            if let Some(query) = query {
                state.feedback.remember(&query, &answer);
            }
            BatchResult::Answer(Box::new(answer))
        }
        Err(problem) => {
            let problem = problem.under(&format!("/searches/{i}"));
            BatchResult::Problem(FailedSearch { problem, request_id })
        }
    }
}

/// A query to expand.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExpandRequest {
    query: String,
    expansion: Option<ExpansionChoice>,
}

pub(super) async fn expand(
    State(state): State<Arc<AppState>>,
    Extension(context): Extension<RequestContext>,
    JsonBody(request): JsonBody<ExpandRequest>,
) -> Result<Json<ExpandAnswer>, Problem> {
    let limits = &state.service.settings().limits;
    let mut errors = Vec::new();
    check_query(&request.query, limits.query_bytes, &mut errors);
    let choice = request.expansion.or(Some(ExpansionChoice::Simple(true)));
    if matches!(&choice, Some(ExpansionChoice::Detailed(e)) if e.mode == Some(ExpansionMode::Auto)) {
        let detail = "auto decides by the hits of a search, and nothing is searched here; use always";
        return Err(Problem::field("/expansion", detail));
    }
    let bundle = state.service.bundle();
    let expansion = check_expansion(choice, limits, &state.service.grounds(&bundle), &mut errors);
    if !errors.is_empty() {
        return Err(Problem::fields(errors));
    }
    let Some(expansion) = expansion else {
        return Err(Problem::field("/expansion", "is off, so there is nothing to do; use true or an object"));
    };
    let _permit = state.service.admission().admit(expansion.count)?;
    let service = &state.service;
    Ok(Json(service.expand(&bundle, &request.query, &expansion, context.started, &context.id).await?))
}

/// `/embed` in the shape of text-embeddings-inference.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EmbedRequest {
    inputs: Inputs,
    #[serde(default = "yes")]
    normalize: bool,
    /// Longer texts are always cut at the encoder's maximum length; `false` is refused rather than ignored.
    #[serde(default = "yes")]
    truncate: bool,
    prompt_name: Option<PromptName>,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text or a list of texts")]
enum Inputs {
    One(String),
    Several(Vec<String>),
}

/// Which of the checkpoint's prefixes to use.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PromptName {
    Query,
    Document,
}

pub(super) async fn embed(
    State(state): State<Arc<AppState>>,
    JsonBody(request): JsonBody<EmbedRequest>,
) -> Result<Response, Problem> {
    if !request.truncate {
        return Err(Problem::field(
            "/truncate",
            "false is not supported: longer texts are always cut; leave it out",
        ));
    }
    let texts = match request.inputs {
        Inputs::One(text) => vec![text],
        Inputs::Several(texts) => texts,
    };
    if !(1..=state.limits.embed_texts).contains(&texts.len()) {
        let detail = format!("{} texts are not between 1 and {}", texts.len(), state.limits.embed_texts);
        return Err(Problem::field("/inputs", detail));
    }
    let _permit = state.service.admission().admit(texts.len())?;
    let kind = match request.prompt_name {
        Some(PromptName::Query) => TextKind::Query,
        Some(PromptName::Document) | None => TextKind::Document,
    };
    let bundle = state.service.bundle();
    let mut vectors = bundle.encoder.encode(kind, Priority::Interactive, texts).await?;
    if request.normalize {
        vectors.iter_mut().for_each(|vector| normalize(vector));
    }
    let mut response = Json(vectors).into_response();
    if let Ok(id) = HeaderValue::from_str(&bundle.id) {
        response.headers_mut().insert(BUNDLE.clone(), id);
    }
    Ok(response)
}
