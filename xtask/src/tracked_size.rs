//! The bytes of all files that git tracks: a clone stays small, and records are kept compressed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use duct::cmd;

const MAX_MIB: u64 = 12;
/// Named when the limit is exceeded.
const N_LARGEST: usize = 10;

/// # Errors
///
/// If git cannot list the files, one that it tracks cannot be read, or they are too large together;
/// the message names the largest.
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
    match fault(files, MAX_MIB << 20) {
        Some(fault) => bail!("{fault}"),
        None => Ok(()),
    }
}

fn fault(mut files: Vec<(u64, String)>, max_bytes: u64) -> Option<String> {
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
        assert_eq!(fault(files(), 12), None);
        let fault = fault(files(), 11).expect("one byte too many");
        assert!(fault.contains("12 bytes; the limit is 11"), "{fault}");
        assert!(fault.contains("         9 b\n         3 a"), "{fault}");
    }

    #[test]
    fn the_repositorys_own_files_pass() {
        check(&cargo::root().unwrap()).unwrap();
    }
}
