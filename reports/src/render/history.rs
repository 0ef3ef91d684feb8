//! Figures over commits: what a change of the engine did to each configuration, and whether it is more
//! than the noise.
//!
//! A campaign is a block: its figure is the median of its starts, and a commit's that of its campaigns.
//! The band is what single starts of one campaign spread by, twice their standard deviation, pooled over
//! all campaigns of the configuration; a step within the bands of its two ends is no news. No test is
//! made: campaigns of different commits share no rounds.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::lang::Lang;
use crate::load::Records;
use crate::load::requests::CaseSamples;
use crate::load::run_folder::{Outcome, Record, RunFolder};
use crate::render::compare::Metric;
use crate::render::sources;
use crate::select::Group;
use crate::stats::describe::{mean, median};

/// Standard deviations on either side that make a band.
const BAND: f64 = 2.0;

/// What is followed: a phase of the workload, and a figure of its heaviest case.
const FOLLOWED: [(&str, Metric); 3] = [
    ("latency", Metric::Latency),
    ("users", Metric::OutputThroughput),
    ("users", Metric::Ttft),
];

/// One figure of one configuration.
#[derive(Debug, Serialize)]
pub struct History {
    pub experiment: String,
    pub metric: &'static str,
    pub key: &'static str,
    pub case: String,
    /// The oldest commit first.
    pub points: Vec<HistoryPoint>,
}

#[derive(Debug, Clone, Serialize)]
pub struct HistoryPoint {
    /// From 1, over all commits of the machine.
    pub number: usize,
    pub commit: String,
    /// What is unknown of the sources of some start.
    pub mark: Option<String>,
    /// The commit's day, or that of its first start where the record does not tell.
    pub day: String,
    pub n_campaigns: usize,
    pub n_starts: usize,
    #[serde(skip)]
    pub value: f64,
    #[serde(skip)]
    pub band: Option<(f64, f64)>,
    pub shown: String,
    /// Lower and upper end; none where no campaign has two starts.
    pub band_shown: Option<(String, String)>,
    /// Improvement on the point before; none for the first.
    pub improvement_percent: Option<f64>,
    /// Whether the step is more than noise; none without a band.
    pub is_step: Option<bool>,
}

/// Users, output tokens and name: the heaviest is the last.
type CaseKey<'a> = (Option<u32>, Option<u32>, &'a str);

/// A start's figure, where it stands.
struct Start<'a> {
    commit: &'a str,
    mark: Option<String>,
    campaign: &'a str,
    value: f64,
}

/// All figures that two commits or more have.
pub fn of_group(records: &Records, group: &Group<'_>, lang: Lang) -> Vec<History> {
    let Some(any) = group.all_runs().next() else {
        return Vec::new();
    };
    let is_followed = |run: &&RunFolder| {
        run.outcome == Outcome::Complete
            && run.record.as_ref().is_some_and(|record| {
                let manifest = &record.manifest;
                manifest.derived.is_none()
                    && manifest.is_ours()
                    && !manifest.quick
                    && manifest.git.commit.is_some()
                    && crate::select::same_place(record, any.record)
                    && manifest.extra_flags == any.record.manifest.extra_flags
            })
    };
    let runs: Vec<&RunFolder> = records.runs.iter().filter(is_followed).collect();
    let numbers = numbers_of(&runs);
    let mut by_experiment: BTreeMap<&str, Vec<&RunFolder>> = BTreeMap::new();
    for run in &runs {
        if let Some(record) = &run.record {
            let name = record.manifest.experiment.as_str();
            by_experiment.entry(name).or_default().push(run);
        }
    }
    let mut all = Vec::new();
    for (experiment, runs) in by_experiment {
        for (phase, metric) in FOLLOWED {
            all.extend(history(
                records,
                experiment,
                &runs,
                (phase, metric),
                &numbers,
                lang,
            ));
        }
    }
    all
}

/// The commits in their order: number and day.
fn numbers_of<'a>(runs: &[&'a RunFolder]) -> BTreeMap<&'a str, (usize, String)> {
    let mut dates: BTreeMap<&str, &str> = BTreeMap::new();
    for record in runs.iter().filter_map(|run| run.record.as_ref()) {
        let Some(commit) = record.manifest.git.commit.as_deref() else {
            continue;
        };
        let date = date_of(record);
        let known = dates.entry(commit).or_insert(date);
        *known = (*known).min(date);
    }
    let mut order: Vec<(&str, &str)> = dates.into_iter().map(|(c, d)| (d, c)).collect();
    order.sort_unstable();
    (1..)
        .zip(order)
        .map(|(number, (date, commit))| {
            (commit, (number, date.get(..10).unwrap_or(date).to_owned()))
        })
        .collect()
}

fn date_of(record: &Record) -> &str {
    let manifest = &record.manifest;
    let committed = manifest.git.committed_utc.as_deref();
    committed.unwrap_or(&manifest.started_utc)
}

fn history(
    records: &Records,
    experiment: &str,
    runs: &[&RunFolder],
    (phase, metric): (&str, Metric),
    numbers: &BTreeMap<&str, (usize, String)>,
    lang: Lang,
) -> Option<History> {
    let of_run = |run_id: &str| -> Vec<&CaseSamples> {
        let is_of = |c: &&CaseSamples| c.run_id == run_id && c.phase == phase && c.n_requests > 0;
        records.cases.iter().filter(is_of).collect()
    };
    let samples: Vec<(&Record, Vec<&CaseSamples>)> = runs
        .iter()
        .filter_map(|run| Some((run.record.as_ref()?, of_run(&run.run_id))))
        .collect();
    // The heaviest case that most commits have.
    let mut commits_of: BTreeMap<CaseKey<'_>, Vec<&str>> = BTreeMap::new();
    for (record, cases) in &samples {
        for case in cases {
            let key = (case.n_users, case.max_tokens, case.case.as_str());
            let commits = commits_of.entry(key).or_default();
            let commit = record.manifest.git.commit.as_deref().unwrap_or_default();
            if !commits.contains(&commit) {
                commits.push(commit);
            }
        }
    }
    let (key, _) = commits_of
        .iter()
        .max_by_key(|(key, commits)| (commits.len(), **key))?;
    let case = key.2;
    let starts: Vec<Start<'_>> = samples
        .iter()
        .filter_map(|(record, cases)| {
            let found = cases.iter().find(|c| c.case == case)?;
            Some(Start {
                commit: record.manifest.git.commit.as_deref()?,
                mark: sources::mark(&record.source, lang),
                campaign: &record.manifest.campaign,
                value: metric.of_run(found).filter(|v| *v > 0.0)?,
            })
        })
        .collect();
    let points = points_of(&starts, metric, numbers, lang);
    (points.len() > 1).then(|| History {
        experiment: experiment.to_owned(),
        metric: metric.label(lang),
        key: metric.key(),
        case: case.to_owned(),
        points,
    })
}

fn points_of(
    starts: &[Start<'_>],
    metric: Metric,
    numbers: &BTreeMap<&str, (usize, String)>,
    lang: Lang,
) -> Vec<HistoryPoint> {
    let mut blocks: BTreeMap<(usize, &str), BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
    for start in starts {
        let number = numbers.get(start.commit).map_or(0, |(number, _)| *number);
        let campaigns = blocks.entry((number, start.commit)).or_default();
        campaigns
            .entry(start.campaign)
            .or_default()
            .push(start.value);
    }
    let band = band_factor(blocks.values().flat_map(BTreeMap::values));
    let mut points: Vec<HistoryPoint> = Vec::new();
    for ((number, commit), campaigns) in blocks {
        let medians: Vec<f64> = campaigns.values().filter_map(|v| median(v)).collect();
        let Some(value) = median(&medians) else {
            continue;
        };
        let ends = band.map(|factor| (value / factor, value * factor));
        let before = points.last();
        let is_lower_better = metric.better() == crate::stats::verdict::Better::Lower;
        points.push(HistoryPoint {
            number,
            commit: commit.get(..10).unwrap_or(commit).to_owned(),
            mark: starts
                .iter()
                .filter(|start| start.commit == commit)
                .find_map(|start| start.mark.clone()),
            day: numbers
                .get(commit)
                .map(|(_, day)| day.clone())
                .unwrap_or_default(),
            n_campaigns: campaigns.len(),
            n_starts: campaigns.values().map(Vec::len).sum(),
            improvement_percent: before.map(|before| {
                let change = 100.0 * (value / before.value - 1.0);
                if is_lower_better { -change } else { change }
            }),
            is_step: before
                .and_then(|before| Some((before.band?, ends?)))
                .map(|(before, now)| before.1 < now.0 || now.1 < before.0),
            value,
            band: ends,
            shown: metric.print(value, lang),
            band_shown: ends.map(|(low, high)| (metric.print(low, lang), metric.print(high, lang))),
        });
    }
    points
}

/// By what single starts of one campaign lie around it, as a factor; none without two starts of one.
fn band_factor<'a>(campaigns: impl Iterator<Item = &'a Vec<f64>>) -> Option<f64> {
    let (mut squares, mut n_free) = (0.0, 0);
    for values in campaigns {
        let logs: Vec<f64> = values.iter().map(|v| v.ln()).collect();
        let Some(centre) = mean(&logs) else { continue };
        squares += logs.iter().map(|v| (v - centre).powi(2)).sum::<f64>();
        n_free += logs.len() - 1;
    }
    (n_free > 0).then(|| (BAND * (squares / n_free as f64).sqrt()).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_what_lies_outside_both_bands() {
        let numbers: BTreeMap<&str, (usize, String)> = ["a", "b", "c"]
            .into_iter()
            .zip((1..).map(|n| (n, format!("2026-01-0{n}"))))
            .collect();
        let mut starts = Vec::new();
        for (commit, campaign, centre) in [
            ("a", "one", 100.0),
            ("a", "two", 102.0),
            ("b", "three", 101.0),
            ("c", "four", 90.0),
        ] {
            for spread in [0.99, 1.0, 1.01] {
                let value = centre * spread;
                starts.push(Start {
                    commit,
                    mark: None,
                    campaign,
                    value,
                });
            }
        }
        let points = points_of(&starts, Metric::Latency, &numbers, Lang::En);
        let steps: Vec<Option<bool>> = points.iter().map(|p| p.is_step).collect();
        assert_eq!(steps, [None, Some(false), Some(true)]);
        // Two campaigns of one commit: the median of their medians.
        assert!((points[0].value - 101.0).abs() < 1e-9);
        assert_eq!((points[0].n_campaigns, points[0].n_starts), (2, 6));
        let gain = points[2].improvement_percent.unwrap();
        assert!((gain - 100.0 * (1.0 - 90.0 / 101.0)).abs() < 1e-9, "{gain}");
        assert_eq!(points[1].day, "2026-01-02");
    }

    #[test]
    fn single_starts_have_no_band() {
        let values = [vec![1.0], vec![2.0]];
        assert_eq!(band_factor(values.iter()), None);
        let factor = band_factor([vec![1.0, 1.0]].iter()).unwrap();
        assert!((factor - 1.0).abs() < 1e-12);
    }
}
