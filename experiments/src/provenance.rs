//! What exactly ran: git state and hashes of everything that decides a result.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitState {
    pub commit: Option<String>,
    /// Whether tracked files differ from the commit; `None` outside a repository.
    pub dirty: Option<bool>,
}

impl GitState {
    /// Run records are not part of what ran, so they do not make a tree dirty.
    pub fn of(root: &Path) -> Self {
        let git = |args: &[&str]| duct::cmd("git", args).dir(root).stderr_null().read().ok();
        Self {
            commit: git(&["rev-parse", "HEAD"]),
            dirty: git(&[
                "status",
                "--porcelain",
                "--untracked-files=no",
                "--",
                ".",
                ":!data/runs",
                ":!reports/rendered",
            ])
            .map(|changes| !changes.is_empty()),
        }
    }
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub fn sha256_of_file(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    feed(&mut hash, path)?;
    Ok(hex(&hash.finalize()))
}

/// Of all `.rs`, `.cu` and `.cuh` files below `dir`: relative path and content, sorted.
pub fn sha256_of_sources(dir: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    collect_sources(dir, &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    for path in files {
        let relative = path.strip_prefix(dir).unwrap_or(&path);
        hash.update(relative.to_string_lossy().as_bytes());
        hash.update([0]);
        feed(&mut hash, &path)?;
    }
    Ok(hex(&hash.finalize()))
}

fn feed(hash: &mut Sha256, path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n_read = file.read(&mut buffer)?;
        if n_read == 0 {
            return Ok(());
        }
        hash.update(&buffer[..n_read]);
    }
}

fn collect_sources(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let is_source = path
            .extension()
            .is_some_and(|e| e == "rs" || e == "cu" || e == "cuh");
        if path.is_dir() {
            collect_sources(&path, files)?;
        } else if is_source {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hash_and_a_renamed_source_counts_as_a_change() {
        let dir = tempfile::tempdir().expect("temporary folder");
        std::fs::write(dir.path().join("a.rs"), "abc").expect("written");
        assert_eq!(
            sha256_of_file(&dir.path().join("a.rs")).expect("readable"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let before = sha256_of_sources(dir.path()).expect("readable");
        std::fs::rename(dir.path().join("a.rs"), dir.path().join("b.rs")).expect("renamed");
        assert_ne!(before, sha256_of_sources(dir.path()).expect("readable"));
    }
}
