//! An encoder that needs no weights, and a checkpoint that needs no download.

use std::{
    collections::HashMap,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;

use crate::{Encoder, EncoderInfo, Error, Pooling, Priority, Result, TextKind};

/// Longest text of [`HashEncoder`], in words.
const MAX_WORDS: usize = 256;

/// An encoder without weights: each word adds a fixed pseudo-random direction, and the sum is L2-normalised. Texts
/// that share words are near each other, word order and letter case don't matter, and the same text always has the
/// same vector. A text without words has the vector (1, 0, 0, …).
#[derive(Debug)]
pub struct HashEncoder {
    info: EncoderInfo,
    delay: Duration,
    failing: AtomicBool,
    queued: AtomicUsize,
    expected_wait_ms: AtomicUsize,
}

impl HashEncoder {
    /// An encoder whose vectors have `dimension` (at least 1) components.
    pub fn new(dimension: usize) -> Self {
        let info = EncoderInfo {
            id: format!("hash-{dimension}@000000000000"),
            dimension: dimension.max(1),
            max_length: MAX_WORDS,
            pooling: Pooling::Mean,
            normalize: true,
            query_prefix: String::new(),
            document_prefix: String::new(),
            device: "cpu".into(),
        };
        Self {
            info,
            delay: Duration::ZERO,
            failing: AtomicBool::new(false),
            queued: AtomicUsize::new(0),
            expected_wait_ms: AtomicUsize::new(0),
        }
    }

    /// Makes every call take this long.
    #[must_use]
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Gives the encoder another id, so that it counts as another version.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.info.id = id.into();
        self
    }

    /// While on, calls fail with [`Error::Engine`].
    pub fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::SeqCst);
    }

    /// Makes it say that texts wait so long.
    pub fn set_expected_wait_ms(&self, milliseconds: usize) {
        self.expected_wait_ms.store(milliseconds, Ordering::SeqCst);
    }

    /// The vector of one text.
    pub fn vector(&self, text: &str) -> Vec<f32> {
        let mut vector = vec![0f32; self.info.dimension];
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        for word in words.take(MAX_WORDS) {
            let mut state = fnv1a(word.to_lowercase().as_bytes());
            for component in &mut vector {
                *component += uniform(&mut state);
            }
        }
        let norm = vector.iter().map(|c| c * c).sum::<f32>().sqrt();
        if norm == 0.0 {
            vector[0] = 1.0;
        } else {
            vector.iter_mut().for_each(|c| *c /= norm);
        }
        vector
    }
}

/// Counts texts while they are being encoded, also when the call is dropped.
struct Counted<'a>(&'a AtomicUsize, usize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Encoder for HashEncoder {
    fn info(&self) -> &EncoderInfo {
        &self.info
    }

    async fn encode(
        &self,
        _kind: TextKind,
        _priority: Priority,
        texts: Vec<String>,
    ) -> Result<Vec<Vec<f32>>> {
        self.queued.fetch_add(texts.len(), Ordering::SeqCst);
        let _counted = Counted(&self.queued, texts.len());
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        if self.failing.load(Ordering::SeqCst) {
            return Err(Error::Engine { what: "encoder", detail: "the test double was told to fail".into() });
        }
        Ok(texts.iter().map(|text| self.vector(text)).collect())
    }

    fn queued(&self) -> usize {
        self.queued.load(Ordering::SeqCst)
    }

    fn expected_wait(&self) -> Duration {
        Duration::from_millis(self.expected_wait_ms.load(Ordering::SeqCst) as u64)
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The next number of a SplitMix64 sequence, uniform in [-1, 1).
fn uniform(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// The sizes of [`tiny_bert`].
const HIDDEN: usize = 32;
const INTERMEDIATE: usize = 64;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const POSITIONS: usize = 64;

/// Writes a BERT with random weights into `folder` (which is made) in sentence-transformers layout: mean pooling,
/// normalisation, at most 64 tokens, vectors of 32 components, lower-casing WordPiece over single characters and a
/// few words. The same seed gives the same files.
///
/// # Errors
/// When a file can't be written.
pub fn tiny_bert(folder: &Path, seed: u64) -> Result<()> {
    fs_err::create_dir_all(folder.join("1_Pooling"))?;
    let vocabulary = vocabulary();
    let write = |name: &str, value: serde_json::Value| fs_err::write(folder.join(name), value.to_string());
    write(
        "config.json",
        json!({
            "model_type": "bert", "architectures": ["BertModel"], "vocab_size": vocabulary.len(),
            "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "intermediate_size": INTERMEDIATE, "hidden_act": "gelu", "max_position_embeddings": POSITIONS,
            "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
        }),
    )?;
    write(
        "modules.json",
        json!([
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ]),
    )?;
    write(
        "1_Pooling/config.json",
        json!({"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": true}),
    )?;
    write("sentence_bert_config.json", json!({"max_seq_length": POSITIONS, "do_lower_case": false}))?;
    write("tokenizer.json", tokenizer(&vocabulary))?;
    write_weights(&folder.join("model.safetensors"), vocabulary.len(), seed)
}

fn vocabulary() -> Vec<String> {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
    let letters = ('a'..='z').chain('0'..='9');
    let words =
        ["the", "of", "is", "what", "how", "query", "document", "answer", "vector", "index", "expansion"];
    special
        .into_iter()
        .chain(letters.clone().map(String::from))
        .chain(letters.map(|letter| format!("##{letter}")))
        .chain(".,;:!?'\"-()[]/".chars().map(String::from))
        .chain(words.map(str::to_owned))
        .collect()
}

fn tokenizer(vocabulary: &[String]) -> serde_json::Value {
    let ids: HashMap<&str, usize> =
        vocabulary.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let added = |(id, content): (usize, &String)| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocabulary.iter().enumerate().take(5).map(added).collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids},
    })
}

fn write_weights(path: &Path, vocabulary: usize, seed: u64) -> Result<()> {
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("embeddings.word_embeddings.weight".into(), vec![vocabulary, HIDDEN]),
        ("embeddings.position_embeddings.weight".into(), vec![POSITIONS, HIDDEN]),
        ("embeddings.token_type_embeddings.weight".into(), vec![2, HIDDEN]),
    ];
    let mut layer = |name: String, outputs: usize, inputs: Option<usize>| {
        let weight = inputs.map_or(vec![outputs], |inputs| vec![outputs, inputs]);
        shapes.push((format!("{name}.weight"), weight));
        shapes.push((format!("{name}.bias"), vec![outputs]));
    };
    layer("embeddings.LayerNorm".into(), HIDDEN, None);
    for index in 0..LAYERS {
        for (name, outputs, inputs) in [
            ("attention.self.query", HIDDEN, Some(HIDDEN)),
            ("attention.self.key", HIDDEN, Some(HIDDEN)),
            ("attention.self.value", HIDDEN, Some(HIDDEN)),
            ("attention.output.dense", HIDDEN, Some(HIDDEN)),
            ("attention.output.LayerNorm", HIDDEN, None),
            ("intermediate.dense", INTERMEDIATE, Some(HIDDEN)),
            ("output.dense", HIDDEN, Some(INTERMEDIATE)),
            ("output.LayerNorm", HIDDEN, None),
        ] {
            layer(format!("encoder.layer.{index}.{name}"), outputs, inputs);
        }
    }
    let mut state = seed;
    let data: Vec<Vec<u8>> =
        shapes.iter().map(|(name, shape)| random_tensor(name, shape, &mut state)).collect();
    let mut views = Vec::new();
    for ((name, shape), bytes) in shapes.iter().zip(&data) {
        let view =
            TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|e| Error::Weights(e.to_string()))?;
        views.push((name.as_str(), view));
    }
    let file = safetensors::serialize(views, None).map_err(|e| Error::Weights(e.to_string()))?;
    Ok(fs_err::write(path, file)?)
}

fn random_tensor(name: &str, shape: &[usize], state: &mut u64) -> Vec<u8> {
    let norm_scale = name.contains("LayerNorm.weight");
    let spread = match shape {
        [_] => 0.1,
        [_, _] if name.starts_with("embeddings") => 1.0,
        shape => 2.0 / (shape[shape.len() - 1] as f32).sqrt(),
    };
    let count: usize = shape.iter().product();
    let values = (0..count).map(|_| uniform(state) * spread + if norm_scale { 1.0 } else { 0.0 });
    values.flat_map(f32::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn texts_that_share_words_are_near() {
        let encoder = HashEncoder::new(64);
        let query = encoder.vector("how do vector indexes work?");
        let near = encoder.vector("Vector indexes work like this.");
        let far = encoder.vector("Recipes for apple pie");
        assert!((dot(&query, &query) - 1.0).abs() < 1e-5);
        assert!(dot(&query, &near) > dot(&query, &far) + 0.3);
        assert_eq!(encoder.vector("a b"), encoder.vector("B, A!"));
        assert_eq!(encoder.vector("...")[0], 1.0);
    }

    #[tokio::test]
    async fn it_can_be_slow_and_can_fail() {
        let encoder = HashEncoder::new(8).with_delay(Duration::from_millis(50));
        let start = std::time::Instant::now();
        let texts = vec!["x".to_owned()];
        assert_eq!(encoder.encode(TextKind::Query, Priority::Bulk, texts.clone()).await.unwrap().len(), 1);
        assert!(start.elapsed() >= Duration::from_millis(50));
        encoder.set_failing(true);
        assert!(encoder.encode(TextKind::Query, Priority::Bulk, texts).await.is_err());
        assert_eq!(encoder.queued(), 0);
    }
}
