//! One test of several metrics of the same server starts: their labels ("before", "after") are
//! dealt out anew, for all metrics at once.
//!
//! Within rounds the two starts of a round may swap labels; without rounds any starts may. Were the
//! labels meaningless, every dealing would be as likely as the real one, so the share of dealings
//! that are at least as far out is the p-value, with no assumption on how figures are distributed.
//!
//! Because a dealing is the same for all metrics, what they have in common is kept, and the largest
//! statistic of a dealing says how far out *any* of them gets by chance. Step-down maxT (Westfall
//! and Young) compares each metric with that: eight rounds suffice for fifteen figures, where
//! Holm's correction of fifteen signed-rank tests could not pass, however clear they are.
//!
//! The statistic orders dealings as Student's t does. All dealings are counted where they are few;
//! else a fixed number of them is drawn with a fixed seed. For many starts the t distribution
//! itself is used, with Holm's correction.
//!
//! Sources: Westfall and Young, "Resampling-Based Multiple Testing" (1993), algorithm 2.8; Fisher's
//! randomisation test, "The Design of Experiments" (1935), chapter 3.

use statrs::distribution::{ContinuousCDF, StudentsT};

use records::verdicts::smallest_p;

use super::holm;
use super::rng::SplitMix64;

/// More dealings than this are not counted but drawn.
const MOST_COUNTED: f64 = 20_000.0;
const N_DRAWN: usize = 4_999;
/// More units (rounds, or starts of both arms) are judged by the t distribution.
const MOST_UNITS: usize = 50;
const SEED: u64 = 20_261_130;
/// Two dealings that differ by less are equally far out.
const TIE: f64 = 1e-9;

/// Of one metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PValues {
    /// By itself.
    pub alone: f64,
    /// For any of the metrics that were tested with it.
    pub joint: f64,
}

/// What is dealt out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dealing {
    /// Each unit is a round; its value the difference of its two starts.
    Rounds { n: usize },
    /// Units are starts, those of "before" first.
    Starts { n_before: usize, n_after: usize },
}

impl Dealing {
    fn n_units(self) -> usize {
        match self {
            Self::Rounds { n } => n,
            Self::Starts { n_before, n_after } => n_before + n_after,
        }
    }

    /// Smallest p-value that figures can give.
    pub fn smallest_p(self) -> f64 {
        let counted = match self {
            Self::Rounds { n } => super::signed_rank::smallest_p(n),
            Self::Starts { n_before, n_after } => smallest_p(n_before, n_after),
        };
        if self.n_units() > MOST_UNITS || self.n_dealings() <= MOST_COUNTED {
            counted
        } else {
            counted.max(1.0 / (N_DRAWN + 1) as f64)
        }
    }

    fn n_dealings(self) -> f64 {
        match self {
            // Swapping all labels changes no statistic: half of the dealings.
            Self::Rounds { n } => 2_f64.powi(n as i32 - 1),
            Self::Starts { n_before, n_after } => (1..=n_before)
                .map(|i| (n_after + i) as f64 / i as f64)
                .product(),
        }
    }

    /// The weight of every unit as it was measured.
    fn real(self) -> Vec<f64> {
        match self {
            Self::Rounds { n } => vec![1.0; n],
            Self::Starts { n_before, n_after } => {
                let mut weights = vec![-1.0 / n_before as f64; n_before];
                weights.resize(n_before + n_after, 1.0 / n_after as f64);
                weights
            }
        }
    }
}

/// `metrics`: of each the units' values on the logarithmic scale; all have as many.
pub fn test(metrics: &[Vec<f64>], dealing: Dealing) -> Vec<PValues> {
    let metrics: Vec<Vec<f64>> = metrics.iter().map(|m| scaled(m, dealing)).collect();
    if dealing.n_units() > MOST_UNITS {
        return by_t(&metrics, dealing);
    }
    let real = dealing.real();
    let observed: Vec<f64> = metrics.iter().map(|m| statistic(m, &real)).collect();
    let mut order: Vec<usize> = (0..metrics.len()).collect();
    order.sort_by(|&a, &b| observed[b].total_cmp(&observed[a]));
    let (mut alone, mut joint) = (vec![0_usize; metrics.len()], vec![0_usize; metrics.len()]);
    let mut n_dealings = 0_usize;
    let mut count = |weights: &[f64]| {
        n_dealings += 1;
        let mut largest = 0.0_f64;
        for &i in order.iter().rev() {
            let s = statistic(&metrics[i], weights);
            largest = largest.max(s);
            alone[i] += usize::from(s >= observed[i] - TIE);
            joint[i] += usize::from(largest >= observed[i] - TIE);
        }
    };
    if dealing.n_dealings() <= MOST_COUNTED {
        every(dealing, &mut count);
    } else {
        count(&real);
        drawn(dealing, &mut count);
    }
    let share = |n: usize| n as f64 / n_dealings as f64;
    let mut p: Vec<PValues> = (0..metrics.len())
        .map(|i| PValues {
            alone: share(alone[i]),
            joint: share(joint[i]),
        })
        .collect();
    let mut largest = 0.0_f64;
    for &i in &order {
        largest = largest.max(p[i].joint);
        p[i].joint = largest;
    }
    p
}

/// Of length 1, so that metrics compare; starts around their common mean.
fn scaled(values: &[f64], dealing: Dealing) -> Vec<f64> {
    let centre = match dealing {
        Dealing::Rounds { .. } => 0.0,
        Dealing::Starts { .. } => values.iter().sum::<f64>() / values.len().max(1) as f64,
    };
    let length = values
        .iter()
        .map(|v| (v - centre).powi(2))
        .sum::<f64>()
        .sqrt();
    // Differences that are rounding alone are none.
    const NOTHING: f64 = 1e-12;
    let scale = if length > NOTHING { 1.0 / length } else { 0.0 };
    values.iter().map(|v| (v - centre) * scale).collect()
}

fn statistic(values: &[f64], weights: &[f64]) -> f64 {
    let sum: f64 = values.iter().zip(weights).map(|(v, w)| v * w).sum();
    sum.abs()
}

fn every(dealing: Dealing, count: &mut impl FnMut(&[f64])) {
    match dealing {
        Dealing::Rounds { n } => {
            for signs in 0..1_u32 << (n - 1) {
                let weights: Vec<f64> = (0..n)
                    .map(|i| if signs >> i & 1 == 1 { -1.0 } else { 1.0 })
                    .collect();
                count(&weights);
            }
        }
        Dealing::Starts { n_before, n_after } => {
            let (before, after) = (-1.0 / n_before as f64, 1.0 / n_after as f64);
            let n = n_before + n_after;
            // Positions of the starts that are called "before", ascending.
            let mut chosen: Vec<usize> = (0..n_before).collect();
            loop {
                let mut weights = vec![after; n];
                for &i in &chosen {
                    weights[i] = before;
                }
                count(&weights);
                let Some(k) = (0..n_before).rfind(|&k| chosen[k] < n - n_before + k) else {
                    break;
                };
                chosen[k] += 1;
                for next in k + 1..n_before {
                    chosen[next] = chosen[next - 1] + 1;
                }
            }
        }
    }
}

fn drawn(dealing: Dealing, count: &mut impl FnMut(&[f64])) {
    let mut rng = SplitMix64::new(SEED);
    let mut weights = dealing.real();
    for _ in 0..N_DRAWN {
        match dealing {
            Dealing::Rounds { .. } => {
                for weight in &mut weights {
                    *weight = if rng.below(2) == 0 { 1.0 } else { -1.0 };
                }
            }
            Dealing::Starts { .. } => {
                for i in (1..weights.len()).rev() {
                    weights.swap(i, rng.below(i + 1));
                }
            }
        }
        count(&weights);
    }
}

fn by_t(metrics: &[Vec<f64>], dealing: Dealing) -> Vec<PValues> {
    let real = dealing.real();
    let length = real.iter().map(|w| w * w).sum::<f64>().sqrt();
    let freedom = match dealing {
        Dealing::Rounds { n } => n as f64 - 1.0,
        Dealing::Starts { n_before, n_after } => (n_before + n_after) as f64 - 2.0,
    };
    let alone: Vec<f64> = metrics
        .iter()
        .map(|values| {
            // Share of the values' length that lies along the labels.
            let along = statistic(values, &real) / length;
            let t = along * (freedom / (1.0 - along * along).max(TIE)).sqrt();
            StudentsT::new(0.0, 1.0, freedom).map_or(1.0, |d| 2.0 * d.sf(t))
        })
        .collect();
    let joint = holm::adjust(&alone);
    let pairs = alone.into_iter().zip(joint);
    pairs
        .map(|(alone, joint)| PValues { alone, joint })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Darwin's maize, in eighths of an inch: Fisher counted 1,726 of the 32,768 dealings at least
    /// as far out ("The Design of Experiments", section 21), 5.267 %.
    #[test]
    fn agrees_with_fisher() {
        let maize = [
            49.0, -67.0, 8.0, 16.0, 6.0, 23.0, 28.0, 41.0, 14.0, 29.0, 56.0, 24.0, 75.0, 60.0,
            -48.0,
        ];
        let got = test(&[maize.to_vec()], Dealing::Rounds { n: 15 })[0];
        assert!((got.alone - 1726.0 / 32768.0).abs() < 1e-12, "{got:?}");
        assert_eq!(got.alone, got.joint);
    }

    /// By hand. Rounds of the first metric: 1, 1, 1, so |sum| is 3 in 1 of the 4 dealings (the sign
    /// of the first round is fixed). Of the second: 3, -1, 1 with sums 3, 1, 5, 3 for the signs
    /// (++), (+-), (-+), (--) of the last two: 3 of 4 reach the observed 3. Scaled by their lengths
    /// √3 and √11, the first's 3/√3 = 1.73 is reached by the second in no dealing (5/√11 = 1.51).
    #[test]
    fn small_tables_are_counted_by_hand() {
        let metrics = [vec![1.0, 1.0, 1.0], vec![3.0, -1.0, 1.0]];
        let got = test(&metrics, Dealing::Rounds { n: 3 });
        assert_eq!((got[0].alone, got[0].joint), (0.25, 0.25));
        assert_eq!((got[1].alone, got[1].joint), (0.75, 0.75));
        // 1 and 2 against 5: of the three dealings the real one is the farthest out.
        let starts = Dealing::Starts {
            n_before: 2,
            n_after: 1,
        };
        let got = test(&[vec![1.0, 2.0, 5.0]], starts)[0];
        assert!((got.alone - 1.0 / 3.0).abs() < 1e-12);
    }

    /// Ten metrics of noise beside a clear one: Holm's correction would multiply its p by eleven.
    #[test]
    fn noise_beside_a_clear_difference_costs_little() {
        let mut rng = SplitMix64::new(3);
        let mut metrics: Vec<Vec<f64>> = (0..10)
            .map(|_| (0..8).map(|_| rng.below(2001) as f64 - 1000.0).collect())
            .collect();
        metrics.push((0..8).map(|i| 1.0 + 0.05 * f64::from(i)).collect());
        let got = test(&metrics, Dealing::Rounds { n: 8 });
        assert_eq!(got[10].alone, 1.0 / 128.0);
        assert!(got[10].joint <= 2.0 / 128.0, "{:?}", got[10]);
        assert!(got[..10].iter().all(|p| p.joint >= p.alone));
    }

    #[test]
    fn many_starts_are_judged_as_few_are() {
        let values = |n: u32| -> Vec<f64> {
            (0..n)
                .map(|i| f64::from(i * 37 % 101) / 10.0 - 4.2)
                .collect()
        };
        let few = test(&[values(50)], Dealing::Rounds { n: 50 })[0];
        let many = test(&[values(51)], Dealing::Rounds { n: 51 })[0];
        assert!((few.alone - many.alone).abs() < 0.03, "{few:?} {many:?}");
        let dealing = Dealing::Starts {
            n_before: 25,
            n_after: 25,
        };
        let values = values(50);
        let drawn = test(std::slice::from_ref(&values), dealing)[0].alone;
        let by_t = by_t(&[scaled(&values, dealing)], dealing)[0].alone;
        assert!((drawn - by_t).abs() < 0.03, "{drawn} {by_t}");
    }

    #[test]
    fn equal_values_show_nothing() {
        let got = test(&[vec![0.0; 6]], Dealing::Rounds { n: 6 })[0];
        assert_eq!((got.alone, got.joint), (1.0, 1.0));
    }
}
