//! Another commit's kernels: its tree is checked out below the target folder and compiled with this
//! tree's compiler and flags.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use duct::cmd;

use super::op::Op;
use crate::cargo;
use crate::kernels::of_op::{Builder, Compiled};

/// A commit whose tree is checked out.
pub struct Against {
    /// As the user named it.
    pub name: String,
    pub tree: PathBuf,
    builder: Builder,
    /// Whether launchers, tests and benches are those of this tree, so that this tree's bench can
    /// launch the commit's kernels.
    pub has_same_host_code: bool,
}

impl Against {
    pub fn check_out(root: &Path, revision: &str, here: &Builder) -> Result<Self> {
        let commit = format!("{revision}^{{commit}}");
        let hash = cmd!("git", "rev-parse", "--verify", "--quiet", &commit)
            .dir(root)
            .read()
            .ok()
            .with_context(|| format!("--against {revision}: git knows no such commit here"))?;
        let folder = cargo::target_dir()?.join("against");
        let tree = folder.join("tree");
        if tree.join(".git").exists() {
            git(
                &tree,
                &["checkout", "--quiet", "--force", "--detach", &hash],
            )?;
        } else {
            // A tree that `cargo clean` has removed is still on git's list.
            git(root, &["worktree", "prune"])?;
            let path = tree.to_str().context("the target folder is not UTF-8")?;
            git(
                root,
                &[
                    "worktree", "add", "--quiet", "--force", "--detach", path, &hash,
                ],
            )?;
        }
        let host_code = [
            "diff",
            "--quiet",
            &hash,
            "--",
            ":(glob)kernels/**/*.rs",
            ":(glob)kernels/**/Cargo.toml",
        ];
        let status = cmd("git", host_code).dir(root).unchecked().run()?.status;
        Ok(Self {
            name: revision.to_owned(),
            builder: here.of_tree(&tree, &folder.join("kernels"))?,
            tree,
            has_same_host_code: status.success(),
        })
    }

    /// What the compiler made of the op's kernels there and here.
    pub fn compare(&self, op: &Op, here: &[Compiled]) -> Result<String> {
        let there = self.builder.compile(|source| op.owns(source))?;
        Ok(differences(&self.name, &there, here))
    }

    /// With all that a run of the op's bench launches. A commit with other host code is measured by
    /// its own bench, which loads every kernel.
    pub fn folder_to_run(&self, op: &Op) -> Result<PathBuf> {
        if self.has_same_host_code {
            self.builder.with_support(op)
        } else {
            self.builder.every_source()
        }
    }
}

fn git(folder: &Path, args: &[&str]) -> Result<()> {
    let output = cmd("git", args)
        .dir(folder)
        .stderr_to_stdout()
        .stdout_capture()
        .unchecked()
        .run()
        .context("git cannot be started")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        bail!("git {}: {}", args.join(" "), text.trim());
    }
    Ok(())
}

/// Kernels whose resources differ, one a line.
fn differences(name: &str, there: &[Compiled], here: &[Compiled]) -> String {
    let rows = |compiled: &[Compiled]| {
        let mut rows = Vec::new();
        for source in compiled {
            for usage in &source.kernels {
                let key = format!(
                    "{} of {} on {}",
                    usage.kernel, source.source_name, usage.architecture
                );
                let numbers = [
                    usage.n_registers,
                    usage.static_shared_bytes,
                    usage.stack_bytes,
                    usage.spill_store_bytes,
                    usage.spill_load_bytes,
                ];
                rows.push((key, numbers));
            }
        }
        rows
    };
    let (there, here) = (rows(there), rows(here));
    let text = |[registers, shared, stack, stores, loads]: [usize; 5]| {
        format!(
            "{registers} registers, {shared} B shared, {stack} B stack, {stores}/{loads} B spilled"
        )
    };
    let mut lines = String::new();
    let mut n_same = 0;
    for (key, now) in &here {
        match there.iter().find(|(other, _)| other == key) {
            Some((_, before)) if before == now => n_same += 1,
            Some((_, before)) => {
                let _ = write!(lines, "\n  {key}: {} -> {}", text(*before), text(*now));
            }
            None => {
                let _ = write!(lines, "\n  {key}: not in {name}; {}", text(*now));
            }
        }
    }
    for (key, _) in &there {
        if !here.iter().any(|(other, _)| other == key) {
            let _ = write!(lines, "\n  {key}: in {name} alone");
        }
    }
    format!(
        "against {name}: {n_same} of {} kernels with the same registers, shared memory, stack and spills{lines}",
        here.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::of_op::KernelUsage;

    fn compiled(kernels: &[(&str, usize)]) -> Vec<Compiled> {
        let usage = |(kernel, n_registers): &(&str, usize)| KernelUsage {
            kernel: (*kernel).into(),
            architecture: "sm_90".into(),
            n_registers: *n_registers,
            static_shared_bytes: 0,
            stack_bytes: 0,
            spill_store_bytes: 4,
            spill_load_bytes: 8,
            max_threads: Some(256),
        };
        vec![Compiled {
            source_name: "op/op".into(),
            fatbin_bytes: 1,
            kernels: kernels.iter().map(usage).collect(),
        }]
    }

    #[test]
    fn kernels_that_differ_are_named() {
        let there = compiled(&[("same", 32), ("fatter", 40), ("gone", 8)]);
        let here = compiled(&[("same", 32), ("fatter", 48), ("new", 8)]);
        let text = differences("HEAD", &there, &here);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "against HEAD: 1 of 3 kernels with the same registers, shared memory, stack and spills"
        );
        assert!(lines[1].starts_with("  fatter of op/op on sm_90: 40 registers"));
        assert!(lines[1].contains("-> 48 registers, 0 B shared, 0 B stack, 4/8 B spilled"));
        assert!(lines[2].contains("new of op/op on sm_90: not in HEAD"));
        assert_eq!(lines[3], "  gone of op/op on sm_90: in HEAD alone");
    }
}
