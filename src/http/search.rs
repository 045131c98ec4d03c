//! `POST /search`, `/search/batch`, `/expand` and `/embed`.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use expandr_models::{Priority, TextKind};
use futures::future::join_all;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Ref, RefOr, Schema},
};

use super::{
    AppState,
    body::JsonBody,
    layers::RequestContext,
    problem::{Problem, ProblemBody},
    stream::{self, Admitted},
};
use crate::bundle::Bundle;
use crate::search::{
    ExpandAnswer,
    answer::SearchAnswer,
    average::normalize,
    check::{CheckedSearch, check_expansion, check_query},
    request::{ExpansionChoice, ExpansionMode, SearchRequest},
};

static SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// Names the bundle where the body can't: vectors of different encoders must not meet.
static BUNDLE: HeaderName = HeaderName::from_static("x-expandr-bundle");

pub(super) async fn search(
    State(state): State<Arc<AppState>>,
    Extension(context): Extension<RequestContext>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<SearchRequest>,
) -> Result<Response, Problem> {
    let query = state.feedback.is_on().then(|| request.query.clone());
    let bundle = state.service.bundle();
    let checked = state.service.check(&bundle, request)?;
    let permit = state.service.admit(&bundle, Some(&checked), checked.cost())?;
    if stream::is_wanted(&headers) {
        let admitted = Admitted { state, context, bundle, search: checked, permit, remembered: query };
        return Ok(stream::respond(admitted));
    }
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
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchRequest {
    /// As `/search` takes them; `/info` says how many under `limits.batch_searches`.
    #[schema(min_items = 1)]
    searches: Vec<SearchRequest>,
}

/// Their answers, in order.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchAnswer {
    /// In the order of the searches.
    results: Vec<BatchResult>,
}

/// One search's answer, exactly as `/search` gives it, or its problem.
#[derive(Debug, Serialize, ToSchema)]
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

impl PartialSchema for FailedSearch {
    fn schema() -> RefOr<Schema> {
        Ref::from_schema_name(ProblemBody::name()).into()
    }
}

impl ToSchema for FailedSearch {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((ProblemBody::name().into(), ProblemBody::schema()));
        ProblemBody::schemas(schemas);
    }
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
    let bundle = state.service.bundle();
    let searches: Vec<(String, Result<CheckedSearch, Problem>)> = request
        .searches
        .into_iter()
        .map(|search| (search.query.clone(), state.service.check(&bundle, search)))
        .collect();
    let cost = searches.iter().map(|(_, checked)| checked.as_ref().map_or(1, CheckedSearch::cost)).sum();
    let _permit = state.service.admit(&bundle, None, cost)?;
    let searches = searches
        .into_iter()
        .enumerate()
        .map(|(i, (query, checked))| one_of_batch(&state, &bundle, &context, i, query, checked));
    Ok(Json(BatchAnswer { results: join_all(searches).await }))
}

async fn one_of_batch(
    state: &AppState,
    bundle: &Arc<Bundle>,
    context: &RequestContext,
    i: usize,
    query: String,
    checked: Result<CheckedSearch, Problem>,
) -> BatchResult {
    let request_id = format!("{}/{i}", context.id);
    let answer = async { state.service.search(bundle, checked?, context.started, &request_id).await };
    match answer.await {
        Ok(answer) => {
            if state.feedback.is_on() {
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
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExpandRequest {
    /// The query.
    #[schema(min_length = 1, max_length = 8192, pattern = r"\S")]
    query: String,
    /// How to expand; neither off nor `auto`. Default: `true`.
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
    let _permit = state.service.admission().admit(expansion.cost())?;
    let service = &state.service;
    Ok(Json(service.expand(&bundle, &request.query, &expansion, context.started, &context.id).await?))
}

/// `/embed` in the shape of text-embeddings-inference.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EmbedRequest {
    /// A text or a list of texts; `/info` says how many under `limits.embed_texts`.
    inputs: Inputs,
    /// Whether vectors are scaled to length 1; default true.
    #[serde(default = "yes")]
    normalize: bool,
    /// Longer texts are always cut at the encoder's maximum length; `false` is refused rather than ignored.
    #[serde(default = "yes")]
    truncate: bool,
    /// Which of the checkpoint's prefixes stands before each text; default `document`.
    prompt_name: Option<PromptName>,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a text or a list of texts")]
enum Inputs {
    One(String),
    Several(Vec<String>),
}

/// Which of the checkpoint's prefixes to use.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum PromptName {
    Query,
    Document,
}

/// A vector for each text, in order.
#[derive(Debug, Serialize, ToSchema)]
#[serde(transparent)]
pub(super) struct Vectors(Vec<Vec<f32>>);

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
    let bundle = state.service.bundle();
    let _permit = state.service.admit(&bundle, None, texts.len())?;
    let kind = match request.prompt_name {
        Some(PromptName::Query) => TextKind::Query,
        Some(PromptName::Document) | None => TextKind::Document,
    };
    let mut vectors = bundle.encoder.encode(kind, Priority::Interactive, texts).await?;
    if request.normalize {
        vectors.iter_mut().for_each(|vector| normalize(vector));
    }
    let mut response = Json(Vectors(vectors)).into_response();
    if let Ok(id) = HeaderValue::from_str(&bundle.id) {
        response.headers_mut().insert(BUNDLE.clone(), id);
    }
    Ok(response)
}
