//! The flags that the engine knows, from `engine/FLAGS.md`: that table is held to the command line
//! by the engine's own tests, and reading it needs no engine.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The engine's flags, as `engine/FLAGS.md` below `root` lists them.
///
/// # Errors
///
/// If that file cannot be read, or none of its rows names a flag.
pub fn known_flags(root: &Path) -> Result<BTreeSet<String>> {
    let path = root.join("engine").join("FLAGS.md");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let known = listed(&text);
    if known.is_empty() {
        bail!("{}: no row names a flag", path.display());
    }
    Ok(known)
}

/// Checks names without dashes.
///
/// # Errors
///
/// The first flag that is not `known`, with those that are.
pub fn refuse_unknown<'a>(
    known: &BTreeSet<String>,
    flags: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    for flag in flags {
        if !known.contains(flag) {
            let names: Vec<&str> = known.iter().map(String::as_str).collect();
            bail!(
                "the engine has no flag `--{flag}`; it has: {}",
                names.join(", ")
            );
        }
    }
    Ok(())
}

/// Every `--flag` in the code of a row's first cell.
fn listed(table: &str) -> BTreeSet<String> {
    table
        .lines()
        .filter_map(|line| line.strip_prefix("| `--")?.split('`').next())
        .flat_map(|code| {
            format!("--{code}")
                .split_whitespace()
                .map(String::from)
                .collect::<Vec<_>>()
        })
        .filter_map(|word| word.strip_prefix("--").map(String::from))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_of_the_first_column_counts() {
        let table = "# Flags\n| flag | meaning |\n|---|---|\n\
                     | `--a-b 3` | like `--no` | x |\n| `--c --d 1 2` | y |\n";
        let names: Vec<String> = listed(table).into_iter().collect();
        assert_eq!(names, ["a-b", "c", "d"]);
    }

    #[test]
    fn the_engines_own_table_is_read() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let known = known_flags(&root).expect("a table");
        refuse_unknown(&known, ["schedule-policy", "torch-compile-max-bs"]).expect("known");
        let error = refuse_unknown(&known, ["shedule-policy"]).expect_err("a typo");
        assert!(error.to_string().contains(
            "`--shedule-policy`; it has: activation-quantization, admin-api-key, admin-api-key-file"
        ));
    }
}
