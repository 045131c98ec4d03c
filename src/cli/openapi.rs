//! `expandr openapi`: the description of the HTTP interface, without a server.

use std::io::Write;

/// Prints it.
pub(super) fn run() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(crate::http::openapi::text().as_bytes())?;
    Ok(out.flush()?)
}
