//! Our figures against independent implementations (the scripts that made the fixtures lie beside them), and the client
//! against a small server that answers in the wire form.

mod bleu;
mod client;
mod compare;
mod double;
mod metrics;
mod significance;

use std::path::Path;

fn fixture(name: &str) -> serde_json::Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
}
