//! This engine and another one without a server, for the templates: the newest record of the group's
//! machine and model, and how many there are.

use serde::Serialize;

use crate::lang::Lang;
use crate::load::side_by_side::{Bench, BenchCase};
use crate::render::compare::{phrase, word};
use crate::render::format::number;
use crate::stats::describe::median;
use crate::stats::verdict::{Better, MetricSamples, VerdictConfig, compare_family};

#[derive(Debug, Clone, Serialize)]
pub struct SideBySide {
    pub other: String,
    pub version: String,
    pub folder: String,
    pub commit: Option<String>,
    /// Records of this machine and model, of whatever commit.
    pub n_records: usize,
    pub rows: Vec<SideRow>,
}

#[derive(Debug, Clone, Serialize)]
pub struct SideRow {
    pub case: String,
    pub ours: String,
    pub theirs: String,
    /// How many times as fast this engine was: median over the rounds, lowest and highest.
    pub ratio: f64,
    pub low: f64,
    pub high: f64,
    pub n_rounds: usize,
    pub verdict: &'static str,
    pub phrase: String,
}

/// `cpu`, `n_cores` and `model`: of the group; `on_gpu`: it has one, and no such record is about it.
pub fn of_group(
    benches: &[Bench],
    (cpu, n_cores, model, on_gpu): (&str, u32, &str, bool),
    config: VerdictConfig,
    lang: Lang,
) -> Option<SideBySide> {
    let fits = |b: &&Bench| {
        !on_gpu && b.cpu == cpu && b.n_cores == n_cores && model.ends_with(&b.model_file)
    };
    let newest = benches.iter().rfind(fits)?;
    let cases: Vec<&BenchCase> = newest
        .cases
        .iter()
        .filter(|c| !c.rounds.is_empty())
        .collect();
    let family: Vec<MetricSamples> = cases.iter().map(|case| samples_of(case)).collect();
    let answers = compare_family(&family, config);
    let rows = cases.iter().zip(&answers).filter_map(|(case, answer)| {
        // A shorter time is a faster engine.
        let is_time = case.unit == "s";
        let ratios: Vec<f64> = case
            .rounds
            .values()
            .map(|(ours, theirs)| {
                if is_time {
                    theirs / ours
                } else {
                    ours / theirs
                }
            })
            .collect();
        let value = |of: fn(&(f64, f64)) -> f64| {
            let values: Vec<f64> = case.rounds.values().map(of).collect();
            let digits = if is_time { 3 } else { 1 };
            Some(format!(
                "{} {}",
                number(median(&values)?, digits),
                case.unit
            ))
        };
        Some(SideRow {
            case: case.case.clone(),
            ours: value(|pair| pair.0)?,
            theirs: value(|pair| pair.1)?,
            ratio: median(&ratios)?,
            low: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            high: ratios.iter().copied().fold(0.0, f64::max),
            n_rounds: ratios.len(),
            verdict: word(answer.verdict),
            phrase: phrase(answer, config, lang),
        })
    });
    Some(SideBySide {
        rows: rows.collect(),
        other: newest.other.clone(),
        version: newest.version.clone(),
        folder: newest.folder.clone(),
        commit: newest.commit.as_ref().map(|c| c.chars().take(10).collect()),
        n_records: benches.iter().filter(fits).count(),
    })
}

/// From the other engine to this one.
fn samples_of(case: &BenchCase) -> MetricSamples {
    let rounds: Vec<(f64, f64)> = case
        .rounds
        .values()
        .map(|(ours, theirs)| (*theirs, *ours))
        .collect();
    let (before, after) = rounds.iter().copied().unzip();
    MetricSamples {
        metric: case.case.clone(),
        better: if case.unit == "s" {
            Better::Lower
        } else {
            Better::Higher
        },
        pair: "ours, theirs".to_owned(),
        before,
        after,
        rounds,
    }
}
