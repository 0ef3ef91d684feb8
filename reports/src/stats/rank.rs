//! The Hodges-Lehmann shift of two samples, and its interval.
//!
//! The interval inverts the Mann-Whitney test: with the exact distribution of the rank sum where
//! samples are small, else with the normal approximation.
//!
//! Sources: Mann and Whitney (1947); Hodges and Lehmann (1963); Hollander and Wolfe,
//! "Nonparametric Statistical Methods", chapter 4.

use super::describe::median;
use super::normal;

/// Both samples together above which the normal approximation is used.
const EXACT_LIMIT: usize = 50;

/// Median of all differences `b - a`, with a two-sided interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shift {
    pub estimate: f64,
    /// None where the samples are too small for any interval of that level.
    pub interval: Option<(f64, f64)>,
}

/// Hodges-Lehmann shift from `a` to `b` and its interval of coverage at least `level`.
pub fn hodges_lehmann(a: &[f64], b: &[f64], level: f64) -> Option<Shift> {
    let mut differences: Vec<f64> = b
        .iter()
        .flat_map(|y| a.iter().map(move |x| y - x))
        .collect();
    let estimate = median(&differences)?;
    differences.sort_by(f64::total_cmp);
    let k = critical_count(a.len(), b.len(), (1.0 - level) / 2.0);
    let interval = (k > 0).then(|| (differences[k - 1], differences[differences.len() - k]));
    Some(Shift { estimate, interval })
}

/// The largest k with P(U <= k - 1) <= tail; 0 where there is none. Without ties.
fn critical_count(n: usize, m: usize, tail: f64) -> usize {
    if n + m > EXACT_LIMIT {
        let spread = ((n * m * (n + m + 1)) as f64 / 12.0).sqrt();
        return (0.0_f64.max(((n * m) as f64 / 2.0 - normal::quantile(1.0 - tail) * spread).floor()))
            as usize;
    }
    let ranks: Vec<usize> = (1..=n + m).collect();
    let weights = rank_sum_distribution(&ranks, n);
    let total: f64 = weights.iter().sum();
    let lowest = n * (n + 1) / 2;
    let mut cumulated = 0.0;
    for (k, weight) in weights[lowest..].iter().enumerate() {
        cumulated += weight / total;
        if cumulated > tail {
            return k;
        }
    }
    0
}

/// Number of ways to pick `n` of the ranks for each sum: entry s counts subsets of sum s.
fn rank_sum_distribution(ranks: &[usize], n: usize) -> Vec<f64> {
    let largest: usize = ranks.iter().sum();
    let mut ways = vec![vec![0.0_f64; largest + 1]; n + 1];
    ways[0][0] = 1.0;
    for &rank in ranks {
        for picked in (1..=n).rev() {
            let (fewer, more) = ways.split_at_mut(picked);
            let (from, to) = (&fewer[picked - 1], &mut more[0]);
            for sum in rank..=largest {
                to[sum] += from[sum - rank];
            }
        }
    }
    ways.swap_remove(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Permeability constants of the human chorioamnion, Hollander and Wolfe, table 4.1.
    const TERM: [f64; 10] = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46];
    const EARLY: [f64; 5] = [1.15, 0.88, 0.90, 0.74, 1.21];

    /// R's `wilcox.test` example: shift 0.305 with the interval -0.15 to 0.76.
    #[test]
    fn agrees_with_hollander_and_wolfe() {
        let shift = hodges_lehmann(&EARLY, &TERM, 0.95).unwrap();
        assert!((shift.estimate - 0.305).abs() < 1e-9);
        let (low, high) = shift.interval.unwrap();
        assert!(
            (low + 0.15).abs() < 1e-9 && (high - 0.76).abs() < 1e-9,
            "{low} {high}"
        );
    }

    #[test]
    fn exact_and_approximate_meet_at_the_limit() {
        let (exact, approximate) = (critical_count(25, 25, 0.025), critical_count(25, 26, 0.025));
        assert!(exact.abs_diff(approximate) < 20, "{exact} {approximate}");
    }

    #[test]
    fn three_replicates_can_never_convince() {
        assert_eq!(
            hodges_lehmann(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0], 0.95)
                .unwrap()
                .interval,
            None
        );
        assert_eq!(hodges_lehmann(&[], &[1.0], 0.95), None);
    }
}
