//! A document as a client sends it, and its check.

use expandr_index::Document;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::http::problem::FieldError;

/// Longest id in bytes.
const MAX_ID_BYTES: usize = 512;

/// What a document may be.
#[derive(Clone, Copy, Debug)]
pub struct DocumentLimits {
    /// Most bytes of title, text and metadata together.
    pub document_bytes: usize,
    /// Most documents of one `PUT /documents`.
    pub documents_per_request: usize,
}

/// A document as a client sends it. `_id` is BEIR's name of `id`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DocumentInput {
    /// Its id; comes back exactly as given.
    #[serde(alias = "_id")]
    #[schema(min_length = 1, max_length = 512)]
    pub id: String,
    /// Its title.
    pub title: Option<String>,
    /// Its text.
    pub text: String,
    /// What filters match, and what comes back with a hit.
    pub metadata: Option<Map<String, Value>>,
}

impl DocumentInput {
    /// Checks the document; `pointer` is where it stands in the request.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(self, limits: &DocumentLimits, pointer: &str) -> Result<Document, FieldError> {
        let wrong =
            |field: &str, detail: String| FieldError { pointer: format!("{pointer}/{field}"), detail };
        if self.id.is_empty() || self.id.len() > MAX_ID_BYTES {
            return Err(wrong("id", format!("has {} bytes, 1 to {MAX_ID_BYTES} are allowed", self.id.len())));
        }
        let title = self.title.unwrap_or_default();
        let metadata = self.metadata.unwrap_or_default();
        if title.trim().is_empty() && self.text.trim().is_empty() {
            return Err(wrong(
                "text",
                "title and text are both blank; there is nothing to search for".to_owned(),
            ));
        }
        let bytes =
            title.len() + self.text.len() + serde_json::to_vec(&metadata).map_or(0, |json| json.len());
        if bytes > limits.document_bytes {
            let detail = format!(
                "the document has {bytes} bytes, the limit is {}; split it into passages",
                limits.document_bytes
            );
            return Err(wrong("text", detail));
        }
        let document = Document { id: self.id, title, text: self.text, metadata };
        // What the index itself would refuse, with all that came beside it.
        let refused = |error: expandr_index::Error| FieldError {
            pointer: pointer.to_owned(),
            detail: error.to_string(),
        };
        document.validate().map_err(refused)?;
        Ok(document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: DocumentLimits = DocumentLimits { document_bytes: 100, documents_per_request: 10 };

    fn check(json: &str) -> Result<Document, FieldError> {
        serde_json::from_str::<DocumentInput>(json).unwrap().check(&LIMITS, "/documents/0")
    }

    #[test]
    fn beir_lines_are_documents() {
        let document = check(r#"{"_id":"4983","title":"T","text":"x","metadata":{}}"#).unwrap();
        assert_eq!((document.id.as_str(), document.title.as_str()), ("4983", "T"));
    }

    #[test]
    fn what_the_index_would_refuse_is_refused_before() {
        let deep = format!("{}{}", "[".repeat(20), "]".repeat(20));
        let error = check(&format!(r#"{{"id":"a","text":"x","metadata":{{"m":{deep}}}}}"#)).unwrap_err();
        assert!(
            error.pointer == "/documents/0" && error.detail.contains("metadata is nested deeper"),
            "{error:?}"
        );
    }

    #[test]
    fn what_cannot_be_stored_is_pointed_at() {
        assert_eq!(check(r#"{"id":"","text":"x"}"#).unwrap_err().pointer, "/documents/0/id");
        assert_eq!(check(r#"{"id":"a","text":"  "}"#).unwrap_err().pointer, "/documents/0/text");
        let long = format!(r#"{{"id":"a","text":"{}"}}"#, "x".repeat(101));
        assert!(check(&long).unwrap_err().detail.contains("split it"));
    }
}
