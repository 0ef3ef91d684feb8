//! The report on how far verdicts can be trusted: simulated campaigns for every group.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::lang::Lang;
use crate::load::Records;
use crate::render::compare::Metric;
use crate::render::measured_a_a::{MeasuredAA, measured};
use crate::render::multi_model::groups_apart;
use crate::select::{Arm, Group};
use crate::stats::describe::median;
use crate::stats::trust::{Noise, Start, Trial, Trust, fewest_starts};
use crate::stats::verdict::VerdictConfig;

const N_CAMPAIGNS: usize = 1000;
const EFFECT: f64 = 0.03;
const ALLOWED_FALSE: f64 = 0.05;
const WANTED_FOUND: f64 = 0.8;
/// Numbers of server starts that the table shows.
const N_STARTS: [usize; 11] = [3, 5, 6, 8, 10, 15, 20, 30, 50, 100, 200];
/// What `replicates` of an experiment can be at most.
const MOST_STARTS: usize = 400;
/// Arms of the campaigns that durations are told of.
const N_ARMS: f64 = 2.0;
const METRICS: [Metric; 3] = [Metric::Latency, Metric::OutputThroughput, Metric::Ttft];

#[derive(Debug, Serialize)]
pub struct TrustContext {
    pub groups: Vec<TrustGroup>,
    /// Groups whose starts give no noise to draw from, and the command that would.
    pub without_noise: Vec<NoNoise>,
    pub n_campaigns: usize,
    pub effect_percent: f64,
    pub allowed_false_percent: f64,
    pub wanted_found_percent: f64,
    pub most_starts: usize,
    /// What the same configuration twice was called, in fact.
    pub measured: MeasuredAA,
}

/// One machine, model and set of extra flags.
#[derive(Debug, Serialize)]
pub struct TrustGroup {
    pub title: String,
    pub n_arms: usize,
    pub n_starts: usize,
    /// Rounds that several arms ran; 0 if none, and starts are compared all with all.
    pub n_rounds: usize,
    pub short_ids: Vec<String>,
    pub metrics: Vec<MetricTrust>,
    pub rows: Vec<TrustRow>,
    /// To find the difference in some metric, and none the wrong way round.
    pub advised_any: Option<Advice>,
    /// To find it in every metric.
    pub advised_all: Option<Advice>,
    /// Most false verdicts of all numbers of starts shown, per cent.
    pub most_false_percent: f64,
}

/// The smallest number of starts an arm that suffices.
#[derive(Debug, Clone, Serialize)]
pub struct Advice {
    pub n_starts: usize,
    /// For a campaign of two arms with this many starts; none if the runs do not determine it.
    pub duration_s: Option<f64>,
}

#[derive(Debug, Serialize)]
pub struct NoNoise {
    pub title: String,
    pub command: String,
}

#[derive(Debug, Serialize)]
pub struct MetricTrust {
    pub name: &'static str,
    /// Standard deviation between starts of one arm, per cent.
    pub spread_percent: f64,
    /// Of the difference of two arms of one round; none without rounds.
    pub spread_in_round_percent: Option<f64>,
    /// To find the difference in this metric; none where no campaign can.
    pub advised: Option<Advice>,
}

#[derive(Debug, Serialize)]
pub struct TrustRow {
    pub n_starts: usize,
    pub false_percent: f64,
    /// In the order of the metrics.
    pub found_percent: Vec<f64>,
    pub any_found_percent: f64,
    pub wrong_percent: f64,
    pub sufficient: bool,
}

/// `titles`: of the groups of one model a server, in the order of [`groups_apart`].
pub fn build(
    records: &Records,
    titles: &[&str],
    config: VerdictConfig,
    lang: Lang,
) -> TrustContext {
    let (groups, _) = groups_apart(&records.runs);
    let mut with = Vec::new();
    let mut without = Vec::new();
    for (group, title) in groups.iter().zip(titles) {
        match of_group(records, group, title, config, lang) {
            Some(trust) => with.push(trust),
            None => without.push(NoNoise {
                title: (*title).to_owned(),
                command: command_for(group),
            }),
        }
    }
    TrustContext {
        groups: with,
        without_noise: without,
        n_campaigns: N_CAMPAIGNS,
        effect_percent: 100.0 * EFFECT,
        allowed_false_percent: 100.0 * ALLOWED_FALSE,
        wanted_found_percent: 100.0 * WANTED_FOUND,
        most_starts: MOST_STARTS,
        measured: measured(records, config, lang),
    }
}

fn of_group(
    records: &Records,
    group: &Group<'_>,
    title: &str,
    config: VerdictConfig,
    lang: Lang,
) -> Option<TrustGroup> {
    let arms: Vec<(&Arm<'_>, Vec<Start>)> = group
        .arms
        .iter()
        .map(|arm| (arm, starts_of(records, arm)))
        .filter(|(_, starts)| starts.len() > 1)
        .collect();
    let starts: Vec<Vec<Start>> = arms.iter().map(|(_, starts)| starts.clone()).collect();
    let noise = Noise::of_arms(&starts)?;
    let better = METRICS.map(Metric::better);
    let trial = Trial {
        noise: &noise,
        better: &better,
        n_campaigns: N_CAMPAIGNS,
        effect: EFFECT,
        config,
    };
    let mut tried: BTreeMap<usize, Trust> = BTreeMap::new();
    let mut trust_of = |n: usize| tried.entry(n).or_insert_with(|| trial.run(n)).clone();
    let reliable = |trust: &Trust| trust.false_share <= ALLOWED_FALSE;
    let start_s = start_duration_s(&arms);
    let mut advice = |found: &dyn Fn(&Trust) -> f64| {
        let n_starts = fewest_starts(MOST_STARTS, |n| {
            let trust = trust_of(n);
            reliable(&trust) && found(&trust) >= WANTED_FOUND
        })?;
        Some(Advice {
            n_starts,
            duration_s: start_s.map(|s| s * N_ARMS * n_starts as f64),
        })
    };
    let metrics: Vec<MetricTrust> = METRICS
        .iter()
        .enumerate()
        .map(|(m, metric)| MetricTrust {
            name: metric.label(lang),
            spread_percent: 100.0 * noise.spread(m).unwrap_or_default(),
            spread_in_round_percent: (noise.n_rounds() > 0)
                .then(|| noise.spread_in_round(m))
                .flatten()
                .map(|spread| 100.0 * spread),
            advised: advice(&|trust| trust.found_by_metric[m]),
        })
        .collect();
    let advised_any = advice(&|trust| trust.found_share);
    let least_found = |trust: &Trust| trust.found_by_metric.iter().copied().fold(1.0, f64::min);
    let advised_all = advice(&least_found);
    let advices = metrics.iter().map(|metric| &metric.advised);
    let advised = advices
        .chain([&advised_any, &advised_all])
        .flatten()
        .map(|advice| advice.n_starts);
    let trusts: BTreeMap<usize, Trust> = N_STARTS
        .into_iter()
        .chain(advised)
        .map(|n| (n, trust_of(n)))
        .collect();
    let rows: Vec<TrustRow> = trusts
        .values()
        .map(|trust| TrustRow {
            n_starts: trust.n_starts,
            false_percent: 100.0 * trust.false_share,
            found_percent: trust.found_by_metric.iter().map(|s| 100.0 * s).collect(),
            any_found_percent: 100.0 * trust.found_share,
            wrong_percent: 100.0 * trust.wrong_share,
            sufficient: reliable(trust) && least_found(trust) >= WANTED_FOUND,
        })
        .collect();
    let tail = |id: &str| id.rsplit('_').next().unwrap_or(id).to_owned();
    let runs = arms.iter().flat_map(|(arm, _)| &arm.runs);
    Some(TrustGroup {
        title: title.to_owned(),
        n_arms: arms.len(),
        n_starts: starts.iter().map(Vec::len).sum(),
        n_rounds: noise.n_rounds(),
        short_ids: runs.map(|run| tail(&run.folder.run_id)).collect(),
        metrics,
        advised_any,
        advised_all,
        most_false_percent: rows.iter().map(|row| row.false_percent).fold(0.0, f64::max),
        rows,
    })
}

/// Every server start's value of every metric, in the first latency case.
fn starts_of(records: &Records, arm: &Arm<'_>) -> Vec<Start> {
    let values_of = |run_id: &str| {
        let case = records
            .cases
            .iter()
            .find(|c| c.run_id == run_id && c.phase == "latency" && c.n_requests > 0)?;
        let values = METRICS.iter().map(|metric| metric.of_run(case));
        values.collect::<Option<Vec<f64>>>()
    };
    arm.runs
        .iter()
        .filter_map(|run| {
            let (campaign, replicate) = run.round();
            Some(Start {
                round: (campaign.to_owned(), replicate),
                values: values_of(&run.folder.run_id)?,
            })
        })
        .collect()
}

/// Of one server start with its whole workload: the median.
fn start_duration_s(arms: &[(&Arm<'_>, Vec<Start>)]) -> Option<f64> {
    let runs = arms.iter().flat_map(|(arm, _)| &arm.runs);
    let durations: Vec<f64> = runs.filter_map(|run| run.folder.duration_s()).collect();
    median(&durations)
}

/// What gives this group starts to compare.
fn command_for(group: &Group<'_>) -> String {
    let names: Vec<&str> = group
        .arms
        .iter()
        .map(|arm| arm.experiment.as_str())
        .collect();
    let model = group
        .arms
        .iter()
        .find_map(Arm::representative)
        .map(|run| format!(" --model {}", run.record.manifest.model.used))
        .unwrap_or_default();
    let flags = match group.extra_flags.join(" ") {
        flags if flags.is_empty() => flags,
        flags => format!(" -- {flags}"),
    };
    format!("cargo xtask exp {}{model}{flags}", names.join(" "))
}
