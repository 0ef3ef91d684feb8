//! The ops that have CUDA kernels: a folder each below `kernels/src`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use toml::Table;

#[derive(Debug, PartialEq, Eq)]
pub struct Op {
    /// Its folder, or `all`.
    pub name: &'static str,
    /// Of `m`, `n` and `k`, what the bench takes in place of the model's.
    pub shape: &'static str,
    /// Beginnings of other sources that its tests and its bench launch.
    needs: &'static [&'static str],
    /// As its cases are named in the bench and in records.
    pub groups: &'static [&'static str],
}

/// What every bench launches: reads that empty the L2, the roofline, random inputs.
const BENCH: [&str; 2] = ["roofline/", "stream_linear/random"];

const OPS: [Op; 9] = [
    Op {
        name: "attention",
        shape: "mn",
        needs: &["qkv_prepare/"],
        groups: &["attention_decode", "attention_prefill", "attention_plain"],
    },
    Op {
        name: "embedding",
        shape: "mn",
        needs: &[],
        groups: &["embedding"],
    },
    Op {
        name: "experts",
        shape: "m",
        needs: &["stream_linear/"],
        groups: &["experts"],
    },
    Op {
        name: "qkv_prepare",
        shape: "m",
        needs: &[],
        groups: &["qkv_prepare"],
    },
    Op {
        name: "rms_norm",
        shape: "mn",
        needs: &["stream_linear/"],
        groups: &["rms_norm"],
    },
    Op {
        name: "roofline",
        shape: "",
        needs: &[],
        groups: &[],
    },
    Op {
        name: "sampling",
        shape: "mn",
        needs: &[],
        groups: &["argmax", "sample"],
    },
    Op {
        name: "silu_mul",
        shape: "mn",
        needs: &[],
        groups: &["silu_mul"],
    },
    Op {
        name: "stream_linear",
        shape: "mnk",
        needs: &[],
        groups: &["stream_linear", "repack", "random"],
    },
];

const ALL: Op = Op {
    name: "all",
    shape: "",
    needs: &[],
    groups: &[],
};

impl Op {
    pub fn find(name: &str) -> Result<&'static Self> {
        if name == ALL.name {
            return Ok(&ALL);
        }
        OPS.iter().find(|op| op.name == name).with_context(|| {
            let names: Vec<_> = OPS.iter().map(|op| op.name).collect();
            format!("no op `{name}`: known are {} and all", names.join(", "))
        })
    }

    pub fn is_all(&self) -> bool {
        *self == ALL
    }

    /// `source`: its path below `kernels/src` without its ending.
    pub fn owns(&self, source: &str) -> bool {
        let folder = source.split('/').next();
        self.is_all() || folder == Some(self.name)
    }

    pub fn needs(&self, source: &str) -> bool {
        let mut needed = self.needs.iter().chain(&BENCH);
        needed.any(|start| source.starts_with(start))
    }

    /// The test programs beside it, from the `[[test]]` entries of `kernels/Cargo.toml`.
    pub fn tests(&self, root: &Path) -> Result<Vec<String>> {
        let path = root.join("kernels").join("Cargo.toml");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        self.tests_of(&text)
            .with_context(|| path.display().to_string())
    }

    fn tests_of(&self, manifest: &str) -> Result<Vec<String>> {
        let manifest: Table = manifest.parse()?;
        let entries = manifest.get("test").and_then(|entries| entries.as_array());
        let mut names = Vec::new();
        for entry in entries.context("no [[test]]")? {
            let value = |key| entry.get(key).and_then(|value| value.as_str());
            let (name, path) = (value("name"), value("path"));
            let (name, path) = name.zip(path).context("a [[test]] without name or path")?;
            let source = path.strip_prefix("src/").unwrap_or(path);
            if name.starts_with("cuda_") && self.owns(source) {
                names.push(name.to_owned());
            }
        }
        if names.is_empty() {
            bail!("{} has no [[test]] of its own", self.name);
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cargo;

    #[test]
    fn every_folder_with_a_cuda_source_is_an_op_with_tests() {
        let root = cargo::root().expect("the working tree");
        let src = root.join("kernels").join("src");
        let mut folders = BTreeSet::new();
        for folder in fs::read_dir(src).expect("kernels/src") {
            let folder = folder.expect("an entry").path();
            let has_source = folder.is_dir()
                && fs::read_dir(&folder).expect("a folder").any(|file| {
                    let path = file.expect("an entry").path();
                    path.extension().is_some_and(|ending| ending == "cu")
                });
            if has_source {
                let name = folder.file_name().expect("a name");
                folders.insert(name.to_str().expect("ASCII").to_owned());
            }
        }
        let ops: BTreeSet<_> = OPS.iter().map(|op| op.name.to_owned()).collect();
        assert_eq!(ops, folders);
        for op in &OPS {
            assert!(!op.tests(&root).expect("tests").is_empty(), "{}", op.name);
        }
    }

    #[test]
    fn an_unknown_op_is_refused_with_all_names() {
        let error = Op::find("matmul").expect_err("refused").to_string();
        assert_eq!(
            error,
            "no op `matmul`: known are attention, embedding, experts, qkv_prepare, rms_norm, \
             roofline, sampling, silu_mul, stream_linear and all"
        );
    }

    #[test]
    fn an_op_owns_its_folder_and_needs_what_its_programs_launch() {
        let op = Op::find("rms_norm").expect("known");
        assert!(op.owns("rms_norm/rms_norm") && !op.owns("stream_linear/mma"));
        assert!(op.needs("stream_linear/mma") && op.needs("roofline/read"));
        assert!(!op.needs("attention/decode"));
        let manifest = "[[test]]\nname = \"cuda_rms_norm\"\npath = \"src/rms_norm/tests_cuda.rs\"\n\
                        [[test]]\nname = \"cuda_sample\"\npath = \"src/sampling/tests_cuda.rs\"\n";
        assert_eq!(op.tests_of(manifest).expect("one"), ["cuda_rms_norm"]);
        let all = Op::find("all").expect("known");
        assert_eq!(all.tests_of(manifest).expect("two").len(), 2);
        let none = Op::find("embedding").expect("known").tests_of(manifest);
        assert!(
            none.expect_err("none")
                .to_string()
                .contains("embedding has no")
        );
    }
}
