//! The reports' figures and verdicts, computed a second time by another way.
//!
//! Nothing here uses this crate but for what it prints. Medians, means, percentiles and throughputs come
//! from the raw rows of a recorded campaign and of the fixed data set. The statistics are done by
//! listing all cases instead of counting them: Student's t of every dealing of labels, every Walsh
//! average, every sum of ranks.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use records::store::Store;
use reports::lang::Lang;
use reports::load;
use reports::render::assemble::build;
use reports::render::context::GroupContext;
use reports::render::tables::CaseRow;
use reports::stats::verdict::VerdictConfig;
use serde_json::Value;

const ALPHA: f64 = 0.05;
const MARGIN_PERCENT: f64 = 1.0;
const BASELINE: &str = "01-baseline";
const OTHER: &str = "03-balanced-v2";

/// Value of a start, by (arm, case, metric), then round.
type Starts = BTreeMap<(String, String, &'static str), BTreeMap<u64, f64>>;

fn in_crate(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(part)
}

fn group_of(runs: &Path) -> GroupContext {
    let records = load::load(runs, &runs.join("none"), |_| true).unwrap();
    let mut context = build(&records, VerdictConfig::default(), Lang::En).unwrap();
    context.groups.remove(0)
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    f64::midpoint(values[(n - 1) / 2], values[n / 2])
}

/// Share `q` of the way from the smallest to the largest.
fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = q * (values.len() - 1) as f64;
    let (below, part) = (place as usize, place.fract());
    let above = (below + 1).min(values.len() - 1);
    values[below] * (1.0 - part) + values[above] * part
}

/// |t| of the values against zero.
fn t_of_rounds(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean / (variance / n).sqrt()).abs()
}

/// |t| of two samples with a common variance.
fn t_of_starts(before: &[f64], after: &[f64]) -> f64 {
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let squares = |v: &[f64]| v.iter().map(|x| (x - mean(v)).powi(2)).sum::<f64>();
    let (n, m) = (before.len() as f64, after.len() as f64);
    let variance = (squares(before) + squares(after)) / (n + m - 2.0);
    ((mean(after) - mean(before)) / (variance * (1.0 / n + 1.0 / m)).sqrt()).abs()
}

/// `t[metric][dealing]`, the real dealing first: step-down maxT, each metric against all that are no
/// clearer.
fn joint_p(t: &[Vec<f64>]) -> Vec<f64> {
    let n_dealings = t[0].len();
    let mut order: Vec<usize> = (0..t.len()).collect();
    order.sort_by(|&a, &b| t[b][0].total_cmp(&t[a][0]));
    let mut p = vec![0.0; t.len()];
    let mut least = 0.0_f64;
    for (place, &i) in order.iter().enumerate() {
        let as_far_out = (0..n_dealings).filter(|&d| {
            let others = order[place..].iter().map(|&j| t[j][d]);
            others.fold(0.0, f64::max) >= t[i][0] * (1.0 - 1e-7)
        });
        least = least.max(as_far_out.count() as f64 / n_dealings as f64);
        p[i] = least;
    }
    p
}

/// All splits of `n + m` starts into n and m, the real one first.
fn splits(n: usize, m: usize) -> Vec<u32> {
    let real = (1_u32 << n) - 1;
    let all = (0..1_u32 << (n + m)).filter(|mask| mask.count_ones() as usize == n);
    std::iter::once(real)
        .chain(all.filter(|mask| *mask != real))
        .collect()
}

/// The order statistics that invert a test whose sums are `sums`, all equally likely.
fn interval(mut candidates: Vec<f64>, mut sums: Vec<usize>, level: f64) -> Option<(f64, f64)> {
    candidates.sort_by(f64::total_cmp);
    sums.sort_unstable();
    let lowest = sums[0];
    let tail = (1.0 - level) / 2.0;
    let at_most = |s: usize| sums.iter().filter(|x| **x <= s).count() as f64 / sums.len() as f64;
    let k = (0..candidates.len())
        .take_while(|&k| at_most(lowest + k) <= tail)
        .count();
    (k > 0).then(|| (candidates[k - 1], candidates[candidates.len() - k]))
}

fn walsh(d: &[f64]) -> Vec<f64> {
    let mut averages = Vec::new();
    for i in 0..d.len() {
        for j in i..d.len() {
            averages.push(f64::midpoint(d[i], d[j]));
        }
    }
    averages
}

fn signed_rank_sums(n: usize) -> Vec<usize> {
    let sum = |signs: u32| (0..n).filter(|i| signs >> i & 1 == 1).map(|i| i + 1).sum();
    (0..1_u32 << n).map(sum).collect()
}

fn rank_sums(n: usize, m: usize) -> Vec<usize> {
    let sum = |mask: &u32| {
        (0..n + m)
            .filter(|i| mask >> i & 1 == 1)
            .map(|i| i + 1)
            .sum()
    };
    splits(n, m).iter().map(sum).collect()
}

/// What the report should print of one metric.
#[derive(Debug)]
struct Expected {
    improvement_percent: f64,
    interval: Option<(f64, f64)>,
    p: f64,
    verdict: &'static str,
}

/// `by_rounds`: labels are swapped within rounds.
fn expected(pairs: &[(bool, Vec<f64>, Vec<f64>)], by_rounds: bool) -> Vec<Expected> {
    let logs = |v: &[f64]| v.iter().map(|x| x.ln()).collect::<Vec<f64>>();
    let t: Vec<Vec<f64>> = pairs
        .iter()
        .map(|(_, before, after)| {
            let (before, after) = (logs(before), logs(after));
            if by_rounds {
                let dealt = |signs: u32| {
                    let signed = before.iter().zip(&after).enumerate().map(|(i, (b, a))| {
                        if signs >> i & 1 == 1 { b - a } else { a - b }
                    });
                    t_of_rounds(&signed.collect::<Vec<_>>())
                };
                return (0..1_u32 << before.len()).map(dealt).collect();
            }
            let all: Vec<f64> = before.iter().chain(&after).copied().collect();
            let dealt = |mask: u32| {
                let side = |wanted: u32| -> Vec<f64> {
                    let mine = (0..all.len()).filter(|i| mask >> i & 1 == wanted);
                    mine.map(|i| all[i]).collect()
                };
                t_of_starts(&side(1), &side(0))
            };
            splits(before.len(), after.len())
                .into_iter()
                .map(dealt)
                .collect()
        })
        .collect();
    let p = joint_p(&t);
    let n_tested = pairs.len();
    pairs
        .iter()
        .zip(p)
        .map(|((higher_is_better, before, after), p)| {
            let (b, a) = (logs(before), logs(after));
            let d: Vec<f64> = b.iter().zip(&a).map(|(b, a)| a - b).collect();
            let all: Vec<f64> = a
                .iter()
                .flat_map(|a| b.iter().map(move |b| a - b))
                .collect();
            let of_level = |level: f64| {
                let paired = interval(walsh(&d), signed_rank_sums(d.len()), level);
                match paired {
                    Some(found) => (middle(walsh(&d)), Some(found)),
                    None => (
                        middle(all.clone()),
                        interval(all.clone(), rank_sums(b.len(), a.len()), level),
                    ),
                }
            };
            let percent = |x: f64| {
                if *higher_is_better {
                    100.0 * (x.exp() - 1.0)
                } else {
                    100.0 * (1.0 - x.exp())
                }
            };
            let ends = |(low, high): (f64, f64)| {
                let (low, high) = (percent(low), percent(high));
                (low.min(high), low.max(high))
            };
            let (estimate, own) = of_level(1.0 - ALPHA);
            let (_, widened) = of_level(1.0 - ALPHA / n_tested as f64);
            let improvement_percent = percent(estimate);
            let own = own.map(ends);
            let is_same = widened
                .map(ends)
                .is_some_and(|(low, high)| low >= -MARGIN_PERCENT && high <= MARGIN_PERCENT);
            let one_way = own.is_some_and(|(low, high)| low > 0.0 || high < 0.0);
            Expected {
                improvement_percent,
                interval: own,
                p,
                verdict: match () {
                    () if is_same => "same",
                    () if p <= ALPHA && improvement_percent > 0.0 => "faster",
                    () if p <= ALPHA => "slower",
                    () if one_way => "too few",
                    () => "not seen",
                },
            }
        })
        .collect()
}

/// Rows of one phase against what is computed from `starts`; returns how many figures were compared.
fn compare(rows: &[CaseRow], starts: &Starts, keys: &[&'static str], by_rounds: bool) -> usize {
    let judged: Vec<_> = rows
        .iter()
        .filter(|row| row.experiment == OTHER)
        .flat_map(|row| &row.verdicts)
        .collect();
    let pairs: Vec<(bool, Vec<f64>, Vec<f64>)> = judged
        .iter()
        .map(|row| {
            let key = keys.iter().find(|key| **key == row.key).unwrap();
            let of = |arm: &str| {
                let values = &starts[&(arm.to_owned(), row.case.clone(), *key)];
                values.values().copied().collect::<Vec<f64>>()
            };
            (*key == "throughput", of(BASELINE), of(OTHER))
        })
        .collect();
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs().max(1e-3);
    for (row, want) in judged.iter().zip(expected(&pairs, by_rounds)) {
        let what = format!("{} {}: {row:?} against {want:?}", row.case, row.key);
        assert!(
            near(row.improvement_percent.unwrap(), want.improvement_percent),
            "{what}"
        );
        assert!(near(row.p_adjusted.unwrap(), want.p), "{what}");
        match (row.interval, want.interval) {
            (Some(got), Some(want)) => {
                assert!(near(got.0, want.0) && near(got.1, want.1), "{what}");
            }
            (got, want) => assert_eq!(got.is_some(), want.is_some(), "{what}"),
        }
        assert_eq!(row.verdict, want.verdict, "{what}");
    }
    5 * judged.len()
}

/// Latencies in milliseconds of each case of one start, whose medians and throughputs go into `starts`.
fn add_start(starts: &mut Starts, arm: &str, round: u64, rows: &str) -> Vec<(String, Vec<f64>)> {
    let mut by_case: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in rows.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        if row["warmup"] == false {
            let case = row["case"].as_str().unwrap().to_owned();
            by_case.entry(case).or_default().push(row);
        }
    }
    let mut latencies = Vec::new();
    for (case, rows) in by_case {
        let at = |row: &Value, name: &str| row[name].as_f64().unwrap();
        let times = |of: &dyn Fn(&Value) -> f64| rows.iter().map(of).collect::<Vec<f64>>();
        let latency = times(&|r| 1000.0 * (at(r, "end_s") - at(r, "sent_s")));
        let first = times(&|r| 1000.0 * (at(r, "first_token_s") - at(r, "sent_s")));
        let each = times(&|r| {
            1000.0 * (at(r, "end_s") - at(r, "first_token_s")) / (at(r, "output_tokens") - 1.0)
        });
        let began = times(&|r| at(r, "sent_s"))
            .into_iter()
            .fold(f64::INFINITY, f64::min);
        let ended = times(&|r| at(r, "end_s")).into_iter().fold(0.0, f64::max);
        let tokens: f64 = times(&|r| at(r, "output_tokens")).iter().sum();
        for (metric, value) in [
            ("latency", middle(latency.clone())),
            ("ttft", middle(first)),
            ("tpot", middle(each)),
            ("throughput", tokens / (ended - began)),
        ] {
            let key = (arm.to_owned(), case.clone(), metric);
            starts.entry(key).or_default().insert(round, value);
        }
        latencies.push((case, latency));
    }
    latencies
}

/// Eight rounds of two configurations on one H100.
#[test]
fn a_recorded_campaign_comes_to_the_same_verdicts_by_another_way() {
    const CAMPAIGN: &str = "20261126T024344Z_01-baseline-and-1-more_43611df8";
    let source = in_crate("../data/campaigns").join(CAMPAIGN);
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(CAMPAIGN)).unwrap();
    for file in fs::read_dir(&source).unwrap() {
        let path = file.unwrap().path();
        let to = dir.path().join(CAMPAIGN).join(path.file_name().unwrap());
        fs::copy(&path, to).unwrap();
    }
    let mut starts = Starts::new();
    for run in Store::from(dir.path()).all().unwrap() {
        let manifest = run.manifest().unwrap();
        let rows = run.read(records::REQUESTS).unwrap().unwrap();
        let rows = std::str::from_utf8(&rows).unwrap();
        let round = u64::from(manifest.replicate);
        add_start(&mut starts, &manifest.experiment, round, rows);
    }
    let group = group_of(dir.path());
    let keys = ["throughput", "ttft", "tpot", "latency"];
    let n: usize = [&group.latency, &group.ladder, &group.users]
        .map(|rows| compare(rows, &starts, &keys, true))
        .iter()
        .sum();
    // 3 figures of one user, 5 lengths, 5 numbers of users with 3 figures each.
    assert_eq!(n, 5 * (3 + 5 + 15));
}

/// The fixed data set: five starts each, so all are compared with all; medians, means, percentiles and
/// throughputs come from the raw rows.
#[test]
fn the_fixed_data_set_comes_to_the_same_figures_by_another_way() {
    let runs = in_crate("tests/data/runs");
    let mut starts = Starts::new();
    let mut pooled: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for entry in fs::read_dir(&runs).unwrap() {
        let folder = entry.unwrap().path();
        let json = |file: &str| -> Option<Value> {
            serde_json::from_str(&fs::read_to_string(folder.join(file)).ok()?).ok()
        };
        let (Some(manifest), Some(status)) = (json("manifest.json"), json("status.json")) else {
            continue;
        };
        let arm = manifest["experiment"].as_str().unwrap();
        let is_ours = manifest["base_url"].is_null() && manifest["quick"] == false;
        if !is_ours || status["status"] != "complete" || ![BASELINE, OTHER].contains(&arm) {
            continue;
        }
        let rows = fs::read_to_string(folder.join("requests.jsonl")).unwrap();
        let round = manifest["replicate"].as_u64().unwrap();
        for (case, latency) in add_start(&mut starts, arm, round, &rows) {
            let all = pooled.entry((arm.to_owned(), case)).or_default();
            all.extend(latency);
        }
    }
    let group = group_of(&runs);
    let keys = ["throughput", "ttft", "tpot", "latency"];
    let mut n: usize = [&group.latency, &group.ladder, &group.users]
        .map(|rows| compare(rows, &starts, &keys, false))
        .iter()
        .sum();
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs();
    for row in group
        .latency
        .iter()
        .chain(&group.ladder)
        .chain(&group.users)
    {
        let Some(all) = pooled.get(&(row.experiment.clone(), row.case.clone())) else {
            continue;
        };
        let stats = row.stats.as_ref().unwrap();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let rates = &starts[&(row.experiment.clone(), row.case.clone(), "throughput")];
        // Of cases so short, no tail is told.
        assert_eq!((stats.p95_ms, stats.p99_ms), (None, None));
        for (got, want) in [
            (stats.mean_ms, mean),
            (stats.p50_ms, middle(all.clone())),
            (stats.min_ms, quantile(all.clone(), 0.0)),
            (stats.max_ms, quantile(all.clone(), 1.0)),
            (
                stats.output_tok_per_s,
                middle(rates.values().copied().collect()),
            ),
        ] {
            assert!(
                near(got, want),
                "{} {}: {got} against {want}",
                row.experiment,
                row.case
            );
            n += 1;
        }
    }
    // 3 + 2 + 2 × 3 verdicts of five figures, and five figures of five cases and two configurations.
    assert_eq!(n, 5 * 11 + 5 * 5 * 2);
}
