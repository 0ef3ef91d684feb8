//! How far the verdicts can be trusted, by simulation with the noise of real runs.
//!
//! A campaign of two arms is simulated round by round. A round is drawn from the real ones, and two
//! different arms of it: the noise that they shared (prompts, the machine's state) they share in the
//! simulation, too. Where real arms share no rounds, starts are drawn one by one. With no true
//! difference every "faster" or "slower" is false; with a true one, "found" means that a metric is
//! called faster.
//!
//! Noise is a start's deviation from its arm's mean, of all metrics together, so metrics stay as
//! correlated as they are. Deviations from a mean of n starts are too small by √((n − 1)/n); they
//! are stretched back.

use std::collections::BTreeMap;

use super::describe::{mean, std_dev};
use super::rng::SplitMix64;
use super::verdict::{Better, MetricSamples, Verdict, VerdictConfig, compare_family};

/// Deviations of one server start, one a metric, on the logarithmic scale.
pub type Deviations = Vec<f64>;

/// What a start measured, and in which round of its campaign.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    pub round: (String, u32),
    /// One value a metric.
    pub values: Vec<f64>,
}

/// The noise to draw from: rounds, and in each the deviations of its arms.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Noise {
    rounds: Vec<Vec<Deviations>>,
}

impl Noise {
    /// Noise of these arms. Arms with fewer than two starts, or with a value that is not positive,
    /// tell nothing of it and are left out; none if that leaves no arm.
    pub fn of_arms(arms: &[Vec<Start>]) -> Option<Self> {
        let mut rounds: BTreeMap<&(String, u32), Vec<Deviations>> = BTreeMap::new();
        for arm in arms {
            let values: Vec<&[f64]> = arm.iter().map(|start| &*start.values).collect();
            for (start, deviations) in arm.iter().zip(deviations(&values).unwrap_or_default()) {
                rounds.entry(&start.round).or_default().push(deviations);
            }
        }
        let mut rounds: Vec<Vec<Deviations>> = rounds.into_values().collect();
        if rounds.iter().any(|arms| arms.len() > 1) {
            rounds.retain(|arms| arms.len() > 1);
        }
        (!rounds.is_empty()).then_some(Self { rounds })
    }

    /// Rounds that two arms or more ran; 0 where starts are drawn one by one.
    pub fn n_rounds(&self) -> usize {
        self.rounds.iter().filter(|arms| arms.len() > 1).count()
    }

    /// Standard deviation between starts, as a share.
    pub fn spread(&self, metric: usize) -> Option<f64> {
        let all: Vec<f64> = self.rounds.iter().flatten().map(|d| d[metric]).collect();
        std_dev(&all)
    }

    /// Standard deviation of the difference of two arms of one round, as a share.
    pub fn spread_in_round(&self, metric: usize) -> Option<f64> {
        let squares: Vec<f64> = self
            .rounds
            .iter()
            .flat_map(|arms| {
                let pairs = arms
                    .iter()
                    .enumerate()
                    .flat_map(|(i, a)| arms[i + 1..].iter().map(move |b| (a, b)));
                pairs.map(|(a, b)| (b[metric] - a[metric]).powi(2))
            })
            .collect();
        mean(&squares).map(f64::sqrt)
    }

    /// Two starts, of one round where there are rounds.
    fn draw(&self, rng: &mut SplitMix64) -> (&Deviations, &Deviations) {
        let arms = &self.rounds[rng.below(self.rounds.len())];
        let first = rng.below(arms.len());
        if self.n_rounds() == 0 {
            let other = &self.rounds[rng.below(self.rounds.len())];
            return (&arms[first], &other[rng.below(other.len())]);
        }
        let second = (first + 1 + rng.below(arms.len() - 1)) % arms.len();
        (&arms[first], &arms[second])
    }
}

/// Deviations of every start of one arm from the arm's mean; `values[start][metric]`, all positive.
/// None for fewer than two starts.
fn deviations(values: &[&[f64]]) -> Option<Vec<Deviations>> {
    let n = values.len();
    let n_metrics = values.first()?.len();
    let positive = |v: &&f64| v.is_finite() && **v > 0.0;
    if n < 2 || !values.iter().copied().flatten().all(|v| positive(&v)) {
        return None;
    }
    let stretch = (n as f64 / (n - 1) as f64).sqrt();
    let centres: Option<Vec<f64>> = (0..n_metrics)
        .map(|m| mean(&values.iter().map(|start| start[m].ln()).collect::<Vec<_>>()))
        .collect();
    let centres = centres?;
    let of_start = |start: &&[f64]| {
        let pairs = start.iter().zip(&centres);
        pairs
            .map(|(v, centre)| (v.ln() - centre) * stretch)
            .collect()
    };
    Some(values.iter().map(of_start).collect())
}

/// What is simulated.
#[derive(Debug, Clone, Copy)]
pub struct Trial<'a> {
    pub noise: &'a Noise,
    /// One a metric.
    pub better: &'a [Better],
    pub n_campaigns: usize,
    /// The true improvement of every metric (0.03).
    pub effect: f64,
    pub config: VerdictConfig,
}

/// Shares of the simulated campaigns.
#[derive(Debug, Clone, PartialEq)]
pub struct Trust {
    pub n_starts: usize,
    /// Without a difference, some metric was called faster or slower.
    pub false_share: f64,
    /// With the difference, some metric was called faster and none slower.
    pub found_share: f64,
    /// With the difference, this metric was called faster.
    pub found_by_metric: Vec<f64>,
    /// With the difference, some metric was called slower, or the same.
    pub wrong_share: f64,
}

impl Trial<'_> {
    /// Campaigns with this many server starts per arm.
    pub fn run(&self, n_starts: usize) -> Trust {
        const SEED: u64 = 20_261_122;
        let mut rng = SplitMix64::new(SEED);
        let mut verdicts = |effect: f64| -> Vec<Vec<Verdict>> {
            (0..self.n_campaigns)
                .map(|_| self.campaign(n_starts, effect, &mut rng))
                .collect()
        };
        let (equal, different) = (verdicts(0.0), verdicts(self.effect));
        let share = |campaigns: &[Vec<Verdict>], counts: &dyn Fn(&[Verdict]) -> bool| {
            let hits = campaigns.iter().filter(|verdicts| counts(verdicts)).count();
            hits as f64 / self.n_campaigns.max(1) as f64
        };
        let any = |verdicts: &[Verdict], words: &[Verdict]| {
            verdicts.iter().any(|verdict| words.contains(verdict))
        };
        Trust {
            n_starts,
            false_share: share(&equal, &|v| any(v, &[Verdict::Faster, Verdict::Slower])),
            found_share: share(&different, &|v| {
                any(v, &[Verdict::Faster]) && !any(v, &[Verdict::Slower])
            }),
            found_by_metric: (0..self.better.len())
                .map(|m| share(&different, &|v| v[m] == Verdict::Faster))
                .collect(),
            wrong_share: share(&different, &|v| any(v, &[Verdict::Slower, Verdict::Same])),
        }
    }

    fn campaign(&self, n_starts: usize, effect: f64, rng: &mut SplitMix64) -> Vec<Verdict> {
        let starts: Vec<_> = (0..n_starts).map(|_| self.noise.draw(rng)).collect();
        let in_rounds = self.noise.n_rounds() > 0;
        let family: Vec<MetricSamples> = self
            .better
            .iter()
            .enumerate()
            .map(|(m, &better)| {
                let factor = match better {
                    Better::Lower => 1.0 - effect,
                    Better::Higher => 1.0 + effect,
                };
                let values = |(before, after): &(&Deviations, &Deviations)| {
                    (before[m].exp(), after[m].exp() * factor)
                };
                let rounds: Vec<(f64, f64)> = starts.iter().map(values).collect();
                let (before, after) = rounds.iter().copied().unzip();
                MetricSamples {
                    metric: String::new(),
                    better,
                    pair: String::new(),
                    before,
                    after,
                    rounds: if in_rounds { rounds } else { Vec::new() },
                }
            })
            .collect();
        compare_family(&family, self.config)
            .iter()
            .map(|c| c.verdict)
            .collect()
    }
}

/// The smallest number of starts up to `limit` that `suffices`, supposed that every larger one does
/// too. None if not even `limit` does.
pub fn fewest_starts(limit: usize, mut suffices: impl FnMut(usize) -> bool) -> Option<usize> {
    let (mut too_few, mut enough) = (1, 4);
    while !suffices(enough) {
        if enough == limit {
            return None;
        }
        too_few = enough;
        enough = (2 * enough).min(limit);
    }
    while enough - too_few > 1 {
        let middle = usize::midpoint(too_few, enough);
        if suffices(middle) {
            enough = middle;
        } else {
            too_few = middle;
        }
    }
    Some(enough)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BETTER: [Better; 3] = [Better::Lower, Better::Higher, Better::Lower];

    fn start(round: u32, values: Vec<f64>) -> Start {
        Start {
            round: ("campaign".into(), round),
            values,
        }
    }

    #[test]
    fn deviations_have_the_spread_of_their_starts() {
        let values = [1.00, 1.02, 0.98, 1.01, 0.99];
        let arm: Vec<Start> = (0..).zip(values).map(|(r, v)| start(r, vec![v])).collect();
        let noise = Noise::of_arms(&[arm]).unwrap();
        assert_eq!(noise.n_rounds(), 0);
        let got: Vec<f64> = noise.rounds.iter().flatten().map(|d| d[0]).collect();
        let population = |v: &[f64]| {
            let centre = mean(v).unwrap();
            (v.iter().map(|x| (x - centre).powi(2)).sum::<f64>() / v.len() as f64).sqrt()
        };
        let want = std_dev(&values.map(f64::ln)).unwrap();
        assert!((population(&got) - want).abs() < 1e-12);
        let one = vec![start(0, vec![1.0])];
        let not_positive = vec![start(0, vec![1.0]), start(1, vec![0.0])];
        assert_eq!(Noise::of_arms(&[one, not_positive]), None);
    }

    /// Arms of `n_rounds` rounds, which differ by `between` from round to round and by `within`
    /// from arm to arm.
    fn noise(n_rounds: u32, between: f64, within: f64) -> Noise {
        let arm = |a: u32| -> Vec<Start> {
            (0..n_rounds)
                .map(|r| {
                    let spread = |k: u32| f64::from((r * 7 + k * 13 + a * 11) % 17) / 8.0 - 1.0;
                    let round = between * (f64::from(r * 5 % 11) / 5.0 - 1.0);
                    let value = |m: u32| (round + within * spread(m)).exp();
                    start(r, vec![value(0), value(1), value(2)])
                })
                .collect()
        };
        Noise::of_arms(&[arm(0), arm(1), arm(2)]).unwrap()
    }

    #[test]
    fn rounds_that_differ_much_cost_nothing() {
        let noise = noise(11, 0.2, 0.01);
        assert_eq!(noise.n_rounds(), 11);
        assert!(noise.spread(0).unwrap() > 0.1);
        assert!(noise.spread_in_round(0).unwrap() < 0.02);
        let trial = Trial {
            noise: &noise,
            better: &BETTER,
            n_campaigns: 500,
            effect: 0.03,
            config: VerdictConfig::default(),
        };
        let ten = trial.run(10);
        assert!(ten.false_share <= 0.05, "{ten:?}");
        assert!(ten.found_share >= 0.8, "{ten:?}");
        assert!(ten.wrong_share <= 0.05, "{ten:?}");
        assert!(ten.found_by_metric.iter().all(|share| *share >= 0.8));
        assert_eq!(trial.run(3).found_share, 0.0);
    }

    #[test]
    fn the_search_ends_at_the_first_number_that_suffices() {
        for want in [2, 3, 4, 5, 7, 8, 31, 64, 99, 100] {
            assert_eq!(fewest_starts(100, |n| n >= want), Some(want));
        }
        assert_eq!(fewest_starts(100, |_| false), None);
    }
}
