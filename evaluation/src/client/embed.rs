//! Vectors of texts from `POST /embed`.

use serde_json::json;

use super::endpoint::Endpoint;
use crate::Result;

/// Texts a request: servers limit both their number and the size of a body.
const TEXTS_PER_REQUEST: usize = 32;

/// Normalised vectors of texts, in their order, all of one dimension. `prompt_name` is `query` or `document`: what the
/// encoder's checkpoint puts before such a text.
///
/// # Errors
/// When the server refuses, and when its vectors are too few, of several dimensions or not finite.
pub async fn embed(endpoint: &Endpoint, texts: &[String], prompt_name: &str) -> Result<Vec<Vec<f32>>> {
    let mut vectors: Vec<Vec<f32>> = Vec::with_capacity(texts.len());
    for part in texts.chunks(TEXTS_PER_REQUEST) {
        let body = json!({"inputs": part, "normalize": true, "prompt_name": prompt_name}).to_string();
        let (status, body) = endpoint.post("/embed", "application/json", body.into_bytes()).await?;
        if !status.is_success() {
            return Err(endpoint.refused(status, &body));
        }
        let part_vectors: Vec<Vec<f32>> = endpoint.parse(&body)?;
        if part_vectors.len() != part.len() {
            let detail = format!("gave {} vectors for {} texts", part_vectors.len(), part.len());
            return Err(endpoint.failed(detail));
        }
        vectors.extend(part_vectors);
    }
    let dimension = vectors.first().map_or(0, Vec::len);
    let sound = |vector: &Vec<f32>| {
        vector.len() == dimension && dimension > 0 && vector.iter().all(|value| value.is_finite())
    };
    if !vectors.iter().all(sound) {
        return Err(endpoint.failed("gave vectors of several dimensions, or values that are not finite"));
    }
    Ok(vectors)
}
