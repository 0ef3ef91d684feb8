//! The cache folder: where it is, and how a file gets into it whole or not at all.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Progress, SourceError, Stage};

/// The project's folder inside the user's cache folder.
const FOLDER: &str = "balanced-engine";
/// A temporary folder older than this belongs to a process that was killed.
const STALE: Duration = Duration::from_hours(48);

/// `$ENGINE_CACHE`, else the system's cache folder for this user.
pub fn default_cache_dir() -> Result<PathBuf, SourceError> {
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(dir) = folder("ENGINE_CACHE") {
        return std::path::absolute(&dir).map_err(|e| SourceError::file(&dir, e));
    }
    // The XDG rule: a relative value is to be ignored.
    if let Some(dir) = folder("XDG_CACHE_HOME").filter(|dir| dir.is_absolute()) {
        return Ok(dir.join(FOLDER));
    }
    match std::env::home_dir().filter(|home| home.is_absolute()) {
        Some(home) => Ok(home.join(".cache").join(FOLDER)),
        None => Err(SourceError::fetch(
            "a model",
            "no cache folder: set ENGINE_CACHE, XDG_CACHE_HOME or HOME",
        )),
    }
}

/// A fresh folder on the cache's own file system, so that a rename out of it is atomic. It is
/// removed when dropped; those of killed processes are removed here, days later.
pub(super) fn temporary_dir(cache_dir: &Path) -> Result<tempfile::TempDir, SourceError> {
    let parent = cache_dir.join("tmp");
    std::fs::create_dir_all(&parent).map_err(|e| SourceError::file(&parent, e))?;
    if let Ok(entries) = std::fs::read_dir(&parent) {
        for entry in entries.flatten() {
            let modified = entry.metadata().and_then(|m| m.modified());
            let age = modified.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
            if age.is_ok_and(|age| age > STALE) {
                // Only room is lost where this fails.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
    tempfile::tempdir_in(&parent).map_err(|e| SourceError::file(&parent, e))
}

/// Held while one process makes a file; released by the system even if it is killed.
pub(super) struct FetchLock {
    _file: File,
}

/// Takes the lock of `target`, waiting for whoever makes it now.
pub(super) fn lock(target: &Path, progress: &dyn Fn(Progress)) -> Result<FetchLock, SourceError> {
    let name = target
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let path = target.with_file_name(format!(".{name}.lock"));
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| SourceError::file(parent, e))?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| SourceError::file(&path, e))?;
    if file.try_lock().is_err() {
        progress(Progress {
            stage: Stage::Waiting,
            file: &name,
            done_bytes: 0,
            total_bytes: None,
        });
        file.lock().map_err(|e| SourceError::file(&path, e))?;
    }
    Ok(FetchLock { _file: file })
}

/// Moves a finished file into place.
pub(super) fn publish(finished: &Path, target: &Path) -> Result<(), SourceError> {
    let synced = File::open(finished).and_then(|file| file.sync_all());
    synced.map_err(|e| SourceError::file(finished, e))?;
    std::fs::rename(finished, target).map_err(|e| SourceError::file(target, e))
}
