//! Mann-Whitney U test and Hodges-Lehmann shift of two samples.
//!
//! Small samples use the exact permutation distribution of the rank sum, given the ties that are
//! there (mid-ranks, doubled to stay integers); large ones the normal approximation with tie and
//! continuity correction. The interval of the shift inverts the same test.
//!
//! Sources: Mann and Whitney (1947); Hodges and Lehmann (1963); Hollander and Wolfe,
//! "Nonparametric Statistical Methods", chapter 4.

use super::describe::median;
use super::normal;

/// Both samples together above which the normal approximation is used.
const EXACT_LIMIT: usize = 50;

/// Result of the two-sided test of "neither sample tends to be larger".
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MannWhitney {
    /// U of the first sample: pairs in which it is larger, ties counted half.
    pub u: f64,
    pub p_two_sided: f64,
    pub exact: bool,
}

/// Tests `a` against `b`; none if either is empty or holds a NaN.
///
/// ```
/// use reports::stats::rank::mann_whitney;
///
/// // Three starts of each arm can never show a difference at 5 %.
/// let test = mann_whitney(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]).ok_or("no data")?;
/// assert!(test.exact);
/// assert!((test.p_two_sided - 0.1).abs() < 1e-12);
/// # Ok::<(), &str>(())
/// ```
pub fn mann_whitney(a: &[f64], b: &[f64]) -> Option<MannWhitney> {
    if a.is_empty() || b.is_empty() || a.iter().chain(b).any(|v| v.is_nan()) {
        return None;
    }
    let (n, m) = (a.len(), b.len());
    let (doubled_ranks, tie_term) = doubled_mid_ranks(a, b);
    let doubled_sum_a: usize = doubled_ranks[..n].iter().sum();
    let u = doubled_sum_a as f64 / 2.0 - (n * (n + 1)) as f64 / 2.0;
    if n + m <= EXACT_LIMIT {
        let weights = rank_sum_distribution(&doubled_ranks, n);
        let total: f64 = weights.iter().sum();
        let at_most: f64 = weights[..=doubled_sum_a].iter().sum();
        let at_least: f64 = weights[doubled_sum_a..].iter().sum();
        let p = (2.0 * at_most.min(at_least) / total).min(1.0);
        return Some(MannWhitney {
            u,
            p_two_sided: p,
            exact: true,
        });
    }
    let total = (n + m) as f64;
    let pairs = (n * m) as f64;
    let variance = pairs / 12.0 * ((total + 1.0) - tie_term / (total * (total - 1.0)));
    let distance = ((u - pairs / 2.0).abs() - 0.5).max(0.0);
    let p = if variance > 0.0 {
        normal::two_sided_tail(distance / variance.sqrt())
    } else {
        1.0
    };
    Some(MannWhitney {
        u,
        p_two_sided: p,
        exact: false,
    })
}

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

#[expect(
    clippy::float_cmp,
    reason = "a tie is two equal values, not two close ones"
)]
/// Twice the mid-rank of every value, `a` first, and the sum of t^3 - t over the tied groups.
fn doubled_mid_ranks(a: &[f64], b: &[f64]) -> (Vec<usize>, f64) {
    let values: Vec<f64> = a.iter().chain(b).copied().collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0; values.len()];
    let mut tie_term = 0.0;
    let mut first = 0;
    for group in order.chunk_by(|&i, &j| values[i] == values[j]) {
        let t = group.len();
        for &i in group {
            ranks[i] = 2 * first + t + 1; // twice the mean of first+1 ..= first+t
        }
        tie_term += (t.pow(3) - t) as f64;
        first += t;
    }
    (ranks, tie_term)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MALES: [f64; 5] = [19.0, 22.0, 16.0, 29.0, 24.0];
    const FEMALES: [f64; 4] = [20.0, 11.0, 17.0, 12.0];
    /// Permeability constants of the human chorioamnion, Hollander and Wolfe, table 4.1.
    const TERM: [f64; 10] = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46];
    const EARLY: [f64; 5] = [1.15, 0.88, 0.90, 0.74, 1.21];

    /// Example of scipy's documentation of `mannwhitneyu`: U = 17, exact p = 0.1111.
    #[test]
    fn agrees_with_the_scipy_example() {
        let got = mann_whitney(&MALES, &FEMALES).unwrap();
        assert!(got.exact);
        assert_eq!(got.u, 17.0);
        assert!((got.p_two_sided - 1.0 / 9.0).abs() < 1e-12);
    }

    /// R's `wilcox.test` example: W = 35, one-sided p = 0.1272, so 0.2544 two-sided; shift 0.305.
    #[test]
    fn agrees_with_hollander_and_wolfe() {
        let got = mann_whitney(&TERM, &EARLY).unwrap();
        assert_eq!(got.u, 35.0);
        assert!(
            (got.p_two_sided - 0.2544).abs() < 5e-5,
            "{}",
            got.p_two_sided
        );
        let shift = hodges_lehmann(&EARLY, &TERM, 0.95).unwrap();
        assert!((shift.estimate - 0.305).abs() < 1e-9);
        let (low, high) = shift.interval.unwrap();
        assert!(
            (low + 0.15).abs() < 1e-9 && (high - 0.76).abs() < 1e-9,
            "{low} {high}"
        );
    }

    /// The same scipy example asks for the normal approximation: p = 0.11134688653314041.
    #[test]
    fn normal_tail_agrees_with_scipy() {
        let (n, m) = (MALES.len() as f64, FEMALES.len() as f64);
        let z = (17.0 - n * m / 2.0 - 0.5) / (n * m * (n + m + 1.0) / 12.0).sqrt();
        assert!((normal::two_sided_tail(z) - 0.111_346_886_533_140_41).abs() < 1e-10);
    }

    /// With ties the exact p is the share of all arrangements at least as far out: counted by hand
    /// for {1, 2} against {2, 3}: of the 6 splits, U <= 0.5 in 2 (the tied 2s are interchangeable).
    #[test]
    fn exact_distribution_honours_ties() {
        let got = mann_whitney(&[1.0, 2.0], &[2.0, 3.0]).unwrap();
        assert_eq!(got.u, 0.5);
        assert!((got.p_two_sided - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(mann_whitney(&[1.0, 1.0], &[1.0]).unwrap().p_two_sided, 1.0);
    }

    #[test]
    fn exact_and_approximate_meet_at_the_limit() {
        let a: Vec<f64> = (0..25).map(|i| f64::from(i) * 1.7 % 11.0).collect();
        let b: Vec<f64> = (0..25).map(|i| 1.5 + f64::from(i) * 2.3 % 11.0).collect();
        let exact = mann_whitney(&a, &b).unwrap();
        let longer: Vec<f64> = b.iter().copied().chain([6.0]).collect();
        let approximate = mann_whitney(&a, &longer).unwrap();
        assert!(exact.exact && !approximate.exact);
        assert!((exact.p_two_sided - approximate.p_two_sided).abs() < 0.03);
    }

    #[test]
    fn three_replicates_can_never_convince() {
        assert_eq!(
            hodges_lehmann(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0], 0.95)
                .unwrap()
                .interval,
            None
        );
        assert_eq!(mann_whitney(&[], &[1.0]), None);
    }
}
