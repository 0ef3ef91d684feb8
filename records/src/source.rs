//! How far the sources of what ran can be found again.

use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Source {
    /// They are those of the commit.
    Commit,
    /// They are those of the commit with `changes.diff` applied.
    Diff,
    /// There was no git; `sha256.sources` tells whether a tree is the one.
    Hash,
    /// They differed from the commit and the difference was not kept, or the commit is in no history; the
    /// kernels' sources and `Cargo.lock` are those of this commit, of the rest nothing is known.
    Kernels(String),
    /// Lost: they differed from the commit, the difference was not kept, and the kernels' sources are in
    /// no commit. No verdict uses such a run.
    Unknown,
}

impl Source {
    /// What the manifest alone tells. `has_changes`: `changes.diff` is there.
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

    /// What a reader must know of it; `None` where the commit says all.
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
