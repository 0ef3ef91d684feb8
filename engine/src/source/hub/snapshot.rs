//! The hub's cache: the folder of a commit's files, and names of such folders.

use std::path::Path;

use super::{INDEX, Parts, SINGLE};
use crate::weights::safetensors::index_shards;

/// Whether a snapshot has the configuration and, if they are wanted, all weights.
pub(super) fn has_weights(snapshot: &Path, parts: Parts) -> bool {
    let has = |name: &str| snapshot.join(name).exists();
    if parts == Parts::WithoutWeights || !has("config.json") {
        return has("config.json");
    }
    if !has(INDEX) {
        return has(SINGLE);
    }
    index_shards(&snapshot.join(INDEX)).is_ok_and(|shards| shards.iter().all(|shard| has(shard)))
}

/// Files of a folder and of the folders in it, as the hub lists them.
pub(super) fn names_below(folder: &Path) -> Vec<String> {
    let names_in = |folder: &Path| -> Vec<(String, bool)> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
            .filter(|(_, path)| path.exists())
            .map(|(name, path)| (name, path.is_dir()))
            .collect()
    };
    let mut names = Vec::new();
    for (name, is_dir) in names_in(folder) {
        if is_dir {
            let inside = names_in(&folder.join(&name));
            names.extend(inside.into_iter().map(|(file, _)| format!("{name}/{file}")));
        } else {
            names.push(name);
        }
    }
    names
}

/// Whether the name is suitable for a folder.
pub(super) fn is_plain(commit: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !commit.is_empty() && commit.chars().all(plain) && !commit.starts_with('.')
}

/// A commit is named by 40 hexadecimal digits.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}
