//! The model of a command line: fetched and opened, and its text side.

use std::path::PathBuf;

use super::LaunchError;
use crate::config::EngineConfig;
use crate::config::typed::{self, Quantization};
use crate::source::{self, ModelFiles, ModelSource, Progress, ResolvedModel, SourceError};
use crate::text::{ChatTemplate, Tokenizer};
use crate::weights::{self, Checkpoint, LoadFormat, WeightError};

/// A checkpoint that was found and opened.
pub struct LoadedModel {
    /// As asked for; `default` where nothing was.
    pub requested: String,
    /// Why something else than the default is used, if so.
    pub fallback_reason: Option<String>,
    pub resolved: ResolvedModel,
    pub checkpoint: Box<dyn Checkpoint>,
}

/// Where fetched models are kept.
pub fn cache_dir(typed: Option<&PathBuf>) -> Result<PathBuf, SourceError> {
    match typed {
        Some(dir) => Ok(dir.clone()),
        None => source::default_cache_dir(),
    }
}

/// Fetches and opens the model.
pub fn load_model(
    config: &EngineConfig,
    progress: &dyn Fn(Progress),
) -> Result<LoadedModel, LaunchError> {
    let cache_dir = cache_dir(config.cache_dir.as_ref())?;
    let (requested, resolved, fallback_reason) = if let Some(path) = &config.model_path {
        let source = ModelSource::parse(path)?;
        let resolved = match config.load_format {
            typed::LoadFormat::Dummy => {
                source::resolve_without_weights(&source, &cache_dir, progress)?
            }
            _ => source::resolve(&source, &cache_dir, progress)?,
        };
        (path.clone(), resolved, None)
    } else {
        let default = source::resolve_default(&cache_dir, progress)?;
        ("default".to_owned(), default.model, default.fallback_reason)
    };
    if let Some(reason) = &fallback_reason {
        let used = &resolved.requested;
        tracing::warn!("!!! the default model is not available: {reason}");
        tracing::warn!("!!! serving {used} instead: seeded random weights, its text means nothing");
    }
    let checkpoint = open(config, &resolved)?;
    check_quantization(config.quantization, &checkpoint.format_name())?;
    tracing::info!(
        model = resolved.display_name,
        source = resolved.requested,
        format = checkpoint.format_name(),
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
    weights::open(resolved, load_format, config.random_seed.unwrap_or(0))
}

fn check_quantization(asked: Option<Quantization>, format: &str) -> Result<(), LaunchError> {
    let Some(asked) = asked else { return Ok(()) };
    let wanted = match asked {
        Quantization::Awq | Quantization::AwqMarlin => "awq",
        Quantization::Gguf => "gguf",
    };
    if format.to_ascii_lowercase().contains(wanted) {
        return Ok(());
    }
    Err(LaunchError::Quantization {
        asked,
        found: format.to_owned(),
    })
}

/// Tokenizer and chat template of a model.
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
