//! From a GGUF file's vocabulary to Hugging Face's `tokenizer.json`.
//!
//! GGUF stores the tokens, their kinds and the merges, but names the pre-tokenizer only (`tokenizer.ggml.pre`); what a
//! name means is written down here as Hugging Face's own files of those models have it.

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::gguf::Gguf;
use crate::Result;

/// Token kinds of `tokenizer.ggml.token_type`.
const UNKNOWN: usize = 2;
const CONTROL: usize = 3;
const USER_DEFINED: usize = 4;
const UNUSED: usize = 5;

/// How Qwen 2 splits text before its merges.
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Llama 3 does: numbers in groups of up to three digits.
const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pre-tokenizers that are understood.
const SUPPORTED: &str = "smollm, gpt-2, qwen2, llama-bpe";

/// A token of its own that text is searched for before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AddedToken {
    pub(super) id: usize,
    pub(super) content: String,
    /// Whether it steers the model and is no text (left out when decoding).
    pub(super) special: bool,
}

/// A tokenizer read out of a GGUF file.
pub(super) struct GgufTokenizer {
    /// Complete, as `tokenizer.json` has it.
    pub(super) tokenizer: Tokenizer,
    /// By ascending id.
    pub(super) added: Vec<AddedToken>,
    pub(super) bos: Option<usize>,
    pub(super) eos: usize,
    /// Ends the model's turn in a conversation, where that is another token than `eos`.
    pub(super) eot: Option<usize>,
    pub(super) unknown: Option<usize>,
    pub(super) padding: Option<usize>,
    /// Whether the tokenizer itself puts the first token before a text.
    pub(super) adds_bos: bool,
    tokens: Vec<String>,
}

impl GgufTokenizer {
    /// The token that ends what an instructed model writes.
    pub(super) fn turn_end(&self) -> usize {
        self.eot.unwrap_or(self.eos)
    }

    /// The text of a token.
    pub(super) fn token(&self, id: usize) -> &str {
        &self.tokens[id]
    }
}

/// Reads the tokenizer of `gguf`.
pub(super) fn read(gguf: &Gguf) -> Result<GgufTokenizer> {
    let model = gguf.text("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(gguf.error(format!(
            "tokenizer model `{model}` can't be converted (byte-level BPE, `gpt2`, can); use the model's Hugging Face \
             directory instead"
        )));
    }
    let pre = gguf.optional_text("tokenizer.ggml.pre")?.unwrap_or("gpt-2");
    let tokens: Vec<String> = gguf.texts("tokenizer.ggml.tokens")?.into_iter().map(str::to_owned).collect();
    let kinds = gguf.optional_numbers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![1; tokens.len()]);
    if kinds.len() != tokens.len() {
        return Err(gguf.error(format!("{} tokens but {} token types", tokens.len(), kinds.len())));
    }
    let id_of = |key: &str| -> Result<Option<usize>> {
        match gguf.optional_number(key)? {
            Some(id) if id >= tokens.len() => {
                Err(gguf.error(format!("`{key}` is {id}, beyond the vocabulary")))
            }
            id => Ok(id),
        }
    };
    let bos = id_of("tokenizer.ggml.bos_token_id")?;
    let eos = id_of("tokenizer.ggml.eos_token_id")?
        .ok_or_else(|| gguf.error("the metadata lacks `tokenizer.ggml.eos_token_id`"))?;
    let eot = id_of("tokenizer.ggml.eot_token_id")?.filter(|eot| *eot != eos);
    let adds_bos = gguf.optional_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(pre == "llama-bpe");
    let added = added_tokens(&tokens, &kinds);
    let stages =
        Stages::of(pre, bos.filter(|_| adds_bos).map(|id| (id, tokens[id].as_str()))).ok_or_else(|| {
            gguf.error(format!("pre-tokenizer `{pre}` is not supported; supported are {SUPPORTED}"))
        })?;
    let json = tokenizer_json(&tokens, &kinds, merges(gguf)?, &added, stages);
    let tokenizer = Tokenizer::from_bytes(json.to_string())
        .map_err(|error| gguf.error(format!("its vocabulary makes no tokenizer: {error}")))?;
    Ok(GgufTokenizer {
        tokenizer,
        added,
        bos,
        eos,
        eot,
        unknown: id_of("tokenizer.ggml.unknown_token_id")?,
        padding: id_of("tokenizer.ggml.padding_token_id")?,
        adds_bos,
        tokens,
    })
}

fn added_tokens(tokens: &[String], kinds: &[usize]) -> Vec<AddedToken> {
    let added = tokens.iter().zip(kinds).enumerate();
    added
        .filter(|(_, (_, kind))| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind))
        .map(|(id, (content, kind))| AddedToken {
            id,
            content: content.clone(),
            special: *kind != USER_DEFINED,
        })
        .collect()
}

fn merges(gguf: &Gguf) -> Result<Vec<(&str, &str)>> {
    let merges = gguf.texts("tokenizer.ggml.merges")?;
    merges
        .into_iter()
        .map(|merge| {
            merge.split_once(' ').ok_or_else(|| gguf.error(format!("`{merge}` is not a merge of two tokens")))
        })
        .collect()
}

fn tokenizer_json(
    tokens: &[String],
    kinds: &[usize],
    merges: Vec<(&str, &str)>,
    added: &[AddedToken],
    stages: Stages,
) -> Value {
    let vocabulary: serde_json::Map<String, Value> = tokens
        .iter()
        .zip(kinds)
        .enumerate()
        .filter(|(_, (_, kind))| **kind != UNUSED)
        .map(|(id, (token, _))| (token.clone(), json!(id)))
        .collect();
    let added: Vec<Value> = added
        .iter()
        .map(|token| {
            json!({
                "id": token.id, "content": token.content, "special": token.special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": stages.normalizer,
        "pre_tokenizer": stages.pre_tokenizer,
        "post_processor": stages.post_processor,
        "decoder": byte_level(true, true, true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": stages.ignore_merges,
            "vocab": vocabulary, "merges": merges,
        },
    })
}

/// What a `tokenizer.ggml.pre` stands for.
struct Stages {
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    ignore_merges: bool,
}

impl Stages {
    /// None for a name that is not known. `bos` is put before every text when given.
    fn of(pre: &str, bos: Option<(usize, &str)>) -> Option<Self> {
        let split = |pattern: &str| {
            json!({
                "type": "Sequence",
                "pretokenizers": [
                    { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
                    byte_level(false, true, false),
                ],
            })
        };
        let (normalizer, pre_tokenizer, ignore_merges) = match pre {
            "gpt-2" | "gpt2" => (Value::Null, byte_level(false, true, true), false),
            "smollm" => {
                let digits = json!({ "type": "Digits", "individual_digits": true });
                let stages = json!([digits, byte_level(false, true, true)]);
                (Value::Null, json!({ "type": "Sequence", "pretokenizers": stages }), false)
            }
            "qwen2" => (json!({ "type": "NFC" }), split(QWEN2_PATTERN), false),
            "llama-bpe" | "llama3" | "llama-v3" => (Value::Null, split(LLAMA3_PATTERN), true),
            _ => return None,
        };
        let trim = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true });
        let post_processor = match bos {
            None => trim,
            Some((id, token)) => json!({ "type": "Sequence", "processors": [trim, first_token(id, token)] }),
        };
        Some(Self { normalizer, pre_tokenizer, post_processor, ignore_merges })
    }
}

fn byte_level(add_prefix_space: bool, trim_offsets: bool, use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": add_prefix_space,
        "trim_offsets": trim_offsets, "use_regex": use_regex,
    })
}

fn first_token(id: usize, token: &str) -> Value {
    let special = |type_id: usize| json!({ "SpecialToken": { "id": token, "type_id": type_id } });
    let sequence = |name: &str, type_id: usize| json!({ "Sequence": { "id": name, "type_id": type_id } });
    json!({
        "type": "TemplateProcessing",
        "single": [special(0), sequence("A", 0)],
        "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
        "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
    })
}
