//! SHA-256 of model files. Hashing gigabytes takes a while, so results are cached together with
//! what identifies the file's version. Nothing is written next to the file, which may be the user's
//! own.

use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Progress, SourceError, Stage};
use crate::weights::safetensors::weight_files;

/// The folder of cached digests, below the cache.
const FOLDER: &str = "digests";

pub fn of_text(text: &str) -> String {
    hex(&Sha256::digest(text))
}

/// A file's digest, from `cache_dir` if it was computed before and the file has not changed. A blob
/// of a hub cache has its digest as its name: a mismatch is an error.
pub(crate) fn of_file(
    path: &Path,
    cache_dir: &Path,
    progress: &dyn Fn(Progress),
) -> Result<String, SourceError> {
    let real = std::fs::canonicalize(path).map_err(|e| SourceError::file(path, e))?;
    let record = Record::of(&real, cache_dir)?;
    let digest = if let Some(digest) = record.kept() {
        digest
    } else {
        let digest = compute(&real, progress)?;
        record.keep(&digest);
        digest
    };
    match expected_of_blob(path, &real) {
        Some(expected) if expected != digest => Err(mismatch(&real, digest, expected)),
        _ => Ok(digest),
    }
}

/// A hub cache names the blobs of large files by their SHA-256 and links to them.
fn expected_of_blob(path: &Path, real: &Path) -> Option<String> {
    let name = real.file_name()?.to_str()?;
    (real != path && is_sha256(name)).then(|| name.to_owned())
}

/// Digest of a folder: of its only weights file, or of the list of weight files and digests; of
/// `config.json` if there are no weights (for `--load-format dummy`).
pub(crate) fn of_folder(
    dir: &Path,
    cache_dir: &Path,
    progress: &dyn Fn(Progress),
) -> Result<String, SourceError> {
    match weight_files(dir) {
        Ok(files) => of_files(&files, cache_dir, progress),
        Err(_) => of_file(&dir.join("config.json"), cache_dir, progress),
    }
}

/// Digest of one file, or of the list of several files and their digests.
pub(crate) fn of_files(
    files: &[PathBuf],
    cache_dir: &Path,
    progress: &dyn Fn(Progress),
) -> Result<String, SourceError> {
    if let [only] = files {
        return of_file(only, cache_dir, progress);
    }
    let mut manifest = String::new();
    for file in files {
        let digest = of_file(file, cache_dir, progress)?;
        // Writing to a string cannot fail.
        let _ = writeln!(manifest, "{digest}  {}", name_of(file));
    }
    Ok(of_text(&manifest))
}

/// Reads the whole file.
pub(crate) fn compute(path: &Path, progress: &dyn Fn(Progress)) -> Result<String, SourceError> {
    let mut file = File::open(path).map_err(|e| SourceError::file(path, e))?;
    let total_bytes = file.metadata().ok().map(|m| m.len());
    let name = name_of(path);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut done_bytes = 0;
    loop {
        let n = file
            .read(&mut buffer)
            .map_err(|e| SourceError::file(path, e))?;
        let stage = if n == 0 {
            Stage::Finished
        } else {
            Stage::Hashing
        };
        done_bytes += n as u64;
        progress(Progress {
            stage,
            file: &name,
            done_bytes,
            total_bytes,
        });
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
    }
}

/// Fails unless the file has this digest. Always reads the whole file.
pub(super) fn verify(
    path: &Path,
    expected: &str,
    progress: &dyn Fn(Progress),
) -> Result<(), SourceError> {
    let found = compute(path, progress)?;
    if found == expected {
        return Ok(());
    }
    Err(mismatch(path, found, expected.to_owned()))
}

/// Caches a digest that was just computed, so that the next start need not compute it.
pub(super) fn remember(path: &Path, digest: &str, cache_dir: &Path) {
    let real = std::fs::canonicalize(path).map_err(|e| SourceError::file(path, e));
    match real.and_then(|real| Record::of(&real, cache_dir)) {
        Ok(record) => record.keep(digest),
        // The next start computes it.
        Err(error) => tracing::debug!(%error, "digest not kept"),
    }
}

fn mismatch(path: &Path, found: String, expected: String) -> SourceError {
    SourceError::Digest {
        what: path.display().to_string(),
        found,
        expected,
    }
}

/// The location of a file's cached digest, and the properties that must match: path, size, inode,
/// device, and both timestamps to the nanosecond. A program that resets the modification time
/// cannot reset the change time of the inode.
struct Record {
    place: PathBuf,
    stamp: String,
}

impl Record {
    /// `real`: absolute and without links.
    fn of(real: &Path, cache_dir: &Path) -> Result<Self, SourceError> {
        let metadata = std::fs::metadata(real).map_err(|e| SourceError::file(real, e))?;
        let key = hex(&Sha256::digest(real.as_os_str().as_bytes()));
        Ok(Self {
            place: cache_dir.join(FOLDER).join(key),
            stamp: stamp_of(&metadata),
        })
    }

    fn kept(&self) -> Option<String> {
        let text = std::fs::read_to_string(&self.place).ok()?;
        let (digest, stamp) = text.trim_end().split_once(' ')?;
        (stamp == self.stamp && is_sha256(digest)).then(|| digest.to_owned())
    }

    /// Best effort: if the cache is not writable, the next start computes the digest again.
    fn keep(&self, digest: &str) {
        let written = self.place.parent().map_or_else(
            || Err(std::io::Error::other("no parent folder")),
            |folder| {
                std::fs::create_dir_all(folder)?;
                let file = tempfile::NamedTempFile::new_in(folder)?;
                std::fs::write(file.path(), format!("{digest} {}\n", self.stamp))?;
                file.persist(&self.place)?;
                Ok(())
            },
        );
        let Err(error) = written else { return };
        let file = self.place.display();
        match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                tracing::debug!(%file, %error, "digest not kept");
            }
            _ => tracing::warn!(%file, %error, "digest not kept; the next start computes it again"),
        }
    }
}

fn stamp_of(metadata: &Metadata) -> String {
    format!(
        "{} {}.{:09} {}.{:09} {} {}",
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
        metadata.ino(),
        metadata.dev()
    )
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
}

pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}
