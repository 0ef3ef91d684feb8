//! From samples to a word: faster, slower, same within a margin, or undecided, and why.
//!
//! Rules, in this order, for each metric of a family that is tested together:
//! 1. the interval of the relative change, widened for the size of the family (Bonferroni), lies
//!    within the margin: *same*;
//! 2. the adjusted p-value is at most alpha: *faster* or *slower*;
//! 3. otherwise *undecided*: too few starts, with how many more it takes, or enough and no
//!    difference to be seen, with how large it can be at most.
//!
//! Runs of one round are compared with each other: prompts and the machine's state are the same for
//! both. Where arms share no rounds, or so few that even the clearest signs could not reach alpha,
//! all starts of one arm are compared with all of the other ([`permutation`]). That choice looks at
//! numbers of runs alone, never at figures.
//!
//! A family is corrected in two steps. The metrics of one pair of arms are tested jointly, which
//! takes into account that they are of the same starts. The pairs are corrected by Bonferroni, and
//! a pair that could not reach alpha whatever its figures is none of them (Tarone): an arm that was
//! started once takes nothing from the others.
//!
//! Changes are relative (computed on logarithms), so a percentage means the same for milliseconds
//! and for tokens a second. Estimates and their intervals are Hodges and Lehmann's, by round where
//! there are enough rounds for an interval.
//!
//! Source: Tarone, "A modified Bonferroni method for discrete data" (1990).

use std::collections::{BTreeMap, BTreeSet};

use records::verdicts::{ALPHA, starts_needed};

use super::describe::median;
use super::permutation::{self, Dealing, PValues};
use super::rank::Shift;
use super::{normal, rank, signed_rank};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Times, memory.
    Lower,
    /// Rates.
    Higher,
}

/// What a metric's verdict rests on: one value a server start.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricSamples {
    pub metric: String,
    pub better: Better,
    /// Names the two arms: metrics of one pair are tested jointly, and have their starts and rounds
    /// in the same order.
    pub pair: String,
    pub before: Vec<f64>,
    pub after: Vec<f64>,
    /// Before and after in each round that both arms ran; empty where they share none.
    pub rounds: Vec<(f64, f64)>,
}

/// Which runs were compared with which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Those of a round with each other.
    ByRound { n_rounds: usize },
    /// All of one arm with all of the other.
    Unpaired,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VerdictConfig {
    pub alpha: f64,
    /// Changes within ± this many per cent count as none.
    pub margin_percent: f64,
}

impl Default for VerdictConfig {
    fn default() -> Self {
        Self {
            alpha: ALPHA,
            margin_percent: 1.0,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    Faster,
    Slower,
    Same,
    Undecided(Reason),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reason {
    /// No value on one side, or one that is not positive.
    NoData,
    /// So few runs cannot reach alpha whatever they say, or they point one way and do not suffice.
    /// `n_needed`: starts an arm, in common rounds; `n_more` of them are missing.
    TooFewRuns { n_needed: usize, n_more: usize },
    /// Enough runs, and no difference to be seen: if there is one, it is below this.
    NotSeen { below_percent: f64 },
    /// No one can say what ran on one side.
    SourceUnknown,
}

/// One metric compared. Percentages are improvements: positive is better, whatever the metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    pub metric: String,
    pub method: Method,
    pub n_before: usize,
    pub n_after: usize,
    pub median_before: Option<f64>,
    pub median_after: Option<f64>,
    pub improvement_percent: Option<f64>,
    /// By itself, not widened for the family.
    pub interval_percent: Option<(f64, f64)>,
    pub p: Option<f64>,
    /// Corrected over the family; none for what could not reach alpha.
    pub p_adjusted: Option<f64>,
    pub verdict: Verdict,
}

/// Compares all metrics of one question together; p-values are corrected over the family.
///
/// ```
/// use reports::stats::verdict::{Better, MetricSamples, Verdict, VerdictConfig, compare_family};
///
/// let rounds: Vec<(f64, f64)> = (0..8).map(|i| (100.0 + f64::from(i), 90.0 + f64::from(i))).collect();
/// let ttft = MetricSamples {
///     metric: "ttft_ms".to_owned(),
///     better: Better::Lower,
///     pair: "01-baseline 03-balanced-v2".to_owned(),
///     before: rounds.iter().map(|(before, _)| *before).collect(),
///     after: rounds.iter().map(|(_, after)| *after).collect(),
///     rounds,
/// };
/// let comparison = &compare_family(&[ttft], VerdictConfig::default())[0];
/// assert_eq!(comparison.verdict, Verdict::Faster);
/// assert!(comparison.improvement_percent.is_some_and(|percent| percent > 9.0));
/// ```
pub fn compare_family(family: &[MetricSamples], config: VerdictConfig) -> Vec<Comparison> {
    let plan = Plan::of(family, config.alpha);
    let mut p_values: Vec<Option<PValues>> = vec![None; family.len()];
    for members in plan.blocks.values() {
        let method = plan.methods[members[0]].unwrap_or(Method::Unpaired);
        let dealing = dealing(&family[members[0]], method);
        let values: Vec<Vec<f64>> = members.iter().map(|&i| units(&family[i], method)).collect();
        for (&i, p) in members.iter().zip(permutation::test(&values, dealing)) {
            p_values[i] = Some(p);
        }
    }
    family
        .iter()
        .enumerate()
        .map(|(i, samples)| compare_one(samples, plan.methods[i], p_values[i], &plan, config))
        .collect()
}

/// Metrics of one pair of arms that are tested jointly.
type BlockKey<'a> = (&'a str, Method, usize, usize);

/// What is tested, how and together with what: decided by numbers of runs alone.
struct Plan<'a> {
    /// None: even the clearest figures of so few runs could not reach alpha.
    methods: Vec<Option<Method>>,
    /// Positions in the family.
    blocks: BTreeMap<BlockKey<'a>, Vec<usize>>,
    /// Comparisons that are tested.
    n_tested: usize,
    /// Pairs of arms that were measured, tested or not.
    n_pairs: usize,
}

impl<'a> Plan<'a> {
    /// The smallest number k of blocks such that at most k of them can reach alpha / k.
    fn of(family: &'a [MetricSamples], alpha: f64) -> Self {
        let mut k = 1;
        loop {
            let plan = Self::for_blocks(family, alpha, k);
            if plan.blocks.len() <= k {
                return plan;
            }
            k += 1;
        }
    }

    fn for_blocks(family: &'a [MetricSamples], alpha: f64, k: usize) -> Self {
        let methods: Vec<Option<Method>> = family
            .iter()
            .map(|samples| method_for(samples, k, alpha))
            .collect();
        let mut blocks: BTreeMap<BlockKey<'a>, Vec<usize>> = BTreeMap::new();
        for (i, (samples, method)) in family.iter().zip(&methods).enumerate() {
            if let Some(method) = *method {
                let sizes = match method {
                    Method::ByRound { .. } => (0, 0),
                    Method::Unpaired => (samples.before.len(), samples.after.len()),
                };
                let key = (samples.pair.as_str(), method, sizes.0, sizes.1);
                blocks.entry(key).or_default().push(i);
            }
        }
        let measured = family.iter().filter(|samples| usable(samples));
        let pairs: BTreeSet<&str> = measured.map(|samples| samples.pair.as_str()).collect();
        Self {
            n_tested: methods.iter().flatten().count(),
            n_pairs: pairs.len(),
            methods,
            blocks,
        }
    }
}

/// By round where that can reach alpha beside `n_blocks - 1` others, else all with all.
fn method_for(samples: &MetricSamples, n_blocks: usize, alpha: f64) -> Option<Method> {
    if !usable(samples) {
        return None;
    }
    let by_round = Method::ByRound {
        n_rounds: samples.rounds.len(),
    };
    let rounds = (!samples.rounds.is_empty()).then_some(by_round);
    rounds
        .into_iter()
        .chain([Method::Unpaired])
        .find(|&method| dealing(samples, method).smallest_p() * n_blocks as f64 <= alpha)
}

fn dealing(samples: &MetricSamples, method: Method) -> Dealing {
    match method {
        Method::ByRound { n_rounds } => Dealing::Rounds { n: n_rounds },
        Method::Unpaired => Dealing::Starts {
            n_before: samples.before.len(),
            n_after: samples.after.len(),
        },
    }
}

/// What is dealt out, on the logarithmic scale.
fn units(samples: &MetricSamples, method: Method) -> Vec<f64> {
    match method {
        Method::ByRound { .. } => log_ratios(samples),
        Method::Unpaired => {
            let starts = samples.before.iter().chain(&samples.after);
            starts.map(|v| v.ln()).collect()
        }
    }
}

/// Change from before to after on the logarithmic scale; none where there are no rounds, or no
/// starts.
fn log_shift(samples: &MetricSamples, by_round: bool, level: f64) -> Option<Shift> {
    let logs = |values: &[f64]| values.iter().map(|v| v.ln()).collect::<Vec<_>>();
    if by_round {
        signed_rank::hodges_lehmann(&log_ratios(samples), level)
    } else {
        rank::hodges_lehmann(&logs(&samples.before), &logs(&samples.after), level)
    }
}

/// By round if that has an interval of this level, else all with all.
fn best_shift(samples: &MetricSamples, level: f64) -> Option<Shift> {
    let has_interval = |shift: &Shift| shift.interval.is_some();
    log_shift(samples, true, level)
        .filter(has_interval)
        .or_else(|| log_shift(samples, false, level))
}

fn log_ratios(samples: &MetricSamples) -> Vec<f64> {
    let ratio = |(before, after): &(f64, f64)| after.ln() - before.ln();
    samples.rounds.iter().map(ratio).collect()
}

/// Fewest common rounds with which `n_pairs` of arms tested together can reach alpha.
fn rounds_needed(n_pairs: usize, alpha: f64) -> usize {
    (2..100)
        .find(|&n| signed_rank::smallest_p(n) * n_pairs.max(1) as f64 <= alpha)
        .unwrap_or(100)
}

fn usable(samples: &MetricSamples) -> bool {
    let positive =
        |values: &[f64]| !values.is_empty() && values.iter().all(|v| v.is_finite() && *v > 0.0);
    positive(&samples.before) && positive(&samples.after)
}

fn compare_one(
    samples: &MetricSamples,
    method: Option<Method>,
    p: Option<PValues>,
    plan: &Plan<'_>,
    config: VerdictConfig,
) -> Comparison {
    let percent = |log_shift: f64| match samples.better {
        Better::Higher => 100.0 * (log_shift.exp() - 1.0),
        Better::Lower => 100.0 * (1.0 - log_shift.exp()),
    };
    let interval_of = |shift: Shift| {
        shift.interval.map(|(low, high)| match samples.better {
            Better::Higher => (percent(low), percent(high)),
            Better::Lower => (percent(high), percent(low)),
        })
    };
    let shift = usable(samples)
        .then(|| best_shift(samples, 1.0 - config.alpha))
        .flatten();
    let change = shift.map(|s| percent(s.estimate));
    let interval = shift.and_then(interval_of);
    let widened = method.and_then(|_| {
        let level = 1.0 - config.alpha / plan.n_tested.max(1) as f64;
        best_shift(samples, level).and_then(interval_of)
    });
    let p_adjusted = p.map(|p| (p.joint * plan.blocks.len() as f64).min(1.0));
    let margin = config.margin_percent;
    let verdict = match (change, widened, p_adjusted) {
        (None, ..) => Verdict::Undecided(Reason::NoData),
        (_, Some((low, high)), _) if low >= -margin && high <= margin => Verdict::Same,
        (Some(change), _, Some(p)) if p <= config.alpha && change > 0.0 => Verdict::Faster,
        (Some(change), _, Some(p)) if p <= config.alpha && change < 0.0 => Verdict::Slower,
        _ => Verdict::Undecided(why_undecided(samples, method, p, interval, plan, config)),
    };
    Comparison {
        metric: samples.metric.clone(),
        method: shown_method(samples, method, config.alpha),
        n_before: samples.before.len(),
        n_after: samples.after.len(),
        median_before: median(&samples.before),
        median_after: median(&samples.after),
        improvement_percent: change,
        interval_percent: interval,
        p: p.map(|p| p.alone),
        p_adjusted,
        verdict,
    }
}

/// Of what was not tested, what its interval rests on.
fn shown_method(samples: &MetricSamples, method: Option<Method>, alpha: f64) -> Method {
    let n_rounds = samples.rounds.len();
    let has_interval = n_rounds > 0 && signed_rank::smallest_p(n_rounds) <= alpha;
    match method {
        Some(method) => method,
        None if has_interval => Method::ByRound { n_rounds },
        None => Method::Unpaired,
    }
}

fn why_undecided(
    samples: &MetricSamples,
    method: Option<Method>,
    p: Option<PValues>,
    interval: Option<(f64, f64)>,
    plan: &Plan<'_>,
    config: VerdictConfig,
) -> Reason {
    let too_few = |n_have: usize, n_needed: usize| {
        let n_needed = n_needed.max(n_have + 1);
        Reason::TooFewRuns {
            n_needed,
            n_more: n_needed - n_have,
        }
    };
    let n_starts = samples.before.len().min(samples.after.len());
    let n_rounds = samples.rounds.len();
    let n_blocks = plan.blocks.len();
    let by_round = matches!(method, Some(Method::ByRound { .. }));
    let points_one_way = interval.is_some_and(|(low, high)| low > 0.0 || high < 0.0);
    match (p, interval) {
        // As many as it takes when all pairs of the table are tested: rounds, or all starts with all
        // where fewer do.
        (None, _) => {
            let n_needed = starts_needed(plan.n_pairs, config.alpha);
            let of_rounds = rounds_needed(plan.n_pairs, config.alpha);
            match n_rounds {
                0 => too_few(n_starts, n_needed),
                _ => too_few(n_rounds, n_needed.min(of_rounds)),
            }
        }
        (Some(_), _) if points_one_way && !by_round && n_rounds > 0 => {
            too_few(n_rounds, rounds_needed(n_blocks, config.alpha))
        }
        (Some(p), _) if points_one_way => {
            let n_have = if by_round { n_rounds } else { n_starts };
            too_few(
                n_have,
                n_to_reach(p.alone, n_have, plan.n_tested, config.alpha),
            )
        }
        (Some(_), Some((low, high))) => Reason::NotSeen {
            below_percent: low.abs().max(high.abs()),
        },
        (Some(_), None) => too_few(n_starts, n_starts + 1),
    }
}

/// With how many starts a difference of this clearness would pass: its z grows as their root.
fn n_to_reach(p: f64, n_have: usize, n_tested: usize, alpha: f64) -> usize {
    let z_of = |p: f64| normal::quantile(1.0 - p / 2.0);
    let wanted = z_of(alpha / n_tested.max(1) as f64);
    (n_have as f64 * (wanted / z_of(p.min(0.9))).powi(2)).ceil() as usize
}

#[cfg(test)]
mod tests;
