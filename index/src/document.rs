//! Documents, and what makes one acceptable.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::{Error, Result};

/// Longest document id, in bytes of UTF-8.
pub const MAX_ID_BYTES: usize = 512;
/// Longest title and text together, in bytes of UTF-8.
pub const MAX_TEXT_BYTES: usize = 16 * 1024 * 1024;
/// Largest metadata, in bytes of compact JSON.
pub const MAX_METADATA_BYTES: usize = 64 * 1024;
/// Deepest nesting of metadata (a flat object has depth 1).
pub const MAX_METADATA_DEPTH: usize = 16;

/// One document of the corpus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// The caller's name for it: any non-empty UTF-8 of at most [`MAX_ID_BYTES`]; comes back exactly as given.
    #[schema(min_length = 1, max_length = 512)]
    pub id: String,
    /// Title; may be empty.
    #[serde(default)]
    pub title: String,
    /// Body text.
    pub text: String,
    /// Fields that [`Filter`](crate::Filter)s select by, and that come back with hits.
    #[serde(default)]
    pub metadata: Map<String, Value>,
}

impl Document {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::InvalidDocument`] names the first limit that is broken.
    pub fn validate(&self) -> Result<()> {
        self.prepare().map(|_| ())
    }

    /// Checks the sizes and returns the metadata as the JSON text that is stored.
    pub(crate) fn prepare(&self) -> Result<String> {
        validate_id(&self.id)?;
        let text_bytes = self.title.len() + self.text.len();
        if text_bytes > MAX_TEXT_BYTES {
            let reason = format!(
                "title and text are {text_bytes} bytes, at most {MAX_TEXT_BYTES} are stored; split it"
            );
            return Err(Error::document(&self.id, reason));
        }
        if self.metadata.values().any(|value| depth(value) >= MAX_METADATA_DEPTH) {
            let reason = format!("metadata is nested deeper than {MAX_METADATA_DEPTH} levels; flatten it");
            return Err(Error::document(&self.id, reason));
        }
        let metadata = serde_json::to_string(&self.metadata)
            .map_err(|error| Error::document(&self.id, format!("metadata is not JSON: {error}")))?;
        if metadata.len() > MAX_METADATA_BYTES {
            let reason = format!(
                "metadata is {} bytes of JSON, at most {MAX_METADATA_BYTES} are stored; keep long text in `text`",
                metadata.len()
            );
            return Err(Error::document(&self.id, reason));
        }
        Ok(metadata)
    }
}

/// Checks a document id.
///
/// # Errors
/// [`Error::InvalidDocument`] when it is empty or longer than [`MAX_ID_BYTES`].
pub fn validate_id(id: &str) -> Result<()> {
    if id.is_empty() {
        return Err(Error::document(id, "the id is empty; give each document a name of its own"));
    }
    if id.len() > MAX_ID_BYTES {
        let reason =
            format!("the id has {} bytes, at most {MAX_ID_BYTES} are allowed; use a shorter one", id.len());
        return Err(Error::document(id, reason));
    }
    Ok(())
}

/// Nesting of a JSON value: 0 for a scalar. The parser bounds the recursion (128 levels).
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(id: &str) -> Document {
        Document { id: id.into(), title: String::new(), text: "text".into(), metadata: Map::new() }
    }

    #[test]
    fn ids_have_one_to_512_bytes() {
        for good in ["a", " ", "\u{0}", "é/ü?#%", &"x".repeat(512), &"é".repeat(256)] {
            document(good).validate().unwrap();
        }
        for bad in ["", &"x".repeat(513), &"é".repeat(257)] {
            let message = document(bad).validate().unwrap_err().to_string();
            assert!(message.contains("id"), "{message}");
        }
    }

    #[test]
    fn metadata_has_limits() {
        let mut nested = Value::from(1);
        for _ in 0..MAX_METADATA_DEPTH - 1 {
            nested = Value::Array(vec![nested]);
        }
        let mut deep = document("d");
        deep.metadata.insert("m".into(), nested.clone());
        deep.validate().unwrap();
        deep.metadata.insert("m".into(), Value::Array(vec![nested]));
        assert!(deep.validate().unwrap_err().to_string().contains("deeper"));

        let mut large = document("l");
        large.metadata.insert("m".into(), "x".repeat(MAX_METADATA_BYTES).into());
        assert!(large.validate().unwrap_err().to_string().contains("metadata is"));
    }

    #[test]
    fn unknown_fields_are_refused_and_title_and_metadata_default() {
        let read: Document = serde_json::from_str(r#"{"id":"a","text":"t"}"#).unwrap();
        assert_eq!(read, Document { text: "t".into(), ..document("a") });
        assert!(serde_json::from_str::<Document>(r#"{"id":"a","text":"t","titel":""}"#).is_err());
    }
}
