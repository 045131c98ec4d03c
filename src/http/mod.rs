//! The HTTP surface: routes, and the layers around them. Handlers translate between wire forms and the services; they
//! decide nothing about search.

mod audit;
pub mod auth;
pub mod body;
mod bundles;
mod datasets;
mod docs;
mod documents;
mod feedback;
mod info;
mod jobs;
mod layers;
pub mod openapi;
mod page;
pub mod problem;
mod search;
mod stream;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    middleware::from_fn_with_state,
    routing::{get, post, put},
};
use tokio::sync::Semaphore;

use self::{
    auth::{Keys, Role},
    problem::{Code, Problem},
};
use crate::{
    audit::Audit,
    bundles::Bundles,
    datasets::Datasets,
    documents::{DocumentLimits, Spool},
    feedback::Feedback,
    jobs::Jobs,
    search::SearchService,
};

/// Limits of the HTTP surface.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// Largest JSON body in bytes.
    pub body_bytes: usize,
    /// Largest body of `/documents/bulk` in bytes.
    pub bulk_body_bytes: u64,
    /// Most searches of one batch.
    pub batch_searches: usize,
    /// Most texts of one `/embed`.
    pub embed_texts: usize,
    /// Longest time for anything but bulk ingestion.
    pub request_timeout: Duration,
    /// What a document may be.
    pub documents: DocumentLimits,
}

/// What operators work with beside searches and documents.
pub struct Operations {
    /// What users found useful.
    pub feedback: Arc<Feedback>,
    /// Training pairs that operators uploaded.
    pub datasets: Arc<Datasets>,
    /// Who administered the service.
    pub audit: Arc<Audit>,
}

/// What handlers share.
pub struct AppState {
    /// Searches.
    pub service: Arc<SearchService>,
    /// Bodies accepted with 202.
    pub spool: Arc<Spool>,
    /// Bundles: the active one, and the change to another.
    pub bundles: Arc<Bundles>,
    /// Admin jobs, set once they are open; never in a server that runs none.
    pub jobs: OnceLock<Arc<Jobs>>,
    /// What users found useful.
    pub feedback: Arc<Feedback>,
    /// Training pairs that operators uploaded.
    pub datasets: Arc<Datasets>,
    /// Who administered the service.
    pub audit: Arc<Audit>,
    /// Keys and roles.
    pub keys: Keys,
    /// Limits.
    pub limits: HttpLimits,
    /// Set when the server is shutting down: `/readyz` turns 503.
    pub draining: AtomicBool,
    /// When the server started.
    pub started: Instant,
    /// Bulk bodies that are read at once.
    pub(crate) bulk_permits: Semaphore,
}

/// Bulk bodies that are read at once; each holds one batch of documents in memory.
const BULK_REQUESTS: usize = 8;

impl AppState {
    /// The state of a server that takes traffic.
    pub fn new(
        service: Arc<SearchService>,
        spool: Spool,
        operations: Operations,
        bundles: Arc<Bundles>,
        keys: Keys,
        limits: HttpLimits,
    ) -> Self {
        let Operations { feedback, datasets, audit } = operations;
        Self {
            service,
            spool: Arc::new(spool),
            bundles,
            jobs: OnceLock::new(),
            feedback,
            datasets,
            audit,
            keys,
            limits,
            draining: AtomicBool::new(false),
            started: Instant::now(),
            bulk_permits: Semaphore::new(BULK_REQUESTS),
        }
    }

    /// Whether the server takes traffic.
    pub fn ready(&self) -> bool {
        !self.draining.load(Ordering::Relaxed) && !self.store_failed()
    }

    /// Whether the disk failed under the documents, so that only a restart helps.
    pub fn store_failed(&self) -> bool {
        self.service.bundle().index.has_failed()
    }
}

/// All routes with their layers.
pub fn router(state: Arc<AppState>) -> Router {
    let read = Router::new()
        .route("/search", post(search::search))
        .route("/search/batch", post(search::batch))
        .route("/expand", post(search::expand))
        .route("/embed", post(search::embed))
        .route("/info", get(info::info))
        .route("/feedback", post(feedback::give))
        .layer(from_fn_with_state((state.clone(), Role::Read), layers::authorize));
    let write = Router::new()
        .route("/documents", put(documents::put))
        .layer(from_fn_with_state((state.clone(), Role::Write), layers::authorize));
    let bulk = Router::new()
        .route("/documents/bulk", post(documents::bulk))
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state((state.clone(), Role::Write), layers::authorize));
    // One path, two roles: the handlers ask for theirs themselves.
    let one = Router::new().route("/documents/{*id}", get(documents::get).delete(documents::delete));
    let open = Router::new()
        .route("/livez", get(info::livez))
        .route("/readyz", get(info::readyz))
        .route("/health", get(info::health))
        .route("/metrics", get(info::metrics))
        .route("/openapi.json", get(openapi::openapi))
        .route("/docs", get(docs::page))
        .merge(page::routes());
    let mut routes = read.merge(write).merge(one).merge(open);
    let mut long = bulk;
    if state.keys.has_admin() {
        let admin = Router::new()
            .route("/admin/snapshot", post(documents::snapshot))
            .route("/admin/datasets", get(datasets::list))
            .route("/admin/audit", get(audit::last))
            .merge(bundles::routes())
            .merge(jobs::routes());
        routes = routes.merge(guarded(&state, admin));
        // What may take longer than the time limit.
        let admin = Router::new()
            .route("/admin/feedback", get(feedback::export).delete(feedback::delete))
            .route("/admin/datasets/{name}", put(datasets::put).get(datasets::get).delete(datasets::delete));
        long = long.merge(guarded(&state, admin));
    }
    routes
        .layer(from_fn_with_state(state.clone(), layers::time_limit))
        .merge(long)
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(state.limits.body_bytes))
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(state.clone(), layers::observe))
        .with_state(state)
}

/// Routes for admin keys alone, whose use is written down, refused attempts too.
fn guarded(state: &Arc<AppState>, routes: Router<Arc<AppState>>) -> Router<Arc<AppState>> {
    routes
        .layer(from_fn_with_state((state.clone(), Role::Admin), layers::authorize))
        .layer(from_fn_with_state(state.clone(), audit::audit))
}

async fn no_such_route(State(state): State<Arc<AppState>>, uri: axum::http::Uri) -> Problem {
    let path = uri.path();
    let remedy = if path.starts_with("/admin/") && !state.keys.has_admin() {
        "It has no admin key: start it with --admin-keys (or EXPANDR_ADMIN_KEYS)"
    } else {
        "/docs lists the routes"
    };
    Problem::new(Code::NotFound, format!("there is no route {path} on this server. {remedy}"))
}

async fn no_such_method(method: axum::http::Method, uri: axum::http::Uri) -> Problem {
    Problem::new(Code::MethodNotAllowed, format!("{} does not take {method}", uri.path()))
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> axum::response::Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("unknown");
    tracing::error!(message, "a handler panicked");
    let problem =
        Problem::new(Code::Internal, "a bug in the server; it is in its log under this request's id");
    let mut response = axum::response::Response::new(axum::body::Body::empty());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response.extensions_mut().insert(problem);
    response
}
