//! From samples to a word: faster, slower, same within a margin, or undecided.
//!
//! Rules, in this order, for each metric of a family that is tested together:
//! 1. the interval of the relative change, widened for the size of the family (Bonferroni), lies
//!    within the margin: *same*;
//! 2. the Holm-adjusted p-value is at most alpha: *faster* or *slower*;
//! 3. otherwise *undecided*, with the reason.
//!
//! Runs of one round are compared with each other (signed ranks): prompts and the machine's state
//! (thermals, background load) are the same for both. Where arms share no rounds, or so few that even the clearest signs could
//! not reach alpha in this family, all starts of one arm are compared with all of the other
//! (Mann-Whitney). That choice looks at numbers of runs alone, never at figures.
//!
//! Small samples decide nothing by themselves: three runs against three can give no p-value below
//! 0.1 and no 95 % interval, whatever the figures. The reason then carries the number of runs that
//! would suffice. Changes are relative (computed on logarithms), so a percentage means the same
//! for milliseconds and for tokens a second.

use records::verdicts::{ALPHA, smallest_p, starts_needed};

use super::describe::median;
use super::rank::Shift;
use super::{holm, rank, signed_rank};

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
    pub before: Vec<f64>,
    pub after: Vec<f64>,
    /// Before and after in each round that both arms ran; empty where they share none.
    pub rounds: Vec<(f64, f64)>,
}

/// Which runs were compared with which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Those of a round with each other: signed ranks.
    ByRound { n_rounds: usize },
    /// All of one arm with all of the other: Mann-Whitney.
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
    /// Even the clearest order of so few runs could not reach alpha.
    TooFewRuns { n_needed: usize },
    /// Enough runs, but the figures leave both answers open.
    NotSeparated,
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
    pub p_holm: Option<f64>,
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
///     before: rounds.iter().map(|(before, _)| *before).collect(),
///     after: rounds.iter().map(|(_, after)| *after).collect(),
///     rounds,
/// };
/// let comparison = &compare_family(&[ttft], VerdictConfig::default())[0];
/// assert_eq!(comparison.verdict, Verdict::Faster);
/// assert!(comparison.improvement_percent.is_some_and(|percent| percent > 9.0));
/// ```
pub fn compare_family(family: &[MetricSamples], config: VerdictConfig) -> Vec<Comparison> {
    let n_tested = family.iter().filter(|m| usable(m)).count();
    let tests: Vec<(Method, Option<f64>)> = family
        .iter()
        .map(|samples| {
            let method = method_for(samples, n_tested, config.alpha);
            (
                method,
                usable(samples).then(|| p_value(samples, method)).flatten(),
            )
        })
        .collect();
    let tested: Vec<f64> = tests.iter().filter_map(|(_, p)| *p).collect();
    let mut adjusted = holm::adjust(&tested).into_iter();
    family
        .iter()
        .zip(tests)
        .map(|(samples, (method, p))| {
            let p_holm = p.and_then(|_| adjusted.next());
            compare_one(samples, method, (p, p_holm), n_tested, config)
        })
        .collect()
}

fn method_for(samples: &MetricSamples, n_tested: usize, alpha: f64) -> Method {
    let n_rounds = samples.rounds.len();
    if n_rounds > 0 && signed_rank::smallest_p(n_rounds) * n_tested as f64 <= alpha {
        Method::ByRound { n_rounds }
    } else {
        Method::Unpaired
    }
}

fn p_value(samples: &MetricSamples, method: Method) -> Option<f64> {
    match method {
        Method::ByRound { .. } => {
            signed_rank::wilcoxon(&log_ratios(samples)).map(|t| t.p_two_sided)
        }
        Method::Unpaired => {
            rank::mann_whitney(&samples.before, &samples.after).map(|t| t.p_two_sided)
        }
    }
}

/// Change from before to after on the logarithmic scale.
fn log_shift(samples: &MetricSamples, method: Method, level: f64) -> Option<Shift> {
    let logs = |values: &[f64]| values.iter().map(|v| v.ln()).collect::<Vec<_>>();
    match method {
        Method::ByRound { .. } => signed_rank::hodges_lehmann(&log_ratios(samples), level),
        Method::Unpaired => {
            rank::hodges_lehmann(&logs(&samples.before), &logs(&samples.after), level)
        }
    }
}

fn log_ratios(samples: &MetricSamples) -> Vec<f64> {
    let ratio = |(before, after): &(f64, f64)| after.ln() - before.ln();
    samples.rounds.iter().map(ratio).collect()
}

fn usable(samples: &MetricSamples) -> bool {
    let positive =
        |values: &[f64]| !values.is_empty() && values.iter().all(|v| v.is_finite() && *v > 0.0);
    positive(&samples.before) && positive(&samples.after)
}

fn compare_one(
    samples: &MetricSamples,
    method: Method,
    (p, p_holm): (Option<f64>, Option<f64>),
    n_tested: usize,
    config: VerdictConfig,
) -> Comparison {
    let shift = p.and_then(|_| log_shift(samples, method, 1.0 - config.alpha));
    let improvement = |log_shift: f64| match samples.better {
        Better::Higher => 100.0 * (log_shift.exp() - 1.0),
        Better::Lower => 100.0 * (1.0 - log_shift.exp()),
    };
    let improvement_percent = shift.map(|s| improvement(s.estimate));
    let interval_of = |shift: Shift| {
        shift.interval.map(|(low, high)| match samples.better {
            Better::Higher => (improvement(low), improvement(high)),
            Better::Lower => (improvement(high), improvement(low)),
        })
    };
    let interval_percent = shift.and_then(interval_of);
    let widened = log_shift(samples, method, 1.0 - config.alpha / n_tested.max(1) as f64);
    let widened_percent = shift.and(widened).and_then(interval_of);
    let smallest = match method {
        Method::ByRound { n_rounds } => signed_rank::smallest_p(n_rounds),
        Method::Unpaired => smallest_p(samples.before.len(), samples.after.len()),
    } * n_tested as f64;
    let verdict = match (improvement_percent, widened_percent, p_holm) {
        (None, ..) | (.., None) => Verdict::Undecided(Reason::NoData),
        (_, Some((low, high)), _)
            if low >= -config.margin_percent && high <= config.margin_percent =>
        {
            Verdict::Same
        }
        (Some(change), _, Some(p)) if p <= config.alpha && change > 0.0 => Verdict::Faster,
        (Some(change), _, Some(p)) if p <= config.alpha && change < 0.0 => Verdict::Slower,
        _ if smallest > config.alpha => Verdict::Undecided(Reason::TooFewRuns {
            n_needed: starts_needed(n_tested, config.alpha),
        }),
        _ => Verdict::Undecided(Reason::NotSeparated),
    };
    Comparison {
        metric: samples.metric.clone(),
        method,
        n_before: samples.before.len(),
        n_after: samples.after.len(),
        median_before: median(&samples.before),
        median_after: median(&samples.after),
        improvement_percent,
        interval_percent,
        p,
        p_holm,
        verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(better: Better, before: &[f64], after: &[f64]) -> MetricSamples {
        MetricSamples {
            metric: "m".into(),
            better,
            before: before.to_vec(),
            after: after.to_vec(),
            rounds: Vec::new(),
        }
    }

    fn by_round(better: Better, rounds: &[(f64, f64)]) -> MetricSamples {
        let (before, after): (Vec<f64>, Vec<f64>) = rounds.iter().copied().unzip();
        MetricSamples {
            rounds: rounds.to_vec(),
            ..samples(better, &before, &after)
        }
    }

    fn judge(better: Better, before: &[f64], after: &[f64]) -> Comparison {
        compare_family(&[samples(better, before, after)], VerdictConfig::default()).remove(0)
    }

    #[test]
    fn clear_shifts_get_their_word_and_sign() {
        let slow = [100.0, 101.0, 99.0, 100.5, 99.5];
        let fast = [90.0, 90.9, 89.1, 90.4, 89.6];
        let got = judge(Better::Lower, &slow, &fast);
        assert_eq!(got.verdict, Verdict::Faster);
        assert!((got.improvement_percent.unwrap() - 10.0).abs() < 0.3);
        let (low, high) = got.interval_percent.unwrap();
        assert!(low < 10.0 && 10.0 < high && low > 8.0);
        assert_eq!(judge(Better::Lower, &fast, &slow).verdict, Verdict::Slower);
        assert_eq!(judge(Better::Higher, &slow, &fast).verdict, Verdict::Slower);
    }

    #[test]
    fn tight_overlap_is_same_and_wide_overlap_is_undecided() {
        let a = [100.0, 100.2, 99.8, 100.1, 99.9, 100.05];
        let b = [100.1, 100.15, 99.85, 100.0, 99.95, 100.12];
        assert_eq!(judge(Better::Lower, &a, &b).verdict, Verdict::Same);
        let wide_a = [80.0, 120.0, 95.0, 105.0, 100.0];
        let wide_b = [85.0, 118.0, 99.0, 103.0, 90.0];
        assert_eq!(
            judge(Better::Lower, &wide_a, &wide_b).verdict,
            Verdict::Undecided(Reason::NotSeparated)
        );
    }

    /// The widest difference of two starts lies outside of the margin, most of them inside.
    #[test]
    fn same_takes_more_evidence_in_a_large_family() {
        let a = [100.0, 100.1, 100.05, 99.95, 99.6];
        let b = [100.1, 100.15, 99.9, 100.0, 100.8];
        let one = samples(Better::Lower, &a, &b);
        let judged = |n: usize| {
            let family = vec![one.clone(); n];
            compare_family(&family, VerdictConfig::default()).remove(0)
        };
        assert_eq!(judged(1).verdict, Verdict::Same);
        let of_six = judged(6);
        assert_eq!(of_six.verdict, Verdict::Undecided(Reason::NotSeparated));
        assert_eq!(of_six.interval_percent, judged(1).interval_percent);
        assert!(matches!(
            judged(7).verdict,
            Verdict::Undecided(Reason::TooFewRuns { .. })
        ));
    }

    #[test]
    fn few_runs_stay_undecided_however_clear_they_look() {
        for n in 1..=3 {
            let got = judge(
                Better::Lower,
                &[100.0, 101.0, 102.0][..n],
                &[10.0, 11.0, 12.0][..n],
            );
            assert_eq!(
                got.verdict,
                Verdict::Undecided(Reason::TooFewRuns { n_needed: 4 }),
                "n = {n}"
            );
        }
        assert_eq!(
            judge(Better::Lower, &[], &[1.0]).verdict,
            Verdict::Undecided(Reason::NoData)
        );
        assert_eq!(
            judge(Better::Lower, &[0.0], &[1.0]).verdict,
            Verdict::Undecided(Reason::NoData)
        );
    }

    /// Rounds that differ by half, arms by 3 %: hidden from a comparison of all with all, seen by
    /// one round by round.
    #[test]
    fn rounds_uncover_what_the_spread_between_them_hides() {
        let rounds: Vec<(f64, f64)> = (0..8)
            .map(|r| {
                let base = 100.0 * (1.0 + 0.1 * f64::from(r * 5 % 8));
                let jitter = 1.0 + 0.001 * f64::from(r * 3 % 8);
                (base, 0.97 * base * jitter)
            })
            .collect();
        let paired = by_round(Better::Lower, &rounds);
        let unpaired = MetricSamples {
            rounds: Vec::new(),
            ..paired.clone()
        };
        let config = VerdictConfig::default();
        let got = compare_family(&[paired], config).remove(0);
        assert_eq!(got.method, Method::ByRound { n_rounds: 8 });
        assert_eq!(got.verdict, Verdict::Faster);
        assert!((got.improvement_percent.unwrap() - 2.66).abs() < 0.1);
        let (low, high) = got.interval_percent.unwrap();
        assert!(low > 2.0 && high <= 3.0, "{low} {high}");
        let got = compare_family(&[unpaired], config).remove(0);
        assert_eq!(got.verdict, Verdict::Undecided(Reason::NotSeparated));
    }

    #[test]
    fn rounds_too_few_for_signed_ranks_are_compared_all_with_all() {
        let rounds = |n: i32| -> Vec<(f64, f64)> {
            (0..n)
                .map(|r| (100.0 + f64::from(r), 90.0 + f64::from(r)))
                .collect()
        };
        let method_of_three = |n: i32| {
            let family = vec![by_round(Better::Lower, &rounds(n)); 3];
            let got = compare_family(&family, VerdictConfig::default()).remove(0);
            (got.method, got.verdict)
        };
        assert_eq!(method_of_three(6), (Method::Unpaired, Verdict::Faster));
        assert_eq!(
            method_of_three(7),
            (Method::ByRound { n_rounds: 7 }, Verdict::Faster)
        );
    }

    /// Share of simulated campaigns (five starts an arm, three metrics of the same runs, noise of
    /// 0.5 % between starts) in which any metric gets `word`, with a true change of `effect`.
    fn share_with(word: Verdict, effect: f64, n_campaigns: usize) -> f64 {
        let mut rng = crate::stats::rng::SplitMix64::new(1);
        // Sum of twelve uniforms: near enough to normal, variance 1.
        let mut normal = move || {
            (0..12)
                .map(|_| rng.below(1 << 30) as f64 / f64::from(1 << 30))
                .sum::<f64>()
                - 6.0
        };
        let mut hits = 0;
        for _ in 0..n_campaigns {
            let mut arm = |factor: f64| -> Vec<f64> {
                (0..5)
                    .map(|_| 1000.0 * factor * (1.0 + 0.005 * normal()))
                    .collect()
            };
            let family: Vec<MetricSamples> = (0..3)
                .map(|_| samples(Better::Lower, &arm(1.0), &arm(1.0 - effect)))
                .collect();
            let answers = compare_family(&family, VerdictConfig::default());
            hits += usize::from(answers.iter().any(|c| c.verdict == word));
        }
        hits as f64 / n_campaigns as f64
    }

    #[test]
    fn no_difference_is_rarely_called_one_and_three_per_cent_are_found() {
        let false_verdicts =
            share_with(Verdict::Faster, 0.0, 1000) + share_with(Verdict::Slower, 0.0, 1000);
        assert!(false_verdicts <= 0.05, "{false_verdicts}");
        let found = share_with(Verdict::Faster, 0.03, 1000);
        assert!(found >= 0.8, "{found}");
        assert!(share_with(Verdict::Same, 0.03, 1000) <= 0.05);
    }

    #[test]
    fn a_family_asks_for_more_evidence_than_one_metric() {
        let (a, b) = (&[10.0, 11.0, 12.0, 13.0][..], &[20.0, 21.0, 22.0, 23.0][..]);
        assert_eq!(judge(Better::Lower, a, b).verdict, Verdict::Slower);
        let three = vec![samples(Better::Lower, a, b); 3];
        let got = compare_family(&three, VerdictConfig::default());
        assert!(
            got.iter()
                .all(|c| c.verdict == Verdict::Undecided(Reason::TooFewRuns { n_needed: 5 }))
        );
    }
}
