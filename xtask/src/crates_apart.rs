//! Checks that `experiments` and `reports` know the records and not each other.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

use crate::source_files::files_below;

const APART: [[&str; 2]; 2] = [["experiments", "reports"], ["reports", "experiments"]];

/// They list the folders of the tree whose changes count as changed sources, whatever is in them.
const LISTS_OF_FOLDERS: [&str; 2] = [
    "experiments/src/record/provenance.rs",
    "experiments/src/record/provenance/tests.rs",
];

pub fn check(root: &Path) -> Result<()> {
    let mut found = Vec::new();
    for [own, other] in APART {
        let manifest = root.join(own).join("Cargo.toml");
        if depends_on(&read(&manifest)?, other)? {
            found.push(format!("{own}/Cargo.toml depends on {other}"));
        }
        for path in files_below(&root.join(own).join("src"), &["rs"])? {
            let shown = path.strip_prefix(root).unwrap_or(&path);
            if LISTS_OF_FOLDERS.iter().any(|list| shown == Path::new(list)) {
                continue;
            }
            let lines = lines_naming(&read(&path)?, other);
            found.extend(
                lines
                    .iter()
                    .map(|line| format!("{}:{line} names {other}", shown.display())),
            );
        }
    }
    if !found.is_empty() {
        bail!("{}", found.join("\n"));
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// In any table of dependencies, under its own name or another.
fn depends_on(manifest: &str, package: &str) -> Result<bool> {
    fn is_named(table: &Table, package: &str) -> bool {
        table.iter().any(|(key, value)| {
            let Value::Table(inner) = value else {
                return false;
            };
            if key.ends_with("dependencies") {
                let renamed =
                    |value: &Value| value.get("package").and_then(Value::as_str) == Some(package);
                inner.contains_key(package) || inner.values().any(renamed)
            } else {
                is_named(inner, package)
            }
        })
    }
    Ok(is_named(&manifest.parse()?, package))
}

/// Numbers of the lines that use the crate, its program or a file of its folder. What a comment says is
/// no use.
fn lines_naming(source: &str, other: &str) -> Vec<usize> {
    let marks = [
        format!("{other}::"),
        format!("\"{other}\""),
        format!("{other}/"),
        format!("/{other}\""),
        format!("--{other}-bin"),
    ];
    let lines = (1..).zip(source.lines());
    lines
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .filter(|(_, line)| marks.iter().any(|mark| line.contains(mark)))
        .map(|(number, _)| number)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo;

    #[test]
    fn experiments_and_reports_know_only_the_records() {
        check(&cargo::root().expect("a tree")).expect("apart");
    }

    /// Why another engine is not given a flag: written by one crate, translated by the other.
    #[test]
    fn every_flag_that_an_engine_is_not_given_has_a_reason_in_korean() {
        let root = cargo::root().expect("a tree");
        let read = |file: &str| std::fs::read_to_string(root.join(file)).expect(file);
        let translations = read("reports/src/render/reasons.rs");
        let mut n_reasons = 0;
        for engine in ["vllm", "sglang", "llama_cpp"] {
            let source = read(&format!("experiments/src/engines/{engine}.rs"));
            for rest in source.split("LeftOut(").skip(1) {
                let reason = rest.trim_start().trim_start_matches('"');
                let (reason, _) = reason.split_once('"').expect("a literal");
                let key = format!("\"{reason}\",");
                assert!(translations.contains(&key), "{engine}: {reason}");
                n_reasons += 1;
            }
        }
        assert!(n_reasons > 25, "{n_reasons}");
    }

    #[test]
    fn a_dependency_is_found_under_any_name() {
        let depends = |text: &str| depends_on(text, "reports").expect("TOML");
        assert!(depends("[dependencies]\nreports.workspace = true\n"));
        assert!(depends(
            "[target.'cfg(unix)'.dev-dependencies]\nx = { package = \"reports\", path = \"../reports\" }\n"
        ));
        assert!(!depends(
            "[package]\nname = \"experiments\"\ndescription = \"no reports\"\n[dependencies]\nrecords = \"1\"\n"
        ));
    }

    #[test]
    fn a_use_is_found_and_a_comment_is_none() {
        let named = |line: &str| lines_naming(line, "reports") == [1];
        for line in [
            "use reports::stats::verdict;",
            "let own = own.with_file_name(\"reports\");",
            "#[path = \"../../reports/src/load.rs\"]",
            "let dir = root.join(\"target/debug/reports\");",
            "words.push(\"--reports-bin\");",
        ] {
            assert!(named(line), "{line}");
        }
        for line in [
            "/// What the reports/rendered folder holds.",
            "let reports = 1;",
            "context.reports.push(link);",
        ] {
            assert!(!named(line), "{line}");
        }
    }
}
