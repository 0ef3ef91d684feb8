//! Rows of the result tables: one case of one configuration, described over all its good runs.

use std::collections::BTreeMap;

use records::sufficiency::least_requests;
use serde::Serialize;

use crate::lang::Lang;
use crate::load::Records;
use crate::load::requests::CaseSamples;
use crate::render::comparable::{binaries_differ, servers_differ, work_differs};
use crate::render::compare::{Measured, Metric, Question, VerdictRow, answer};
use crate::render::load_words;
use crate::render::sources;
use crate::select::{Arm, Run};
use crate::stats::bootstrap::{self, BootstrapConfig};
use crate::stats::describe::{Sorted, median, percentile_of_sorted};
use crate::stats::verdict::VerdictConfig;

#[derive(Debug, Clone, Default, Serialize)]
pub struct CaseRow {
    pub experiment: String,
    pub case: String,
    pub max_tokens: Option<u32>,
    pub n_users: Option<u32>,
    pub rate_per_s: Option<f64>,
    /// Some start of it lasted less than a case of its kind must.
    pub is_short: bool,
    /// What the load of the case was, over all configurations of the table.
    pub load: String,
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

/// With fewer server starts a bootstrap interval covers far less than it claims.
pub const FEWEST_STARTS_OF_INTERVAL: usize = 6;

/// Where a median may lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub low: f64,
    pub high: f64,
    /// Resampled from server starts, then requests; else the lowest and the highest start's median.
    pub is_interval: bool,
}

/// Times in milliseconds over the pooled requests.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CaseStats {
    pub mean_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
    pub spread_ms: f64,
    pub p50_ms: f64,
    pub p50_spread_ms: Option<Spread>,
    /// None of few requests, of which they would be the slowest, and of cases that are too short; so are
    /// the other tails.
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// None where no response streamed.
    pub ttft_p50_ms: Option<f64>,
    pub ttft_p50_spread_ms: Option<Spread>,
    /// None where no response had two tokens.
    pub tpot_p50_ms: Option<f64>,
    /// Over the server starts, as is that of the throughput.
    pub tpot_spread_ms: Option<Spread>,
    /// Median over the server starts.
    pub output_tok_per_s: f64,
    pub output_spread_tok_per_s: Option<Spread>,
    pub requests_per_s: f64,
    pub ttft_p99_ms: Option<f64>,
    pub tpot_p99_ms: Option<f64>,
    /// Of an open loop: responses a second while requests arrive, and requests that arrived.
    pub steady_per_s: Option<f64>,
    pub arrived_per_s: Option<f64>,
    /// Share of the requests that met every limit, and how many of them a second; none without
    /// limits.
    pub within_percent: Option<f64>,
    pub goodput_per_s: Option<f64>,
    pub energy: Option<EnergyStats>,
}

/// Medians over the metered starts.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct EnergyStats {
    pub joules_per_token: f64,
    pub mean_w: f64,
    pub n_runs: usize,
    /// Some start's is a sum of power samples.
    pub is_estimate: bool,
}

/// The runs of each case of one phase, by case name.
type CasesOfArm<'a> = BTreeMap<&'a str, Vec<Measured<'a>>>;

/// An arm, and what it measured in one phase.
pub(super) struct Side<'r, 'a> {
    arm: &'r Arm<'a>,
    cases: CasesOfArm<'a>,
}

impl<'r, 'a> Side<'r, 'a> {
    pub(super) fn of(records: &'a Records, arm: &'r Arm<'a>, phase: &str) -> Self {
        let mut cases = CasesOfArm::new();
        // The warm-up is a case of its own whose rows are all flagged: nothing in it was measured.
        let measured = |c: &&CaseSamples| c.phase == phase && c.n_requests > 0;
        for samples in records.cases.iter().filter(measured) {
            let of_arm = |run: &&Run<'_>| run.folder.run_id == samples.run_id;
            if let Some(run) = arm.runs.iter().find(of_arm) {
                cases.entry(&samples.case).or_default().push(Measured {
                    round: run.round(),
                    prompts: run.record.manifest.sha256.prompts.as_deref(),
                    samples,
                });
            }
        }
        Self { arm, cases }
    }

    /// The cases that `before` has too, heaviest last.
    pub(super) fn cases_shared_with(&self, before: &Side<'_, 'a>) -> Vec<&'a str> {
        let mut shared: Vec<&CaseSamples> = self
            .cases
            .iter()
            .filter_map(|(case, runs)| Some((runs[0].samples, before.cases.get(case)?[0].samples)))
            .filter(|(after, before)| {
                before.max_tokens == after.max_tokens && before.n_users == after.n_users
            })
            .map(|(after, _)| after)
            .collect();
        shared.sort_by_key(|c| {
            let rate = c.rate_per_s.map(f64::to_bits);
            (c.n_users, rate, c.max_tokens, c.case.as_str())
        });
        shared.iter().map(|c| c.case.as_str()).collect()
    }

    /// What can be asked of one case that both have.
    pub(super) fn questions_against<'q>(
        &'q self,
        before: &'q Side<'_, 'a>,
        case: &'q str,
        metrics: &[Metric],
        config: VerdictConfig,
        lang: Lang,
    ) -> Vec<Question<'q>> {
        let (Some(runs_before), Some(runs_after)) = (before.cases.get(case), self.cases.get(case))
        else {
            return Vec::new();
        };
        let question = |&metric: &Metric| {
            let margin_percent = config.margin_percent;
            let incomparable = sources::unknown(before.arm, self.arm, lang)
                .or_else(|| servers_differ(before.arm, self.arm, lang))
                .or_else(|| binaries_differ(before.arm, self.arm, lang))
                .or_else(|| work_differs(runs_before, runs_after, metric, margin_percent, lang));
            Question {
                pair: format!("{} / {}", before.arm.experiment, self.arm.experiment),
                case,
                metric,
                before: runs_before,
                after: runs_after,
                incomparable,
            }
        };
        // Of what neither measured, nothing is asked.
        let is_measured = |metric: &&Metric| {
            let mut both = runs_before.iter().chain(runs_after);
            !metric.is_optional() || both.any(|run| metric.of_run(run.samples).is_some())
        };
        metrics.iter().filter(is_measured).map(question).collect()
    }
}

/// All rows of a table, phase by phase: by size of the case, then experiment. The metrics of each
/// phase are judged against `baseline`, corrected over the whole table.
pub fn rows(
    records: &Records,
    arms: &[Arm<'_>],
    baseline: Option<&Arm<'_>>,
    phases: &[(&str, &[Metric])],
    config: VerdictConfig,
    lang: Lang,
) -> Vec<CaseRow> {
    let before: Vec<Option<Side<'_, '_>>> = phases
        .iter()
        .map(|(phase, _)| baseline.map(|arm| Side::of(records, arm, phase)))
        .collect();
    let mut sides: Vec<(usize, Side<'_, '_>)> = Vec::new();
    for (p, (phase, _)) in phases.iter().enumerate() {
        sides.extend(arms.iter().map(|arm| (p, Side::of(records, arm, phase))));
    }
    let mut questions: Vec<Question<'_>> = Vec::new();
    let mut asked_of: Vec<usize> = Vec::new();
    for (i, (p, after)) in sides.iter().enumerate() {
        if let Some(before) = &before[*p]
            && before.arm.experiment != after.arm.experiment
        {
            for case in after.cases_shared_with(before) {
                questions.extend(after.questions_against(before, case, phases[*p].1, config, lang));
            }
        }
        asked_of.resize(questions.len(), i);
    }
    let mut verdicts: BTreeMap<(usize, String), Vec<VerdictRow>> = BTreeMap::new();
    for (i, row) in asked_of.into_iter().zip(answer(&questions, config, lang)) {
        verdicts.entry((i, row.case.clone())).or_default().push(row);
    }
    let mut starts: BTreeMap<(usize, &str), Vec<&CaseSamples>> = BTreeMap::new();
    for (p, side) in &sides {
        for (case, runs) in &side.cases {
            let all = starts.entry((*p, *case)).or_default();
            all.extend(runs.iter().map(|run| run.samples));
        }
    }
    let loads: BTreeMap<(usize, &str), String> = starts
        .into_iter()
        .map(|((p, case), starts)| ((p, case), load_words::words(case, &starts, lang)))
        .collect();
    let mut rows: Vec<(usize, CaseRow)> = Vec::new();
    for (i, (p, side)) in sides.iter().enumerate() {
        for (case, runs) in &side.cases {
            let samples: Vec<&CaseSamples> = runs.iter().map(|run| run.samples).collect();
            let verdicts = verdicts.remove(&(i, (*case).to_owned()));
            rows.push((
                *p,
                CaseRow {
                    load: loads.get(&(*p, *case)).cloned().unwrap_or_default(),
                    ..case_row(side.arm, &samples, verdicts.unwrap_or_default())
                },
            ));
        }
    }
    rows.sort_by(|(p, a), (q, b)| (p, order(a)).cmp(&(q, order(b))));
    rows.into_iter().map(|(_, row)| row).collect()
}

fn order(row: &CaseRow) -> (Option<u32>, Option<u64>, Option<u32>, &str, &str) {
    // Positive numbers are in the order of their bits.
    let rate = row.rate_per_s.map(f64::to_bits);
    (
        row.n_users,
        rate,
        row.max_tokens,
        &row.case,
        &row.experiment,
    )
}

fn case_row(arm: &Arm<'_>, runs: &[&CaseSamples], verdicts: Vec<VerdictRow>) -> CaseRow {
    CaseRow {
        experiment: arm.experiment.clone(),
        case: runs[0].case.clone(),
        max_tokens: runs[0].max_tokens,
        n_users: runs[0].n_users,
        rate_per_s: runs[0].rate_per_s,
        is_short: runs.iter().any(|r| r.is_short()),
        load: String::new(),
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
    let values = |value: fn(&CaseSamples) -> Option<f64>| -> Vec<f64> {
        runs.iter().filter_map(|c| value(c)).collect()
    };
    let over_runs = |value: fn(&CaseSamples) -> Option<f64>| median(&values(value));
    let (min_ms, max_ms) = (e2el.min()?, e2el.max()?);
    let is_short = runs.iter().any(|c| c.is_short());
    let tail = |times: Option<&Sorted>, percent: u32| {
        let is_told = |times: &&Sorted| !is_short && times.n() >= least_requests(percent);
        times
            .filter(is_told)
            .and_then(|times| times.percentile(f64::from(percent) / 100.0))
    };
    Some(CaseStats {
        mean_ms: e2el.mean()?,
        min_ms,
        max_ms,
        spread_ms: max_ms - min_ms,
        p50_ms: e2el.median()?,
        p50_spread_ms: median_spread(runs, |c| &c.e2el_ms),
        p95_ms: tail(Some(&e2el), 95),
        p99_ms: tail(Some(&e2el), 99),
        ttft_p99_ms: tail(ttft.as_ref(), 99),
        tpot_p99_ms: tail(tpot.as_ref(), 99),
        steady_per_s: over_runs(CaseSamples::steady_per_s),
        arrived_per_s: over_runs(CaseSamples::arrived_per_s),
        within_percent: over_runs(|c| {
            let n = f64::from(c.n_requests).max(1.0);
            Some(100.0 * f64::from(c.n_within?) / n)
        }),
        goodput_per_s: over_runs(CaseSamples::goodput_per_s),
        energy: energy_stats(runs),
        ttft_p50_ms: ttft.and_then(|t| t.median()),
        ttft_p50_spread_ms: median_spread(runs, |c| &c.ttft_ms),
        tpot_p50_ms: tpot.and_then(|t| t.median()),
        tpot_spread_ms: spread_of_starts(&values(|c| c.tpot_ms.median())),
        output_tok_per_s: over_runs(CaseSamples::output_tok_per_s)?,
        output_spread_tok_per_s: spread_of_starts(&values(CaseSamples::output_tok_per_s)),
        requests_per_s: over_runs(CaseSamples::requests_per_s)?,
    })
}

fn energy_stats(runs: &[&CaseSamples]) -> Option<EnergyStats> {
    let metered = || runs.iter().filter_map(|c| c.energy);
    let per_token: Vec<f64> = runs
        .iter()
        .filter_map(|c| c.joules_per_output_token())
        .collect();
    let watts: Vec<f64> = metered().map(|e| e.joules / e.seconds).collect();
    Some(EnergyStats {
        joules_per_token: median(&per_token)?,
        mean_w: median(&watts)?,
        n_runs: per_token.len(),
        is_estimate: metered().any(|e| e.is_estimate),
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

/// None for a single start, which tells nothing of the spread between starts.
fn median_spread(runs: &[&CaseSamples], times: fn(&CaseSamples) -> &Sorted) -> Option<Spread> {
    let starts: Vec<&Sorted> = runs
        .iter()
        .map(|c| times(c))
        .filter(|t| t.n() > 0)
        .collect();
    if starts.len() >= FEWEST_STARTS_OF_INTERVAL {
        let samples: Vec<&[f64]> = starts.iter().map(|t| t.values()).collect();
        let median_of = |s: &[f64]| percentile_of_sorted(s, 0.5);
        let (low, high) = bootstrap::interval(&samples, median_of, BootstrapConfig::default())?;
        return Some(Spread {
            low,
            high,
            is_interval: true,
        });
    }
    let medians = Sorted::new(starts.iter().filter_map(|t| t.median()).collect())?;
    (medians.n() > 1).then_some(Spread {
        low: medians.min()?,
        high: medians.max()?,
        is_interval: false,
    })
}

/// Where the median of one value a start may lie: the order statistics that the sign test gives, at
/// 95 %, or the range of few starts. None for a single one.
fn spread_of_starts(values: &[f64]) -> Option<Spread> {
    const TAIL: f64 = 0.025;
    let sorted = Sorted::new(values.to_vec())?;
    let n = sorted.n();
    if n < 2 {
        return None;
    }
    let mut share = 0.5_f64.powi(n as i32);
    let (mut cumulated, mut k) = (0.0, 0);
    while cumulated + share <= TAIL {
        cumulated += share;
        k += 1;
        share *= (n - k + 1) as f64 / k as f64;
    }
    let outermost = k.max(1);
    Some(Spread {
        low: sorted.values()[outermost - 1],
        high: sorted.values()[n - outermost],
        is_interval: k > 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tables of the sign test: the extremes of 6 starts cover 96.9 %, the second ones of 9 96.1 %
    /// (those of 8 only 93.0 %).
    #[test]
    fn a_median_of_starts_lies_between_order_statistics() {
        let spread = |n: u32| {
            let values: Vec<f64> = (1..=n).rev().map(f64::from).collect();
            spread_of_starts(&values).map(|s| (s.low, s.high, s.is_interval))
        };
        assert_eq!(spread(1), None);
        assert_eq!(spread(5), Some((1.0, 5.0, false)));
        assert_eq!(spread(6), Some((1.0, 6.0, true)));
        assert_eq!(spread(8), Some((1.0, 8.0, true)));
        assert_eq!(spread(9), Some((2.0, 8.0, true)));
    }

    /// A start whose requests took about `ms`.
    fn start(ms: f64) -> CaseSamples {
        let sorted = |values: &[f64]| Sorted::new(values.to_vec()).expect("no NaN");
        CaseSamples {
            case: "c".into(),
            phase: "latency".into(),
            n_requests: 3,
            e2el_ms: sorted(&[ms - 1.0, ms, ms + 1.0]),
            ..CaseSamples::default()
        }
    }

    #[test]
    fn few_starts_have_a_range_and_no_interval() {
        let starts: Vec<CaseSamples> = (0..6).map(|i| start(100.0 + f64::from(i))).collect();
        let all: Vec<&CaseSamples> = starts.iter().collect();
        let spread = |n: usize| median_spread(&all[..n], |c| &c.e2el_ms);
        assert_eq!(spread(0), None);
        assert_eq!(spread(1), None);
        let range = Spread {
            low: 100.0,
            high: 104.0,
            is_interval: false,
        };
        assert_eq!(spread(5), Some(range));
        let interval = spread(6).expect("an interval");
        assert!(interval.is_interval && interval.low < interval.high);
        assert_eq!(median_spread(&all, |c| &c.ttft_ms), None);
    }
}
