//! Models of the Hugging Face hub, through `hf-hub`: cached where its Python tools cache, with
//! the same environment variables (`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`,
//! `HF_HUB_OFFLINE`).
//!
//! A revision is pinned to its commit before the first file is fetched, and the name of the
//! revision is written into the cache last: a cached revision is a whole one. What `hf-hub`
//! leaves open is closed here: the size (and the digest, where the hub names it) of each
//! finished file is checked, a broken part file is thrown away, and whoever finds a file
//! locked waits for it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::{Progress, SourceError, Stage, digest};
use crate::weights::safetensors::index_shards;

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
    pub endpoint: String,
    pub token: Option<String>,
    /// Folder of `models--org--name` folders.
    pub cache: PathBuf,
    /// Take from the cache alone.
    pub offline: bool,
}

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
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
/// Tries after a connection broke; each goes on where the last one stopped.
const MAX_RETRIES: usize = 5;
/// Longest wait for another process that fetches the same file.
const LOCK_PATIENCE: Duration = Duration::from_secs(6 * 3600);

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
            rest if rest[rest.len() - 1].ends_with(".gguf") => Some(rest.join("/")),
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
            endpoint: get("HF_ENDPOINT").map_or_else(
                || DEFAULT_ENDPOINT.into(),
                |e| e.trim_end_matches('/').to_string(),
            ),
            token: get("HF_TOKEN").or_else(token_file),
            cache,
            offline,
        }
    }
}

/// Fetches what is missing; returns the snapshot folder, or the GGUF file.
pub(super) fn fetch(
    model: &HubModel,
    settings: &HubSettings,
    progress: &dyn Fn(Progress),
) -> Result<PathBuf, SourceError> {
    let client = Client::new(&model.repo, &model.revision, settings, progress)?;
    if let Some(cached) = client.cached(model) {
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
    if wanted.contains(&INDEX) {
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

struct Client<'a> {
    api: Api,
    repo: &'a str,
    revision: &'a str,
    settings: &'a HubSettings,
    progress: &'a dyn Fn(Progress),
}

impl<'a> Client<'a> {
    fn new(
        repo: &'a str,
        revision: &'a str,
        settings: &'a HubSettings,
        progress: &'a dyn Fn(Progress),
    ) -> Result<Self, SourceError> {
        let api = ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
            .with_endpoint(settings.endpoint.clone())
            .with_token(settings.token.clone())
            .with_progress(false)
            .with_retries(MAX_RETRIES)
            .build()
            .map_err(|e| SourceError::fetch(repo, e))?;
        Ok(Self {
            api,
            repo,
            revision,
            settings,
            progress,
        })
    }

    fn error(&self, message: impl ToString) -> SourceError {
        SourceError::fetch(format!("{} from the hub", self.repo), message)
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.to_string(), RepoType::Model, revision.to_string())
    }

    fn cache(&self) -> Cache {
        Cache::new(self.settings.cache.clone())
    }

    /// The model as a whole from the cache, if this revision was fetched before.
    fn cached(&self, model: &HubModel) -> Option<PathBuf> {
        let cached = self.cache().repo(self.repo(self.revision));
        if let Some(file) = &model.file {
            return cached.get(file);
        }
        let config = cached.get("config.json")?;
        let snapshot = config.parent()?;
        let whole = match cached.get(INDEX) {
            Some(index) => index_shards(&index)
                .ok()?
                .iter()
                .all(|s| snapshot.join(s).exists()),
            None => snapshot.join(SINGLE).exists(),
        };
        whole.then(|| snapshot.to_path_buf())
    }

    /// The commit that the revision names now, and the names of its files.
    fn pin(&self) -> Result<(String, Vec<String>), SourceError> {
        if self.settings.offline {
            let message = format!(
                "HF_HUB_OFFLINE is set and revision {} is not (wholly) in {}",
                self.revision,
                self.settings.cache.display()
            );
            return Err(self.error(message));
        }
        let info = self
            .api
            .repo(self.repo(self.revision))
            .info()
            .map_err(|e| {
                let hint = match (self.settings.token.is_some(), e.to_string()) {
                    (false, text) if text.contains("401") || text.contains("403") => {
                        " (no HF_TOKEN is set; the model may be gated)"
                    }
                    _ => "",
                };
                self.error(format!("revision {}: {e}{hint}", self.revision))
            })?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if info.sha.is_empty() || !info.sha.chars().all(plain) || info.sha.starts_with('.') {
            return Err(self.error(format!("the hub named the commit {:?}", info.sha)));
        }
        Ok((
            info.sha,
            info.siblings.into_iter().map(|s| s.rfilename).collect(),
        ))
    }

    /// One file of a commit: from the cache, or downloaded and checked.
    fn download(&self, commit: &str, file: &str) -> Result<PathBuf, SourceError> {
        let cached = self.cache().repo(self.repo(commit));
        let repo: ApiRepo = self.api.repo(self.repo(commit));
        let failed = |e: ApiError| self.error(format!("{file}: {e}"));
        let started = Instant::now();
        let mut tries_left = 2;
        loop {
            if let Some(path) = cached.get(file) {
                return Ok(path);
            }
            // Asked for here too, because hf-hub does not compare what came with it.
            let metadata = self.api.metadata(&repo.url(file)).map_err(failed)?;
            if metadata.etag().is_empty() || metadata.etag().contains(['/', '\\']) {
                return Err(self.error(format!("{file} has the etag {:?}", metadata.etag())));
            }
            let blob = cached.blob_path(metadata.etag());
            let part = blob.with_extension("part");
            let bar = Bar {
                progress: self.progress,
                file,
                done_bytes: 0,
                total_bytes: None,
            };
            match repo.download_with_progress(file, bar) {
                Ok(path) => match check(&path, metadata.size() as u64, metadata.etag()) {
                    Ok(()) => return Ok(path),
                    Err(reason) => {
                        discard(&[&path, &blob]);
                        if tries_left == 0 {
                            return Err(self.error(format!("{file}: {reason}")));
                        }
                    }
                },
                Err(ApiError::LockAcquisition(_)) if started.elapsed() < LOCK_PATIENCE => {
                    self.report(Stage::Waiting, file);
                    continue;
                }
                // The part file is longer than the whole: not a part of it.
                Err(ApiError::InvalidResume) if tries_left > 0 => discard(&[&part]),
                // Another process may have linked the file between look and link.
                Err(ApiError::IoError(_)) if tries_left > 0 => {}
                Err(e) => return Err(failed(e)),
            }
            tries_left -= 1;
        }
    }

    fn report(&self, stage: Stage, file: &str) {
        (self.progress)(Progress {
            stage,
            file,
            done_bytes: 0,
            total_bytes: None,
        });
    }

    /// Writes the revision's name into the cache, which makes it count as fetched.
    fn name_revision(&self, commit: &str) -> Result<(), SourceError> {
        let cached = self.cache().repo(self.repo(self.revision));
        cached.create_ref(commit).map_err(|e| self.error(e))
    }
}

/// Size, and the digest where the etag is one (the hub's large files).
fn check(path: &Path, expected_bytes: u64, etag: &str) -> Result<(), String> {
    let found = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if found != expected_bytes {
        return Err(format!("{found} bytes came of {expected_bytes}"));
    }
    if !digest::is_sha256(etag) {
        return Ok(());
    }
    let sha256 = digest::compute(path, &|_| ()).map_err(|e| e.to_string())?;
    if sha256 == etag {
        return Ok(());
    }
    Err(format!("it has sha256 {sha256}, the hub says {etag}"))
}

fn discard(paths: &[&Path]) {
    for path in paths {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::debug!(file = %path.display(), %error, "not removed");
        }
    }
}

/// hf-hub's progress, passed on.
struct Bar<'a> {
    progress: &'a dyn Fn(Progress),
    file: &'a str,
    done_bytes: u64,
    total_bytes: Option<u64>,
}

impl Bar<'_> {
    fn report(&self, stage: Stage) {
        (self.progress)(Progress {
            stage,
            file: self.file,
            done_bytes: self.done_bytes,
            total_bytes: self.total_bytes,
        });
    }
}

impl hf_hub::api::Progress for Bar<'_> {
    fn init(&mut self, size: usize, _filename: &str) {
        (self.done_bytes, self.total_bytes) = (0, Some(size as u64));
        self.report(Stage::Downloading);
    }

    fn update(&mut self, size: usize) {
        self.done_bytes += size as u64;
        self.report(Stage::Downloading);
    }

    fn finish(&mut self) {
        self.report(Stage::Finished);
    }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
