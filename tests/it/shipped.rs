//! The bundle that the repository ships, beside the default weights: the models that were trained, and the gate fitted on them.

use std::path::Path;

use expandr_models::{
    bundle,
    gate::{Gate, same_weights},
};
use serde_json::{Value, json};

use crate::process::Server;

const BUNDLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/bundles/expandr-small");

#[tokio::test]
async fn the_shipped_bundle_serves_the_models_that_its_gate_was_fitted_on() {
    let folder = Path::new(BUNDLE);
    let manifest = bundle::read(folder).unwrap();
    bundle::prove(folder, &manifest).unwrap();
    let adapters =
        [manifest.encoder.adapter.as_deref(), manifest.expander.as_ref().unwrap().adapter.as_deref()];
    for adapter in adapters {
        let config = fs_err::read(folder.join(adapter.unwrap()).join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let base = config["base_model_name_or_path"].as_str().unwrap();
        assert!(!base.contains('/'), "{base}: a folder of the machine that trained it");
    }

    let index = tempfile::tempdir().unwrap();
    let server = Server::start(index.path(), &["--bundle", BUNDLE]);
    let (_, info) = server.get("/info").await;
    let id = |model: &str| info["bundle"][model]["id"].as_str().unwrap();
    let gate = Gate::read(&folder.join(manifest.gate.as_deref().unwrap())).unwrap();
    assert!(id("encoder").contains("-adapted-"), "{info}");
    assert!(same_weights(gate.encoder(), id("encoder")), "{info}");
    assert_eq!(gate.is_of_expander(id("expander")), Some(true), "{info}");

    server.put(&[("heron", "Herons wade at shallow shores."), ("lake", "The lake lies in the north.")]).await;
    for (expansion, status) in [(json!({"timeout_ms": 25000}), "applied"), (json!("auto"), "skipped")] {
        let body = json!({"query": "where do herons wade", "expansion": expansion, "explain": true});
        let (code, answer) = server.post("/search", body).await;
        assert_eq!((code, &answer["hits"][0]["id"]), (200, &json!("heron")), "{answer}");
        assert_eq!(answer["expansion"]["status"], status, "{answer}");
        if status == "applied" {
            let weight = answer["expansion"]["query_weight"].as_f64().map(|weight| weight as f32);
            assert_eq!(weight, manifest.defaults.query_weight, "{answer}");
        }
    }
}
