//! Loading the models and the index, listening, and shutting down in order.

mod configured;
mod jobs;
mod load;
mod operations;
mod options;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Duration,
};

use anyhow::Context;
use axum::{Router, extract::Request, response::IntoResponse};
use expandr_index::{Bm25, IndexConfig};
use expandr_models::{
    bundle::{Defaults, ExpansionDefault},
    expander::MAX_EXPANSIONS,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub use operations::{FeedbackSwitch, OperationOptions};
pub use options::{Changeover, Expansion, Lexical, Limits, Models, Places, Search, ServeOptions, Traces};

use self::{configured::configured, load::ServerModels};
use crate::{
    bundles::{self, BundleSettings, Bundles},
    documents::{DocumentLimits, Spool},
    http::{
        AppState, HttpLimits,
        auth::Keys,
        problem::{Code, Problem},
        router,
    },
    jobs::ServiceHost,
    metrics::Metrics,
    search::{SearchSettings, check::SearchLimits, request::Ranking},
};

const MIB: u64 = 1024 * 1024;

/// Most documents of one `PUT /documents`.
const DOCUMENTS_PER_REQUEST: usize = 1000;
/// Longest query, and longest supplied passage, in bytes.
const QUERY_BYTES: usize = 8 * 1024;
const EXPANSION_TEXT_BYTES: usize = 64 * 1024;

/// Serves until `stop` is cancelled. `ready` is called once, when requests are accepted.
///
/// # Errors
/// When models, index or address can't be opened, and when the index can't be closed well.
pub async fn serve(
    mut options: ServeOptions,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr, &Arc<AppState>),
) -> anyhow::Result<()> {
    let Search { ranking, lexical, .. } = options.search;
    anyhow::ensure!(
        ranking == Ranking::Dense || lexical == Lexical::On,
        "--ranking {} needs the lexical index, and --lexical off leaves it out; use --lexical on or --ranking dense",
        ranking.name()
    );
    check_defaults(&options)?;
    options.models.key_urls = Some(load::key_urls(&options.models, &options.places.index_dir));
    let loopback = options.places.listen.ip().is_loopback();
    let limits = &options.limits;
    let keys = Keys::new(&limits.read_keys, &limits.write_keys, &limits.admin_keys, loopback)
        .map_err(anyhow::Error::msg)?;
    for role in keys.closed_roles() {
        tracing::warn!(
            role,
            "this role has no key and the server does not listen on loopback only: its routes are closed"
        );
    }
    // The address first: a port in use should not be found out only after the models are loaded, and /livez answers
    // while they load.
    let listener = TcpListener::bind(options.places.listen).await.with_context(|| {
        format!("can't listen on {}; choose another address with --listen", options.places.listen)
    })?;
    let address = listener.local_addr()?;
    let loaded: Arc<OnceLock<Router>> = Arc::default();
    let drained = CancellationToken::new();
    let mut server = tokio::spawn(listen(listener, loaded.clone(), drained.clone()));

    let state = tokio::select! {
        state = load_state(&options, keys) => state?,
        () = stop.cancelled() => return Ok(()),
    };
    let worker = tokio::spawn(state.spool.clone().work(state.service.clone(), stop.clone()));
    tokio::spawn(state.feedback.clone().work(stop.clone()));
    let _ = loaded.set(router(state.clone()));
    let bundles = state.bundles.clone();
    let working = state.jobs.get().map(|jobs| tokio::spawn(jobs.clone().work(stop.clone())));
    let audit = state.audit.clone();
    let changeover = tokio::spawn(async move {
        if let Some(ended) = bundles.activate_configured().await {
            audit.record_activation(&ended, bundles.active()).await;
        }
    });
    ready(address, &state);

    tokio::select! {
        () = stop.cancelled() => {}
        ended = &mut server => ended??,
    }
    state.draining.store(true, Ordering::Relaxed);
    if let Some(jobs) = state.jobs.get() {
        jobs.close();
    }
    tokio::time::sleep(Duration::from_millis(options.limits.drain_delay_ms)).await;
    drained.cancel();
    let drain_timeout = Duration::from_millis(options.limits.drain_timeout_ms);
    if tokio::time::timeout(drain_timeout, &mut server).await.is_err() {
        tracing::warn!("requests were still in flight at the end of the drain");
        server.abort();
    }
    let _ = worker.await;
    if let Some(working) = working {
        let _ = working.await;
    }
    changeover.abort();
    state.bundles.stop().await;
    let index = state.service.bundle().index.clone();
    tokio::task::spawn_blocking(move || index.close()).await??;
    tracing::info!("stopped");
    Ok(())
}

/// Refuses flags out of range.
fn check_defaults(options: &ServeOptions) -> anyhow::Result<()> {
    let (search, share) = (&options.search, options.changeover.reembed_share);
    let within = |value: Option<f32>, most: f32| value.is_none_or(|value| (0.0..=most).contains(&value));
    anyhow::ensure!(within(search.query_weight, 1.0), "--query-weight is not between 0 and 1");
    let count = search.expansion_count.unwrap_or(1);
    anyhow::ensure!(
        (1..=MAX_EXPANSIONS).contains(&count),
        "--expansion-count is {count}, not between 1 and {MAX_EXPANSIONS}"
    );
    anyhow::ensure!(
        count == 1 || search.expansion_temperature != Some(0.0),
        "--expansion-count {count} with --expansion-temperature 0 would write the same passage {count} times; leave one of \
         them out"
    );
    anyhow::ensure!(
        within(search.expansion_temperature, 2.0),
        "--expansion-temperature is not between 0 and 2"
    );
    anyhow::ensure!(
        within(search.expansion_top_p, 1.0) && search.expansion_top_p != Some(0.0),
        "--expansion-top-p is not above 0 and at most 1"
    );
    anyhow::ensure!(share > 0.0 && share <= 1.0, "--reembed-share is not above 0 and at most 1");
    Ok(())
}

/// Accepts connections until `drained`, then finishes what is in flight. Until everything is loaded, `/livez` answers and
/// the rest is told to come back.
async fn listen(
    listener: TcpListener,
    loaded: Arc<OnceLock<Router>>,
    drained: CancellationToken,
) -> std::io::Result<()> {
    let dispatch = move |request: Request| {
        let loaded = loaded.clone();
        async move {
            match loaded.get() {
                Some(router) => router.clone().oneshot(request).await.into_response(),
                None if request.uri().path() == "/livez" => "ok\n".into_response(),
                None => starting().into_response_with("none"),
            }
        }
    };
    let app = Router::new().fallback(dispatch);
    axum::serve(listener, app).with_graceful_shutdown(drained.cancelled_owned()).await
}

fn starting() -> Problem {
    Problem {
        retry_after_seconds: Some(2),
        ..Problem::new(Code::Unavailable, "the server is loading its models")
    }
}

/// Loads everything that requests need.
async fn load_state(options: &ServeOptions, keys: Keys) -> anyhow::Result<Arc<AppState>> {
    let root = &options.places.index_dir;
    let opened = open_bundles(options, root).await?;
    let metrics = Arc::new(Metrics::new()?);
    let (service, bundles) =
        Bundles::serve(opened, metrics, search_settings(options), bundle_settings(options));
    let bundle = service.bundle();
    service.refuse_unfit(&bundle).map_err(|problem| anyhow::Error::msg(problem.detail))?;
    let documents = bundle.index.stats().documents;
    tracing::info!(bundle = %bundle.id, name = %bundle.name, documents, "loaded");
    let limits = http_limits(options);
    let queue = root.join("queue");
    let spool = Spool::open(&queue, limits.bulk_body_bytes, limits.documents)
        .context("the ingest queue can't be opened")?;
    let operations = options.operations.open(root)?;
    let has_admin = keys.has_admin();
    let state = Arc::new(AppState::new(service, spool, operations, bundles, keys, limits));
    let host = ServiceHost {
        bundles: state.bundles.clone(),
        service: state.service.clone(),
        datasets: state.datasets.clone(),
        feedback: state.feedback.clone(),
        audit: state.audit.clone(),
    };
    if let Some(jobs) = jobs::open(options, has_admin, Arc::new(host))? {
        let _ = state.jobs.set(jobs);
    }
    Ok(state)
}

/// Opens the service's folder and loads the bundle to start with.
async fn open_bundles(options: &ServeOptions, root: &Path) -> anyhow::Result<bundles::Opened> {
    let (models_dir, models) = (options.places.models_dir.clone(), options.models.clone());
    let loader = Arc::new(ServerModels { models_dir: models_dir.clone(), models: models.clone() });
    let described = tokio::task::spawn_blocking(move || configured(&models_dir, &models)).await??;
    bundles::open(root, index_template(options), loader, described).await
}

/// How an index is opened, whatever its encoder.
fn index_template(options: &ServeOptions) -> IndexConfig {
    let search = &options.search;
    IndexConfig {
        exact_threshold: search.exact_threshold,
        ef_search: search.ef,
        lexical: search.lexical == Lexical::On,
        bm25: Bm25 { k1: search.bm25_k1, b: search.bm25_b },
        lexical_memory_bytes: search.lexical_memory_mib << 20,
        ..IndexConfig::new("", 1)
    }
}

fn bundle_settings(options: &ServeOptions) -> BundleSettings {
    BundleSettings {
        embed_share: options.changeover.reembed_share,
        // No request lives longer, but for bulk bodies, which take the bundle anew for every batch.
        retire_timeout: http_limits(options).request_timeout + Duration::from_secs(5),
    }
}

/// A token that is cancelled by SIGINT or SIGTERM.
///
/// # Errors
/// When the signals can't be listened to.
pub fn stop_on_signals() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping");
        token.cancel();
    });
    Ok(stop)
}

fn search_settings(options: &ServeOptions) -> SearchSettings {
    let search = &options.search;
    SearchSettings {
        limits: SearchLimits {
            query_bytes: QUERY_BYTES,
            expansion_text_bytes: EXPANSION_TEXT_BYTES,
            max_tokens: search.expansion_max_tokens,
            timeout_ms: search.timeout_ms,
            expansion_timeout_ms: search.expansion_timeout_ms.min(search.timeout_ms),
            flags: Defaults {
                expansion: search.expansion.map(|expansion| match expansion {
                    Expansion::Always => ExpansionDefault::Always,
                    Expansion::Auto => ExpansionDefault::Auto,
                    Expansion::Off => ExpansionDefault::Off,
                }),
                query_weight: search.query_weight,
                count: search.expansion_count,
                max_tokens: search.expansion_tokens,
                temperature: search.expansion_temperature,
                top_p: search.expansion_top_p,
                joint_encoding: search.joint_encoding,
            },
            default_ranking: search.ranking,
            lexical: search.lexical == Lexical::On,
        },
        min_partial_words: search.expansion_min_words,
        reserve: Duration::from_millis(search.reserve_ms),
        permits: options.limits.permits,
        max_wait: Duration::from_millis(options.limits.max_wait_ms),
        cache_bytes: search.cache_mib * MIB,
        cache_time_to_live: Duration::from_secs(search.cache_ttl_seconds),
    }
}

fn http_limits(options: &ServeOptions) -> HttpLimits {
    let limits = &options.limits;
    HttpLimits {
        body_bytes: limits.body_mib * MIB as usize,
        bulk_body_bytes: limits.bulk_body_mib * MIB,
        batch_searches: limits.batch_searches,
        embed_texts: limits.permits,
        // Searches end at their own deadline; this ends what doesn't.
        request_timeout: Duration::from_millis(options.search.timeout_ms * 2 + 5_000),
        documents: DocumentLimits {
            document_bytes: limits.document_kib * 1024,
            documents_per_request: DOCUMENTS_PER_REQUEST,
        },
    }
}
