//! From a GGUF file to a Hugging Face directory: exact f32 weights, configuration, tokenizer with chat template.

use std::path::Path;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::{
    gguf::Gguf,
    manifest::{Manifest, Source, sha256_of_file},
    safetensors_file,
    tokenizer::{self, GgufTokenizer},
};
use crate::{Error, Result};

/// What [`convert_gguf`] wrote.
#[derive(Clone, Debug)]
pub struct ConvertedCheckpoint {
    /// `llama` or `qwen2`.
    pub architecture: String,
    /// Weights, tied ones counted once.
    pub parameters: usize,
    /// Hash of `model.safetensors`.
    pub sha256: String,
}

/// Converts a GGUF language model (architectures llama and qwen2, byte-level BPE vocabularies) into a Hugging Face
/// directory in `folder`, which must exist: `config.json`, `generation_config.json`, `tokenizer.json`,
/// `tokenizer_config.json`, `special_tokens_map.json` and `model.safetensors` with the dequantised weights in f32.
///
/// llama.cpp reorders the rows of Llama's query and key projections for its own rotary embedding; that is undone. Tied
/// embeddings stay tied. What was written is read back and compared before this returns. `progress` gets (tensors
/// done, tensors in all).
///
/// # Errors
/// When the file is damaged or uses what can't be expressed (another architecture, scaled rotary embeddings, …).
pub fn convert_gguf(
    gguf_path: &Path,
    folder: &Path,
    mut progress: impl FnMut(usize, usize),
) -> Result<ConvertedCheckpoint> {
    let mut gguf = Gguf::open(gguf_path)?;
    let architecture = Architecture::read(&gguf)?;
    let tokenizer = tokenizer::read(&gguf)?;
    let layout = layout(&gguf, &architecture)?;
    write_json(&folder.join("config.json"), &architecture.config(&tokenizer, layout.tied))?;
    write_json(&folder.join("generation_config.json"), &generation_config(&tokenizer))?;
    write_tokenizer(&gguf, &tokenizer, architecture.context_length, folder)?;

    let total = layout.tensors.len();
    let shapes: Vec<(String, Vec<usize>)> =
        layout.tensors.iter().map(|tensor| (tensor.target.clone(), tensor.shape.clone())).collect();
    let path = folder.join("model.safetensors");
    let sha256 = safetensors_file::write_f32(&path, &shapes, |index| {
        progress(index, total);
        let tensor = &layout.tensors[index];
        let weights = gguf.tensor(&tensor.source)?;
        match tensor.permuted_heads {
            Some(heads) => undo_permutation(&weights, heads),
            None => Ok(weights),
        }
    })?;
    progress(total, total);
    if sha256_of_file(&path)? != sha256
        || safetensors_file::shapes(&path)? != shapes.iter().cloned().collect()
    {
        return Err(Error::Checkpoint {
            path,
            detail: "what was read back is not what was written; check the disk and try again".into(),
        });
    }
    let parameters = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    Ok(ConvertedCheckpoint { architecture: architecture.name, parameters, sha256 })
}

/// What a manifest says of weights beyond their files.
pub(super) struct About<'a> {
    pub(super) name: &'a str,
    pub(super) licence: &'a str,
    pub(super) upstream: &'a str,
}

/// [`convert_gguf`] into `folder`, which is made, with a manifest.
pub(super) fn convert_described(
    gguf_path: &Path,
    folder: &Path,
    about: &About<'_>,
    progress: impl FnMut(usize, usize),
) -> Result<()> {
    fs_err::create_dir(folder)?;
    convert_gguf(gguf_path, folder, progress)?;
    let file = gguf_path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let source = Source::Gguf { file, sha256: sha256_of_file(gguf_path)? };
    Manifest::describe(folder, about.name, about.licence, about.upstream, source)?.write(folder)
}

/// Writes the tokenizer files alone, in the layout of [`convert_gguf`].
#[cfg(feature = "mistralrs")]
pub(crate) fn write_gguf_tokenizer(gguf_path: &Path, folder: &Path) -> Result<()> {
    let gguf = Gguf::open(gguf_path)?;
    let architecture = gguf.text("general.architecture")?;
    let context_length = gguf.number(&format!("{architecture}.context_length"))?;
    let tokenizer = tokenizer::read(&gguf)?;
    write_json(&folder.join("generation_config.json"), &generation_config(&tokenizer))?;
    write_tokenizer(&gguf, &tokenizer, context_length, folder)
}

/// The hyperparameters, under GGUF's names.
struct Architecture {
    name: String,
    layers: usize,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    context_length: usize,
    rms_norm_eps: f32,
    rope_theta: f32,
    vocabulary: usize,
}

impl Architecture {
    fn read(gguf: &Gguf) -> Result<Self> {
        let name = gguf.text("general.architecture")?.to_owned();
        if !["llama", "qwen2"].contains(&name.as_str()) {
            return Err(gguf.error(format!(
                "architecture `{name}` can't be converted (llama and qwen2 can); use the model's Hugging Face directory"
            )));
        }
        let key = |suffix: &str| format!("{name}.{suffix}");
        if let Some(scaling) =
            gguf.optional_text(&key("rope.scaling.type"))?.filter(|scaling| *scaling != "none")
        {
            return Err(gguf.error(format!(
                "rotary embeddings scaled by `{scaling}` can't be converted; use the model's Hugging Face directory"
            )));
        }
        let hidden = gguf.number(&key("embedding_length"))?;
        let heads = gguf.number(&key("attention.head_count"))?;
        let kv_heads = gguf.optional_number(&key("attention.head_count_kv"))?.unwrap_or(heads);
        let head_dim = match gguf.optional_number(&key("attention.key_length"))? {
            Some(dimension) => dimension,
            None => hidden.checked_div(heads).unwrap_or_default(),
        };
        if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 || head_dim == 0 || head_dim % 2 != 0 {
            return Err(
                gguf.error(format!("{heads} heads, {kv_heads} kv heads, width {hidden}: these don't fit"))
            );
        }
        let rotated = gguf.optional_number(&key("rope.dimension_count"))?.unwrap_or(head_dim);
        if rotated != head_dim {
            return Err(
                gguf.error(format!("{rotated} of {head_dim} dimensions rotated: partial rotary embeddings"))
            );
        }
        let embeddings =
            gguf.shape("token_embd.weight").ok_or_else(|| gguf.error("token_embd.weight is missing"))?;
        Ok(Self {
            layers: gguf.number(&key("block_count"))?,
            intermediate: gguf.number(&key("feed_forward_length"))?,
            context_length: gguf.number(&key("context_length"))?,
            rms_norm_eps: gguf.float(&key("attention.layer_norm_rms_epsilon"))?,
            rope_theta: gguf.optional_float(&key("rope.freq_base"))?.unwrap_or(10_000.),
            vocabulary: embeddings.first().copied().unwrap_or_default(),
            name,
            hidden,
            heads,
            kv_heads,
            head_dim,
        })
    }

    fn config(&self, tokenizer: &GgufTokenizer, tied: bool) -> Value {
        let class = if self.name == "llama" { "LlamaForCausalLM" } else { "Qwen2ForCausalLM" };
        let mut config = json!({
            "architectures": [class],
            "model_type": self.name,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.context_length,
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "rope_theta": shortest(self.rope_theta),
            "rope_scaling": null,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": tied,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "bos_token_id": tokenizer.bos,
            "eos_token_id": tokenizer.eos,
            "pad_token_id": tokenizer.padding,
            "torch_dtype": "float32",
            "use_cache": true,
        });
        let extra = match self.name.as_str() {
            "llama" => json!({ "attention_bias": false, "mlp_bias": false, "pretraining_tp": 1 }),
            _ => json!({
                "use_sliding_window": false, "sliding_window": self.context_length, "max_window_layers": self.layers,
            }),
        };
        if let (Some(config), Value::Object(extra)) = (config.as_object_mut(), extra) {
            config.extend(extra);
        }
        config
    }
}

/// The decimal number that was meant: `1e-5`, where the f32 nearest to it reads 9.999999747378752e-6 in f64.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

fn generation_config(tokenizer: &GgufTokenizer) -> Value {
    let ends = match tokenizer.eot {
        Some(eot) => json!([tokenizer.eos, eot]),
        None => json!(tokenizer.eos),
    };
    json!({
        "_from_model_config": true,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": ends,
        "pad_token_id": tokenizer.padding,
    })
}

/// One tensor's way from the GGUF file into the safetensors file.
struct Move {
    source: String,
    target: String,
    shape: Vec<usize>,
    /// The heads of a projection whose rows llama.cpp has reordered.
    permuted_heads: Option<usize>,
}

struct Layout {
    tensors: Vec<Move>,
    tied: bool,
}

/// Finds the place of every tensor; one without a place, or a place without a tensor, is an error.
fn layout(gguf: &Gguf, architecture: &Architecture) -> Result<Layout> {
    let mut tensors = Vec::new();
    for source in gguf.tensor_names() {
        let (target, permuted_heads) = target_of(&source, architecture).ok_or_else(|| {
            gguf.error(format!("tensor `{source}` has no place in a {} checkpoint", architecture.name))
        })?;
        let shape = gguf.shape(&source).unwrap_or_default();
        tensors.push(Move { source, target, shape, permuted_heads });
    }
    tensors.sort_by(|a, b| a.target.cmp(&b.target));
    for target in expected(architecture) {
        let found = tensors.iter().find(|tensor| tensor.target == target.0);
        match found {
            None => return Err(gguf.error(format!("the tensor for `{}` is missing", target.0))),
            Some(tensor) if tensor.shape != target.1 => {
                return Err(gguf.error(format!(
                    "tensor `{}` has shape {:?} where {:?} is expected",
                    tensor.source, tensor.shape, target.1
                )));
            }
            Some(_) => {}
        }
    }
    let tied = tensors.iter().all(|tensor| tensor.target != "lm_head.weight");
    Ok(Layout { tensors, tied })
}

fn target_of(source: &str, architecture: &Architecture) -> Option<(String, Option<usize>)> {
    match source {
        "token_embd.weight" => return Some(("model.embed_tokens.weight".into(), None)),
        "output_norm.weight" => return Some(("model.norm.weight".into(), None)),
        "output.weight" => return Some(("lm_head.weight".into(), None)),
        _ => {}
    }
    let (layer, rest) = source.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok().filter(|layer| *layer < architecture.layers)?;
    let (part, parameter) = rest.rsplit_once('.')?;
    if !["weight", "bias"].contains(&parameter) {
        return None;
    }
    let is_llama = architecture.name == "llama";
    let (place, permuted_heads) = match part {
        "attn_norm" => ("input_layernorm", None),
        "ffn_norm" => ("post_attention_layernorm", None),
        "attn_q" => ("self_attn.q_proj", is_llama.then_some(architecture.heads)),
        "attn_k" => ("self_attn.k_proj", is_llama.then_some(architecture.kv_heads)),
        "attn_v" => ("self_attn.v_proj", None),
        "attn_output" => ("self_attn.o_proj", None),
        "ffn_gate" => ("mlp.gate_proj", None),
        "ffn_up" => ("mlp.up_proj", None),
        "ffn_down" => ("mlp.down_proj", None),
        _ => return None,
    };
    let has_bias = !is_llama && ["attn_q", "attn_k", "attn_v"].contains(&part);
    if parameter == "bias" && !has_bias {
        return None;
    }
    Some((format!("model.layers.{layer}.{place}.{parameter}"), permuted_heads))
}

/// Names and shapes that a checkpoint of this architecture must have.
fn expected(architecture: &Architecture) -> Vec<(String, Vec<usize>)> {
    let a = architecture;
    let (queries, keys) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    let mut expected = vec![
        ("model.embed_tokens.weight".to_owned(), vec![a.vocabulary, a.hidden]),
        ("model.norm.weight".to_owned(), vec![a.hidden]),
    ];
    for layer in 0..a.layers {
        let mut place =
            |name: &str, shape: Vec<usize>| expected.push((format!("model.layers.{layer}.{name}"), shape));
        place("input_layernorm.weight", vec![a.hidden]);
        place("post_attention_layernorm.weight", vec![a.hidden]);
        place("self_attn.q_proj.weight", vec![queries, a.hidden]);
        place("self_attn.k_proj.weight", vec![keys, a.hidden]);
        place("self_attn.v_proj.weight", vec![keys, a.hidden]);
        place("self_attn.o_proj.weight", vec![a.hidden, queries]);
        place("mlp.gate_proj.weight", vec![a.intermediate, a.hidden]);
        place("mlp.up_proj.weight", vec![a.intermediate, a.hidden]);
        place("mlp.down_proj.weight", vec![a.hidden, a.intermediate]);
        if a.name == "qwen2" {
            place("self_attn.q_proj.bias", vec![queries]);
            place("self_attn.k_proj.bias", vec![keys]);
            place("self_attn.v_proj.bias", vec![keys]);
        }
    }
    expected
}

/// llama.cpp interleaves the two halves of each head's rows; this puts the halves one after the other again.
fn undo_permutation(weights: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, columns) = weights.dims2()?;
    let halves = weights.reshape((heads, rows / heads / 2, 2, columns))?;
    Ok(halves.transpose(1, 2)?.contiguous()?.reshape((rows, columns))?)
}

fn write_tokenizer(
    gguf: &Gguf,
    tokenizer: &GgufTokenizer,
    context_length: usize,
    folder: &Path,
) -> Result<()> {
    let text = tokenizer.tokenizer.to_string(false).map_err(|error| gguf.error(error.to_string()))?;
    fs_err::write(folder.join("tokenizer.json"), text)?;
    let token = |id: Option<usize>| id.map(|id| tokenizer.token(id));
    let decoder: serde_json::Map<String, Value> = tokenizer
        .added
        .iter()
        .map(|token| {
            let entry = json!({
                "content": token.content, "special": token.special,
                "lstrip": false, "rstrip": false, "normalized": false, "single_word": false,
            });
            (token.id.to_string(), entry)
        })
        .collect();
    let config = json!({
        "added_tokens_decoder": decoder,
        "additional_special_tokens":
            tokenizer.added.iter().filter(|token| token.special).map(|token| &token.content).collect::<Vec<_>>(),
        "add_bos_token": tokenizer.adds_bos,
        "add_prefix_space": false,
        "bos_token": token(tokenizer.bos),
        "eos_token": tokenizer.token(tokenizer.turn_end()),
        "unk_token": token(tokenizer.unknown),
        "pad_token": token(tokenizer.padding),
        "chat_template": gguf.optional_text("tokenizer.chat_template")?,
        "clean_up_tokenization_spaces": false,
        "model_max_length": context_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    write_json(&folder.join("tokenizer_config.json"), &config)?;
    let special = json!({
        "bos_token": token(tokenizer.bos),
        "eos_token": tokenizer.token(tokenizer.turn_end()),
        "unk_token": token(tokenizer.unknown),
        "pad_token": token(tokenizer.padding),
    });
    let special = special.as_object().map(|map| map.iter().filter(|(_, token)| !token.is_null()).collect());
    let special: serde_json::Map<String, Value> = special
        .map(|map: Vec<_>| map.into_iter().map(|(key, token)| (key.clone(), token.clone())).collect())
        .unwrap_or_default();
    write_json(&folder.join("special_tokens_map.json"), &Value::Object(special))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    Ok(fs_err::write(path, format!("{value:#}\n"))?)
}
