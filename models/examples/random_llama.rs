//! Makes a checkpoint of Llama-3-8B's shape with random bf16 weights, to time the paper's scale without its weights.
//!
//! ```text
//! cargo run --release -p expandr-models --example random_llama -- <out> <tokenizer folder> [--layers 32] [--hidden 4096]
//!     [--intermediate 14336] [--heads 32] [--kv-heads 8] [--vocabulary 128256] [--shard-mib 4096] [--seed 1]
//! ```
//!
//! Tokenizer and chat template come from the folder given (`expandr models pull` has one). Where its vocabulary is smaller, it
//! gets a name for every further token, so that whatever the model writes is text. Weights are written as they are drawn: memory
//! stays small whatever the size. What it writes means nothing, and it hardly ever ends by itself, so that every passage has the
//! tokens that were asked for.

use std::{
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use fs_err as fs;
use half::bf16;
use serde_json::{Map, Value, json};

/// Sizes of a Llama.
struct Shape {
    layers: usize,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
}

struct Arguments {
    out: PathBuf,
    tokenizer: PathBuf,
    shape: Shape,
    shard_bytes: usize,
    seed: u64,
}

fn arguments() -> Result<Arguments> {
    let shape =
        Shape { layers: 32, hidden: 4096, intermediate: 14_336, heads: 32, kv_heads: 8, vocabulary: 128_256 };
    let (mut shape, mut shard_mib, mut seed, mut plain) = (shape, 4096, 1, Vec::new());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix("--") else {
            plain.push(PathBuf::from(word));
            continue;
        };
        let value = words.next().with_context(|| format!("--{name} wants a value"))?;
        let value: usize = value.parse().with_context(|| format!("--{name} {value} is no number"))?;
        match name {
            "layers" => shape.layers = value,
            "hidden" => shape.hidden = value,
            "intermediate" => shape.intermediate = value,
            "heads" => shape.heads = value,
            "kv-heads" => shape.kv_heads = value,
            "vocabulary" => shape.vocabulary = value,
            "shard-mib" => shard_mib = value,
            "seed" => seed = value as u64,
            _ => bail!("there is no --{name}; the head of the source lists what there is"),
        }
    }
    let Ok([out, tokenizer]) = <[PathBuf; 2]>::try_from(plain) else {
        bail!("usage: random_llama <out> <tokenizer folder> [--layers N] …");
    };
    let Shape { layers, hidden, intermediate, heads, kv_heads, vocabulary } = shape;
    ensure!(
        [layers, hidden, intermediate, heads, kv_heads, vocabulary, shard_mib].iter().all(|n| *n > 0),
        "every size must be above 0"
    );
    ensure!(hidden % heads == 0 && (hidden / heads) % 2 == 0, "--hidden must be an even multiple of --heads");
    ensure!(heads % kv_heads == 0, "--heads must be a multiple of --kv-heads");
    ensure!(!out.exists(), "{} exists already; remove it or choose another folder", out.display());
    Ok(Arguments { out, tokenizer, shape, shard_bytes: shard_mib << 20, seed })
}

/// A tensor's name and sizes.
struct Tensor {
    name: String,
    sizes: Vec<usize>,
}

impl Tensor {
    fn new(name: impl Into<String>, sizes: &[usize]) -> Self {
        Self { name: name.into(), sizes: sizes.to_vec() }
    }

    fn bytes(&self) -> usize {
        self.sizes.iter().product::<usize>() * 2
    }
}

/// Every tensor, in the order of the files.
fn tensors(shape: &Shape) -> Vec<Tensor> {
    let Shape { layers, hidden, intermediate, heads, kv_heads, vocabulary } = *shape;
    let keys = hidden / heads * kv_heads;
    let mut all = vec![Tensor::new("model.embed_tokens.weight", &[vocabulary, hidden])];
    for layer in 0..layers {
        let mut add = |name: &str, sizes: &[usize]| {
            all.push(Tensor::new(format!("model.layers.{layer}.{name}.weight"), sizes))
        };
        add("input_layernorm", &[hidden]);
        add("self_attn.q_proj", &[hidden, hidden]);
        add("self_attn.k_proj", &[keys, hidden]);
        add("self_attn.v_proj", &[keys, hidden]);
        add("self_attn.o_proj", &[hidden, hidden]);
        add("post_attention_layernorm", &[hidden]);
        add("mlp.gate_proj", &[intermediate, hidden]);
        add("mlp.up_proj", &[intermediate, hidden]);
        add("mlp.down_proj", &[hidden, intermediate]);
    }
    all.push(Tensor::new("model.norm.weight", &[hidden]));
    all.push(Tensor::new("lm_head.weight", &[vocabulary, hidden]));
    all
}

/// Divides tensors into files of at most `limit` bytes, or of one tensor.
fn shards(tensors: Vec<Tensor>, limit: usize) -> Vec<Vec<Tensor>> {
    let mut shards: Vec<Vec<Tensor>> = Vec::new();
    let mut bytes = usize::MAX;
    for tensor in tensors {
        if bytes.saturating_add(tensor.bytes()) > limit {
            shards.push(Vec::new());
            bytes = 0;
        }
        bytes += tensor.bytes();
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    shards
}

/// Random bf16 numbers: uniform, with the standard deviation that Llama's weights start from (0.02).
struct Draw {
    state: u64,
    numbers: Vec<[u8; 2]>,
}

impl Draw {
    fn new(seed: u64) -> Self {
        let widest = 0.02 * 3.0f32.sqrt();
        let number = |n: u32| bf16::from_f32(((n as f32 + 0.5) / 32_768.0 - 1.0) * widest).to_le_bytes();
        Self { state: seed, numbers: (0..=u32::from(u16::MAX)).map(number).collect() }
    }

    /// Sixty-four random bits (SplitMix64).
    fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        for eight in buffer.chunks_mut(8) {
            let bits = self.bits();
            for (place, pair) in eight.chunks_mut(2).enumerate() {
                let index = (bits >> (16 * place)) as u16;
                pair.copy_from_slice(&self.numbers[usize::from(index)][..pair.len()]);
            }
        }
    }
}

/// Writes one safetensors file: the length of its header, the header, the numbers.
fn write_shard(path: &Path, shard: &[Tensor], draw: &mut Draw) -> Result<()> {
    let (mut header, mut offset) = (Map::new(), 0);
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    for tensor in shard {
        let end = offset + tensor.bytes();
        let entry = json!({"dtype": "BF16", "shape": tensor.sizes, "data_offsets": [offset, end]});
        header.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut buffer = vec![0; 1 << 20];
    let one = bf16::ONE.to_le_bytes();
    for tensor in shard {
        let mut left = tensor.bytes();
        while left > 0 {
            let part = left.min(buffer.len());
            // Norms are 1, as in the beginning of a training.
            match tensor.sizes.len() {
                1 => buffer[..part].chunks_mut(2).for_each(|pair| pair.copy_from_slice(&one)),
                _ => draw.fill(&mut buffer[..part]),
            }
            file.write_all(&buffer[..part])?;
            left -= part;
        }
    }
    file.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    Ok(())
}

fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&fs::read(path)?).with_context(|| format!("{} is not JSON", path.display()))
}

/// `tokenizer.json` with names for the tokens that it lacks.
fn widened(tokenizer: &Path, vocabulary: usize) -> Result<Value> {
    let mut tokenizer = read_json(&tokenizer.join("tokenizer.json"))?;
    let words =
        tokenizer["model"]["vocab"].as_object().context("tokenizer.json has no model.vocab that is a map")?;
    let added = tokenizer["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ids = words.values().chain(added.iter().map(|token| &token["id"]));
    let has = ids.filter_map(Value::as_u64).max().map_or(0, |id| id as usize + 1);
    ensure!(has <= vocabulary, "the tokenizer has {has} tokens; give --vocabulary {has} or more");
    let more = (has..vocabulary).map(|id| {
        json!({"id": id, "content": format!("<{id}>"), "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": false})
    });
    let added: Vec<Value> = added.iter().cloned().chain(more).collect();
    tokenizer["added_tokens"] = added.into();
    Ok(tokenizer)
}

fn config(shape: &Shape, tokenizer: &Path) -> Result<Value> {
    // Which tokens begin and end a text is the tokenizer's, and stands in its model's configuration.
    let theirs = read_json(&tokenizer.join("config.json"))?;
    Ok(json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_act": "silu", "hidden_size": shape.hidden, "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "initializer_range": 0.02, "attention_bias": false, "attention_dropout": 0.0, "mlp_bias": false,
        "tie_word_embeddings": false, "use_cache": true,
        "bos_token_id": theirs["bos_token_id"], "eos_token_id": theirs["eos_token_id"],
    }))
}

fn main() -> Result<()> {
    let Arguments { out, tokenizer, shape, shard_bytes, seed } = arguments()?;
    let name = out.file_name().context("the folder to make has no name")?;
    let partial = out.with_file_name(format!(".{}.partial", name.to_string_lossy()));
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    fs::write(partial.join("config.json"), serde_json::to_vec_pretty(&config(&shape, &tokenizer)?)?)?;
    fs::write(partial.join("tokenizer.json"), serde_json::to_vec(&widened(&tokenizer, shape.vocabulary)?)?)?;
    for file in
        ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json"]
    {
        let path = tokenizer.join(file);
        if path.exists() {
            fs::copy(path, partial.join(file))?;
        }
    }
    let all = tensors(&shape);
    let bytes: usize = all.iter().map(Tensor::bytes).sum();
    let shards = shards(all, shard_bytes);
    let (count, mut draw, mut places) = (shards.len(), Draw::new(seed), Map::new());
    for (number, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
        write_shard(&partial.join(&file), shard, &mut draw)?;
        places.extend(shard.iter().map(|tensor| (tensor.name.clone(), Value::from(file.clone()))));
        eprintln!("{file}");
    }
    let index = json!({"metadata": {"total_size": bytes}, "weight_map": places});
    fs::write(partial.join("model.safetensors.index.json"), serde_json::to_vec_pretty(&index)?)?;
    fs::rename(&partial, &out)?;
    println!("{}: {:.2} billion weights, {:.1} GB", out.display(), bytes as f64 / 2e9, bytes as f64 / 1e9);
    Ok(())
}
