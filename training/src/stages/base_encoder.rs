//! The first layers of an encoder, as a stand-in for one that nobody tuned for retrieval.

use std::path::Path;

use safetensors::SafeTensors;
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// Where architectures say how many layers they have.
const COUNTS: &[&str] = &["num_hidden_layers", "n_layers"];
/// What stands before a layer's number in the names of its tensors.
const PREFIXES: &[&str] = &["encoder.layer.", "transformer.layer."];
const WEIGHTS: &str = "model.safetensors";

/// Copies an encoder's folder without the layers from `layers` on.
///
/// # Errors
/// When it has no more layers than that, or is laid out in another way.
pub(crate) fn keep_first_layers(encoder: &Path, layers: usize, out: &Path) -> Result<Value> {
    let refuse = |detail: String| Error::Input(format!("{}: {detail}", encoder.display()));
    if !encoder.join(WEIGHTS).is_file() {
        return Err(refuse(format!("has no {WEIGHTS}; convert its weights to one safetensors file")));
    }
    let text = fs_err::read_to_string(encoder.join("config.json"))?;
    let mut config: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|error| refuse(format!("config.json is not an object ({error})")))?;
    let name = COUNTS.iter().find(|name| config.get(**name).is_some_and(Value::is_u64));
    let Some(name) = name else {
        return Err(refuse(
            "config.json doesn't say how many layers it has; its architecture isn't known".into(),
        ));
    };
    let before = config[*name].as_u64().unwrap_or_default() as usize;
    if layers >= before {
        return Err(refuse(format!("`encoder.layers` is {layers}, and it has {before}; keep fewer, or all")));
    }
    config.insert((*name).to_owned(), json!(layers));

    copy_folder(encoder, out)?;
    fs_err::write(out.join("config.json"), serde_json::to_string_pretty(&config).unwrap_or_default())?;
    let bytes = fs_err::read(encoder.join(WEIGHTS))?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|error| refuse(format!("{WEIGHTS} is damaged ({error}); fetch it again")))?;
    let mut kept = Vec::new();
    let mut dropped = 0;
    for (name, tensor) in tensors.tensors() {
        if layer_of(&name).is_some_and(|layer| layer >= layers) {
            dropped += 1;
        } else {
            kept.push((name, tensor));
        }
    }
    if dropped == 0 {
        return Err(refuse(format!("{WEIGHTS} names no layer in a known way; its architecture isn't known")));
    }
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let file = safetensors::serialize(kept, Some(metadata))
        .map_err(|error| refuse(format!("its first layers can't be written ({error})")))?;
    fs_err::write(out.join(WEIGHTS), file)?;
    Ok(json!({ "layers": layers, "of": before }))
}

fn layer_of(tensor: &str) -> Option<usize> {
    let rest = PREFIXES.iter().find_map(|prefix| tensor.split_once(prefix).map(|(_, rest)| rest))?;
    rest.split('.').next()?.parse().ok()
}

/// Everything but weights, the marks of where the folder came from, and hidden files.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs_err::create_dir_all(to)?;
    for entry in fs_err::read_dir(from)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let weights =
            [".safetensors", ".bin", ".onnx", ".h5", ".ot", ".gguf"].iter().any(|end| name.ends_with(end));
        if weights || name.starts_with('.') || name == expandr_models::weights::MANIFEST_FILE {
            continue;
        }
        if path.is_dir() {
            copy_folder(&path, &to.join(name))?;
        } else {
            fs_err::copy(&path, to.join(name))?;
        }
    }
    Ok(())
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
