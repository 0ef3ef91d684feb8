//! Fetches and opens the model of a command line, with its tokenizer and chat template.

use std::path::PathBuf;

use super::LaunchError;
use crate::config::EngineConfig;
use crate::config::typed;
use crate::executor::cuda::{CudaExecutor, CudaLoadError, check_experts};
use crate::model::config::ModelConfig;
use crate::model::config_json;
use crate::model::quantization::{QuantMethod, Quantization};
use crate::request::sampling_defaults::{Recommendation, SamplingDefaults};
use crate::source::hub::Parts;
use crate::source::{self, Accept, ModelSource, Progress, ResolvedModel, SourceError};
use crate::text::{ChatTemplate, Tokenizer};
use crate::weights::format::CheckpointFormat;
use crate::weights::scaled::ScaledElement;
use crate::weights::{self, Checkpoint, LoadFormat, ModelFiles, WeightError};

/// A checkpoint that was found and opened.
pub struct LoadedModel {
    /// As requested; `default` if none was.
    pub requested: String,
    /// Why the default model was replaced, if it was.
    pub fallback_reason: Option<String>,
    pub resolved: ResolvedModel,
    pub checkpoint: Box<dyn Checkpoint>,
}

/// The folder for fetched models; absolute, since the programs that fetch them run in other
/// folders.
///
/// # Errors
///
/// If the path cannot be made absolute, or nothing is typed and there is no folder for caches.
pub fn cache_dir(typed: Option<&PathBuf>) -> Result<PathBuf, SourceError> {
    match typed {
        Some(dir) => std::path::absolute(dir).map_err(|e| SourceError::file(dir, e)),
        None => source::default_cache_dir(),
    }
}

/// Fetches and opens the model.
///
/// # Errors
///
/// [`LaunchError::Source`] if the model cannot be found or fetched, [`LaunchError::Weights`] if
/// its files cannot be read, [`LaunchError::ContextLength`] if more context is asked for than it
/// has, [`LaunchError::Quantization`] if it is not in the format that was asked for.
pub fn load_model(
    config: &EngineConfig,
    progress: &dyn Fn(Progress),
) -> Result<LoadedModel, LaunchError> {
    load_accepted(config, &|_| Ok(()), progress)
}

/// Fetches and opens the model. Whatever the command line and the small files can rule out is
/// refused before weights are fetched or read; so is what `accept` refuses; the model has no digest
/// at that point.
pub(super) fn load_accepted(
    config: &EngineConfig,
    accept: &dyn Fn(&ResolvedModel) -> Result<(), LaunchError>,
    progress: &dyn Fn(Progress),
) -> Result<LoadedModel, LaunchError> {
    let cache_dir = cache_dir(config.cache_dir.as_ref())?;
    let accept = Accept {
        files: &|found| {
            check_small_files(config, found)?;
            accept(found)
        },
        config: &|model| check_device(config, model),
    };
    let (requested, resolved, fallback_reason) = if let Some(path) = &config.model_path {
        let source = ModelSource::parse(path)?;
        let parts = parts_of(config);
        let resolved = source::resolve_accepted(&source, parts, &cache_dir, &accept, progress)?;
        (path.clone(), resolved, None)
    } else {
        let default = source::resolve_default(&cache_dir, progress)?;
        (accept.files)(&default.model)?;
        ("default".to_owned(), default.model, default.fallback_reason)
    };
    if let Some(reason) = &fallback_reason {
        let used = &resolved.requested;
        tracing::warn!("!!! the default model is not available: {reason}");
        tracing::warn!("!!! serving {used} instead: seeded random weights, its text means nothing");
    }
    let checkpoint = open(config, &resolved)?;
    check_context_length(config, checkpoint.config())?;
    // Random weights in a folder's shapes are AWQ's, whatever the folder has, which was checked.
    let is_folder = matches!(resolved.files, ModelFiles::Folder(_));
    if !(is_folder && config.load_format == typed::LoadFormat::Dummy) {
        check_quantization(config.quantization, checkpoint.format())?;
    }
    tracing::info!(
        model = resolved.display_name,
        source = resolved.requested,
        format = %checkpoint.format(),
        sha256 = resolved.sha256,
        "checkpoint opened"
    );
    Ok(LoadedModel {
        requested,
        fallback_reason,
        resolved,
        checkpoint,
    })
}

pub(super) fn open(
    config: &EngineConfig,
    resolved: &ResolvedModel,
) -> Result<Box<dyn Checkpoint>, WeightError> {
    let load_format = match config.load_format {
        typed::LoadFormat::Auto => LoadFormat::Auto,
        typed::LoadFormat::Safetensors => LoadFormat::Safetensors,
        typed::LoadFormat::Gguf => LoadFormat::Gguf,
        typed::LoadFormat::Dummy => LoadFormat::Dummy,
    };
    weights::open(
        &resolved.files,
        load_format,
        config.random_seed.unwrap_or(0),
    )
}

/// A model that was suspended without its weights wakes with the same ones, or not at all.
pub(super) fn check_unchanged(
    config: &EngineConfig,
    model: &ResolvedModel,
) -> Result<(), LaunchError> {
    let cache_dir = cache_dir(config.cache_dir.as_ref())?;
    source::check_unchanged(model, parts_of(config), &cache_dir)?;
    Ok(())
}

fn parts_of(config: &EngineConfig) -> Parts {
    match config.load_format {
        typed::LoadFormat::Dummy => Parts::WithoutWeights,
        _ => Parts::Whole,
    }
}

/// Checks the flags against a folder's configuration, or a GGUF file's header.
fn check_small_files(config: &EngineConfig, found: &ResolvedModel) -> Result<(), LaunchError> {
    let dir = match &found.files {
        ModelFiles::Folder(dir) => dir,
        // Only its header is read here, without hashing the file.
        ModelFiles::Gguf(_) => {
            let checkpoint = open(config, found)?;
            check_device(config, checkpoint.config())?;
            check_context_length(config, checkpoint.config())?;
            return check_quantization(config.quantization, checkpoint.format());
        }
        ModelFiles::Synthetic(preset) => return check_device(config, &preset.config),
    };
    let folder = config_json::read_folder(dir).map_err(SourceError::Config)?;
    check_device(config, &folder.model)?;
    check_context_length(config, &folder.model)?;
    let format = CheckpointFormat::of(folder.quantization);
    match config.load_format {
        typed::LoadFormat::Dummy => check_quantization(config.quantization, format),
        typed::LoadFormat::Gguf => Err(WeightError::LoadFormat {
            file: dir.display().to_string(),
            message: "is a safetensors folder, but --load-format gguf was asked".into(),
        }
        .into()),
        typed::LoadFormat::Auto | typed::LoadFormat::Safetensors => {
            check_quantization(config.quantization, format)?;
            check_act_order(config, folder.quantization)
        }
    }
}

/// A GPU refuses act-order when it packs a matrix; it is better said before the download.
fn check_act_order(
    config: &EngineConfig,
    quantization: Option<Quantization>,
) -> Result<(), LaunchError> {
    if quantization.is_some_and(Quantization::act_order) && is_on_gpu(config) {
        let place = "config.json".to_owned();
        return Err(CudaLoadError::ActOrder { place }.into());
    }
    Ok(())
}

/// A GPU refuses experts of sizes that its kernels do not take; it is better said before the download.
fn check_device(config: &EngineConfig, model: &ModelConfig) -> Result<(), LaunchError> {
    if is_on_gpu(config) {
        check_experts(model)?;
    }
    Ok(())
}

fn is_on_gpu(config: &EngineConfig) -> bool {
    match config.device {
        typed::Device::Cpu => false,
        typed::Device::Cuda => true,
        typed::Device::Auto => CudaExecutor::unavailable().is_none(),
    }
}

/// Checks that `--context-length` does not exceed the model's own.
pub(super) fn check_context_length(
    config: &EngineConfig,
    model: &ModelConfig,
) -> Result<(), LaunchError> {
    let limit = model.context_length;
    match config.context_length {
        Some(asked) if asked > limit => Err(LaunchError::ContextLength { asked, limit }),
        _ => Ok(()),
    }
}

fn check_quantization(
    asked: Option<typed::Quantization>,
    found: CheckpointFormat,
) -> Result<(), LaunchError> {
    let Some(asked) = asked else { return Ok(()) };
    let is_scaled = |method, element| found == CheckpointFormat::Scaled { method, element };
    let is_as_asked = match asked {
        typed::Quantization::Awq | typed::Quantization::AwqMarlin => {
            found.method() == Some(QuantMethod::Awq)
        }
        typed::Quantization::Gptq | typed::Quantization::GptqMarlin => {
            found.method() == Some(QuantMethod::Gptq)
        }
        typed::Quantization::AutoRound => found.method() == Some(QuantMethod::AutoRound),
        typed::Quantization::CompressedTensors => {
            found.method() == Some(QuantMethod::CompressedTensors)
        }
        typed::Quantization::Fp8 => found.method() == Some(QuantMethod::Fp8),
        typed::Quantization::W8a8Fp8 => {
            is_scaled(QuantMethod::CompressedTensors, ScaledElement::Fp8)
        }
        typed::Quantization::W8a8Int8 => {
            is_scaled(QuantMethod::CompressedTensors, ScaledElement::Int8)
        }
        typed::Quantization::ModelOpt => found.method() == Some(QuantMethod::ModelOpt),
        typed::Quantization::ModelOptFp8 => is_scaled(QuantMethod::ModelOpt, ScaledElement::Fp8),
        typed::Quantization::ModelOptFp4 => is_scaled(QuantMethod::ModelOpt, ScaledElement::Nvfp4),
        typed::Quantization::Gguf => found.is_gguf(),
    };
    if is_as_asked {
        return Ok(());
    }
    Err(LaunchError::Quantization { asked, found })
}

/// The model authors' recommended sampling parameters, if the flags ask for them.
pub(super) fn recommendation(
    config: &EngineConfig,
    model: &ResolvedModel,
) -> Result<Recommendation, LaunchError> {
    let found = match (config.sampling_defaults, &model.files) {
        (typed::SamplingDefaultsName::Model, ModelFiles::Folder(dir)) => {
            Recommendation::read_folder(dir).map_err(SourceError::Config)?
        }
        _ => Recommendation::default(),
    };
    for value in &found.dropped {
        tracing::warn!("dropped from the model's recommendations: {value}");
    }
    if found.defaults != SamplingDefaults::default() {
        tracing::info!(
            defaults = ?found.defaults,
            "requests without sampling parameters use the model's generation_config.json"
        );
    }
    Ok(found)
}

/// Tokenizer and chat template of a model.
///
/// # Errors
///
/// [`LaunchError::NoTokenizer`] if the model has no tokenizer, [`LaunchError::Text`] if
/// tokenizer or chat template cannot be read.
pub fn load_text(model: &ResolvedModel) -> Result<(Tokenizer, ChatTemplate), LaunchError> {
    let (tokenizer, template) = match (&model.tokenizer_dir, &model.files) {
        (Some(dir), _) => (
            Tokenizer::from_folder(dir)?,
            ChatTemplate::from_folder(dir)?,
        ),
        (None, ModelFiles::Gguf(file)) => {
            (Tokenizer::from_gguf(file)?, ChatTemplate::from_gguf(file)?)
        }
        (None, ModelFiles::Folder(_) | ModelFiles::Synthetic(_)) => {
            return Err(LaunchError::NoTokenizer {
                model: model.display_name.clone(),
            });
        }
    };
    Ok((tokenizer, template))
}
