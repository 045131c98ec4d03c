//! The parts of the encoder together: both ways of computing, broken checkpoints, and the threads under a model that
//! misbehaves.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use super::{
    Encoder, EncoderInfo, EncoderOptions, Pooling, Priority, TextKind,
    bert::BertWeights,
    checkpoint::Checkpoint,
    config::Architecture,
    load,
    local::LocalEncoder,
    model::{BatchSize, TextModel},
    packed::PackedBert,
    padded::PaddedBert,
    tokenize::TextTokenizer,
};
use crate::{Error, Result, device::DeviceChoice, testing::tiny_bert};

const FIXTURES: [&str; 5] =
    ["bert-cls-prefixes", "bert-mean-f16-gelu-new", "bert-plain-bf16-sharded", "roberta", "distilbert"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoder").join(name)
}

fn cpu() -> EncoderOptions {
    EncoderOptions { device: DeviceChoice::Cpu, threads: Some(2), ..EncoderOptions::default() }
}

fn id_lists(longest: usize, vocabulary: u32) -> Vec<Vec<u32>> {
    let lengths = [5, 1, longest, 2, 17, 0, longest - 1, 9];
    let ids = |length: usize| (0..length as u32).map(|i| (i * 31 + length as u32) % vocabulary).collect();
    lengths.iter().map(|length| ids(*length)).collect()
}

#[test]
fn packed_equals_padded_with_any_number_of_threads() {
    for name in FIXTURES {
        let checkpoint = Checkpoint::read(&fixture(name)).unwrap();
        let Architecture::Bert(config) = &checkpoint.architecture;
        let weights = || BertWeights::read(&checkpoint.tensors, config).unwrap();
        let pooling = checkpoint.settings.pooling;
        let lists = id_lists(config.longest_text(), config.vocab_size as u32);
        let texts: Vec<&[u32]> = lists.iter().map(Vec::as_slice).collect();
        let device = candle_core::Device::Cpu;
        let padded = PaddedBert::new(weights(), config, pooling, device).unwrap().vectors(&texts).unwrap();
        for threads in 1..=3 {
            let mut model = PackedBert::new(weights(), config.clone(), pooling, threads).unwrap();
            let mut packed = model.vectors(&texts).unwrap();
            // One long text takes the other way through the threads; it also finds used buffers.
            packed.extend(model.vectors(&texts[2..3]).unwrap());
            for (packed, padded) in packed.iter().zip(padded.iter().chain([&padded[2]])) {
                let pairs = packed.iter().zip(padded);
                let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(difference < 1e-4, "{name} with {threads} threads differs by {difference}");
            }
        }
    }
}

#[test]
fn a_long_text_gets_the_ids_of_the_whole_text() {
    for name in ["bert-cls-prefixes", "roberta"] {
        let checkpoint = Checkpoint::read(&fixture(name)).unwrap();
        let tokenizer = TextTokenizer::read(&checkpoint).unwrap();
        let mut whole = tokenizers::Tokenizer::from_file(&checkpoint.tokenizer).unwrap();
        whole.with_padding(None);
        let max_length = checkpoint.settings.max_length;
        let truncation = tokenizers::TruncationParams { max_length, ..Default::default() };
        whole.with_truncation(Some(truncation)).unwrap();
        let pieces = [
            "word ",
            "x",
            " ",
            "文",
            "!",
            "é",
            "[SEP] ",
            "<mask>",
            "ab1.",
            "\u{85}\u{a0}",
            "o\u{301}",
            "long-ish words here\n",
        ];
        for repeat in [1, 30, 400, 3000] {
            for piece in pieces {
                for text in [
                    piece.repeat(repeat),
                    piece.repeat(repeat) + " end",
                    " ".repeat(repeat) + &piece.repeat(200),
                ] {
                    let prefixed = format!("{}{text}", checkpoint.settings.query_prefix);
                    let expected = whole.encode(prefixed, true).unwrap();
                    let ids = tokenizer.ids(TextKind::Query, &text).unwrap();
                    assert_eq!(ids, expected.get_ids(), "{name}: {repeat} × {piece:?}");
                }
            }
        }
    }
}

/// Writes a good checkpoint, breaks it, and gives the message of the error that loading it must give.
fn broken(break_it: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    tiny_bert(folder.path(), 1).unwrap();
    break_it(folder.path());
    match load(folder.path(), &cpu()) {
        Ok(_) => panic!("a broken checkpoint was loaded"),
        Err(error @ Error::Checkpoint { .. }) => error.to_string(),
        Err(error) => panic!("not a checkpoint error: {error}"),
    }
}

fn edit(path: PathBuf, from: &str, to: &str) {
    let text = fs_err::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    fs_err::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn broken_checkpoints_are_refused_with_the_file_and_the_remedy() {
    let remove = |name: &'static str| move |folder: &Path| fs_err::remove_file(folder.join(name)).unwrap();
    let write = |name: &'static str, bytes: &'static [u8]| {
        move |folder: &Path| fs_err::write(folder.join(name), bytes).unwrap()
    };
    let replace = |name: &'static str, from: &'static str, to: &'static str| {
        move |folder: &Path| edit(folder.join(name), from, to)
    };
    type Breaking = Box<dyn FnOnce(&Path)>;
    let cases: Vec<(Breaking, [&str; 2])> = vec![
        (Box::new(remove("config.json")), ["config.json", "missing"]),
        (Box::new(remove("tokenizer.json")), ["tokenizer.json", "AutoTokenizer"]),
        (Box::new(remove("model.safetensors")), ["model.safetensors", "safetensors format"]),
        (Box::new(write("model.safetensors", b"abc")), ["model.safetensors", "too few"]),
        (Box::new(write("model.safetensors", &[255; 100])), ["model.safetensors", "not a safetensors file"]),
        (Box::new(write("tokenizer.json", b"{}")), ["tokenizer.json", "fetch the file again"]),
        (Box::new(write("config.json", b"[")), ["config.json", "not the JSON"]),
        (Box::new(write("expandr.json", b"{\"pool\": 1}")), ["expandr.json", "unknown field `pool`"]),
        (Box::new(write("expandr.json", b"{\"max_length\": 2}")), ["leaves no room", "raise it"]),
        (
            Box::new(replace("config.json", "\"vocab_size\":", "\"vocab_size\":9, \"x\":")),
            ["tokenizer.json", "different models"],
        ),
        (
            Box::new(replace("config.json", "\"vocab_size\":", "\"vocab_size\":999, \"x\":")),
            ["word_embeddings", "[999, 32]"],
        ),
        (
            Box::new(replace("config.json", "\"num_hidden_layers\":2", "\"num_hidden_layers\":3")),
            ["encoder.layer.2", "no tensor"],
        ),
        (Box::new(replace("config.json", "\"bert\"", "\"t5\"")), ["config.json", "\"t5\" is not supported"]),
        (Box::new(replace("modules.json", "models.Normalize", "models.Dense")), ["modules.json", "Dense"]),
        (Box::new(replace("modules.json", "1_Pooling", "../1_Pooling")), ["modules.json", "leads out"]),
        (
            Box::new(replace("1_Pooling/config.json", "mean_tokens", "max_tokens")),
            ["1_Pooling", "max_tokens"],
        ),
    ];
    for (break_it, words) in cases {
        let message = broken(break_it);
        for word in words {
            assert!(message.contains(word), "{word:?} is not in: {message}");
        }
    }
    let message = broken(|folder| {
        let path = folder.join("model.safetensors");
        let bytes = fs_err::read(&path).unwrap();
        fs_err::write(path, &bytes[..bytes.len() - 1]).unwrap();
    });
    assert!(message.contains("bytes of tensors, and its header says"), "{message}");
    let message = load(Path::new("/nowhere"), &cpu()).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("/nowhere: not a folder"), "{message}");
}

#[test]
fn settings_come_from_where_sentence_transformers_reads_them() {
    let settings = |files: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        tiny_bert(folder.path(), 1).unwrap();
        for (name, content) in files {
            fs_err::write(folder.path().join(name), content).unwrap();
        }
        Checkpoint::read(folder.path()).map(|checkpoint| checkpoint.settings)
    };
    let default = settings(&[]).unwrap();
    assert_eq!((default.max_length, default.pooling, default.normalize), (64, Pooling::Mean, true));
    let prompts = |json| settings(&[("config_sentence_transformers.json", json)]);
    let e5 = prompts(r#"{"prompts": {"query": "query: ", "document": "", "passage": "passage: "}}"#).unwrap();
    assert_eq!((e5.query_prefix.as_str(), e5.document_prefix.as_str()), ("query: ", "passage: "));
    let one = prompts(r#"{"prompts": {"sts": "s: ", "query": ""}, "default_prompt_name": "sts"}"#).unwrap();
    assert_eq!((one.query_prefix.as_str(), one.document_prefix.as_str()), ("", "s: "));
    assert!(
        prompts(r#"{"prompts": {}, "default_prompt_name": "sts"}"#).unwrap_err().to_string().contains("sts")
    );
    let long = settings(&[("sentence_bert_config.json", r#"{"max_seq_length": 512}"#)]).unwrap();
    assert_eq!(long.max_length, 64, "the model has 64 positions");
    let none =
        [("sentence_bert_config.json", "{}"), ("tokenizer_config.json", r#"{"model_max_length": 50}"#)];
    assert_eq!(settings(&none).unwrap().max_length, 50);
    let own = r#"{"pooling": "cls", "normalize": false, "query_prefix": "q ", "max_length": 20}"#;
    let own = settings(&[("expandr.json", own)]).unwrap();
    assert_eq!(
        (own.pooling, own.normalize, own.max_length, own.query_prefix.as_str()),
        (Pooling::Cls, false, 20, "q ")
    );
    let skip =
        r#"{"word_embedding_dimension": 32, "pooling_mode_mean_tokens": true, "include_prompt": false}"#;
    assert!(settings(&[("1_Pooling/config.json", skip)]).is_ok());
    let skip = settings(&[("1_Pooling/config.json", skip), ("expandr.json", r#"{"query_prefix": "q "}"#)]);
    assert!(skip.unwrap_err().to_string().contains("include_prompt"));
}

/// A model that does what the length of a text says, and notes the sizes of micro-batches.
struct Puppet {
    batches: Arc<Mutex<Vec<usize>>>,
    gate: mpsc::Receiver<()>,
}

const PANICS: &str = "zzzzz";
const IS_NAN: &str = "zzz";

impl TextModel for Puppet {
    fn cost(&self, batch: BatchSize) -> usize {
        batch.tokens
    }

    fn vectors(&mut self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        self.gate.recv_timeout(Duration::from_secs(10)).expect("the test opens the gate");
        self.batches.lock().unwrap().push(texts.len());
        assert!(texts.iter().all(|ids| ids.len() != PANICS.len() + 2), "told to panic");
        let value = |ids: &&[u32]| if ids.len() == IS_NAN.len() + 2 { f32::NAN } else { ids.len() as f32 };
        Ok(texts.iter().map(|ids| vec![value(ids)]).collect())
    }
}

struct Stage {
    encoder: Arc<LocalEncoder>,
    gate: mpsc::Sender<()>,
    batches: Arc<Mutex<Vec<usize>>>,
}

impl Stage {
    /// An encoder with the puppet inside, whose micro-batches have at most 20 tokens, and whose queue has room for 10
    /// texts. A text of n letters has n + 2 tokens.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        tiny_bert(folder.path(), 1).unwrap();
        let tokenizer = TextTokenizer::read(&Checkpoint::read(folder.path()).unwrap()).unwrap();
        let info = EncoderInfo {
            id: "puppet@0".into(),
            dimension: 1,
            max_length: 64,
            pooling: Pooling::Mean,
            normalize: false,
            query_prefix: String::new(),
            document_prefix: String::new(),
            device: "cpu".into(),
        };
        let (gate, receiver) = mpsc::channel();
        let batches = Arc::new(Mutex::new(Vec::new()));
        let puppet = Puppet { batches: batches.clone(), gate: receiver };
        let encoder = LocalEncoder::start(info, tokenizer, Box::new(puppet), 20, 10, 1).unwrap();
        Self { encoder: Arc::new(encoder), gate, batches }
    }

    fn encode(&self, priority: Priority, texts: &[&str]) -> tokio::task::JoinHandle<Result<Vec<Vec<f32>>>> {
        let encoder = self.encoder.clone();
        let texts = texts.iter().map(|text| text.to_string()).collect();
        tokio::spawn(async move { encoder.encode(TextKind::Query, priority, texts).await })
    }

    /// Waits until the queue holds `count` texts and they have had time to pass the tokenizer.
    async fn settle(&self, count: usize) {
        for _ in 0..500 {
            if self.encoder.queued() == count {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.encoder.queued(), count);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    fn open(&self, times: usize) {
        (0..times).for_each(|_| self.gate.send(()).unwrap());
    }
}

#[tokio::test]
async fn an_interactive_text_waits_for_one_micro_batch_only() {
    let stage = Stage::new();
    let bulk = stage.encode(Priority::Bulk, &["zzzzzzzz"; 8]); // 8 × 10 tokens: 4 micro-batches
    stage.settle(8).await;
    let first = stage.encode(Priority::Interactive, &["z"]);
    let second = stage.encode(Priority::Interactive, &["zz"]);
    stage.settle(10).await;
    stage.open(2);
    assert_eq!(first.await.unwrap().unwrap(), [[3.0]]);
    assert_eq!(second.await.unwrap().unwrap(), [[4.0]]);
    assert!(!bulk.is_finished());
    assert_eq!(*stage.batches.lock().unwrap(), [2, 2], "the second micro-batch is both interactive requests");
    stage.open(3);
    assert_eq!(bulk.await.unwrap().unwrap(), [[10.0]; 8]);
    assert_eq!(stage.encoder.queued(), 0);
}

#[tokio::test]
async fn a_full_queue_refuses_and_recovers() {
    let stage = Stage::new();
    let first = stage.encode(Priority::Bulk, &["z"; 9]);
    stage.settle(9).await;
    let refused = stage.encode(Priority::Interactive, &["z"; 2]).await.unwrap();
    assert!(matches!(refused, Err(Error::Overloaded { what: "encoder", .. })));
    stage.open(9);
    assert!(first.await.unwrap().is_ok());
    assert!(stage.encode(Priority::Interactive, &["z"; 2]).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_callers_texts_are_skipped_when_it_leaves() {
    let stage = Stage::new();
    let running = stage.encode(Priority::Bulk, &["zzzzzzzzzzzzzzzzzz"]);
    stage.settle(1).await;
    let gone = stage.encode(Priority::Bulk, &["z"; 6]);
    stage.settle(7).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    let next = stage.encode(Priority::Bulk, &["zz"]);
    stage.settle(8).await;
    stage.open(2);
    assert!(running.await.unwrap().is_ok());
    assert_eq!(next.await.unwrap().unwrap(), [[4.0]]);
    assert_eq!(*stage.batches.lock().unwrap(), [1, 1]);
    assert_eq!(stage.encoder.queued(), 0);
}

#[tokio::test]
async fn a_panic_and_a_nan_are_errors_and_the_thread_lives_on() {
    let stage = Stage::new();
    stage.open(3);
    let panicked = stage.encode(Priority::Interactive, &[PANICS]).await.unwrap();
    let message = panicked.unwrap_err().to_string();
    assert!(message.contains("panicked: told to panic"), "{message}");
    let nan = stage.encode(Priority::Interactive, &["z", IS_NAN]).await.unwrap();
    assert!(nan.unwrap_err().to_string().contains("not finite"));
    assert_eq!(stage.encode(Priority::Interactive, &["z"]).await.unwrap().unwrap(), [[3.0]]);
    assert_eq!(stage.encoder.queued(), 0);
}
