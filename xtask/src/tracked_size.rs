//! The bytes of all files that git tracks, and the number of those below `data/`: a clone stays small,
//! and records are kept compressed and in few files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use duct::cmd;

const MAX_MIB: u64 = 12;
const DATA: &str = "data/";
const MAX_DATA_FILES: usize = 400;
/// Named when a limit is exceeded.
const N_LARGEST: usize = 10;

/// # Errors
///
/// If git cannot list the files, or one that it tracks cannot be read; if they are too large together,
/// or too many lie in `data/`: the message names the largest files or folders.
pub fn check(root: &Path) -> Result<()> {
    let listed = cmd!("git", "ls-files", "-z")
        .dir(root)
        .read()
        .context("git ls-files")?;
    let mut files = Vec::new();
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        // Removed and not committed yet: no longer there.
        let Ok(metadata) = fs::symlink_metadata(root.join(name)) else {
            continue;
        };
        files.push((metadata.len(), name.to_owned()));
    }
    if let Some(fault) = too_many(&files, MAX_DATA_FILES) {
        bail!("{fault}");
    }
    match too_large(files, MAX_MIB << 20) {
        Some(fault) => bail!("{fault}"),
        None => Ok(()),
    }
}

fn too_many(files: &[(u64, String)], max_files: usize) -> Option<String> {
    let names = files.iter().filter(|(_, name)| name.starts_with(DATA));
    let mut folders: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, name) in names {
        // `data/bench/<folder>/…`: the third slash ends what is counted together.
        let end = name
            .match_indices('/')
            .nth(2)
            .map_or(name.len(), |(at, _)| at);
        *folders.entry(&name[..end]).or_default() += 1;
    }
    let n_files: usize = folders.values().sum();
    if n_files <= max_files {
        return None;
    }
    let mut folders: Vec<(usize, &str)> = folders.into_iter().map(|(name, n)| (n, name)).collect();
    folders.sort_by(|a, b| b.cmp(a));
    let most = folders.iter().take(N_LARGEST);
    let lines: Vec<String> = most.map(|(n, name)| format!("{n:>10} {name}")).collect();
    Some(format!(
        "git tracks {n_files} files in {DATA}; the limit is {max_files}. Most are in:\n{}\n\
         A campaign has three files (data/SCHEMA.md); texts of a bench can share one \
         (data/bench/README.md)",
        lines.join("\n")
    ))
}

fn too_large(mut files: Vec<(u64, String)>, max_bytes: u64) -> Option<String> {
    let n_bytes: u64 = files.iter().map(|(n_bytes, _)| n_bytes).sum();
    if n_bytes <= max_bytes {
        return None;
    }
    files.sort_by(|a, b| b.cmp(a));
    let largest = files.iter().take(N_LARGEST);
    let lines: Vec<String> = largest
        .map(|(n_bytes, name)| format!("{n_bytes:>10} {name}"))
        .collect();
    Some(format!(
        "the tracked files have {n_bytes} bytes; the limit is {max_bytes}. The largest:\n{}\n\
         Records are kept compressed (data/SCHEMA.md, data/bench/README.md)",
        lines.join("\n")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo;

    #[test]
    fn what_is_too_much_is_named_with_the_largest_files() {
        let files = || vec![(3, "a".to_owned()), (9, "b".to_owned())];
        assert_eq!(too_large(files(), 12), None);
        let fault = too_large(files(), 11).expect("one byte too many");
        assert!(fault.contains("12 bytes; the limit is 11"), "{fault}");
        assert!(fault.contains("         9 b\n         3 a"), "{fault}");
    }

    #[test]
    fn one_file_too_many_in_data_is_refused_with_the_fullest_folders() {
        let dir = tempfile::tempdir().unwrap();
        let git = |arguments: &[&str]| duct::cmd("git", arguments).dir(dir.path()).run().unwrap();
        let write = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
            git(&["add", name]);
        };
        git(&["init", "--quiet"]);
        let folder = dir.path().join("data/bench/20260101_h100/inner");
        fs::create_dir_all(&folder).unwrap();
        for i in 1..MAX_DATA_FILES {
            fs::write(folder.join(i.to_string()), "").unwrap();
        }
        git(&["add", "data"]);
        write("data/prompts/english.jsonl");
        write("elsewhere.txt");
        check(dir.path()).unwrap();
        write("data/SCHEMA.md");
        let refused = check(dir.path()).unwrap_err().to_string();
        assert!(
            refused.contains("401 files in data/; the limit is 400"),
            "{refused}"
        );
        assert!(
            refused.contains("       399 data/bench/20260101_h100\n"),
            "{refused}"
        );
    }

    #[test]
    fn the_repositorys_own_files_pass() {
        check(&cargo::root().unwrap()).unwrap();
    }
}
