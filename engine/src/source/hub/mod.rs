//! Models of the Hugging Face hub, through `hf-hub`: cached where its Python tools cache, with
//! the same environment variables (`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`,
//! `HF_HUB_OFFLINE`).
//!
//! A revision is pinned to its commit before the first file is fetched, and the name of the
//! revision is written into the cache last. What `hf-hub` leaves open is closed
//! here: the size (and the digest, where the hub names it) of each finished file is checked, a
//! broken part file is thrown away, and whoever finds a file locked waits for it.

use std::fmt;
use std::path::{Path, PathBuf};

use super::{Progress, SourceError};
use crate::source::is_gguf;
use crate::weights::safetensors::index_shards;

mod client;

use client::Client;

/// A model of the hub, or one GGUF file of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// `org/name`
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// The `.gguf` file asked for; `None` is the repository's safetensors folder.
    pub file: Option<String>,
}

/// What the environment says about the hub.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// `None` is the public hub.
    pub endpoint: Option<String>,
    pub token: Option<String>,
    /// Folder of `models--org--name` folders.
    pub cache: PathBuf,
    /// Take from the cache alone.
    pub offline: bool,
}

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// Small files taken along where the repository has them.
const SMALL_FILES: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
    INDEX,
];

/// How much of a repository is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    Whole,
    /// Configuration and tokenizer: for weights that are made rather than read.
    WithoutWeights,
}

impl HubModel {
    /// Parses `org/name[/file.gguf][@revision]`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "the form is org/name, org/name@revision or org/name/file.gguf";
        let (path, revision) = text.split_once('@').unwrap_or((text, "main"));
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
        let file = match &parts[2..] {
            [] => None,
            rest if is_gguf(rest[rest.len() - 1]) => Some(rest.join("/")),
            _ => return Err(FORM.into()),
        };
        Ok(Self {
            repo: parts[..2].join("/"),
            revision: revision.into(),
            file,
        })
    }

    pub fn display_name(&self) -> String {
        match &self.file {
            None => self.repo.clone(),
            Some(file) => {
                let base = file.rsplit('/').next().unwrap_or(file);
                base.trim_end_matches(".gguf").to_string()
            }
        }
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
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
        let hf_home = get("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| home.map(|home| home.join(".cache").join("huggingface")));
        let cache = match (get("HF_HUB_CACHE"), &hf_home) {
            (Some(cache), _) => PathBuf::from(cache),
            (None, Some(hf_home)) => hf_home.join("hub"),
            (None, None) => cache_dir.join("hub"),
        };
        // The token file of `hf auth login`.
        let token_file = || {
            let text = std::fs::read_to_string(hf_home.as_ref()?.join("token")).ok()?;
            Some(text.trim().to_string()).filter(|token| !token.is_empty())
        };
        let offline = get("HF_HUB_OFFLINE")
            .is_some_and(|v| matches!(v.to_lowercase().as_str(), "1" | "true" | "yes" | "on"));
        Self {
            endpoint: get("HF_ENDPOINT").map(|e| e.trim_end_matches('/').to_string()),
            token: get("HF_TOKEN").or_else(token_file),
            cache,
            offline,
        }
    }
}

/// Fetches what is missing; returns the snapshot folder, or the GGUF file.
pub(super) fn fetch(
    model: &HubModel,
    parts: Parts,
    settings: &HubSettings,
    progress: &dyn Fn(Progress),
) -> Result<PathBuf, SourceError> {
    let client = Client::new(&model.repo, &model.revision, settings, progress)?;
    if let Some(cached) = client.cached(model, parts) {
        return Ok(cached);
    }
    let (commit, listed) = client.pin()?;
    let wanted: Vec<&str> = match &model.file {
        Some(file) => vec![file],
        None => SMALL_FILES
            .iter()
            .copied()
            .filter(|f| listed.iter().any(|l| l == f))
            .collect(),
    };
    if let Some(absent) = wanted
        .iter()
        .find(|file| !listed.iter().any(|l| l == *file))
    {
        return Err(client.error(format!("the repository has no {absent}")));
    }
    if model.file.is_none() && !wanted.contains(&"config.json") {
        return Err(client.error("the repository has no config.json"));
    }
    let mut last = PathBuf::new();
    for file in &wanted {
        last = client.download(&commit, file)?;
    }
    if model.file.is_some() {
        client.name_revision(&commit)?;
        return Ok(last);
    }
    let snapshot = client
        .cache()
        .repo(client.repo(&commit))
        .pointer_path(&commit);
    if parts == Parts::WithoutWeights {
        // Nothing more: `cached` looks for the weights when they are wanted.
    } else if wanted.contains(&INDEX) {
        let shards = index_shards(&snapshot.join(INDEX)).map_err(|e| client.error(e))?;
        for shard in &shards {
            client.download(&commit, shard)?;
        }
    } else if listed.iter().any(|l| l == SINGLE) {
        client.download(&commit, SINGLE)?;
    } else {
        return Err(client.error(format!("the repository has neither {SINGLE} nor {INDEX}")));
    }
    client.name_revision(&commit)?;
    Ok(snapshot)
}

/// Fetches one file of a repository's main branch.
pub(super) fn fetch_file(
    repo: &str,
    file: &str,
    settings: &HubSettings,
    progress: &dyn Fn(Progress),
) -> Result<PathBuf, SourceError> {
    let client = Client::new(repo, "main", settings, progress)?;
    if settings.offline {
        let cached = client.cache().repo(client.repo("main")).get(file);
        return cached.ok_or_else(|| client.error(format!("{file} is not cached (offline)")));
    }
    let (commit, _) = client.pin()?;
    client.download(&commit, file)
}

#[cfg(test)]
mod tests;
