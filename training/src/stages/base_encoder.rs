//! The first layers of an encoder, as a stand-in for one that nobody tuned for retrieval.

use std::path::Path;

use expandr_models::trainable::truncate_layers;
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// Where architectures say how many layers they have.
const COUNTS: &[&str] = &["num_hidden_layers", "n_layers"];
/// One of them is there.
const WEIGHTS: [&str; 2] = ["model.safetensors", "model.safetensors.index.json"];

/// Copies an encoder's folder without the layers from `layers` on.
///
/// # Errors
/// When it has no more layers than that, or is laid out in another way.
pub(crate) fn keep_first_layers(encoder: &Path, layers: usize, out: &Path) -> Result<Value> {
    let refuse = |detail: String| Error::Input(format!("{}: {detail}", encoder.display()));
    if !WEIGHTS.iter().any(|name| encoder.join(name).is_file()) {
        return Err(refuse(format!("has no {}; convert its weights to safetensors", WEIGHTS[0])));
    }
    let text = fs_err::read_to_string(encoder.join("config.json"))?;
    let config: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|error| refuse(format!("config.json is not an object ({error})")))?;
    let Some(before) = COUNTS.iter().find_map(|name| config.get(*name)?.as_u64()) else {
        return Err(refuse(
            "config.json doesn't say how many layers it has; its architecture isn't known".into(),
        ));
    };
    if layers as u64 >= before {
        return Err(refuse(format!("`encoder.layers` is {layers}, and it has {before}; keep fewer, or all")));
    }
    truncate_layers(encoder, out, layers)?;
    Ok(json!({ "layers": layers, "of": before }))
}

#[cfg(test)]
mod tests {
    use expandr_models::TextKind;
    use expandr_models::encoder::{EncoderOptions, load};
    use expandr_models::testing::tiny_bert;

    use super::*;

    #[tokio::test]
    async fn the_first_layers_are_an_encoder_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
        tiny_bert(&whole, 1).unwrap();
        fs_err::write(whole.join("pytorch_model.bin"), "old").unwrap();
        let summary = keep_first_layers(&whole, 1, &cut).unwrap();
        assert_eq!(summary, json!({"layers": 1, "of": 2}));
        assert!(!cut.join("pytorch_model.bin").exists() && cut.join("1_Pooling/config.json").is_file());
        let mut vectors = Vec::new();
        for path in [&whole, &cut] {
            let encoder = load(path, &EncoderOptions::default()).unwrap();
            let texts = vec!["what is the index of a vector".to_owned()];
            let encoded =
                encoder.encode(TextKind::Query, expandr_models::Priority::Bulk, texts).await.unwrap();
            vectors.push(encoded[0].clone());
        }
        assert_eq!(vectors[0].len(), vectors[1].len());
        assert_ne!(vectors[0], vectors[1]);
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole");
        let out = folder.path().join("out");
        let refused = |layers| keep_first_layers(&whole, layers, &out).unwrap_err().to_string();
        fs_err::create_dir_all(&whole).unwrap();
        assert!(refused(1).contains("has no model.safetensors"));
        tiny_bert(&whole, 1).unwrap();
        assert!(refused(2).contains("`encoder.layers` is 2, and it has 2"));
        fs_err::write(whole.join("config.json"), "{}").unwrap();
        assert!(refused(1).contains("doesn't say how many layers"));
    }
}
