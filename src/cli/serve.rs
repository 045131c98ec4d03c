//! `expandr serve`.

use clap::Args;

use crate::server::{ServeOptions, serve, stop_on_signals};

/// Flags of `expandr serve`.
#[derive(Args, Debug)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    options: ServeOptions,
}

impl ServeArgs {
    /// The collector of traces.
    pub(super) fn otlp_endpoint(&self) -> Option<&str> {
        self.options.traces.otlp_endpoint.as_deref()
    }
}

pub(super) async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let stop = stop_on_signals()?;
    serve(args.options, stop, |address, state| {
        let bundle = state.service.bundle();
        let documents = bundle.index.stats().documents;
        tracing::info!(%address, bundle = %bundle.id, documents, "listening");
    })
    .await
}
