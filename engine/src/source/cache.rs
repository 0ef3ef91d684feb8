//! The cache folder: its location, and atomic creation of files in it.
//!
//! It may be a folder that contains other things: only files with this module's marker are removed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Progress, SourceError, Stage};

/// The project's folder inside the user's cache folder.
const FOLDER: &str = "balanced-engine";
/// Age at which a temporary folder without an owner is removed.
const STALE: Duration = Duration::from_hours(48);

/// `$ENGINE_CACHE`, otherwise the system's cache folder for this user.
///
/// # Errors
///
/// [`SourceError::NoCacheFolder`] if none of the variables names one and the user has no home;
/// [`SourceError::File`] if `ENGINE_CACHE` cannot be made absolute.
pub fn default_cache_dir() -> Result<PathBuf, SourceError> {
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(dir) = folder("ENGINE_CACHE") {
        return std::path::absolute(&dir).map_err(|e| SourceError::file(&dir, e));
    }
    // The XDG rule: a relative value is ignored.
    if let Some(dir) = folder("XDG_CACHE_HOME").filter(|dir| dir.is_absolute()) {
        return Ok(dir.join(FOLDER));
    }
    match std::env::home_dir().filter(|home| home.is_absolute()) {
        Some(home) => Ok(home.join(".cache").join(FOLDER)),
        None => Err(SourceError::NoCacheFolder),
    }
}

/// The folder of temporary folders for fetches, below the cache.
const TEMPORARY: &str = "balanced-engine-tmp";
/// Prefix of their names.
const FETCH_PREFIX: &str = "fetch-";
/// The marker file in each of them; its owner holds a lock on it.
const MARK: &str = ".balanced-engine-fetch";

/// A new folder on the cache's own file system, so that a rename out of it is atomic. Removed on
/// drop.
#[derive(Debug)]
pub(super) struct TemporaryDir {
    // Fields are dropped in this order: the lock after the folder.
    dir: tempfile::TempDir,
    _lock: File,
}

impl TemporaryDir {
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Creates a temporary folder, and removes those that killed processes left two days ago.
///
/// Only folders created by this module are removed: a real folder in `balanced-engine-tmp` (itself
/// a real folder) whose name starts with `fetch-`, with this module's marker in it, whose lock no
/// process holds. The cache may be any folder of the user's.
pub(super) fn temporary_dir(cache_dir: &Path) -> Result<TemporaryDir, SourceError> {
    let parent = cache_dir.join(TEMPORARY);
    std::fs::create_dir_all(&parent).map_err(|e| SourceError::file(&parent, e))?;
    if !is_real_dir(&parent) {
        let message = "is a link; the cache's temporary files need a folder here. Remove the link \
                       or choose another --cache-dir";
        return Err(SourceError::file(&parent, message));
    }
    remove_abandoned(&parent);
    let made = tempfile::Builder::new()
        .prefix(FETCH_PREFIX)
        .tempdir_in(&parent)
        .map_err(|e| SourceError::file(&parent, e))?;
    let mark = made.path().join(MARK);
    let lock = File::create_new(&mark).map_err(|e| SourceError::file(&mark, e))?;
    // On a file system without locks, abandoned folders are not removed, which only costs space.
    if let Err(error) = lock.try_lock() {
        tracing::debug!(file = %mark.display(), %error, "not locked");
    }
    Ok(TemporaryDir {
        dir: made,
        _lock: lock,
    })
}

fn remove_abandoned(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(FETCH_PREFIX) && is_real_dir(&path) && is_abandoned(&path.join(MARK)) {
            // Links in it are removed, not followed. A failure only costs space.
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

fn is_real_dir(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// Whether this is the marker of a folder whose owner ended long ago. The age covers the moment
/// between creating and locking a marker.
fn is_abandoned(mark: &Path) -> bool {
    let Ok(metadata) = std::fs::symlink_metadata(mark) else {
        return false;
    };
    let age = metadata
        .modified()
        .map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
    metadata.is_file()
        && age.is_ok_and(|age| age > STALE)
        && File::open(mark).is_ok_and(|file| file.try_lock().is_ok())
}

/// Held while a process creates a file; the system releases it even if the process is killed.
pub(super) struct FetchLock {
    _file: File,
}

/// Takes the lock of `target`, waiting for a process that is creating it.
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

/// Moves a finished file into place. An existing file or link (possibly broken) is replaced; the
/// target of a link stays.
pub(super) fn publish(finished: &Path, target: &Path) -> Result<(), SourceError> {
    let synced = File::open(finished).and_then(|file| file.sync_all());
    synced.map_err(|e| SourceError::file(finished, e))?;
    std::fs::rename(finished, target).map_err(|e| SourceError::file(target, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make_old(path: &Path) {
        let file = File::open(path).expect("opens");
        let at = SystemTime::now() - 2 * STALE;
        file.set_modified(at).expect("set");
    }

    /// Folders of other programs that resemble temporary ones, and links to them.
    #[test]
    fn nothing_of_others_is_removed() {
        let home = tempfile::tempdir().expect("a folder");
        let cache = home.path();
        let mut kept = Vec::new();
        for name in [
            "tmp/old",
            "balanced-engine-tmp/mine",
            "balanced-engine-tmp/fetch-thesis",
        ] {
            let folder = cache.join(name);
            std::fs::create_dir_all(&folder).expect("made");
            std::fs::write(folder.join("work.txt"), "a year's work").expect("written");
            make_old(&folder);
            kept.push(folder.join("work.txt"));
        }
        // A marked folder elsewhere, and a link to it among the temporary folders.
        let elsewhere = cache.join("elsewhere");
        std::fs::create_dir_all(&elsewhere).expect("made");
        std::fs::write(elsewhere.join(MARK), "").expect("written");
        make_old(&elsewhere.join(MARK));
        let link = cache.join("balanced-engine-tmp/fetch-link");
        std::os::unix::fs::symlink(&elsewhere, link).expect("linked");
        kept.push(elsewhere.join(MARK));
        // A marker that is a link to an old file.
        let folder = cache.join("balanced-engine-tmp/fetch-linked-mark");
        std::fs::create_dir(&folder).expect("made");
        std::os::unix::fs::symlink(&kept[0], folder.join(MARK)).expect("linked");
        make_old(&kept[0]);
        kept.push(folder.join(MARK));

        drop(temporary_dir(cache).expect("made"));
        for path in kept {
            assert!(path.exists(), "{} was removed", path.display());
        }
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_a_live_one_has_is_not() {
        let home = tempfile::tempdir().expect("a folder");
        let live = temporary_dir(home.path()).expect("made");
        make_old(&live.path().join(MARK));
        let abandoned = home.path().join(TEMPORARY).join("fetch-abandoned");
        let target = home.path().join("target.txt");
        std::fs::write(&target, "kept").expect("written");
        std::fs::create_dir(&abandoned).expect("made");
        std::os::unix::fs::symlink(&target, abandoned.join("link")).expect("linked");
        std::fs::write(abandoned.join(MARK), "").expect("written");
        drop(temporary_dir(home.path()).expect("made"));
        assert!(abandoned.exists(), "removed though it is new");
        make_old(&abandoned.join(MARK));
        let next = temporary_dir(home.path()).expect("made");
        assert!(!abandoned.exists(), "the abandoned folder is still there");
        assert!(live.path().exists(), "a folder in use was removed");
        assert!(target.exists(), "a link was followed");
        let path = next.path().to_owned();
        drop(next);
        assert!(!path.exists(), "not removed when dropped");
    }

    #[test]
    fn a_link_in_place_of_the_temporary_folder_is_refused() {
        let home = tempfile::tempdir().expect("a folder");
        let elsewhere = tempfile::tempdir().expect("a folder");
        let link = home.path().join(TEMPORARY);
        std::os::unix::fs::symlink(elsewhere.path(), link).expect("linked");
        let error = temporary_dir(home.path()).expect_err("refused").to_string();
        assert!(error.contains("is a link"), "{error}");
    }
}
