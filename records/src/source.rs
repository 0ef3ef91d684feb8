//! How far the sources that ran can be recovered.

use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Source {
    /// They are the commit's.
    Commit,
    /// They are the commit's with `changes.diff` applied.
    Diff,
    /// There was no git; `sha256.sources` identifies the tree.
    Hash,
    /// They differed from the commit and the difference was not stored, or the commit is in no
    /// history; the kernels' sources and `Cargo.lock` are those of this commit, the rest is
    /// unknown.
    Kernels(String),
    /// Lost: they differed from the commit, the difference was not stored, and the kernels' sources
    /// are in no commit. No verdict uses such a run.
    Unknown,
}

impl Source {
    /// According to the manifest alone. `has_changes`: there is a `changes.diff`.
    pub fn of(manifest: &Manifest, has_changes: bool) -> Self {
        match (manifest.git.commit.as_ref(), manifest.git.dirty) {
            (Some(_), Some(false)) => Self::Commit,
            (Some(_), Some(true)) if has_changes => Self::Diff,
            (None, _) if manifest.sha256.sources.is_some() => Self::Hash,
            _ => Self::Unknown,
        }
    }

    pub fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }

    /// A note for readers; `None` if the commit says everything.
    pub fn remark(&self) -> Option<String> {
        match self {
            Self::Commit => None,
            Self::Diff => Some("changed sources, the difference is kept".into()),
            Self::Hash => Some("no commit, only the sources' sha256".into()),
            Self::Kernels(commit) => Some(format!(
                "changed sources, known of the kernels alone ({})",
                commit.get(..10).unwrap_or(commit)
            )),
            Self::Unknown => Some("source unknown".into()),
        }
    }
}
