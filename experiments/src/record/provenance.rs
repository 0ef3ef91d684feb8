//! What exactly ran: git state and hashes of everything that decides a result.
//!
//! Changed sources name nothing that another could build. So they are found out before a run is
//! recorded ([`Sources::of`]), and where they are allowed the difference is kept with the run.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use records::digests::hex;
use records::manifest::{GitState, Hashes};
use records::utc;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Beside programs that were packed for another machine: what they were built from.
pub const PACKED: &str = "source.json";

/// What engine and load generator are built from, and what decides how.
const BUILT_FROM: [&str; 18] = [
    ".cargo",
    "Cargo.lock",
    "Cargo.toml",
    "engine/Cargo.toml",
    "engine/build.rs",
    "engine/src",
    "experiments/Cargo.toml",
    "experiments/src",
    "kernels/Cargo.toml",
    "kernels/build.rs",
    "kernels/gpu/Cargo.toml",
    "kernels/gpu/build.rs",
    "kernels/gpu/src",
    "kernels/host/Cargo.toml",
    "kernels/host/src",
    "kernels/src",
    "records/Cargo.toml",
    "records/src",
];

/// Where a file that git does not know is a changed source. An experiment's own folder is none: its
/// `experiment.toml` is in the record.
const SOURCE_FOLDERS: [&str; 7] = [
    ".cargo",
    "engine",
    "experiments/src",
    "kernels",
    "records",
    "reports/src",
    "xtask",
];

/// Tracked files that decide no result: records, and what recipes write.
const NO_SOURCES: [&str; 4] = [
    ".",
    ":(exclude)data",
    ":(exclude)reports/rendered",
    ":(exclude,glob)experiments/*/notes.md",
];

/// More is no change of sources but a file that went astray.
const MAX_CHANGES_BYTES: usize = 8 << 20;
/// Changed files that a message names.
const MAX_NAMED: usize = 5;
const MAX_RECORDED: usize = 50;

/// The sources of what runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sources {
    pub git: GitState,
    /// Of `Cargo.lock`, the kernels' and all sources; packed programs have the engine's, too.
    pub sha256: Hashes,
    /// What changed sources differ in from the commit, for `git apply`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<String>,
}

impl Sources {
    /// Of the programs in `folder`, where they were packed for this machine, or else of the working tree.
    /// `engine`: the binary that is measured.
    pub fn of(root: &Path, folder: &Path, engine: Option<&Path>) -> Result<Self> {
        let engine_binary = engine.and_then(|path| sha256_of_file(path).ok());
        let packed = folder.join(PACKED);
        if packed.is_file() {
            return Self::read(&packed, engine_binary.as_ref());
        }
        let (git, changes) = git_state(root)?;
        let sha256 = Hashes {
            cargo_lock: sha256_of_file(&root.join("Cargo.lock")).ok(),
            engine_binary,
            kernels: sha256_of_sources(&root.join("kernels").join("src")).ok(),
            sources: sha256_of_all_sources(root).ok(),
            ..Hashes::default()
        };
        Ok(Self {
            git,
            sha256,
            changes,
        })
    }

    fn read(path: &Path, engine_binary: Option<&String>) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let packed: Self =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        if packed.sha256.engine_binary.as_ref() != engine_binary {
            bail!(
                "{} tells the sources of another engine than the one beside it; pack anew",
                path.display()
            );
        }
        Ok(packed)
    }

    /// Why nothing is recorded from these, where they have changed.
    pub fn refusal(&self) -> Option<String> {
        if self.git.dirty != Some(true) {
            return None;
        }
        let changed = &self.git.changed;
        let mut named = changed[..changed.len().min(MAX_NAMED)].join(", ");
        if changed.len() > MAX_NAMED {
            named = format!("{named} and {} more", changed.len() - MAX_NAMED);
        }
        Some(format!(
            "the sources are not those of the commit: {named}; a record of them could not be made again. Commit them, or keep the difference with the record: --allow-dirty"
        ))
    }
}

/// The commit, and what differs from it.
fn git_state(root: &Path) -> Result<(GitState, Option<String>)> {
    let text = |args: &[&str]| {
        let output = duct::cmd("git", args).dir(root).stderr_null().read().ok()?;
        Some(output.trim().to_owned())
    };
    // A tree without git may lie inside another repository, whose commit says nothing of it.
    let is_top = text(&["rev-parse", "--show-prefix"]).is_some_and(|prefix| prefix.is_empty());
    let Some(commit) = is_top
        .then(|| text(&["rev-parse", "--verify", "HEAD"]))
        .flatten()
    else {
        return Ok((GitState::default(), None));
    };
    let tracked = git_lines(
        root,
        &[
            &["diff", "--name-only", "-z", "HEAD", "--"],
            &NO_SOURCES[..],
        ],
    )?;
    let mut listing = vec!["ls-files", "--others", "--exclude-standard", "-z", "--"];
    listing.extend(SOURCE_FOLDERS);
    let unknown = git_lines(root, &[&listing])?;
    let changes = if tracked.is_empty() && unknown.is_empty() {
        None
    } else {
        Some(changes_of(root, &unknown)?)
    };
    let mut changed = tracked;
    changed.extend(unknown);
    changed.truncate(MAX_RECORDED);
    let git = GitState {
        commit: Some(commit),
        dirty: Some(changes.is_some()),
        tree: text(&["rev-parse", "HEAD^{tree}"]),
        committed_utc: text(&["show", "--no-patch", "--format=%ct", "HEAD"])
            .and_then(|unix_s| unix_s.parse().ok())
            .map(utc::rfc3339),
        changed,
    };
    Ok((git, changes))
}

/// Everything that git shows as a difference, new files included.
fn changes_of(root: &Path, unknown: &[String]) -> Result<String> {
    let mut bytes = git_bytes(
        root,
        &[&["diff", "--binary", "HEAD", "--"], &NO_SOURCES[..]],
    )?;
    for path in unknown {
        bytes.extend(git_bytes(
            root,
            &[&["diff", "--binary", "--no-index", "--", "/dev/null", path]],
        )?);
        if bytes.len() > MAX_CHANGES_BYTES {
            bail!(
                "the sources differ from the commit by more than {} MiB (up to {path}); a record cannot keep that",
                MAX_CHANGES_BYTES >> 20
            );
        }
    }
    String::from_utf8(bytes).context("the difference to the commit is not UTF-8 and cannot be kept")
}

fn git_lines(root: &Path, words: &[&[&str]]) -> Result<Vec<String>> {
    let bytes = git_bytes(root, words)?;
    let names = bytes
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    Ok(names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect())
}

/// `git diff --no-index` exits with 1 where there is a difference.
fn git_bytes(root: &Path, words: &[&[&str]]) -> Result<Vec<u8>> {
    let words = words.concat();
    let output = duct::cmd("git", &words)
        .dir(root)
        .stdout_capture()
        .stderr_capture()
        .unchecked()
        .run()
        .context("git cannot be started")?;
    let is_difference = words.contains(&"--no-index") && output.status.code() == Some(1);
    if !output.status.success() && !is_difference {
        bail!(
            "git {}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

pub fn sha256_of_file(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    feed(&mut hash, path)?;
    Ok(hex(&hash.finalize()))
}

/// Of all `.rs`, `.cu` and `.cuh` files below `dir`: relative path and content, sorted.
pub fn sha256_of_sources(dir: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    collect_files(dir, &mut files)?;
    files.retain(|path| {
        path.extension()
            .is_some_and(|e| e == "rs" || e == "cu" || e == "cuh")
    });
    sha256_of(dir, files)
}

/// Of everything that engine and load generator are built from; prose does not count.
fn sha256_of_all_sources(root: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for part in BUILT_FROM {
        let path = root.join(part);
        if path.is_dir() {
            collect_files(&path, &mut files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    files.retain(|path| path.extension().is_none_or(|e| e != "md"));
    sha256_of(root, files)
}

fn sha256_of(root: &Path, mut files: Vec<PathBuf>) -> io::Result<String> {
    files.sort();
    let mut hash = Sha256::new();
    for path in files {
        let relative = path.strip_prefix(root).unwrap_or(&path);
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

fn collect_files(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect_files(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
