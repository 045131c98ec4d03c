//! Loading the models and the index, listening, and shutting down in order.

mod load;
mod operations;
mod options;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Duration,
};

use anyhow::Context;
use axum::{Router, extract::Request, response::IntoResponse};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub use load::load_bundle;
pub use operations::{FeedbackSwitch, OperationOptions};
pub use options::{Expansion, Lexical, Limits, Models, Places, Search, ServeOptions};

use crate::{
    documents::{DocumentLimits, Spool},
    http::{
        AppState, HttpLimits,
        auth::Keys,
        problem::{Code, Problem},
        router,
    },
    metrics::Metrics,
    search::{
        SearchService, SearchSettings,
        check::SearchLimits,
        request::{ExpansionMode, Ranking},
    },
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
    options: ServeOptions,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr, &Arc<AppState>),
) -> anyhow::Result<()> {
    let Search { ranking, lexical, .. } = options.search;
    anyhow::ensure!(
        ranking == Ranking::Dense || lexical == Lexical::On,
        "--ranking {} needs the lexical index, and --lexical off leaves it out; use --lexical on or --ranking dense",
        ranking.name()
    );
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
    ready(address, &state);

    tokio::select! {
        () = stop.cancelled() => {}
        ended = &mut server => ended??,
    }
    state.draining.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(options.limits.drain_delay_ms)).await;
    drained.cancel();
    let drain_timeout = Duration::from_millis(options.limits.drain_timeout_ms);
    if tokio::time::timeout(drain_timeout, &mut server).await.is_err() {
        tracing::warn!("requests were still in flight at the end of the drain");
        server.abort();
    }
    let _ = worker.await;
    let index = state.service.bundle().index.clone();
    tokio::task::spawn_blocking(move || index.close()).await??;
    tracing::info!("stopped");
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
    let bundle = load_bundle(options).await?;
    anyhow::ensure!(
        options.search.expansion != Expansion::Auto || bundle.gate.is_some(),
        "--expansion auto needs a gate; give its file with --gate, or use --expansion always"
    );
    let metrics = Arc::new(Metrics::new()?);
    let engine = bundle.expander.as_ref().map_or("none", |expander| expander.info().engine);
    metrics.set_build_info(&bundle.id, engine)?;
    let documents = bundle.index.stats().documents;
    tracing::info!(bundle = %bundle.id, engine, documents, "loaded");
    let service = Arc::new(SearchService::new(bundle, metrics, search_settings(options)));
    let limits = http_limits(options);
    let queue = options.places.index_dir.join("queue");
    let spool = Spool::open(&queue, limits.bulk_body_bytes, limits.documents)
        .context("the ingest queue can't be opened")?;
    let operations = options.operations.open(&options.places.index_dir)?;
    Ok(Arc::new(AppState::new(service, spool, operations, keys, limits)))
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
    let has_expander = options.models.expander != "none";
    SearchSettings {
        limits: SearchLimits {
            query_bytes: QUERY_BYTES,
            expansion_text_bytes: EXPANSION_TEXT_BYTES,
            max_tokens: search.expansion_max_tokens,
            default_max_tokens: search.expansion_tokens.min(search.expansion_max_tokens),
            timeout_ms: search.timeout_ms,
            expansion_timeout_ms: search.expansion_timeout_ms.min(search.timeout_ms),
            default_expansion: match search.expansion {
                _ if !has_expander => ExpansionMode::Off,
                Expansion::Always => ExpansionMode::Always,
                Expansion::Auto => ExpansionMode::Auto,
                Expansion::Off => ExpansionMode::Off,
            },
            default_ranking: search.ranking,
            lexical: search.lexical == Lexical::On,
        },
        min_partial_words: search.expansion_min_words,
        reserve: Duration::from_millis(search.reserve_ms),
        permits: options.limits.permits,
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
