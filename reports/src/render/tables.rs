//! Rows of the result tables: one case of one configuration, described over all its good runs.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::lang::Lang;
use crate::load::Records;
use crate::load::requests::CaseSamples;
use crate::render::compare::{Measured, Metric, Question, VerdictRow, answer};
use crate::select::{Arm, Run};
use crate::stats::bootstrap::{self, BootstrapConfig};
use crate::stats::describe::{Sorted, median, percentile_of_sorted};
use crate::stats::verdict::VerdictConfig;

#[derive(Debug, Clone, Serialize)]
pub struct CaseRow {
    pub experiment: String,
    pub case: String,
    pub max_tokens: Option<u32>,
    pub n_users: Option<u32>,
    pub n_runs: usize,
    /// Successful measured requests of all runs together.
    pub n_requests: u32,
    pub n_failed: u32,
    /// Requests far outside the rest of their run; flagged, not removed.
    pub n_outliers: usize,
    /// None where not one request succeeded.
    pub stats: Option<CaseStats>,
    /// Against the baseline; empty for the baseline itself and where there is none.
    pub verdicts: Vec<VerdictRow>,
}

/// Times in milliseconds over the pooled requests; intervals resample server starts, then requests.
#[derive(Debug, Clone, Serialize)]
pub struct CaseStats {
    pub mean_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
    pub spread_ms: f64,
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p50_interval_ms: (f64, f64),
    pub p99_ms: f64,
    /// None where no response streamed.
    pub ttft_p50_ms: Option<f64>,
    pub ttft_p50_interval_ms: Option<(f64, f64)>,
    /// None where no response had two tokens.
    pub tpot_p50_ms: Option<f64>,
    /// Median over the server starts.
    pub output_tok_per_s: f64,
    pub requests_per_s: f64,
}

/// The runs of each case of one phase, by case name.
type CasesOfArm<'a> = BTreeMap<&'a str, Vec<Measured<'a>>>;

fn cases_of_arm<'a>(records: &'a Records, arm: &Arm<'a>, phase: &str) -> CasesOfArm<'a> {
    let mut cases = CasesOfArm::new();
    // The warm-up is a case of its own whose rows are all flagged: nothing in it was measured.
    let measured = |c: &&CaseSamples| c.phase == phase && c.n_requests > 0;
    for samples in records.cases.iter().filter(measured) {
        let of_arm = |run: &&Run<'_>| run.folder.run_id == samples.run_id;
        if let Some(run) = arm.runs.iter().find(of_arm) {
            cases.entry(&samples.case).or_default().push(Measured {
                round: run.round(),
                samples,
            });
        }
    }
    cases
}

/// All rows of one phase: by size of the case, then experiment. `metrics` are judged against
/// `baseline`, corrected over all cases and metrics of one configuration.
pub fn rows(
    records: &Records,
    arms: &[Arm<'_>],
    baseline: Option<&Arm<'_>>,
    phase: &str,
    metrics: &[Metric],
    config: VerdictConfig,
    lang: Lang,
) -> Vec<CaseRow> {
    let before = baseline.map(|arm| cases_of_arm(records, arm, phase));
    let mut rows = Vec::new();
    for arm in arms {
        let after = cases_of_arm(records, arm, phase);
        let is_baseline = baseline.is_some_and(|b| b.experiment == arm.experiment);
        let mut verdicts = match &before {
            Some(before) if !is_baseline => judge(before, &after, metrics, config, lang),
            _ => BTreeMap::new(),
        };
        rows.extend(after.iter().map(|(case, runs)| {
            let samples: Vec<&CaseSamples> = runs.iter().map(|run| run.samples).collect();
            case_row(arm, &samples, verdicts.remove(*case).unwrap_or_default())
        }));
    }
    rows.sort_by(|a, b| order(a).cmp(&order(b)));
    rows
}

fn order(row: &CaseRow) -> (Option<u32>, Option<u32>, &str, &str) {
    (row.n_users, row.max_tokens, &row.case, &row.experiment)
}

fn judge(
    before: &CasesOfArm<'_>,
    after: &CasesOfArm<'_>,
    metrics: &[Metric],
    config: VerdictConfig,
    lang: Lang,
) -> BTreeMap<String, Vec<VerdictRow>> {
    let questions: Vec<Question<'_>> = after
        .iter()
        .filter_map(|(case, runs)| before.get(case).map(|b| (case, b, runs)))
        .filter(|(_, before, after)| {
            let (before, after) = (before[0].samples, after[0].samples);
            before.max_tokens == after.max_tokens && before.n_users == after.n_users
        })
        .flat_map(|(case, before, after)| {
            metrics.iter().map(move |&metric| Question {
                case,
                metric,
                before,
                after,
            })
        })
        .collect();
    let mut by_case: BTreeMap<String, Vec<VerdictRow>> = BTreeMap::new();
    for row in answer(&questions, config, lang) {
        by_case.entry(row.case.clone()).or_default().push(row);
    }
    by_case
}

fn case_row(arm: &Arm<'_>, runs: &[&CaseSamples], verdicts: Vec<VerdictRow>) -> CaseRow {
    CaseRow {
        experiment: arm.experiment.clone(),
        case: runs[0].case.clone(),
        max_tokens: runs[0].max_tokens,
        n_users: runs[0].n_users,
        n_runs: runs.len(),
        n_requests: runs.iter().map(|r| r.n_ok()).sum(),
        n_failed: runs.iter().map(|r| r.n_failed).sum(),
        n_outliers: runs.iter().map(|r| r.e2el_ms.n_outliers()).sum(),
        stats: case_stats(runs),
        verdicts,
    }
}

fn case_stats(runs: &[&CaseSamples]) -> Option<CaseStats> {
    let e2el = pooled(runs, |c| &c.e2el_ms)?;
    let ttft = pooled(runs, |c| &c.ttft_ms);
    let tpot = pooled(runs, |c| &c.tpot_ms);
    let over_runs = |value: fn(&CaseSamples) -> Option<f64>| {
        median(&runs.iter().filter_map(|c| value(c)).collect::<Vec<_>>())
    };
    let (min_ms, max_ms) = (e2el.min()?, e2el.max()?);
    Some(CaseStats {
        mean_ms: e2el.mean()?,
        min_ms,
        max_ms,
        spread_ms: max_ms - min_ms,
        p50_ms: e2el.median()?,
        p50_interval_ms: median_interval(runs, |c| &c.e2el_ms)?,
        p95_ms: e2el.percentile(0.95)?,
        p99_ms: e2el.percentile(0.99)?,
        ttft_p50_ms: ttft.and_then(|t| t.median()),
        ttft_p50_interval_ms: median_interval(runs, |c| &c.ttft_ms),
        tpot_p50_ms: tpot.and_then(|t| t.median()),
        output_tok_per_s: over_runs(CaseSamples::output_tok_per_s)?,
        requests_per_s: over_runs(CaseSamples::requests_per_s)?,
    })
}

fn pooled(runs: &[&CaseSamples], times: fn(&CaseSamples) -> &Sorted) -> Option<Sorted> {
    let all: Vec<f64> = runs
        .iter()
        .flat_map(|c| times(c).values())
        .copied()
        .collect();
    Sorted::new(all).filter(|s| s.n() > 0)
}

fn median_interval(
    runs: &[&CaseSamples],
    times: fn(&CaseSamples) -> &Sorted,
) -> Option<(f64, f64)> {
    let samples: Vec<&[f64]> = runs.iter().map(|c| times(c).values()).collect();
    bootstrap::interval(
        &samples,
        |s| percentile_of_sorted(s, 0.5),
        BootstrapConfig::default(),
    )
}
