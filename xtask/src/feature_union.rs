//! Checks that `reports` built alone uses the same features of shared crates as the whole
//! workspace. If one differs, cargo keeps two builds of that crate and of all that depend on it:
//! polars twice, minutes each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Result, bail};
use xshell::{Shell, cmd};

/// Every build of a package: `name version` → its feature lists.
type Builds = BTreeMap<String, BTreeSet<String>>;

pub fn check(root: &Path) -> Result<()> {
    let alone = builds(root, &["--package", "reports", "--edges", "normal,build"])?;
    let together = builds(root, &["--workspace", "--edges", "normal,build,dev"])?;
    let missing = differences(&alone, &together);
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "`cargo run --package reports` builds these crates with other features than \
         `cargo test --workspace`; name the features in reports/Cargo.toml:\n{}",
        missing.join("\n")
    );
}

fn builds(root: &Path, selection: &[&str]) -> Result<Builds> {
    let sh = Shell::new()?;
    sh.change_dir(root);
    let tree = cmd!(
        sh,
        "cargo tree {selection...} --prefix none --format '{p}|{f}'"
    )
    .quiet()
    .read()?;
    Ok(parse(&tree))
}

/// Only packages of a registry: those of the workspace have a path after their version.
fn parse(tree: &str) -> Builds {
    let mut builds = Builds::new();
    let lines = tree
        .lines()
        .map(|line| line.trim_end_matches(" (*)"))
        .filter_map(|line| line.split_once('|'));
    for (package, features) in lines.filter(|(package, _)| !package.contains('/')) {
        builds
            .entry(package.to_owned())
            .or_default()
            .insert(features.to_owned());
    }
    builds
}

fn differences(alone: &Builds, together: &Builds) -> Vec<String> {
    let nothing = BTreeSet::new();
    let mut lines = Vec::new();
    for (package, found) in alone {
        let wanted = together.get(package).unwrap_or(&nothing);
        for features in found.difference(wanted) {
            let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
            lines.push(format!(
                "{package}: [{features}] alone, [{}] in the workspace",
                wanted.join("] and [")
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_less_is_named() {
        let alone = parse("reports v0.1.0 (/x/reports)|\nhalf v2.7.1|std (*)\nlibm v0.2.16|arch\n");
        let together = parse("half v2.7.1|std,zerocopy\nlibm v0.2.16|\nlibm v0.2.16|arch\n");
        assert_eq!(
            differences(&alone, &together),
            ["half v2.7.1: [std] alone, [std,zerocopy] in the workspace"]
        );
        assert_eq!(differences(&together, &together), [""; 0]);
    }
}
