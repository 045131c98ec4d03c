//! `GET /admin/bundles`, `POST /admin/bundles/{id}/activate`, `/admin/bundles/rollback`, `/admin/bundles/import`.

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    AppState,
    body::{JsonBody, parse},
    problem::{Code, Problem},
};
use crate::bundles::{Begun, BundleRecord, Bundles, Ended, Underway};

/// How long an activation's request waits for its end when it doesn't say.
const WAIT_MS: u64 = 10_000;

/// The routes; their role is asked for around them.
pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/admin/bundles", get(list))
        .route("/admin/bundles/import", post(import))
        .route("/admin/bundles/rollback", post(rollback))
        .route("/admin/bundles/{id}/activate", post(activate))
}

/// Which bundle answers, and the change to another.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Changeover {
    /// The bundle that answers.
    active: String,
    /// The one to which a rollback leads.
    previous: Option<String>,
    /// The activation under way.
    activation: Option<Underway>,
    /// How the last activation ended.
    last_activation: Option<Ended>,
}

impl Changeover {
    /// As it is now.
    pub(super) fn of(bundles: &Bundles) -> Self {
        Self {
            active: bundles.active(),
            previous: bundles.previous(),
            activation: bundles.underway(),
            last_activation: bundles.ended(),
        }
    }
}

/// The registered bundles, and which one answers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BundleList {
    #[serde(flatten)]
    changeover: Changeover,
    /// All of them.
    bundles: Vec<BundleRecord>,
}

async fn list(State(state): State<Arc<AppState>>) -> Json<BundleList> {
    let bundles = &state.bundles;
    Json(BundleList { changeover: Changeover::of(bundles), bundles: bundles.list() })
}

/// How long to wait.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    /// Milliseconds until the answer says that the activation goes on.
    wait_ms: Option<u64>,
}

impl Wait {
    /// From a body that may be empty; no longer than a request may take.
    fn read(body: &Bytes, state: &AppState) -> Result<Duration, Problem> {
        let wait = if body.is_empty() { Self::default() } else { parse::<Self>(body)? };
        let most = u64::try_from(state.limits.request_timeout.as_millis()).unwrap_or(u64::MAX) / 2;
        match wait.wait_ms {
            Some(ms) if ms > most => {
                let detail = format!("{ms} is more than {most}; an activation goes on without its request");
                Err(Problem::field("/wait_ms", detail))
            }
            given => Ok(Duration::from_millis(given.unwrap_or(WAIT_MS.min(most)))),
        }
    }
}

async fn activate(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response, Problem> {
    let wait = Wait::read(&body, &state)?;
    answer(&state, wait, state.bundles.begin_activation(&id)?).await
}

async fn rollback(State(state): State<Arc<AppState>>, body: Bytes) -> Result<Response, Problem> {
    let wait = Wait::read(&body, &state)?;
    answer(&state, wait, state.bundles.begin_rollback()?).await
}

/// An activation that goes on without its request.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GoesOn {
    /// The bundle that answers.
    active: String,
    /// How far the activation is; null when it has just ended.
    activation: Option<Underway>,
}

/// 200 with what was done, or 202 when it takes longer than `wait`: it then goes on, and `/admin/bundles` shows how far it is.
async fn answer(state: &AppState, wait: Duration, begun: Begun) -> Result<Response, Problem> {
    let bundles = &state.bundles;
    // A task of its own: it must not end with a client that goes away.
    let (doing, audit) = (bundles.clone(), state.audit.clone());
    let task = tokio::spawn(async move {
        let ended = doing.finish(begun, &|_| ()).await;
        // What was answered with 202 ends without its request, so the audit hears of every end here.
        audit.record_activation(&ended, doing.active()).await;
        ended
    });
    match tokio::time::timeout(wait, task).await {
        Ok(Ok(ended)) => Ok(Json(ended?).into_response()),
        Ok(Err(error)) => {
            tracing::error!(%error, "an activation broke");
            Err(Problem::new(
                Code::Internal,
                "the activation broke; the server's log has more, the old bundle goes on",
            ))
        }
        Err(_elapsed) => {
            let body = GoesOn { active: bundles.active(), activation: bundles.underway() };
            let location = [(header::LOCATION, "/admin/bundles")];
            Ok((StatusCode::ACCEPTED, location, Json(body)).into_response())
        }
    }
}

/// The bundle of an import.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImportedBundle {
    /// Its id.
    id: String,
}

/// Where a bundle is, on the server.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ImportBundle)]
pub(super) struct ImportRequest {
    /// Its folder.
    #[schema(value_type = String)]
    path: PathBuf,
    /// What to call it instead of what its manifest says.
    name: Option<String>,
}

async fn import(
    State(state): State<Arc<AppState>>,
    JsonBody(request): JsonBody<ImportRequest>,
) -> Result<Response, Problem> {
    let bundles = state.bundles.clone();
    // Copying may take long, and half a copy would be for nothing.
    let task = tokio::spawn(async move { bundles.import(&request.path, request.name.as_deref()).await });
    let imported = task.await;
    let id =
        imported.map_err(|error| Problem::new(Code::Internal, format!("the import broke: {error}")))??;
    let location = [(header::LOCATION, "/admin/bundles")];
    Ok((StatusCode::CREATED, location, Json(ImportedBundle { id })).into_response())
}
