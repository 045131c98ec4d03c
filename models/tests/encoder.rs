//! The encoder against sentence-transformers, and against input that nobody would send on purpose. The fixtures are
//! made by `fixtures/make_encoder_fixture.py`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use expandr_models::{
    Encoder, Pooling, Priority, TextKind,
    device::DeviceChoice,
    encoder::{EncoderOptions, load},
    testing::tiny_bert,
};

/// How far a component may be from sentence-transformers'.
const TOLERANCE: f32 = 1e-4;

#[derive(serde::Deserialize)]
struct Expected {
    query: Option<Vectors>,
    document: Option<Vectors>,
}

#[derive(serde::Deserialize)]
struct Vectors {
    shape: [usize; 2],
    base64: String,
}

impl Vectors {
    fn rows(&self) -> Vec<Vec<f32>> {
        let bytes = decode_base64(&self.base64);
        let values: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(values.len(), self.shape[0] * self.shape[1]);
        values.chunks(self.shape[1]).map(<[f32]>::to_vec).collect()
    }
}

fn decode_base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut out) = (0u32, 0, Vec::new());
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        bits = bits << 6 | ALPHABET.iter().position(|letter| *letter == byte).unwrap() as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoder")
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
}

fn texts() -> Vec<String> {
    let pieces: Vec<(String, usize)> = read(&fixtures().join("texts.json"));
    pieces.into_iter().map(|(piece, count)| piece.repeat(count)).collect()
}

fn options() -> EncoderOptions {
    EncoderOptions { device: DeviceChoice::Cpu, threads: Some(2), ..EncoderOptions::default() }
}

fn tiny(seed: u64) -> (tempfile::TempDir, Arc<dyn Encoder>) {
    let folder = tempfile::tempdir().unwrap();
    tiny_bert(folder.path(), seed).unwrap();
    let encoder = load(folder.path(), &options()).unwrap();
    (folder, encoder)
}

/// Encodes all at once and one by one; both must be near `expected`.
async fn compare(encoder: &dyn Encoder, kind: TextKind, expected: &Vectors) {
    let (texts, expected) = (texts(), expected.rows());
    assert_eq!(texts.len(), expected.len());
    let together = encoder.encode(kind, Priority::Bulk, texts.clone()).await.unwrap();
    for (index, text) in texts.into_iter().enumerate() {
        let shown: String = text.chars().take(40).collect();
        let alone = encoder.encode(kind, Priority::Interactive, vec![text]).await.unwrap().remove(0);
        for vector in [&together[index], &alone] {
            assert_eq!(vector.len(), expected[index].len());
            let difference =
                vector.iter().zip(&expected[index]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(
                difference < TOLERANCE,
                "{}: text {index} ({shown:?}) differs by {difference}",
                encoder.info().id
            );
        }
    }
}

#[tokio::test]
async fn small_checkpoints_of_every_kind_equal_sentence_transformers() {
    for (name, pooling, normalize, max_length) in [
        ("bert-cls-prefixes", Pooling::Cls, false, 40),
        ("bert-mean-f16-gelu-new", Pooling::Mean, true, 32),
        ("bert-plain-bf16-sharded", Pooling::Mean, false, 32),
        ("roberta", Pooling::Mean, true, 40),
        ("distilbert", Pooling::Cls, true, 32),
    ] {
        let folder = fixtures().join(name);
        let encoder = load(&folder, &options()).unwrap();
        let info = encoder.info();
        assert_eq!(
            (info.pooling, info.normalize, info.max_length),
            (pooling, normalize, max_length),
            "{name}"
        );
        assert!(info.id.starts_with(&format!("{name}@")), "{}", info.id);
        let expected: Expected = read(&folder.join("expected.json"));
        let query = expected.query.unwrap();
        compare(&*encoder, TextKind::Query, &query).await;
        compare(&*encoder, TextKind::Document, expected.document.as_ref().unwrap_or(&query)).await;
    }
}

#[tokio::test]
async fn all_minilm_l6_v2_equals_sentence_transformers() {
    let models = std::env::var_os("EXPANDR_TEST_MODELS")
        .map_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("store"), PathBuf::from);
    let folder = models.join("all-minilm-l6-v2");
    if !folder.is_dir() {
        eprintln!(
            "SKIPPED: {} is not there, so the default encoder was NOT compared with sentence-transformers; run \
             `expandr models pull`, or set EXPANDR_TEST_MODELS to the folder that holds all-minilm-l6-v2",
            folder.display()
        );
        return;
    }
    let encoder = load(&folder, &options()).unwrap();
    assert_eq!((encoder.info().dimension, encoder.info().max_length), (384, 256));
    let expected: Expected = read(&fixtures().join("all-minilm-l6-v2.json"));
    compare(&*encoder, TextKind::Document, &expected.document.unwrap()).await;
}

#[tokio::test]
async fn concurrent_requests_get_what_they_get_alone() {
    let (_folder, encoder) = tiny(1);
    let texts: Vec<String> =
        (0..60).map(|i| format!("document {i} {}", "about the vector index ".repeat(i % 7))).collect();
    let mut alone = Vec::new();
    for text in &texts {
        alone.extend(
            encoder.encode(TextKind::Query, Priority::Interactive, vec![text.clone()]).await.unwrap(),
        );
    }
    let calls = texts.chunks(7).enumerate().map(|(call, chunk)| {
        let (encoder, chunk) = (encoder.clone(), chunk.to_vec());
        let priority = if call % 2 == 0 { Priority::Bulk } else { Priority::Interactive };
        tokio::spawn(async move { encoder.encode(TextKind::Query, priority, chunk).await.unwrap() })
    });
    let mut together = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        together.extend(call.await.unwrap());
    }
    // On a CPU to the last bit.
    assert_eq!(alone, together);
    assert_eq!(encoder.queued(), 0);
}

#[tokio::test]
async fn huge_and_strange_texts_are_encoded_in_reasonable_time() {
    let (_folder, encoder) = tiny(2);
    let million = 1_000_000;
    for (name, text) in [
        ("prose", "the answer of the query ".repeat(million / 24)),
        ("spaces", " ".repeat(million)),
        ("spaces, then a word", " ".repeat(million) + "answer"),
        ("one word", "x".repeat(million)),
        ("punctuation", "!".repeat(million)),
        ("NUL", "\0".repeat(million)),
        ("emoji", "😀".repeat(million / 4)),
        ("Chinese", "文".repeat(million / 3)),
        ("special tokens", "[SEP]".repeat(million / 5)),
    ] {
        let start = Instant::now();
        let vectors = encoder.encode(TextKind::Query, Priority::Interactive, vec![text]).await.unwrap();
        assert_eq!(vectors[0].len(), encoder.info().dimension, "{name}");
        eprintln!("1 MB of {name}: {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(60), "1 MB of {name} took {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn an_id_names_everything_that_changes_vectors() {
    let (folder, encoder) = tiny(3);
    let id = encoder.info().id.clone();
    assert_eq!(load(folder.path(), &options()).unwrap().info().id, id);
    fs_err::write(folder.path().join("expandr.json"), r#"{"document_prefix": "passage: "}"#).unwrap();
    let prefixed = load(folder.path(), &options()).unwrap();
    assert_ne!(prefixed.info().id, id);
    let texts = || vec!["the answer".to_owned()];
    let query = prefixed.encode(TextKind::Query, Priority::Bulk, texts()).await.unwrap();
    let document = prefixed.encode(TextKind::Document, Priority::Bulk, texts()).await.unwrap();
    assert_eq!(query, encoder.encode(TextKind::Document, Priority::Bulk, texts()).await.unwrap());
    assert_ne!(query, document);
    tiny_bert(folder.path(), 4).unwrap();
    fs_err::remove_file(folder.path().join("expandr.json")).unwrap();
    assert_ne!(load(folder.path(), &options()).unwrap().info().id, id, "other weights have another id");
}

#[tokio::test]
async fn empty_and_oversized_batches() {
    let folder = tempfile::tempdir().unwrap();
    tiny_bert(folder.path(), 5).unwrap();
    let encoder = load(folder.path(), &EncoderOptions { queue_capacity: 3, ..options() }).unwrap();
    assert!(encoder.encode(TextKind::Query, Priority::Bulk, vec![]).await.unwrap().is_empty());
    let error = encoder.encode(TextKind::Query, Priority::Bulk, vec!["a".into(); 4]).await.unwrap_err();
    assert!(error.to_string().contains("send fewer"), "{error}");
    let no_threads = load(folder.path(), &EncoderOptions { threads: Some(0), ..options() });
    assert!(no_threads.is_err_and(|e| e.to_string().contains("at least 1")));
}
