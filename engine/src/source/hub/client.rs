//! One repository of the hub: its files, fetched one at a time and checked.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::select::{Selection, select};
use super::snapshot::{has_weights, is_commit, is_plain, names_below};
use super::{HubModel, HubSettings, Parts, small_files};
use crate::source::{ModelFiles, Progress, SourceError, Stage, digest};
use crate::weights::{gguf, gguf_names};

/// Tries after a connection broke; each goes on where the last one stopped.
const MAX_RETRIES: usize = 5;
/// What is read of a GGUF file before it is fetched. A header has the vocabulary: some megabytes.
const HEADER_BYTES: u64 = 16 << 20;
const HEADER_PATIENCE: Duration = Duration::from_mins(1);
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

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.to_string(), RepoType::Model, revision.to_string())
    }

    fn cache(&self) -> Cache {
        Cache::new(self.settings.cache.clone())
    }

    /// The folder of a commit's files, whether or not it is there.
    pub fn place_of(&self, commit: &str) -> PathBuf {
        self.cache().repo(self.repo(commit)).pointer_path(commit)
    }

    /// The folder of a revision's files, where the cache has any. Commits are found by their
    /// folder: not every tool writes a reference to them.
    fn snapshot(&self, revision: &str) -> Option<PathBuf> {
        let repo = self.settings.cache.join(self.repo(revision).folder_name());
        let referred = std::fs::read_to_string(repo.join("refs").join(revision)).ok();
        let commit = match &referred {
            Some(commit) => commit.trim(),
            None if is_commit(revision) => revision,
            None => return None,
        };
        let place = self.place_of(commit);
        (is_plain(commit) && place.is_dir()).then_some(place)
    }

    pub fn cached_file(&self, revision: &str, file: &str) -> Option<PathBuf> {
        let path = self.snapshot(revision)?.join(file);
        path.exists().then_some(path)
    }

    /// What is wanted of the model from the cache, if this revision was fetched before: the
    /// snapshot's folder and the files in it.
    pub fn cached(&self, model: &HubModel, parts: Parts) -> Option<(PathBuf, ModelFiles)> {
        let snapshot = self.snapshot(self.revision)?;
        // However deep it lies; of a model in several files the others are looked for below.
        if let Some(file) = &model.file
            && gguf_names::part_of(file).is_none()
        {
            let path = snapshot.join(file);
            let is_there = path.exists();
            return is_there.then_some((snapshot, ModelFiles::Gguf(path)));
        }
        let names = names_below(&snapshot);
        let gguf = |names: &[String]| match select(model, names) {
            Ok(Selection::Gguf(parts)) => Some(ModelFiles::Gguf(snapshot.join(&parts[0]))),
            _ => None,
        };
        let files = if model.file.is_some() || model.quantisation.is_some() {
            gguf(&names)
        } else if has_weights(&snapshot, parts) {
            Some(ModelFiles::Folder(snapshot.clone()))
        } else if self.settings.offline {
            gguf(&names)
        } else {
            // Whether it is the only GGUF model of the repository is not known here.
            None
        };
        files.map(|files| (snapshot, files))
    }

    /// Fetches the small files that a snapshot lacks. Other tools cache weights alone; a tokenizer
    /// that is absent shows it. Where the hub does not answer, what is there has to do.
    pub fn complete(&self, snapshot: &Path) {
        let commit = snapshot.file_name().and_then(|name| name.to_str());
        let Some(commit) = commit.filter(|_| !snapshot.join("tokenizer.json").exists()) else {
            return;
        };
        if self.settings.offline {
            return;
        }
        let fetched = self.pin_revision(commit).and_then(|(commit, listed)| {
            small_files(&listed).try_for_each(|name| self.download(&commit, name).map(drop))
        });
        if let Err(error) = fetched {
            let snapshot = snapshot.display();
            tracing::warn!(%snapshot, %error, "the cached model has no tokenizer.json");
        }
    }

    /// Fetches again each of these files of a snapshot that is not what the cache's name of it
    /// says: cut off, or altered.
    pub fn repair(&self, snapshot: &Path, files: &[PathBuf]) -> Result<(), SourceError> {
        for file in files {
            let Err(error) = digest::of_file(file, &self.settings.digests, self.progress) else {
                continue;
            };
            let commit = snapshot.file_name().and_then(|name| name.to_str());
            let inside = file.strip_prefix(snapshot).ok().and_then(Path::to_str);
            let (SourceError::Digest { .. }, Some(commit), Some(inside)) = (&error, commit, inside)
            else {
                return Err(error);
            };
            if self.settings.offline {
                return Err(error);
            }
            tracing::warn!(%error, "the cached file is fetched again");
            self.download_anew(commit, inside)?;
        }
        Ok(())
    }

    /// The commit that the revision names now, and the names of its files.
    pub fn pin(&self) -> Result<(String, Vec<String>), SourceError> {
        self.pin_revision(self.revision)
    }

    pub fn pin_revision(&self, revision: &str) -> Result<(String, Vec<String>), SourceError> {
        if self.settings.offline {
            let message = format!(
                "HF_HUB_OFFLINE is set and revision {revision} is not (wholly) in {}",
                self.settings.cache.display()
            );
            return Err(self.error(message));
        }
        let info = self
            .api
            .repo(self.repo(revision))
            .info()
            .map_err(|error| self.refused(revision, &error.to_string()))?;
        if !is_plain(&info.sha) {
            return Err(self.error(format!("the hub named the commit {:?}", info.sha)));
        }
        Ok((
            info.sha,
            info.siblings.into_iter().map(|s| s.rfilename).collect(),
        ))
    }

    /// Why the hub does not say what a revision is.
    fn refused(&self, revision: &str, error: &str) -> SourceError {
        let repo = self.repo;
        let has_token = self.settings.token.is_some();
        let message = match status_of(error) {
            Some(401 | 403) if has_token => {
                "the token that was sent may not see it: accept the model's terms on its page with \
                 the token's account, or set HF_TOKEN to another one"
            }
            Some(401 | 403) => {
                "there is no such repository, or it is private or gated and no HF_TOKEN is set"
            }
            Some(404) if has_token => {
                "there is no such repository or revision, or the token may not see it"
            }
            Some(404) => {
                "there is no such repository or revision, or it is private and no HF_TOKEN is set"
            }
            _ => {
                return self.error(format!(
                    "revision {revision}: {error} (and no file or folder {repo} is here)"
                ));
            }
        };
        SourceError::NotOnHub {
            what: format!("{repo}, revision {revision},"),
            message: format!("{message} ({error}). No file or folder {repo} is here, either"),
        }
    }

    /// One file of a commit: from the cache, or downloaded and checked.
    pub fn download(&self, commit: &str, file: &str) -> Result<PathBuf, SourceError> {
        match self.cached_file(commit, file) {
            Some(path) => Ok(path),
            None => self.download_anew(commit, file),
        }
    }

    /// Replaces what the cache has of the file.
    fn download_anew(&self, commit: &str, file: &str) -> Result<PathBuf, SourceError> {
        let cached = self.cache().repo(self.repo(commit));
        let repo: ApiRepo = self.api.repo(self.repo(commit));
        let failed = |e: ApiError| self.error(format!("{file}: {e}"));
        let started = Instant::now();
        let mut tries_left = 2;
        loop {
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
                    Ok(sha256) => {
                        if let Some(sha256) = sha256 {
                            digest::remember(&path, &sha256, &self.settings.digests);
                        }
                        return Ok(path);
                    }
                    Err(reason) => {
                        discard(&[&path, &blob]);
                        if tries_left == 0 {
                            return Err(self.error(format!("{file}: {reason}")));
                        }
                    }
                },
                Err(ApiError::LockAcquisition(_)) if started.elapsed() < LOCK_PATIENCE => {
                    self.report(Stage::Waiting, file);
                    // Who held the lock has most likely fetched it.
                    match self.cached_file(commit, file) {
                        Some(path)
                            if check(&path, metadata.size() as u64, metadata.etag()).is_ok() =>
                        {
                            return Ok(path);
                        }
                        _ => continue,
                    }
                }
                // The part file is longer than the whole: not a part of it.
                Err(ApiError::InvalidResume) if tries_left > 0 => discard(&[&part]),
                // Another process may have linked the file between look and link.
                Err(ApiError::IoError(_)) if tries_left > 0 => {
                    if let Some(path) = self.cached_file(commit, file)
                        && check(&path, metadata.size() as u64, metadata.etag()).is_ok()
                    {
                        return Ok(path);
                    }
                }
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

    /// Fails where the beginning of a GGUF file says that the model cannot be served. What the hub
    /// does not send, or a header longer than what is asked for, is no reason: the whole file will
    /// tell.
    pub fn judge_header(&self, commit: &str, file: &str) -> Result<(), SourceError> {
        if self.cached_file(commit, file).is_some() {
            return Ok(());
        }
        let url = self.api.repo(self.repo(commit)).url(file);
        match self.beginning(&url) {
            Ok((beginning, n_bytes)) => gguf::judge_beginning(&beginning, n_bytes)
                .map_err(|error| SourceError::Weights(Box::new(error))),
            Err(reason) => {
                tracing::debug!(
                    file,
                    reason,
                    "the header is not judged ahead of the download"
                );
                Ok(())
            }
        }
    }

    /// The first bytes of a file and how many it has.
    fn beginning(&self, url: &str) -> Result<(Vec<u8>, u64), String> {
        let last = HEADER_BYTES - 1;
        let mut request = ureq::get(url).header("Range", format!("bytes=0-{last}"));
        if let Some(token) = &self.settings.token {
            // Not sent on to another host.
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let request = request.config().timeout_global(Some(HEADER_PATIENCE));
        let response = request.build().call().map_err(|e| e.to_string())?;
        let range = response.headers().get("content-range");
        let n_bytes = range
            .and_then(|range| range.to_str().ok()?.rsplit('/').next()?.parse().ok())
            .ok_or("the answer has no range")?;
        let mut beginning = Vec::new();
        let body = response.into_body().into_reader();
        std::io::Read::read_to_end(&mut std::io::Read::take(body, HEADER_BYTES), &mut beginning)
            .map_err(|e| e.to_string())?;
        Ok((beginning, n_bytes))
    }

    /// Writes the revision's name into the cache, which makes it count as fetched.
    pub fn name_revision(&self, commit: &str) -> Result<(), SourceError> {
        let cached = self.cache().repo(self.repo(self.revision));
        cached.create_ref(commit).map_err(|e| self.error(e))
    }
}

/// Size, and the digest where the etag is one (the hub's large files), which is returned.
fn check(path: &Path, expected_bytes: u64, etag: &str) -> Result<Option<String>, String> {
    let found = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if found != expected_bytes {
        return Err(format!("{found} bytes came of {expected_bytes}"));
    }
    if !digest::is_sha256(etag) {
        return Ok(None);
    }
    let sha256 = digest::compute(path, &|_| ()).map_err(|e| e.to_string())?;
    if sha256 == etag {
        return Ok(Some(sha256));
    }
    Err(format!("it has sha256 {sha256}, the hub says {etag}"))
}

/// The status in the text of an error of the HTTP client.
fn status_of(error: &str) -> Option<u16> {
    let (_, rest) = error.split_once("status")?;
    let digits: String = rest
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
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
