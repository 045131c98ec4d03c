//! `GET /` and `/assets/…`: a web page for searching and administering, embedded in the binary. It holds no data and needs no
//! key; what it shows comes from the same routes as for any other client, with the key that its user types in.

use std::sync::{Arc, LazyLock};

use axum::{
    Router,
    extract::Path,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use sha2::{Digest, Sha256};

use super::{
    AppState,
    problem::{Code, Problem},
};

/// Nothing from elsewhere, nothing inline, and in no other page's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the page.
struct Asset {
    name: &'static str,
    kind: &'static str,
    body: &'static str,
    etag: String,
}

macro_rules! assets {
    ($($name:literal $kind:literal)*) => {
        [$(Asset::new($name, $kind, include_str!(concat!("page/", $name)))),*]
    };
}

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    assets! {
        "index.html" "text/html; charset=utf-8"
        "style.css" "text/css; charset=utf-8"
        "icon.svg" "image/svg+xml"
        "app.js" "text/javascript; charset=utf-8"
        "api.js" "text/javascript; charset=utf-8"
        "dom.js" "text/javascript; charset=utf-8"
        "search.js" "text/javascript; charset=utf-8"
        "answer.js" "text/javascript; charset=utf-8"
        "hits.js" "text/javascript; charset=utf-8"
        "timings.js" "text/javascript; charset=utf-8"
        "documents.js" "text/javascript; charset=utf-8"
        "bundles.js" "text/javascript; charset=utf-8"
        "jobs.js" "text/javascript; charset=utf-8"
        "job.js" "text/javascript; charset=utf-8"
        "curves.js" "text/javascript; charset=utf-8"
    }
    .into()
});

impl Asset {
    fn new(name: &'static str, kind: &'static str, body: &'static str) -> Self {
        let digest = Sha256::digest(body.as_bytes());
        let hex: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        Self { name, kind, body, etag: format!("\"{hex}\"") }
    }

    /// The file, or 304 for a client that has it. The names stay the same when the server is updated, so a client asks each
    /// time whether what it has is still right.
    fn respond(&self, request: &HeaderMap) -> Response {
        let known = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let is_known = known.flat_map(|value| value.split(',')).any(|tag| {
            let tag = tag.trim();
            tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.etag
        });
        let mut response = if is_known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(header::CONTENT_TYPE, self.kind)], self.body).into_response()
        };
        let headers = response.headers_mut();
        if let Ok(etag) = HeaderValue::from_str(&self.etag) {
            headers.insert(header::ETAG, etag);
        }
        for (name, value) in [
            (header::CACHE_CONTROL, "no-cache"),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// The page and its files.
pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new().route("/", get(index)).route("/assets/{name}", get(asset))
}

async fn index(headers: HeaderMap) -> Result<Response, Problem> {
    find("index.html", &headers)
}

async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, Problem> {
    find(&name, &headers)
}

fn find(name: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    let asset = ASSETS.iter().find(|asset| asset.name == name);
    let missing = || Problem::new(Code::NotFound, format!("the page has no file {name}"));
    Ok(asset.ok_or_else(missing)?.respond(headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(name: &str, known: Option<&str>) -> Response {
        let mut headers = HeaderMap::new();
        if let Some(known) = known {
            headers.insert(header::IF_NONE_MATCH, known.parse().unwrap());
        }
        find(name, &headers).unwrap()
    }

    #[test]
    fn a_client_that_has_a_file_is_told_so() {
        let first = get("app.js", None);
        assert_eq!(
            (first.status(), &first.headers()["cache-control"]),
            (StatusCode::OK, &"no-cache".parse().unwrap())
        );
        let etag = first.headers()["etag"].to_str().unwrap();
        assert_eq!(get("app.js", Some(&format!("\"other\", W/{etag}"))).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(get("style.css", Some(etag)).status(), StatusCode::OK);
        assert_eq!(find("../page.rs", &HeaderMap::new()).unwrap_err().code, Code::NotFound);
    }

    #[test]
    fn nothing_comes_from_elsewhere_and_texts_are_never_markup() {
        for asset in ASSETS.iter() {
            let body = asset.body.replace("http://www.w3.org/2000/svg", "");
            for banned in [
                "http://",
                "https://",
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "eval(",
                " style=",
                "localStorage",
            ] {
                assert!(!body.contains(banned), "{} has {banned}", asset.name);
            }
        }
    }

    #[test]
    fn whatever_the_page_asks_for_is_there() {
        for asset in ASSETS.iter() {
            for part in asset.body.split(['"', '\'']) {
                let name = part.strip_prefix("/assets/").or_else(|| part.strip_prefix("./"));
                if let Some(name) = name {
                    assert!(ASSETS.iter().any(|asset| asset.name == name), "{} asks for {name}", asset.name);
                }
            }
        }
    }
}
