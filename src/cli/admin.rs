//! What the commands of operators share.

use std::time::Duration;

use clap::Args;
use reqwest::Method;
use serde_json::Value;

use super::client::{Server, json};

/// Time that a server has for the head of an answer to a short request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Which server to administer.
#[derive(Args, Clone)]
pub(super) struct AdminServer {
    /// The server's base URL.
    #[arg(long, global = true, env = "EXPANDR_ENDPOINT", default_value = "http://127.0.0.1:8080")]
    endpoint: String,

    /// A key of role admin. The environment variable keeps it out of the list of processes.
    #[arg(long, global = true, env = "EXPANDR_ADMIN_KEY", hide_env_values = true)]
    key: Option<String>,

    /// Print the server's answer as JSON.
    #[arg(long, global = true)]
    json: bool,
}

impl std::fmt::Debug for AdminServer {
    /// The key is not printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminServer").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// A client of the admin routes.
pub(super) struct Admin {
    pub(super) server: Server,
    pub(super) client: reqwest::Client,
    /// Whether to print answers as JSON.
    pub(super) json: bool,
}

impl AdminServer {
    pub(super) fn connect(self) -> anyhow::Result<Admin> {
        let client = reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).build()?;
        Ok(Admin { server: Server { endpoint: self.endpoint, key: self.key }, client, json: self.json })
    }
}

impl Admin {
    /// A request to `path`.
    pub(super) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.server.request(&self.client, method, path)
    }

    /// Sends a short request; the JSON of a good answer.
    ///
    /// # Errors
    /// When the server can't be reached, and what the problem of a bad answer says.
    pub(super) async fn ask(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        json(self.server.send(request.timeout(ANSWER_TIMEOUT)).await?).await
    }

    /// Asks for `path`.
    ///
    /// # Errors
    /// As [`Admin::ask`].
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(self.request(Method::GET, path)).await
    }

    /// Prints `answer` as JSON where that was asked for, else what `readable` makes of it.
    pub(super) fn print(&self, answer: &Value, readable: impl FnOnce(&Value) -> String) {
        if self.json {
            println!("{answer:#}");
        } else {
            println!("{}", readable(answer).trim_end());
        }
    }
}

/// `path` with those parameters that are given.
pub(super) fn with_parameters(path: &str, given: &[(&str, Option<String>)]) -> String {
    let mut whole = path.to_owned();
    for (name, value) in given {
        let Some(value) = value else { continue };
        whole.push(if whole.contains('?') { '&' } else { '?' });
        whole.push_str(&format!("{name}={}", segment(value)));
    }
    whole
}

/// A name as a segment of a path: everything but letters, digits, `-`, `_`, `.` and `~` is percent-encoded.
pub(super) fn segment(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~' | b'.') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Rows below a heading, in columns as wide as they must be.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(&mut heading.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// A member as text; empty where there is none.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_within_their_segment() {
        assert_eq!(segment("job-1_a.b~"), "job-1_a.b~");
        assert_eq!(segment("../a b?#ä"), "..%2Fa%20b%3F%23%C3%A4");
    }

    #[test]
    fn parameters_that_are_given_are_sent() {
        let given = [("a", None), ("b", Some("x&y=z ä".to_owned())), ("c", Some(String::new()))];
        assert_eq!(with_parameters("/p", &given), "/p?b=x%26y%3Dz%20%C3%A4&c=");
        assert_eq!(with_parameters("/p", &given[..1]), "/p");
    }

    #[test]
    fn tables_have_columns() {
        let rows = [vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned(), String::new()]];
        assert_eq!(table(&["id", "x"], &rows), "id   x\na    bb\nccc\n");
    }
}
