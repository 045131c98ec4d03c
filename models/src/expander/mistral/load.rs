//! Loading a model into mistralrs.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use mistralrs::{
    GgufModelBuilder, Model, ModelDType, PagedAttentionConfig, PagedAttentionMetaBuilder, TextMessageRole,
    TextMessages, TextModelBuilder, TokenSource, parse_isq_value,
};
use tokenizers::Tokenizer;

use super::{Budget, ENGINE, MistralExpander, MistralOptions, WeightFormat, engine_error};
use crate::{
    DeviceChoice, Error, Result,
    expander::{ExpanderInfo, SpecialTokens, gate::Gate},
    weights::{weights_id, write_gguf_tokenizer},
};

/// Assumed when the model does not say how long its context is.
const DEFAULT_CONTEXT: usize = 2048;

/// Loads the Hugging Face directory or GGUF file at `path`. Nothing is downloaded.
///
/// # Errors
/// When the checkpoint is incomplete, of an unknown architecture or without chat template, when the device can't be opened,
/// and when options contradict each other.
pub async fn load(path: &Path, options: MistralOptions) -> Result<Arc<MistralExpander>> {
    let path = fs_err::canonicalize(path)?;
    let source = Source::of(&path)?;
    let (device, is_cpu) = check(&source, &options)?;
    let runtime = tokio::runtime::Handle::current();
    // Loading computes for seconds, and mistralrs does it inside its async functions.
    let loading = tokio::task::spawn_blocking(move || runtime.block_on(source.load(&options, is_cpu)));
    let loaded =
        loading.await.map_err(|error| engine_error(format!("loading {} broke: {error}", path.display())))?;
    let Loaded { model, special, tokenizer, gate } = loaded?;
    let budget = measure(&model, tokenizer, &path).await?;
    let id = tokio::task::spawn_blocking({
        let path = path.clone();
        move || weights_id(&path)
    });
    let id = id.await.map_err(|error| engine_error(error.to_string()))??;
    let info = ExpanderInfo {
        engine: ENGINE,
        id,
        // In a batch the logits depend, in their last bits, on who else is in it.
        honours_seed: gate.concurrency() == 1,
        concurrency: gate.concurrency(),
        device: device.to_string(),
    };
    let alive = Arc::new(AtomicBool::new(true));
    Ok(Arc::new(MistralExpander { model: Arc::new(model), path, special, budget, gate, alive, info }))
}

/// Where the weights and the tokenizer are.
enum Source {
    Folder(PathBuf),
    Gguf(PathBuf),
}

struct Loaded {
    model: Model,
    special: SpecialTokens,
    tokenizer: Option<Tokenizer>,
    gate: Gate,
}

impl Source {
    fn of(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self::Folder(path.to_path_buf()));
        }
        if path.is_file() {
            return Ok(Self::Gguf(path.to_path_buf()));
        }
        Err(Error::Checkpoint { path: path.to_path_buf(), detail: "neither a folder nor a GGUF file".into() })
    }

    async fn load(self, options: &MistralOptions, is_cpu: bool) -> Result<Loaded> {
        // On a CPU, two sequences in flight corrupt each other's text.
        let concurrency = if is_cpu { 1 } else { options.max_concurrency.max(1) };
        let gate = Gate::new(concurrency, options.queue_capacity);
        match self {
            Self::Folder(folder) => {
                let (special, tokenizer) = tokenizer_of(&folder)?;
                let model = folder_builder(&folder, options, is_cpu, concurrency)?.build().await;
                let model = model.map_err(|error| not_loaded(&folder, &error))?;
                Ok(Loaded { model, special, tokenizer: Some(tokenizer), gate })
            }
            Self::Gguf(file) => {
                let tokenizer = GgufTokenizer::find(&file)?;
                let model =
                    gguf_builder(&file, tokenizer.folder(), options, is_cpu, concurrency)?.build().await;
                let model = model.map_err(|error| not_loaded(&file, &error))?;
                let (special, tokenizer) = match tokenizer.folder() {
                    Some(folder) => {
                        tokenizer_of(folder).map(|(special, tokenizer)| (special, Some(tokenizer)))?
                    }
                    None => (SpecialTokens::common(), None),
                };
                Ok(Loaded { model, special, tokenizer, gate })
            }
        }
    }
}

fn folder_builder(
    folder: &Path,
    options: &MistralOptions,
    is_cpu: bool,
    concurrency: usize,
) -> Result<TextModelBuilder> {
    let dtype = match options.format {
        Some(WeightFormat::F32) => ModelDType::F32,
        Some(WeightFormat::F16) => ModelDType::F16,
        Some(WeightFormat::Bf16) => ModelDType::BF16,
        None if is_cpu => ModelDType::F32,
        None => ModelDType::Auto,
    };
    let mut builder = TextModelBuilder::new(folder.display())
        .with_token_source(TokenSource::None)
        .with_dtype(dtype)
        .with_max_num_seqs(concurrency)
        // On a CPU it is never emptied; the prompts share a few words only.
        .with_prefix_cache_n(None);
    if let Some(isq) = &options.isq {
        let isq = parse_isq_value(isq, None).map_err(Error::Input)?;
        builder = builder.with_isq(isq);
    }
    if is_cpu {
        builder = builder.with_force_cpu();
    } else if options.paged_attention {
        builder = builder.with_paged_attn(paged_attention()?);
    }
    Ok(builder)
}

fn gguf_builder(
    file: &Path,
    tokenizer: Option<&Path>,
    options: &MistralOptions,
    is_cpu: bool,
    concurrency: usize,
) -> Result<GgufModelBuilder> {
    let folder = file.parent().unwrap_or(Path::new(".")).display();
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let mut builder = GgufModelBuilder::new(folder, vec![name])
        .with_token_source(TokenSource::None)
        .with_max_num_seqs(concurrency)
        .with_prefix_cache_n(None);
    if let Some(tokenizer) = tokenizer {
        builder = builder.with_tok_model_id(tokenizer.display());
    }
    if is_cpu {
        builder = builder.with_force_cpu();
    } else if options.paged_attention {
        builder = builder.with_paged_attn(paged_attention()?);
    }
    Ok(builder)
}

fn paged_attention() -> Result<PagedAttentionConfig> {
    PagedAttentionMetaBuilder::default().build().map_err(|error| engine_error(error.to_string()))
}

/// Refuses options that contradict each other, and tells whether the CPU it is.
fn check(source: &Source, options: &MistralOptions) -> Result<(DeviceChoice, bool)> {
    let opened = options.device.open()?;
    let is_cpu = opened.is_cpu();
    let device = match options.device {
        DeviceChoice::Auto if is_cpu => DeviceChoice::Cpu,
        DeviceChoice::Auto if opened.is_metal() => DeviceChoice::Metal(0),
        DeviceChoice::Auto => DeviceChoice::Cuda(0),
        chosen => chosen,
    };
    if let DeviceChoice::Cuda(ordinal @ 1..) | DeviceChoice::Metal(ordinal @ 1..) = device {
        return Err(Error::Input(format!(
            "mistralrs runs on the first accelerator only, not on number {ordinal}; choose it by CUDA_VISIBLE_DEVICES"
        )));
    }
    if is_cpu && options.format.is_some_and(|format| format != WeightFormat::F32) {
        return Err(Error::Input("a CPU computes in f32 only; leave the weights' format out".into()));
    }
    if let (Source::Gguf(file), Some(isq)) = (source, &options.isq) {
        return Err(Error::Input(format!(
            "{} is quantised already and can't be quantised to {isq} while loading; give a Hugging Face directory",
            file.display()
        )));
    }
    Ok((device, is_cpu))
}

fn tokenizer_of(folder: &Path) -> Result<(SpecialTokens, Tokenizer)> {
    let path = folder.join("tokenizer.json");
    let special = SpecialTokens::of_tokenizer(&path)?;
    let tokenizer = Tokenizer::from_file(&path).map_err(|error| Error::Checkpoint {
        path,
        detail: format!("not a tokenizer that can be read ({error}); fetch the checkpoint again"),
    })?;
    Ok((special, tokenizer))
}

/// The tokenizer of a GGUF file: beside it, or converted from it for the time of loading. mistralrs' own conversion
/// splits some texts (`\n\n`) otherwise than the model was trained on.
enum GgufTokenizer {
    Beside(PathBuf),
    Converted(tempfile::TempDir),
    Engine,
}

impl GgufTokenizer {
    fn find(file: &Path) -> Result<Self> {
        let beside = file.parent().unwrap_or(Path::new("."));
        if beside.join("tokenizer.json").is_file() && beside.join("tokenizer_config.json").is_file() {
            return Ok(Self::Beside(beside.to_path_buf()));
        }
        let folder = tempfile::tempdir()?;
        match write_gguf_tokenizer(file, folder.path()) {
            Ok(()) => Ok(Self::Converted(folder)),
            Err(error) => {
                tracing::warn!("mistralrs' own tokenizer is used, which may split text otherwise: {error}");
                Ok(Self::Engine)
            }
        }
    }

    fn folder(&self) -> Option<&Path> {
        match self {
            Self::Beside(folder) => Some(folder),
            Self::Converted(folder) => Some(folder.path()),
            Self::Engine => None,
        }
    }
}

/// Asks the engine how long its context is and what its chat template adds; a model without template is refused here.
async fn measure(model: &Model, tokenizer: Option<Tokenizer>, path: &Path) -> Result<Budget> {
    let context = model.max_sequence_length().map_err(|error| engine_error(error.to_string()))?;
    let empty = TextMessages::new().add_message(TextMessageRole::User, "");
    let template = model.tokenize(either::Either::Left(empty), None, false, true, Some(false)).await;
    let template = template.map_err(|error| Error::Checkpoint {
        path: path.to_path_buf(),
        detail: format!("its chat template can't be used ({error}); give an instruction-tuned model"),
    })?;
    Ok(Budget { tokenizer, template_tokens: template.len(), context: context.unwrap_or(DEFAULT_CONTEXT) })
}

fn not_loaded(path: &Path, error: &impl std::fmt::Display) -> Error {
    Error::Checkpoint { path: path.to_path_buf(), detail: format!("mistralrs can't load it: {error:#}") }
}
