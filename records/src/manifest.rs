//! Who ran what: `manifest.json`.

use serde::{Deserialize, Serialize};

/// `manifest.json`: what ran, and from which sources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Manifest {
    pub schema_version: u32,
    /// The run folder's name, `<utc>_<experiment>_<host>_<hash8>`.
    pub run_id: String,
    /// Shared by all runs of one call of a recipe.
    pub campaign: String,
    /// The experiment's folder, `03-balanced-v2`; of a derived run a name that no folder has (but for a
    /// reproduction).
    pub experiment: String,
    /// Which start of the experiment in its campaign, from 0.
    pub replicate: u32,
    /// A small workload, whose figures are a try.
    #[serde(default)]
    pub quick: bool,
    pub git: GitState,
    #[serde(default)]
    pub sha256: Hashes,
    pub model: ModelUsed,
    /// Prompts and arrivals are drawn from it.
    #[serde(default)]
    pub seed: u64,
    /// What prompts and arrivals were drawn with from the seed (`chacha12`); absent in records of older
    /// versions, which drew the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<String>,
    /// The full server command; empty for an external server.
    #[serde(default)]
    pub command: Vec<String>,
    /// Flags typed after `--` on top of the experiment's own, contained in the command.
    #[serde(default)]
    pub extra_flags: Vec<String>,
    /// Of an external server; null where the run started its own.
    #[serde(default)]
    pub base_url: Option<String>,
    /// What a run that is none of the experiment's own was made from; absent for ordinary runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derived: Option<Derived>,
    /// The experiment that others are judged against, as its `experiment.toml` says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub baseline: bool,
    /// The experiment that the reports' findings are about, as its `experiment.toml` says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub focus: bool,
    /// RFC 3339, UTC.
    pub started_utc: String,
}

/// The sources that the programs were built from, as git knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GitState {
    /// Null outside a repository.
    #[serde(default)]
    pub commit: Option<String>,
    /// Whether the sources differ from the commit; null outside a repository.
    #[serde(default)]
    pub dirty: Option<bool>,
    /// Of the commit, `git rev-parse HEAD^{tree}`; absent in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<String>,
    /// Where the sources differ: the files; the difference itself is in `changes.diff`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<String>,
}

/// SHA-256 of what decides a result; null where there was nothing to hash.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Hashes {
    #[serde(default)]
    pub cargo_lock: Option<String>,
    #[serde(default)]
    pub engine_binary: Option<String>,
    /// Of the sources below `kernels/src`.
    #[serde(default)]
    pub kernels: Option<String>,
    #[serde(default)]
    pub model: Option<String>,
    #[serde(default)]
    pub prompts: Option<String>,
    /// Of all sources that engine and load generator are built from; absent in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<String>,
}

impl Hashes {
    /// Each with the name that it has in the record.
    pub fn by_name(&self) -> [(&'static str, Option<&String>); 6] {
        [
            ("cargo_lock", self.cargo_lock.as_ref()),
            ("engine_binary", self.engine_binary.as_ref()),
            ("kernels", self.kernels.as_ref()),
            ("model", self.model.as_ref()),
            ("prompts", self.prompts.as_ref()),
            ("sources", self.sources.as_ref()),
        ]
    }
}

impl Manifest {
    /// Others are judged against it. Records of schema 1 do not say so; theirs was this one.
    pub fn is_baseline(&self) -> bool {
        self.baseline || (self.schema_version == 1 && self.experiment == "01-baseline")
    }

    /// The reports' findings are about it. Records of schema 1 do not say so; theirs was this one.
    pub fn is_focus(&self) -> bool {
        self.focus || (self.schema_version == 1 && self.experiment == "03-balanced-v2")
    }
}

/// The model; of a server with several each text is the models' joined by ` + `.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelUsed {
    pub requested: String,
    /// As the server reports it; equals `requested` until the server has.
    pub used: String,
    /// Why another model was served than the one asked for.
    #[serde(default)]
    pub fallback_reason: Option<String>,
    #[serde(default)]
    pub format: Option<String>,
}

/// What a run was made from whose flags are not those of the experiment's own file. The rendered
/// reports never take such a run for one of the experiment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Derived {
    /// One arm of `cargo xtask ablate`.
    Ablation {
        /// The experiment whose flags are told apart.
        parent: String,
        /// The experiment whose flags are the other end; null: the engine's defaults.
        #[serde(default)]
        baseline: Option<String>,
        direction: Direction,
        /// The flag that sets this arm apart from its reference, without dashes; null for the two
        /// references.
        #[serde(default)]
        flag: Option<String>,
    },
    /// One candidate of `cargo xtask tune`.
    Tuning {
        parent: String,
        /// 0 is the parent as it is.
        candidate: u32,
        rung: u32,
    },
    /// One start of `cargo xtask reproduce`.
    Reproduction {
        parent: String,
        /// The run that is repeated.
        of_run: String,
    },
}

impl Derived {
    /// The experiment that it was made from.
    pub fn parent(&self) -> &str {
        match self {
            Self::Ablation { parent, .. }
            | Self::Tuning { parent, .. }
            | Self::Reproduction { parent, .. } => parent,
        }
    }

    /// The recipe.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Ablation { .. } => "ablation",
            Self::Tuning { .. } => "tuning",
            Self::Reproduction { .. } => "reproduction",
        }
    }
}

/// Of an arm of an ablation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
