//! What ran: `manifest.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `manifest.json`: what ran, and from which sources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Manifest {
    pub schema_version: u32,
    /// The run folder's name, `<utc>_<experiment>_<host>_<hash8>`.
    pub run_id: String,
    /// Common to all runs of one call of a recipe.
    pub campaign: String,
    /// The experiment's folder, `03-balanced-v2`; for a derived run a name without a folder (except
    /// for a reproduction).
    pub experiment: String,
    /// Index of the start within the experiment and campaign, from 0.
    pub replicate: u32,
    /// A small workload, whose figures are only preliminary.
    #[serde(default)]
    pub quick: bool,
    pub git: GitState,
    #[serde(default)]
    pub sha256: Hashes,
    pub model: ModelUsed,
    /// Seed of prompts and arrivals.
    #[serde(default)]
    pub seed: u64,
    /// Random generator of prompts and arrivals (`chacha12`); absent in records of older versions,
    /// which used the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<String>,
    /// The full server command; empty for an external server.
    #[serde(default)]
    pub command: Vec<String>,
    /// Flags typed after `--` in addition to the experiment's own; the command contains them.
    #[serde(default)]
    pub extra_flags: Vec<String>,
    /// URL of an external server; null if the run started its own.
    #[serde(default)]
    pub base_url: Option<String>,
    /// The engine that was started, and what it was asked before it was measured; absent in records
    /// of older versions, whose engine was `ours`, and for an external server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineUsed>,
    /// The origin of a run that is not one of the experiment's own; absent for ordinary runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derived: Option<Derived>,
    /// Whether it is the experiment that others are compared with, from its `experiment.toml`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub baseline: bool,
    /// Whether the reports' findings are about this experiment, from its `experiment.toml`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub focus: bool,
    /// RFC 3339, UTC.
    pub started_utc: String,
}

/// `03-balanced-v2+vllm@best`: an experiment as another engine ran it.
pub fn arm_name(experiment: &str, engine: &str) -> String {
    format!("{experiment}+{engine}")
}

/// The sources that the programs were built from, according to git.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GitState {
    /// Null outside a repository.
    #[serde(default)]
    pub commit: Option<String>,
    /// Whether the sources differ from the commit; null outside a repository.
    #[serde(default)]
    pub dirty: Option<bool>,
    /// Hash of the commit's tree, `git rev-parse HEAD^{tree}`; absent in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<String>,
    /// When the commit was made, RFC 3339; absent in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed_utc: Option<String>,
    /// The files that differ; the difference itself is in `changes.diff`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<String>,
}

/// SHA-256 of everything that affects a result; null if there was nothing to hash.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Hashes {
    #[serde(default)]
    pub cargo_lock: Option<String>,
    #[serde(default)]
    pub engine_binary: Option<String>,
    /// Digest of the sources below `kernels/src`.
    #[serde(default)]
    pub kernels: Option<String>,
    #[serde(default)]
    pub model: Option<String>,
    #[serde(default)]
    pub prompts: Option<String>,
    /// Digest of all sources of engine and load generator; absent in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<String>,
}

impl Hashes {
    /// Each with its name in the record.
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
    /// The engine with its preset, if another than ours was started.
    pub fn other_engine(&self) -> Option<String> {
        let engine = self.engine.as_ref().filter(|engine| engine.name != OURS);
        engine.map(EngineUsed::shown)
    }

    /// Whether our engine was measured, started by the runner.
    pub fn is_ours(&self) -> bool {
        self.base_url.is_none() && self.other_engine().is_none()
    }

    /// The configuration within its campaign: the experiment, and the engine if it is another.
    pub fn arm(&self) -> String {
        match self.other_engine() {
            Some(engine) => arm_name(&self.experiment, &engine),
            None => self.experiment.clone(),
        }
    }

    /// Why the figures are in no verdict although the start was measured.
    pub fn not_comparable(&self) -> Option<&str> {
        let answers = self.engine.as_ref()?.answers.as_ref()?;
        let is_so = answers.outcome == AnswerOutcome::NotComparable;
        is_so.then(|| answers.reason.as_deref().unwrap_or_default())
    }

    /// Whether others are compared with it. Records of schema 1 do not say; theirs was this one.
    pub fn is_baseline(&self) -> bool {
        self.baseline || (self.schema_version == 1 && self.experiment == "01-baseline")
    }

    /// Whether the reports' findings are about it. Records of schema 1 do not say; theirs was this
    /// one.
    pub fn is_focus(&self) -> bool {
        self.focus || (self.schema_version == 1 && self.experiment == "03-balanced-v2")
    }
}

/// An engine is an arm of a campaign like a configuration of ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EngineUsed {
    /// `ours`, `vllm`, `sglang` or `llama.cpp`.
    pub name: String,
    /// Which of its sets of flags; null for `ours`, which has the experiment's.
    #[serde(default)]
    pub preset: Option<String>,
    /// As the engine or its package says it.
    #[serde(default)]
    pub version: Option<String>,
    /// Of the program, or of the list of files that its Python package was installed with.
    #[serde(default)]
    pub sha256: Option<String>,
    /// The file that `sha256` is of, without the folders of this machine.
    #[serde(default)]
    pub digest_of: Option<String>,
    /// Variables that were set for it, beside those of the runner's own environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// The experiment's flags that it was not given, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub flags_left_out: BTreeMap<String, String>,
    /// What its answers were like before it was measured; absent where no other engine was in the
    /// campaign, and for a start that ended before it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<Answers>,
}

/// The answers of one start to a fixed text, beside those of the reference: log-probabilities of
/// the likeliest next tokens after several prefixes of the text, and of some greedy tokens more.
/// Positions count as long as both have said the same tokens before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Answers {
    pub outcome: AnswerOutcome,
    /// The engine and preset that it was compared with; null for the reference's first start.
    #[serde(default)]
    pub reference: Option<String>,
    /// Positions that were compared.
    #[serde(default)]
    pub n_positions: u32,
    /// Share of the positions with the same likeliest token.
    #[serde(default)]
    pub argmax_agreement: Option<f64>,
    /// Mean difference of the log-probabilities of the reference's likeliest tokens.
    #[serde(default)]
    pub mean_abs_delta: Option<f64>,
    /// The largest of these differences.
    #[serde(default)]
    pub max_abs_delta: Option<f64>,
    /// The agreement below which a start is `wrong`.
    #[serde(default)]
    pub least_agreement: Option<f64>,
    /// The mean difference above which a start is `wrong`.
    #[serde(default)]
    pub most_mean_delta: Option<f64>,
    /// Why nothing could be compared.
    #[serde(default)]
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum AnswerOutcome {
    /// The first start of the engine that the others are compared with.
    Reference,
    /// Within the limits.
    Right,
    /// Outside them; the start was not measured.
    Wrong,
    /// Not comparable, for the reason that is given; the figures stand in no verdict.
    NotComparable,
}

/// The engine of this project.
pub const OURS: &str = "ours";

impl EngineUsed {
    /// `vllm@enforce-eager`; `ours` has no preset.
    pub fn shown(&self) -> String {
        match &self.preset {
            Some(preset) => format!("{}@{preset}", self.name),
            None => self.name.clone(),
        }
    }
}

/// The model; for a server with several, each text is the models' joined by ` + `.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelUsed {
    pub requested: String,
    /// As reported by the server; equals `requested` until then.
    pub used: String,
    /// Why a different model was served.
    #[serde(default)]
    pub fallback_reason: Option<String>,
    #[serde(default)]
    pub format: Option<String>,
}

/// The origin of a run whose flags are not those of the experiment's file. The reports never count
/// such a run as one of the experiment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Derived {
    /// One arm of `cargo xtask ablate`.
    Ablation {
        /// The experiment whose flags are examined.
        parent: String,
        /// The experiment whose flags are the opposite end; null: the engine's defaults.
        #[serde(default)]
        baseline: Option<String>,
        direction: Direction,
        /// The flag in which this arm differs from its reference, without dashes; null for the two
        /// references.
        #[serde(default)]
        flag: Option<String>,
    },
    /// One candidate of `cargo xtask tune`.
    Tuning {
        parent: String,
        /// 0 is the unmodified parent.
        candidate: u32,
        rung: u32,
    },
    /// One start of `cargo xtask reproduce`.
    Reproduction {
        parent: String,
        /// The repeated run.
        of_run: String,
    },
    /// One of the two equal arms of `cargo xtask exp --a-a`.
    AA { parent: String, side: Side },
    /// One start of `cargo xtask exp --slo`: the experiment's flags under a search for the highest
    /// load.
    Slo { parent: String },
}

/// The two arms of an A/A campaign, which are the same but for their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Side {
    A,
    B,
}

impl Side {
    pub fn word(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

impl Derived {
    /// The experiment it was derived from.
    pub fn parent(&self) -> &str {
        match self {
            Self::Ablation { parent, .. }
            | Self::Tuning { parent, .. }
            | Self::Reproduction { parent, .. }
            | Self::AA { parent, .. }
            | Self::Slo { parent } => parent,
        }
    }

    /// The recipe.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Ablation { .. } => "ablation",
            Self::Tuning { .. } => "tuning",
            Self::Reproduction { .. } => "reproduction",
            Self::AA { .. } => "A/A",
            Self::Slo { .. } => "SLO",
        }
    }
}

/// For an arm of an ablation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Direction {
    /// All of the parent's flags.
    Full,
    /// The baseline's flags, none of the parent's.
    Baseline,
    /// The full configuration with one flag set as in the baseline.
    Off,
    /// The baseline with one flag set as in the parent.
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
