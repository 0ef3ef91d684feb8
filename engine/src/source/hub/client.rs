//! One repository of the hub: its files, downloaded one at a time and verified.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hf_hub::{Cache, Repo, RepoType};

use super::select::{Selection, select};
use super::snapshot::{has_weights, is_commit, is_plain, names_below};
use super::transfer::{Transfer, TransferError};
use super::{HubModel, HubSettings, Parts, small_files};
use crate::model::config::ModelConfig;
use crate::source::{Progress, SourceError, Stage, digest};
use crate::weights::ModelFiles;
use crate::weights::{gguf, gguf_names};

const PUBLIC_HUB: &str = "https://huggingface.co";
/// Maximum size of the hub's description of a repository, which has a name for each of its files.
const MAX_INFO_BYTES: u64 = 64 << 20;
/// Bytes of a GGUF file read before it is downloaded. A header contains the vocabulary: some
/// megabytes.
const HEADER_BYTES: u64 = 16 << 20;
const HEADER_PATIENCE: Duration = Duration::from_mins(1);
/// Maximum wait for another process that downloads the same file.
const LOCK_PATIENCE: Duration = Duration::from_hours(6);
const LOCK_PAUSE: Duration = Duration::from_millis(500);

pub(super) struct HubClient<'a> {
    transfer: Transfer,
    repo: &'a str,
    revision: &'a str,
    settings: &'a HubSettings,
    progress: &'a dyn Fn(Progress),
}

impl<'a> HubClient<'a> {
    pub fn new(
        repo: &'a str,
        revision: &'a str,
        settings: &'a HubSettings,
        progress: &'a dyn Fn(Progress),
    ) -> Result<Self, SourceError> {
        let endpoint = settings.endpoint.as_deref().unwrap_or(PUBLIC_HUB);
        let transfer = Transfer::new(endpoint, settings.token.clone())
            .map_err(|error| SourceError::fetch(repo, error))?;
        Ok(Self {
            transfer,
            repo,
            revision,
            settings,
            progress,
        })
    }

    pub fn error(&self, message: impl ToString) -> SourceError {
        SourceError::fetch(format!("{} from the hub", self.repo), message)
    }

    /// The repository exists, but does not contain what is wanted.
    pub fn lacks(&self, message: String) -> SourceError {
        SourceError::Choice {
            what: format!("{} from the hub", self.repo),
            message,
        }
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.to_string(), RepoType::Model, revision.to_string())
    }

    fn cache(&self) -> Cache {
        Cache::new(self.settings.cache.clone())
    }

    /// The folder of a commit's files, whether or not it exists.
    pub fn place_of(&self, commit: &str) -> PathBuf {
        self.cache().repo(self.repo(commit)).pointer_path(commit)
    }

    /// The folder of a revision's files, if the cache has any. Commits are found by their folder:
    /// not every tool writes a reference to them.
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

    /// The wanted part of the model from the cache, if this revision was downloaded before: the
    /// snapshot's folder and the files in it.
    pub fn cached(&self, model: &HubModel, parts: Parts) -> Option<(PathBuf, ModelFiles)> {
        let snapshot = self.snapshot(self.revision)?;
        // At any depth; the other parts of a model in several files are searched below.
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
            // Whether it is the repository's only GGUF model is not known here.
            None
        };
        files.map(|files| (snapshot, files))
    }

    /// Downloads the small files that a snapshot lacks. Other tools may cache only weights, which
    /// shows by an absent tokenizer. If the hub does not respond, the existing files must suffice.
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

    /// Downloads again each of these files of a snapshot whose digest differs from its blob name:
    /// truncated or modified.
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

    /// The commit that the revision refers to now, and the names of its files.
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
        let url = format!("{}/api/{}", self.endpoint(), self.repo(revision).api_url());
        let info = self
            .transfer
            .json(&url, MAX_INFO_BYTES)
            .map_err(|error| self.refused(revision, &error.to_string()))?;
        let commit = info["sha"].as_str().unwrap_or_default().to_owned();
        if !is_plain(&commit) {
            return Err(self.error(format!("the hub named the commit {commit:?}")));
        }
        let siblings = info["siblings"].as_array().into_iter().flatten();
        let names = siblings.filter_map(|file| file["rfilename"].as_str());
        Ok((commit, names.map(str::to_owned).collect()))
    }

    fn endpoint(&self) -> &str {
        self.settings.endpoint.as_deref().unwrap_or(PUBLIC_HUB)
    }

    /// The URL of a file of a commit.
    fn url(&self, commit: &str, file: &str) -> String {
        let repo = self.repo(commit);
        let (name, revision) = (repo.url(), repo.url_revision());
        format!("{}/{name}/resolve/{revision}/{file}", self.endpoint())
    }

    /// The error for a revision that the hub refuses.
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

    /// One file of a commit: from the cache, or downloaded and verified.
    pub fn download(&self, commit: &str, file: &str) -> Result<PathBuf, SourceError> {
        match self.cached_file(commit, file) {
            Some(path) => Ok(path),
            None => self.download_anew(commit, file),
        }
    }

    /// Replaces the cached file.
    fn download_anew(&self, commit: &str, file: &str) -> Result<PathBuf, SourceError> {
        let is_inside = |part: &str| !["", ".", ".."].contains(&part) && !part.contains('\\');
        if !file.split('/').all(is_inside) {
            return Err(self.error(format!("the hub named the file {file:?}")));
        }
        let failed = |e: TransferError| self.error(format!("{file}: {e}"));
        let url = self.url(commit, file);
        let cached = self.cache().repo(self.repo(commit));
        let pointer = cached.pointer_path(commit).join(file);
        let mut tries_left = 2;
        loop {
            let described = self.transfer.describe(&url).map_err(failed)?;
            let (etag, n_bytes) = (described.etag.as_str(), described.n_bytes);
            if etag.is_empty() || etag.contains(['/', '\\']) {
                return Err(self.error(format!("{file} has the etag {etag:?}")));
            }
            let blob = cached.blob_path(etag);
            let _lock = self.lock(&blob, file)?;
            // The previous owner of the lock has most likely downloaded it.
            if check(&pointer, n_bytes, etag).is_ok() {
                return Ok(pointer);
            }
            match self.fetch_blob(&url, file, &blob, n_bytes, etag)? {
                Ok(sha256) => {
                    link(&blob, &pointer, file).map_err(|e| SourceError::file(&pointer, e))?;
                    if let Some(sha256) = sha256 {
                        digest::remember(&pointer, &sha256, &self.settings.digests);
                    }
                    return Ok(pointer);
                }
                Err(reason) if tries_left == 0 => {
                    return Err(self.error(format!("{file}: {reason}")));
                }
                Err(_) => tries_left -= 1,
            }
        }
    }

    /// Downloads a blob whose lock is held; returns its digest if its etag is one. Data that does
    /// not match the hub's description is deleted; the inner error says why.
    fn fetch_blob(
        &self,
        url: &str,
        file: &str,
        blob: &Path,
        n_bytes: u64,
        etag: &str,
    ) -> Result<Result<Option<String>, String>, SourceError> {
        let part = blob.with_extension("part");
        if std::fs::metadata(&part).is_ok_and(|part| part.len() > n_bytes) {
            // Longer than the whole: not a part of it.
            discard(&part);
        }
        let mut report = |done_bytes: u64| {
            (self.progress)(Progress {
                stage: Stage::Downloading,
                file,
                done_bytes,
                total_bytes: Some(n_bytes),
            });
        };
        self.transfer
            .complete(url, &part, n_bytes, &mut report)
            .map_err(|e| self.error(format!("{file}: {e}")))?;
        let sha256 = match check(&part, n_bytes, etag) {
            Ok(sha256) => sha256,
            Err(reason) => {
                discard(&part);
                return Ok(Err(reason));
            }
        };
        std::fs::rename(&part, blob).map_err(|e| SourceError::file(blob, e))?;
        (self.progress)(Progress {
            stage: Stage::Finished,
            file,
            done_bytes: n_bytes,
            total_bytes: Some(n_bytes),
        });
        Ok(Ok(sha256))
    }

    /// The lock of a blob, under the name that other tools use; waits for the process that holds
    /// it.
    fn lock(&self, blob: &Path, file: &str) -> Result<File, SourceError> {
        let path = blob.with_extension("lock");
        let in_file = |e: std::io::Error| SourceError::file(&path, e);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(in_file)?;
        }
        let lock = File::create(&path).map_err(in_file)?;
        let started = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_PATIENCE => {
                    self.report(Stage::Waiting, file);
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    let hours = LOCK_PATIENCE.as_secs() / 3600;
                    let message = format!("another process has held this lock for {hours} hours");
                    return Err(SourceError::file(&path, message));
                }
                Err(TryLockError::Error(e)) => return Err(in_file(e)),
            }
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

    /// The configuration in the beginning of a GGUF file; fails if that shows that the model cannot
    /// be served. `None` if the hub does not send it, the header is longer than requested, or the
    /// file is cached: the check is left to the whole file.
    pub fn judge_header(
        &self,
        commit: &str,
        file: &str,
    ) -> Result<Option<ModelConfig>, SourceError> {
        if self.cached_file(commit, file).is_some() {
            return Ok(None);
        }
        let url = self.url(commit, file);
        let beginning = self.transfer.beginning(&url, HEADER_BYTES, HEADER_PATIENCE);
        match beginning {
            Ok((beginning, n_bytes)) => gguf::judge_beginning(&beginning, n_bytes)
                .map_err(|error| SourceError::Weights(Box::new(error))),
            Err(reason) => {
                tracing::debug!(
                    file,
                    %reason,
                    "the header is not checked before the download"
                );
                Ok(None)
            }
        }
    }

    /// Writes the revision's name into the cache, which marks it as complete.
    pub fn name_revision(&self, commit: &str) -> Result<(), SourceError> {
        let cached = self.cache().repo(self.repo(self.revision));
        cached.create_ref(commit).map_err(|e| self.error(e))
    }
}

/// Checks the size, and the digest if the etag is one (the hub's large files), and returns it.
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

/// The status in the HTTP client's error message.
fn status_of(error: &str) -> Option<u16> {
    let (_, rest) = error.split_once("status")?;
    let digits: String = rest
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
}

fn discard(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(file = %path.display(), %error, "not removed");
    }
}

/// Links `pointer`, the path of `file` in a snapshot, to a blob; an existing file is replaced.
fn link(blob: &Path, pointer: &Path, file: &str) -> std::io::Result<()> {
    let n_up = file.split('/').count() + 1;
    let name = blob.file_name().unwrap_or_default();
    let target = PathBuf::from("../".repeat(n_up)).join("blobs").join(name);
    let folder = pointer.parent().unwrap_or(pointer);
    std::fs::create_dir_all(folder)?;
    let made = tempfile::Builder::new()
        .prefix(".link-")
        .make_in(folder, |path| std::os::unix::fs::symlink(&target, path))?;
    let made = made.into_temp_path();
    made.persist(pointer).map_err(|error| error.error)
}
