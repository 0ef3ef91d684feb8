//! SHA-256 of model files. Hashing gigabytes takes a while, so the result is kept beside the
//! file with its size and time of change, and is taken from there while these still agree.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use super::{Progress, SourceError, Stage};
use crate::weights::safetensors::weight_files;

pub fn of_text(text: &str) -> String {
    hex(&Sha256::digest(text))
}

/// A file's digest, from beside it where it was computed before.
pub fn of_file(path: &Path, progress: &dyn Fn(Progress)) -> Result<String, SourceError> {
    let real = std::fs::canonicalize(path).map_err(|e| SourceError::file(path, e))?;
    // A hub cache names the blobs of large files by their SHA-256 already.
    let name = real
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    if real != path && is_sha256(&name) {
        return Ok(name);
    }
    let stamp = stamp_of(&real)?;
    let beside = real.with_file_name(format!(".{name}.sha256"));
    if let Ok(kept) = std::fs::read_to_string(&beside)
        && let Some((digest, kept_stamp)) = kept.trim_end().split_once(' ')
        && kept_stamp == stamp
        && is_sha256(digest)
    {
        return Ok(digest.to_string());
    }
    let digest = compute(&real, progress)?;
    keep(&beside, &format!("{digest} {stamp}\n"));
    Ok(digest)
}

/// Digest of a folder: of its one weights file, or of the list of weight files and digests.
/// `config.json` alone counts where there are no weights (for `--load-format dummy`).
pub fn of_folder(dir: &Path, progress: &dyn Fn(Progress)) -> Result<String, SourceError> {
    let Ok(files) = weight_files(dir) else {
        return of_file(&dir.join("config.json"), progress);
    };
    if let [only] = files.as_slice() {
        return of_file(only, progress);
    }
    let mut manifest = String::new();
    for file in &files {
        let name = file
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        let digest = of_file(file, progress)?;
        // Writing to a string cannot fail.
        let _ = writeln!(manifest, "{digest}  {name}");
    }
    Ok(of_text(&manifest))
}

/// Reads the whole file.
pub fn compute(path: &Path, progress: &dyn Fn(Progress)) -> Result<String, SourceError> {
    let mut file = File::open(path).map_err(|e| SourceError::file(path, e))?;
    let total_bytes = file.metadata().ok().map(|m| m.len());
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
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

/// Fails unless the file has this digest.
pub(super) fn verify(
    path: &Path,
    expected: &str,
    progress: &dyn Fn(Progress),
) -> Result<(), SourceError> {
    let found = compute(path, progress)?;
    if found == expected {
        return Ok(());
    }
    let what = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    Err(SourceError::Digest {
        what,
        found,
        expected: expected.to_string(),
    })
}

fn stamp_of(path: &Path) -> Result<String, SourceError> {
    let metadata = std::fs::metadata(path).map_err(|e| SourceError::file(path, e))?;
    let modified = metadata
        .modified()
        .map_err(|e| SourceError::file(path, e))?;
    let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{} {}", metadata.len(), since.as_nanos()))
}

/// Best effort: a read-only folder costs the next start the same time again, nothing else.
fn keep(beside: &PathBuf, line: &str) {
    let written = beside.parent().map_or_else(
        || Err(std::io::Error::other("no parent folder")),
        |dir| {
            let file = tempfile::NamedTempFile::new_in(dir)?;
            std::fs::write(file.path(), line)?;
            file.persist(beside)?;
            Ok(())
        },
    );
    let Err(error) = written else { return };
    let file = beside.display();
    match error.kind() {
        // Models are often where nobody may write.
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            tracing::debug!(%file, %error, "digest not kept");
        }
        _ => tracing::warn!(%file, %error, "digest not kept; the next start computes it again"),
    }
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
