//! The batched decoder against transformers, and what it promises as an expander.
//!
//! What needs the default weights looks for them in `models/store` (or the folder that `EXPANDR_TEST_MODELS` or
//! `EXPANDR_MODELS_DIR` names) and says so loudly when it skips. `fixtures/make_decoder_fixture.py` made the
//! expectations.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use expandr_models::{
    Error, Expander, FinishReason, Generation, GenerationRequest, Sampling,
    decoder::{Decoder, DecoderOptions},
    expander::batched,
    testing::{Conformance, check_expander},
    weights::DEFAULT_EXPANDER,
};
use serde::Deserialize;

/// What transformers does with a message.
#[derive(Deserialize)]
struct Case {
    message: String,
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    text: String,
    /// The smallest lead of the chosen logit over the next one.
    lead: f64,
}

/// Leads below this are decided by rounding.
const ROUNDING: f64 = 1e-3;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decoder").join(name)
}

fn weights() -> Option<PathBuf> {
    let named = ["EXPANDR_TEST_MODELS", "EXPANDR_MODELS_DIR"]
        .into_iter()
        .find_map(std::env::var_os)
        .map(PathBuf::from);
    let store = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("store"));
    let path = store.join(DEFAULT_EXPANDER);
    if path.exists() {
        return Some(path);
    }
    eprintln!(
        "SKIPPED: {} is not there; pull the default weights, or set EXPANDR_TEST_MODELS",
        path.display()
    );
    None
}

fn cases() -> Vec<Case> {
    serde_json::from_slice(&std::fs::read(fixture("smollm2.json")).unwrap()).unwrap()
}

async fn text(decoder: &Decoder, message: &str, sampling: Sampling) -> Generation {
    decoder.generate(message, sampling).await.unwrap().collect_until(None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_model_writes_what_transformers_writes() {
    let Some(path) = weights() else { return };
    let decoder = Decoder::load(&path, &DecoderOptions::default()).unwrap();
    let cases = cases();
    for case in &cases {
        assert_eq!(decoder.prompt_tokens(&case.message).unwrap(), case.prompt, "{:?}", case.message);
    }
    let texts = cases.iter().map(|case| text(&decoder, &case.message, Sampling::greedy(48)));
    let mut compared = 0;
    for (case, generation) in cases.iter().zip(futures::future::join_all(texts).await) {
        if case.lead < ROUNDING {
            continue;
        }
        compared += 1;
        assert_eq!(generation.text, case.text, "{:?}", case.message);
        assert_eq!(generation.output_tokens, case.greedy.len(), "{:?}", case.message);
        let reason = if case.greedy.len() == 48 { FinishReason::Length } else { FinishReason::Stop };
        assert_eq!(generation.finish_reason, Some(reason), "{:?}", case.message);
    }
    assert!(compared >= 8, "{compared} texts were compared");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_model_conforms() {
    let Some(path) = weights() else { return };
    let options = DecoderOptions { places: 4, queue_capacity: 32, ..DecoderOptions::default() };
    let expander = batched::load(&path, options).await.unwrap();
    let info = expander.info();
    assert_eq!((info.engine, info.concurrency, info.device.as_str()), ("batched", 4, "cpu"));
    assert!(info.honours_seed && info.id.starts_with("smollm2-135m-instruct@"), "{info:?}");
    check_expander(expander.clone(), &Conformance::default()).await;

    let request =
        |prompt: String, max_tokens| GenerationRequest { prompt, sampling: Sampling::greedy(max_tokens) };
    let error = expander.generate(request("river ".repeat(9000), 4)).await.unwrap_err();
    assert!(matches!(&error, Error::Input(detail) if detail.contains("shorten the query")), "{error:?}");
    assert!(matches!(expander.generate(request("q".into(), 0)).await.unwrap_err(), Error::Input(_)));
    for max_tokens in 1..6 {
        let stream = expander.generate(request("Repeat exactly: 🚀👩‍🚀🎉🦀".into(), max_tokens)).await.unwrap();
        let generation = stream.collect_until(None).await.unwrap();
        assert!(!generation.text.contains('\u{fffd}'), "{:?}", generation.text);
    }
}

/// A sample is the same whoever is in the batch, and whether its prompt was read for it alone or for many.
#[tokio::test(flavor = "multi_thread")]
async fn a_seeded_sample_is_the_same_alone_and_in_company() {
    let Some(path) = weights() else { return };
    let options = DecoderOptions { places: 12, ..DecoderOptions::default() };
    let decoder = Arc::new(Decoder::load(&path, &options).unwrap());
    let message = &cases()[3].message;
    let sampling = |seed| Sampling { max_tokens: 24, temperature: 1.0, top_p: 0.9, seed: Some(seed) };
    let mut alone = Vec::new();
    for seed in 0..4 {
        alone.push(text(&decoder, message, sampling(seed)).await.text);
    }
    assert!(alone[1..].iter().all(|text| *text != alone[0]), "{alone:?}");
    let company = decoder.generate("Tell me about rivers.", Sampling::greedy(200)).await.unwrap();
    // More than there are places, so that some start when others end.
    let samplings: Vec<Sampling> = (0..20).map(sampling).collect();
    let streams = decoder.sample(message, &samplings).unwrap();
    let together =
        futures::future::join_all(streams.into_iter().map(|stream| stream.collect_until(None))).await;
    for (alone, together) in alone.iter().zip(together) {
        assert_eq!(&together.unwrap().text, alone);
    }
    drop(company);
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while decoder.running() + decoder.waiting() > 0 {
        assert!(std::time::Instant::now() < end, "a dropped stream leaves");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Both engines compute in f32 and decode the same prompts, so that greedy passages differ only where rounding decides.
#[cfg(feature = "mistralrs")]
#[tokio::test(flavor = "multi_thread")]
async fn the_default_model_writes_what_mistralrs_writes() {
    use expandr_models::{
        DeviceChoice,
        expander::mistral::{self, MistralOptions},
    };
    let Some(path) = weights() else { return };
    let options = MistralOptions { device: DeviceChoice::Cpu, ..MistralOptions::default() };
    let theirs = mistral::load(&path, options).await.unwrap();
    let ours = batched::load(&path, DecoderOptions::default()).await.unwrap();
    let mut compared = 0;
    for case in cases().into_iter().filter(|case| case.lead >= ROUNDING && !case.message.is_empty()) {
        let request = GenerationRequest { prompt: case.message, sampling: Sampling::greedy(24) };
        let ours = ours.generate(request.clone()).await.unwrap().collect_until(None).await.unwrap();
        let theirs = theirs.generate(request.clone()).await.unwrap().collect_until(None).await.unwrap();
        assert_eq!(ours.text, theirs.text, "{:?}", request.prompt);
        assert_eq!(ours.finish_reason, theirs.finish_reason, "{:?}", request.prompt);
        compared += 1;
    }
    assert!(compared >= 8, "{compared} passages were compared");
}
