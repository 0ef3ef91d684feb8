//! One repository of the hub: its files, fetched one at a time and checked.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::{HubModel, HubSettings, INDEX, Parts, SINGLE};
use crate::source::{Progress, SourceError, Stage, digest};
use crate::weights::safetensors::index_shards;

/// Tries after a connection broke; each goes on where the last one stopped.
const MAX_RETRIES: usize = 5;
/// Longest wait for another process that fetches the same file.
const LOCK_PATIENCE: Duration = Duration::from_hours(6);

pub(super) struct Client<'a> {
    api: Api,
    repo: &'a str,
    revision: &'a str,
    settings: &'a HubSettings,
    progress: &'a dyn Fn(Progress),
}

impl<'a> Client<'a> {
    pub fn new(
        repo: &'a str,
        revision: &'a str,
        settings: &'a HubSettings,
        progress: &'a dyn Fn(Progress),
    ) -> Result<Self, SourceError> {
        let mut builder = ApiBuilder::from_cache(Cache::new(settings.cache.clone()));
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api = builder
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

    pub fn error(&self, message: impl ToString) -> SourceError {
        SourceError::fetch(format!("{} from the hub", self.repo), message)
    }

    pub fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.to_string(), RepoType::Model, revision.to_string())
    }

    pub fn cache(&self) -> Cache {
        Cache::new(self.settings.cache.clone())
    }

    /// What is wanted of the model from the cache, if this revision was fetched before.
    pub fn cached(&self, model: &HubModel, parts: Parts) -> Option<PathBuf> {
        let cached = self.cache().repo(self.repo(self.revision));
        if let Some(file) = &model.file {
            return cached.get(file);
        }
        let config = cached.get("config.json")?;
        let snapshot = config.parent()?;
        if parts == Parts::WithoutWeights {
            return Some(snapshot.to_path_buf());
        }
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
    pub fn pin(&self) -> Result<(String, Vec<String>), SourceError> {
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
    pub fn download(&self, commit: &str, file: &str) -> Result<PathBuf, SourceError> {
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
    pub fn name_revision(&self, commit: &str) -> Result<(), SourceError> {
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
