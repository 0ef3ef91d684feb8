//! The kernels of one op, of this tree or of another commit's.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::audit::{self, Scope};
pub use super::compiler::Compiled;
use super::compiler::{self, Job};
use super::nvcc::{self, Toolchain};
#[cfg(test)]
pub use super::resource_usage::KernelUsage;
use super::{checked, folder};
use crate::cargo;
use crate::kernel::op::Op;

/// Compiles sources of one tree for given architectures.
pub struct Builder {
    root: PathBuf,
    toolchain: Toolchain,
    architectures: Vec<&'static str>,
    folder: PathBuf,
}

impl Builder {
    /// Shares what is compiled with `cargo xtask build --arch`.
    pub fn of_this_tree(architectures: &[String]) -> Result<Self> {
        let architectures = checked(architectures)?;
        let root = cargo::root()?;
        let toolchain = nvcc::find(&root, &architectures)?;
        eprintln!("kernels: {}", toolchain.describe());
        Ok(Self {
            root,
            toolchain,
            folder: folder(&architectures)?,
            architectures,
        })
    }

    /// The same compiler over the tree at `root`, into `folder`.
    pub fn of_tree(&self, root: &Path, folder: &Path) -> Result<Self> {
        Ok(Self {
            root: root.to_owned(),
            toolchain: nvcc::find(&cargo::root()?, &self.architectures)?,
            architectures: self.architectures.clone(),
            folder: folder.join(self.architectures.join("+")),
        })
    }

    /// The op's own sources, audited.
    pub fn own(&self, op: &Op) -> Result<Vec<Compiled>> {
        let compiled = self.compile(|source| op.owns(source))?;
        let scope = if op.is_all() { Scope::All } else { Scope::Some };
        audit::run(
            &self.root,
            &compiled,
            &self.architectures,
            scope,
            &self.folder,
        )?;
        Ok(compiled)
    }

    /// The op's own sources and those that its tests and its bench launch as well. Returns a folder
    /// with their index.
    pub fn with_support(&self, op: &Op) -> Result<PathBuf> {
        let compiled = self.compile(|source| op.owns(source) || op.needs(source))?;
        self.index(op.name, &compiled)
    }

    /// Every source; for a tree whose programs know nothing of single ops.
    pub fn every_source(&self) -> Result<PathBuf> {
        let compiled = self.compile(|_| true)?;
        self.index("all", &compiled)
    }

    /// Without any audit.
    pub fn compile(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<Compiled>> {
        let job = Job {
            root: &self.root,
            toolchain: &self.toolchain,
            architectures: &self.architectures,
            with_profiles: true,
            with_jitter: false,
            folder: &self.folder,
        };
        compiler::compile(&job, is_wanted)
    }

    /// The index of what was compiled, in a folder of its own: other indexes name other fatbins of
    /// the same folder.
    pub fn index(&self, name: &str, compiled: &[Compiled]) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        compiler::write_index(compiled, &self.architectures, &self.folder, &folder)?;
        Ok(folder)
    }
}
