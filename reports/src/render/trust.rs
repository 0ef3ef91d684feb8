//! The report on how far verdicts can be trusted: simulated campaigns for every group.

use serde::Serialize;

use crate::lang::Lang;
use crate::load::Records;
use crate::render::compare::Metric;
use crate::select::{self, Arm, Group};
use crate::stats::describe::std_dev;
use crate::stats::trust::{Deviations, deviations, simulate};
use crate::stats::verdict::VerdictConfig;

const N_CAMPAIGNS: usize = 1000;
const EFFECT: f64 = 0.03;
const ALLOWED_FALSE: f64 = 0.05;
const WANTED_FOUND: f64 = 0.8;
/// Numbers of server starts tried, up to the first that suffices.
const N_STARTS: [usize; 10] = [3, 4, 5, 6, 8, 10, 15, 20, 30, 50];
const METRICS: [Metric; 3] = [Metric::Latency, Metric::OutputThroughput, Metric::Ttft];

#[derive(Debug, Serialize)]
pub struct TrustContext {
    pub groups: Vec<TrustGroup>,
    pub n_campaigns: usize,
    pub effect_percent: f64,
    pub allowed_false_percent: f64,
    pub wanted_found_percent: f64,
}

/// One machine, model and set of extra flags.
#[derive(Debug, Serialize)]
pub struct TrustGroup {
    pub title: String,
    pub n_arms: usize,
    pub n_starts: usize,
    pub short_ids: Vec<String>,
    pub metrics: Vec<MetricSpread>,
    pub rows: Vec<TrustRow>,
    /// The smallest number of starts that suffices.
    pub advised: Option<usize>,
}

#[derive(Debug, Serialize)]
pub struct MetricSpread {
    pub name: &'static str,
    pub spread_percent: f64,
}

#[derive(Debug, Serialize)]
pub struct TrustRow {
    pub n_starts: usize,
    pub false_percent: f64,
    pub found_percent: f64,
    pub sufficient: bool,
}

/// `titles`: of the groups, in the order of [`select::groups`]. Groups in which no arm was started
/// twice are left out.
pub fn build(
    records: &Records,
    titles: &[&str],
    config: VerdictConfig,
    lang: Lang,
) -> TrustContext {
    let groups = select::groups(&records.runs);
    TrustContext {
        groups: groups
            .iter()
            .zip(titles)
            .filter_map(|(group, title)| of_group(records, group, title, config, lang))
            .collect(),
        n_campaigns: N_CAMPAIGNS,
        effect_percent: 100.0 * EFFECT,
        allowed_false_percent: 100.0 * ALLOWED_FALSE,
        wanted_found_percent: 100.0 * WANTED_FOUND,
    }
}

fn of_group(
    records: &Records,
    group: &Group<'_>,
    title: &str,
    config: VerdictConfig,
    lang: Lang,
) -> Option<TrustGroup> {
    let arms: Vec<(&Arm<'_>, Vec<Deviations>)> = group
        .arms
        .iter()
        .filter_map(|arm| Some((arm, deviations(&values_of(records, arm))?)))
        .collect();
    let noise: Vec<Deviations> = arms.iter().flat_map(|(_, d)| d.clone()).collect();
    if noise.is_empty() {
        return None;
    }
    let better = METRICS.map(Metric::better);
    let mut rows = Vec::new();
    for n_starts in N_STARTS {
        let trust = simulate(&noise, &better, n_starts, N_CAMPAIGNS, EFFECT, config);
        let sufficient = trust.false_share <= ALLOWED_FALSE && trust.found_share >= WANTED_FOUND;
        rows.push(TrustRow {
            n_starts,
            false_percent: 100.0 * trust.false_share,
            found_percent: 100.0 * trust.found_share,
            sufficient,
        });
        if sufficient {
            break;
        }
    }
    let metrics = METRICS.iter().enumerate().filter_map(|(m, metric)| {
        let deviations: Vec<f64> = noise.iter().map(|start| start[m]).collect();
        Some(MetricSpread {
            name: metric.label(lang),
            spread_percent: 100.0 * std_dev(&deviations)?,
        })
    });
    let tail = |id: &str| id.rsplit('_').next().unwrap_or(id).to_owned();
    let runs = arms.iter().flat_map(|(arm, _)| &arm.runs);
    Some(TrustGroup {
        title: title.to_owned(),
        n_arms: arms.len(),
        n_starts: noise.len(),
        short_ids: runs.map(|run| tail(&run.folder.run_id)).collect(),
        metrics: metrics.collect(),
        advised: rows
            .iter()
            .find(|row| row.sufficient)
            .map(|row| row.n_starts),
        rows,
    })
}

/// One row a server start: its value of every metric in the first latency case.
fn values_of(records: &Records, arm: &Arm<'_>) -> Vec<Vec<f64>> {
    let of_run = |run_id: &str| {
        let case = records
            .cases
            .iter()
            .find(|c| c.run_id == run_id && c.phase == "latency" && c.n_requests > 0)?;
        METRICS.iter().map(|metric| metric.of_run(case)).collect()
    };
    arm.runs
        .iter()
        .filter_map(|run| of_run(&run.folder.run_id))
        .collect()
}
