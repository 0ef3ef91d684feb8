//! Checks that the written indexes match the tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Every `kernels/src/<op>/` is listed in `kernels/KERNELS.md` (as `` `<op>` `` or `<op>/`), and
/// every op listed in the first column of its tables is a folder.
pub fn check_kernels(root: &Path) -> Result<()> {
    let src = root.join("kernels").join("src");
    let folders = folders_of(&src)?;
    let index = root.join("kernels").join("KERNELS.md");
    let text = match fs::read_to_string(&index) {
        Ok(text) => text,
        Err(_) if folders.is_empty() => return Ok(()),
        Err(error) => return Err(error).with_context(|| index.display().to_string()),
    };
    let listed = ops_listed(&text);
    let missing: Vec<_> = folders.difference(&listed).map(String::as_str).collect();
    let gone: Vec<_> = listed.difference(&folders).map(String::as_str).collect();
    if !missing.is_empty() || !gone.is_empty() {
        bail!(
            "kernels/KERNELS.md: not listed: [{}]; listed but not there: [{}]",
            missing.join(", "),
            gone.join(", ")
        );
    }
    Ok(())
}

/// Every flag set by an experiment has a row in `engine/FLAGS.md`. The engine's own tests check
/// that every flag of the command line has one, with an existing test.
pub fn check_flags(root: &Path) -> Result<()> {
    let path = root.join("engine").join("FLAGS.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let listed = flags_listed(&text);
    let mut missing = BTreeSet::new();
    let dir = root.join("experiments");
    for folder in folders_of(&dir)? {
        let Ok(spec) = fs::read_to_string(dir.join(&folder).join("experiment.toml")) else {
            continue;
        };
        missing.extend(
            flags_set(&spec)
                .into_iter()
                .filter(|flag| !listed.contains(flag)),
        );
    }
    if !missing.is_empty() {
        let missing: Vec<_> = missing.iter().map(|flag| format!("--{flag}")).collect();
        bail!("engine/FLAGS.md has no row for {}", missing.join(", "));
    }
    Ok(())
}

fn folders_of(dir: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    Ok(entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}

/// First cells of table rows that consist of one code word: `` | `op` | … ``.
fn ops_listed(index: &str) -> BTreeSet<String> {
    let op_of = |line: &str| {
        let cell = line.strip_prefix('|')?.split('|').next()?.trim();
        let word = cell
            .strip_prefix('`')?
            .strip_suffix('`')?
            .trim_end_matches('/');
        word.chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            .then(|| word.to_string())
    };
    index.lines().filter_map(op_of).collect()
}

/// Flags of table rows: the last one in the first cell, which may name prerequisites before it.
fn flags_listed(table: &str) -> BTreeSet<String> {
    let flag_of = |line: &str| {
        let cell = line.strip_prefix("| `--")?.split('`').next()?;
        let last = cell.rsplit("--").next()?;
        Some(last.split(' ').next()?.to_string())
    };
    table.lines().filter_map(flag_of).collect()
}

/// Keys of the `[flags]` table.
fn flags_set(spec: &str) -> Vec<String> {
    let lines = spec
        .lines()
        .skip_while(|line| line.trim() != "[flags]")
        .skip(1);
    let table = lines.take_while(|line| !line.starts_with('['));
    table
        .filter_map(|line| Some(line.split_once(" = ")?.0.trim().to_string()))
        .filter(|key| !key.starts_with('#'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ops_and_flags() {
        let index = "| op | files |\n|---|---|\n| `rms_norm` | x |\n| `matmul/` | y |\n| a `b` c | z |\ntext `other`\n";
        assert_eq!(
            ops_listed(index),
            ["matmul", "rms_norm"].map(String::from).into()
        );
        let table = "| flag |\n|---|\n| `--a-b 1` | x |\n| `--c --d-e 2 3` | needs `--f` |\n";
        assert_eq!(flags_listed(table), ["a-b", "d-e"].map(String::from).into());
        let spec = "name = \"x\"\n[flags]\n# why\na-b = 1\nc = true\n\n[workload]\nd = 2\n";
        assert_eq!(flags_set(spec), ["a-b", "c"]);
    }
}
