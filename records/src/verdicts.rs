//! `verdicts.json` next to the rendered reports: their verdicts on each experiment, for `cargo
//! xtask list`, which must not wait for statistics. Language-independent: keys, figures, names.

use serde::{Deserialize, Serialize};

/// The file's name.
pub const FILE_NAME: &str = "verdicts.json";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LastVerdicts {
    /// The newest run included in the reports.
    pub newest_run: Option<String>,
    pub experiments: Vec<Judged>,
}

/// One experiment on one machine with one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Judged {
    pub experiment: String,
    /// Machine, model and extra flags, as in the reports' heading.
    pub group: String,
    /// The baseline.
    pub against: String,
    pub n_starts: usize,
    pub verdicts: Vec<JudgedMetric>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct JudgedMetric {
    pub metric: String,
    #[serde(default)]
    pub case: String,
    /// `faster`, `slower`, `same`, `undecided`.
    pub verdict: String,
    pub improvement_percent: Option<f64>,
    #[serde(default)]
    pub interval_percent: Option<(f64, f64)>,
}
