//! Runs that are no ordinary run of a numbered experiment: what they were made from and why.
//!
//! `ablate`, `tune` and `reproduce` serve configurations that no `experiment.toml` holds. Their
//! records carry this, so that the reports never take such a run for the experiment it came from.

use serde::{Deserialize, Serialize};

/// `derived` of a manifest; ordinary runs have none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Derived {
    /// One arm of `ablate`.
    Ablation {
        /// The experiment whose flags are told apart.
        parent: String,
        /// The experiment whose flags are the other end; none: the engine's defaults.
        baseline: Option<String>,
        direction: Direction,
        /// The flag that sets this arm apart from its reference; none for the two references.
        flag: Option<String>,
    },
    /// One candidate of `tune`.
    Tuning {
        parent: String,
        candidate: u32,
        rung: u32,
    },
    /// One start of `reproduce`.
    Reproduction { parent: String, of_run: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The parent's flags, all of them.
    Full,
    /// The baseline's flags, nothing of the parent's.
    Baseline,
    /// The full configuration with one flag as the baseline has it.
    Off,
    /// The baseline with one flag as the parent has it.
    On,
}

impl Direction {
    pub fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Baseline => "baseline",
            Self::Off => "off",
            Self::On => "on",
        }
    }
}
