//! The highest load within limits, as searches found it: one figure a server start, judged against the
//! baseline by rounds like any other.

use std::collections::{BTreeMap, BTreeSet};

use records::manifest::{Derived, Manifest};
use records::slo::{CLOSE_ENOUGH, MOST_TRIALS, SloTrial};
use records::workload::{LoadKind, SloSearch};
use serde::Serialize;

use crate::lang::Lang;
use crate::load::Records;
use crate::load::run_folder::{Outcome, Record, RunFolder};
use crate::render::compare;
use crate::render::format;
use crate::select::{Group, same_place};
use crate::stats::describe::{Sorted, median};
use crate::stats::verdict::{Better, MetricSamples, VerdictConfig, compare_family};

/// One search, as several configurations or engines ran it.
#[derive(Debug, Serialize)]
pub struct SloTable {
    /// The limits, the share and the load, in words.
    pub search: String,
    pub unit: &'static str,
    /// When a search ends.
    pub close_enough: f64,
    pub most_trials: usize,
    pub rows: Vec<SloRow>,
}

#[derive(Debug, Serialize)]
pub struct SloRow {
    pub arm: String,
    pub n_runs: usize,
    /// Starts in which not even the lowest load kept the limits; they have no figure.
    pub n_none: usize,
    /// Starts whose search ended at its own limit: the true load is higher.
    pub n_at_limit: usize,
    /// Over the starts that have a figure.
    pub median: Option<f64>,
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// Against the baseline; none for itself and where there is none.
    pub phrase: Option<String>,
    pub verdict: &'static str,
    /// Of the first start.
    pub trials: Vec<SloTrial>,
}

/// A pool of starts: arm, flags and binary; another pool of an arm is told by its binary.
type Pool<'a> = (String, Vec<String>, Option<String>, &'a str);

pub fn tables_of(
    records: &Records,
    group: &Group<'_>,
    config: VerdictConfig,
    lang: Lang,
) -> Vec<SloTable> {
    let Some(any) = group.all_runs().next() else {
        return Vec::new();
    };
    let is_of_group = |record: &Record| {
        let is_search = match &record.manifest.derived {
            None | Some(Derived::Slo { .. }) => record.slo.is_some(),
            Some(_) => false,
        };
        is_search
            && same_place(record, any.record)
            && record.manifest.extra_flags == any.record.manifest.extra_flags
    };
    let mut searches: BTreeMap<String, (&SloSearch, BTreeMap<Pool<'_>, Vec<&RunFolder>>)> =
        BTreeMap::new();
    for run in &records.runs {
        let Some(record) = &run.record else { continue };
        let (true, Outcome::Complete) = (is_of_group(record), &run.outcome) else {
            continue;
        };
        let Some(search) = &record.config.slo else {
            continue;
        };
        let manifest = &record.manifest;
        let pool = (
            manifest.arm(),
            record.config.flags.clone(),
            manifest.sha256.engine_binary.clone(),
            manifest.sha256.prompts.as_deref().unwrap_or_default(),
        );
        let key = format!("{search:?} {}", manifest.quick);
        let (_, pools) = searches.entry(key).or_insert((search, BTreeMap::new()));
        pools.entry(pool).or_default().push(run);
    }
    searches
        .into_values()
        .map(|(search, pools)| table(search, pools, config, lang))
        .collect()
}

fn table(
    search: &SloSearch,
    pools: BTreeMap<Pool<'_>, Vec<&RunFolder>>,
    config: VerdictConfig,
    lang: Lang,
) -> SloTable {
    // Of several pools of an arm, that with most starts; of as many, the newest.
    let mut arms: BTreeMap<String, Vec<&RunFolder>> = BTreeMap::new();
    for ((arm, ..), runs) in pools {
        let rank = |runs: &[&RunFolder]| {
            let newest = runs.iter().map(|run| run.run_id.clone()).max();
            (runs.len(), newest)
        };
        let known = arms.entry(arm).or_default();
        if rank(&runs) > rank(known) {
            *known = runs;
        }
    }
    let parent_is_baseline = |runs: &[&RunFolder]| {
        let manifest = runs
            .first()
            .and_then(|run| Some(&run.record.as_ref()?.manifest));
        manifest.is_some_and(Manifest::is_baseline)
    };
    let baseline = arms
        .iter()
        .find(|(_, runs)| parent_is_baseline(runs))
        .map(|(arm, _)| arm.clone());
    let values: BTreeMap<&str, BTreeMap<(String, u32), f64>> = arms
        .iter()
        .map(|(arm, runs)| (arm.as_str(), highest_of(runs)))
        .collect();
    let asked: Vec<&str> = arms
        .keys()
        .map(String::as_str)
        .filter(|arm| baseline.as_deref().is_some_and(|b| b != *arm))
        .collect();
    let before = baseline.as_deref().map(|b| &values[b]);
    let family: Vec<MetricSamples> = asked
        .iter()
        .filter_map(|arm| Some(samples(before?, &values[arm], arm)))
        .collect();
    let answers = compare_family(&family, config);
    let rows = arms.iter().map(|(arm, runs)| {
        let answer = asked
            .iter()
            .zip(&answers)
            .find(|(asked, _)| *asked == arm)
            .map(|(_, answer)| answer);
        let found: Vec<f64> = values[arm.as_str()].values().copied().collect();
        let sorted = Sorted::new(found.clone()).unwrap_or_default();
        let outcomes = || {
            runs.iter()
                .filter_map(|run| run.record.as_ref()?.slo.as_ref())
        };
        SloRow {
            arm: arm.clone(),
            n_runs: runs.len(),
            n_none: outcomes().filter(|found| found.highest.is_none()).count(),
            n_at_limit: outcomes()
                .filter(|found| found.highest.is_some() && found.too_much.is_none())
                .count(),
            median: median(&found),
            low: sorted.min(),
            high: sorted.max(),
            phrase: answer.map(|answer| compare::phrase(answer, config, lang)),
            verdict: answer.map_or("", |answer| compare::word(answer.verdict)),
            trials: outcomes()
                .next()
                .map(|found| found.trials.clone())
                .unwrap_or_default(),
        }
    });
    SloTable {
        search: words(search, lang),
        unit: match search.load {
            LoadKind::Open => "req/s",
            LoadKind::Closed => lang.pick("명", "users"),
        },
        close_enough: CLOSE_ENOUGH,
        most_trials: MOST_TRIALS,
        rows: rows.collect(),
    }
}

/// One figure a start that has one, by round.
fn highest_of(runs: &[&RunFolder]) -> BTreeMap<(String, u32), f64> {
    let of_run = |run: &&RunFolder| {
        let record = run.record.as_ref()?;
        let manifest = &record.manifest;
        let highest = record.slo.as_ref()?.highest?;
        Some(((manifest.campaign.clone(), manifest.replicate), highest))
    };
    runs.iter().filter_map(of_run).collect()
}

fn samples(
    before: &BTreeMap<(String, u32), f64>,
    after: &BTreeMap<(String, u32), f64>,
    arm: &str,
) -> MetricSamples {
    let rounds: BTreeSet<&(String, u32)> =
        before.keys().filter(|r| after.contains_key(*r)).collect();
    MetricSamples {
        metric: "SLO".into(),
        better: Better::Higher,
        pair: arm.to_owned(),
        before: before.values().copied().collect(),
        after: after.values().copied().collect(),
        rounds: rounds.into_iter().map(|r| (before[r], after[r])).collect(),
    }
}

fn words(search: &SloSearch, lang: Lang) -> String {
    let limits = [
        ("TTFT", search.ttft_ms),
        ("TPOT", search.tpot_ms),
        (lang.pick("응답 지연", "latency"), search.e2el_ms),
    ];
    let limits: Vec<String> = limits
        .into_iter()
        .filter_map(|(name, limit)| {
            Some(format!("{name} ≤ {}", format::milliseconds(limit?, lang)))
        })
        .collect();
    let limits = limits.join(", ");
    let share = format::number(100.0 * search.share, 1);
    let seconds = format::number(search.measured_s, 0);
    let tokens = format::number(f64::from(search.output_tokens), 0);
    let load = match search.load {
        LoadKind::Open => lang.pick("열린 루프(포아송 도착)", "open loop (Poisson arrivals)"),
        LoadKind::Closed => lang.pick("닫힌 루프(사용자 수)", "closed loop (users)"),
    };
    lang.pick(
        format!("{limits}, 요청의 {share} % 이상; {load}, 출력 {tokens}토큰, 시도마다 {seconds}초"),
        format!("{limits} for {share} % of the requests; {load}, {tokens} output tokens, {seconds} s a trial"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_is_told_in_both_languages() {
        let search = SloSearch {
            load: LoadKind::Open,
            start: 1.0,
            limit: 64.0,
            measured_s: 30.0,
            output_tokens: 50,
            ttft_ms: Some(200.0),
            tpot_ms: Some(20.0),
            e2el_ms: None,
            share: 0.95,
        };
        assert_eq!(
            words(&search, Lang::En),
            "TTFT ≤ 200.0 ms, TPOT ≤ 20.0 ms for 95.0 % of the requests; open loop (Poisson arrivals), 50 output tokens, 30 s a trial"
        );
        assert_eq!(
            words(&search, Lang::Ko),
            "TTFT ≤ 200.0 ms, TPOT ≤ 20.0 ms, 요청의 95.0 % 이상; 열린 루프(포아송 도착), 출력 50토큰, 시도마다 30초"
        );
    }

    #[test]
    fn only_starts_with_a_figure_are_compared_and_by_round() {
        let by_round = |values: &[(u32, f64)]| -> BTreeMap<(String, u32), f64> {
            values
                .iter()
                .map(|&(r, v)| (("c".to_owned(), r), v))
                .collect()
        };
        let before = by_round(&[(0, 4.0), (1, 5.0), (2, 6.0)]);
        let after = by_round(&[(0, 8.0), (2, 9.0)]);
        let samples = samples(&before, &after, "a");
        assert_eq!(samples.rounds, [(4.0, 8.0), (6.0, 9.0)]);
        assert_eq!((samples.before.len(), samples.after.len()), (3, 2));
    }
}
