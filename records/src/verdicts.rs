//! `verdicts.json` next to the rendered reports: their verdicts on each experiment, for `cargo
//! xtask list`, which must not wait for statistics. Language-independent: keys, figures, names.

use serde::{Deserialize, Serialize};

/// Where the reports are rendered to, below the repository's root.
pub const FOLDER: &str = "reports/rendered";
/// The file's name.
pub const FILE_NAME: &str = "verdicts.json";

/// How rare a result must be, were there no difference, to be called one.
pub const ALPHA: f64 = 0.05;

/// Smallest p-value that two samples of these sizes can give: 2 / C(n + m, n).
pub fn smallest_p(n: usize, m: usize) -> f64 {
    let orders: f64 = (1..=n).map(|i| (m + i) as f64 / i as f64).product();
    (2.0 / orders).min(1.0)
}

/// Fewest server starts an arm with which this number of pairs of arms, judged together, can reach
/// `alpha`. The figures of one pair are tested jointly and ask for no more.
pub fn starts_needed(n_pairs: usize, alpha: f64) -> usize {
    (2..100)
        .find(|&n| smallest_p(n, n) * n_pairs.max(1) as f64 <= alpha)
        .unwrap_or(100)
}

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
    /// The campaigns whose starts were compared.
    #[serde(default)]
    pub campaigns: Vec<String>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_starts_can_never_convince() {
        assert!((smallest_p(3, 3) - 0.1).abs() < 1e-12);
        assert!((smallest_p(5, 5) - 2.0 / 252.0).abs() < 1e-12);
        assert_eq!(starts_needed(1, ALPHA), 4);
    }

    #[test]
    fn more_pairs_need_more_starts() {
        assert_eq!(starts_needed(3, ALPHA), 5);
        assert!(starts_needed(300, ALPHA) > starts_needed(30, ALPHA));
    }
}
