//! Models of the Hugging Face hub, cached in the layout of its Python tools (using `hf-hub`'s
//! names), with the same environment variables (`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`,
//! `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, their older names, and `XDG_CACHE_HOME`).
//!
//! A revision is pinned to its commit before the first file is downloaded, and the revision's name
//! is written to the cache last. Size (and digest, if the hub provides it) of each file are
//! verified before it is moved into place, an invalid partial file is deleted, and a process that
//! finds a file locked waits for it. `hf-hub` is not used for downloads: it sends the token to the
//! host that a redirect leads to.

use std::fmt;
use std::path::{Path, PathBuf};

use super::{Progress, SourceError};
use crate::model::config::ModelConfig;
use crate::source::is_gguf;
use crate::weights::ModelFiles;
use crate::weights::safetensors::{index_shards, weight_files};

mod client;
mod select;
mod snapshot;
mod transfer;

use client::HubClient;
use select::Selection;

/// A model of the hub, or one GGUF model of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// `org/name`
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// The requested `.gguf` file; `None` is the repository's safetensors folder, or its only GGUF
    /// model.
    pub file: Option<String>,
    /// The requested quantisation, such as `Q4_K_M`: the GGUF model with this in its name.
    pub quantisation: Option<String>,
}

/// Settings of the hub from the environment.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// `None` is the public hub.
    pub endpoint: Option<String>,
    pub token: Option<String>,
    /// Folder of `models--org--name` folders.
    pub cache: PathBuf,
    /// Use only the cache.
    pub offline: bool,
    /// The engine's own cache, which holds the digests of files in the hub's.
    pub digests: PathBuf,
}

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// Small files that are downloaded if the repository has them.
const SMALL_FILES: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "quant_config.json",
    "quantize_config.json",
    "hf_quant_config.json",
    "tokenizer.model",
    INDEX,
];

/// A repository's folder of additional chat templates, such as `tool_use.jinja`.
const TEMPLATES: &str = "additional_chat_templates/";

/// Which part of a repository is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    Whole,
    /// Configuration and tokenizer: for generated weights.
    WithoutWeights,
}

impl HubModel {
    /// Parses `org/name[/file.gguf|:quantisation][@revision]`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str =
            "the form is org/name, org/name@revision, org/name:Q4_K_M or org/name/file.gguf";
        let (path, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (path, quantisation) = match path.split_once(':') {
            None => (path, None),
            Some((path, quantisation)) => (path, Some(quantisation)),
        };
        let well_formed = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
            !part.is_empty() && part.chars().all(plain) && part != "." && part != ".."
        };
        let parts: Vec<&str> = path.split('/').collect();
        if parts.len() < 2 || !parts.iter().all(|part| well_formed(part)) {
            return Err(FORM.into());
        }
        if !revision.split('/').all(well_formed) {
            return Err(format!("{revision:?} is no revision; {FORM}"));
        }
        if let Some(quantisation) = quantisation
            && (parts.len() != 2 || !well_formed(quantisation))
        {
            return Err(format!("{quantisation:?} is no quantisation; {FORM}"));
        }
        let file = match &parts[2..] {
            [] => None,
            rest if is_gguf(rest[rest.len() - 1]) => Some(rest.join("/")),
            _ => return Err(FORM.into()),
        };
        Ok(Self {
            repo: parts[..2].join("/"),
            revision: revision.into(),
            file,
            quantisation: quantisation.map(str::to_owned),
        })
    }

    /// The repository's name, or for a GGUF model `of_file`, that of its file.
    pub fn display_name(&self, files: &ModelFiles, of_file: &str) -> String {
        match files {
            ModelFiles::Gguf(_) => of_file.to_owned(),
            ModelFiles::Folder(_) | ModelFiles::Synthetic(_) => self.repo.clone(),
        }
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if let Some(quantisation) = &self.quantisation {
            write!(f, ":{quantisation}")?;
        }
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

impl HubSettings {
    /// Reads the environment; without `HF_HOME` and a home folder, the cache is in `cache_dir`.
    pub fn from_env(cache_dir: &Path) -> Self {
        let get = |name: &str| {
            std::env::var(name)
                .ok()
                .filter(|value| !value.trim().is_empty())
        };
        Self::from_lookup(&get, std::env::home_dir(), cache_dir)
    }

    fn from_lookup(
        get: &dyn Fn(&str) -> Option<String>,
        home: Option<PathBuf>,
        cache_dir: &Path,
    ) -> Self {
        // Like Python's `os.path.expanduser`, for the current user only.
        let expanded = |text: String| match (text.strip_prefix('~'), &home) {
            (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
                home.join(rest.trim_start_matches('/'))
            }
            _ => PathBuf::from(text),
        };
        // Of several names the first that is set counts.
        let first = |names: &[&str]| names.iter().find_map(|name| get(name));
        let system_cache = get("XDG_CACHE_HOME")
            .map(&expanded)
            .or_else(|| home.as_ref().map(|home| home.join(".cache")));
        let hf_home = get("HF_HOME")
            .map(&expanded)
            .or_else(|| system_cache.map(|cache| cache.join("huggingface")));
        let named_cache = first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).map(&expanded);
        let cache = match (named_cache, &hf_home) {
            (Some(cache), _) => cache,
            (None, Some(hf_home)) => hf_home.join("hub"),
            (None, None) => cache_dir.join("hub"),
        };
        // The token file of `hf auth login`.
        let token_file = || {
            let place = match get("HF_TOKEN_PATH").map(&expanded) {
                Some(place) => place,
                None => hf_home.as_ref()?.join("token"),
            };
            let text = std::fs::read_to_string(place).ok()?;
            Some(text.trim().to_string()).filter(|token| !token.is_empty())
        };
        let offline = get("HF_HUB_OFFLINE")
            .is_some_and(|v| matches!(v.to_lowercase().as_str(), "1" | "true" | "yes" | "on"));
        Self {
            endpoint: get("HF_ENDPOINT").map(|e| e.trim_end_matches('/').to_string()),
            token: first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(token_file),
            cache,
            offline,
            digests: cache_dir.to_path_buf(),
        }
    }
}

/// What the caller checks.
pub(super) struct Accept<'a, E> {
    /// Called once the small files are there, before weights are downloaded or, if cached, hashed;
    /// for a GGUF model, before it is hashed.
    pub files: &'a dyn Fn(&ModelFiles) -> Result<(), E>,
    /// Called with the configuration in a GGUF file's header, before the file is downloaded.
    pub config: &'a dyn Fn(&ModelConfig) -> Result<(), E>,
}

/// Downloads what is missing.
pub(super) fn fetch<E: From<SourceError>>(
    model: &HubModel,
    parts: Parts,
    settings: &HubSettings,
    accept: &Accept<'_, E>,
    progress: &dyn Fn(Progress),
) -> Result<ModelFiles, E> {
    let client = HubClient::new(&model.repo, &model.revision, settings, progress)?;
    if let Some((snapshot, files)) = client.cached(model, parts) {
        if let ModelFiles::Folder(_) = &files {
            client.complete(&snapshot);
        }
        (accept.files)(&files)?;
        client.repair(&snapshot, &weights_of(&files, parts))?;
        return Ok(files);
    }
    let (commit, listed) = client.pin()?;
    let selected = select::select(model, &listed).map_err(|message| client.lacks(message))?;
    let snapshot = client.place_of(&commit);
    let files = match selected {
        Selection::Gguf(names) => {
            if let Some(config) = client.judge_header(&commit, &names[0])? {
                (accept.config)(&config)?;
            }
            for name in &names {
                client.download(&commit, name)?;
            }
            let files = ModelFiles::Gguf(snapshot.join(&names[0]));
            (accept.files)(&files)?;
            files
        }
        Selection::Folder(weights) => {
            for name in small_files(&listed) {
                client.download(&commit, name)?;
            }
            let files = ModelFiles::Folder(snapshot.clone());
            (accept.files)(&files)?;
            match (parts, weights) {
                // `cached` looks for the weights if they are wanted.
                (Parts::WithoutWeights, _) => {}
                (Parts::Whole, select::WeightFiles::Indexed) => {
                    let shards = index_shards(&snapshot.join(INDEX));
                    for shard in shards.map_err(|error| client.error(error))? {
                        client.download(&commit, &shard)?;
                    }
                }
                (Parts::Whole, select::WeightFiles::Single) => {
                    client.download(&commit, SINGLE)?;
                }
                (Parts::Whole, select::WeightFiles::Absent(message)) => {
                    return Err(client.lacks(message).into());
                }
            }
            files
        }
    };
    client.name_revision(&commit)?;
    Ok(files)
}

/// The small files among a repository's files.
fn small_files(listed: &[String]) -> impl Iterator<Item = &str> {
    let is_small = |name: &&str| {
        let template = name
            .strip_prefix(TEMPLATES)
            .and_then(|name| name.strip_suffix(".jinja"));
        SMALL_FILES.contains(name) || template.is_some_and(|name| !name.contains(['/', '\\']))
    };
    listed.iter().map(String::as_str).filter(is_small)
}

fn weights_of(files: &ModelFiles, parts: Parts) -> Vec<PathBuf> {
    match files {
        ModelFiles::Gguf(first) => super::local::gguf_parts(first),
        ModelFiles::Folder(dir) if parts == Parts::Whole => weight_files(dir).unwrap_or_default(),
        ModelFiles::Folder(_) | ModelFiles::Synthetic(_) => Vec::new(),
    }
}

/// Downloads one file of a repository's main branch.
pub(super) fn fetch_file(
    repo: &str,
    file: &str,
    settings: &HubSettings,
    progress: &dyn Fn(Progress),
) -> Result<PathBuf, SourceError> {
    let client = HubClient::new(repo, "main", settings, progress)?;
    if settings.offline {
        let cached = client.cached_file("main", file);
        return cached.ok_or_else(|| client.error(format!("{file} is not cached (offline)")));
    }
    let (commit, _) = client.pin()?;
    client.download(&commit, file)
}

#[cfg(test)]
mod tests;
