//! Wilcoxon's signed-rank test and the Hodges-Lehmann shift of paired differences.
//!
//! For runs of one round: same prompts, one after the other on one machine. What a round shares
//! drops out of its difference.
//!
//! Few differences use the exact distribution over all signs, given the ties that are there
//! (mid-ranks, doubled to stay integers); many the normal approximation with tie and continuity
//! correction. Differences of zero say nothing of a direction and are left out of the test
//! (Wilcoxon), not out of the shift. The interval of the shift inverts the same test.
//!
//! Sources: Wilcoxon (1945); Hollander and Wolfe, "Nonparametric Statistical Methods", chapter 3.

use super::normal;
use super::rank::Shift;

/// Differences above which the normal approximation is used.
const EXACT_LIMIT: usize = 50;

/// Result of the two-sided test of "differences are symmetric around zero".
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SignedRank {
    /// Sum of the ranks of the positive differences.
    pub v: f64,
    pub p_two_sided: f64,
    pub exact: bool,
}

/// None without differences or with a NaN among them.
///
/// ```
/// use reports::stats::signed_rank::wilcoxon;
///
/// let test = wilcoxon(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).ok_or("no data")?;
/// assert_eq!(test.v, 21.0);
/// assert_eq!(test.p_two_sided, 0.03125); // 2 / 2^6
/// # Ok::<(), &str>(())
/// ```
pub fn wilcoxon(differences: &[f64]) -> Option<SignedRank> {
    if differences.is_empty() || differences.iter().any(|d| d.is_nan()) {
        return None;
    }
    let mut sizes: Vec<(f64, bool)> = differences
        .iter()
        .filter(|d| **d != 0.0)
        .map(|d| (d.abs(), *d > 0.0))
        .collect();
    sizes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let n = sizes.len();
    let (doubled_ranks, tie_term) = doubled_mid_ranks(&sizes);
    let doubled_v: usize = sizes
        .iter()
        .zip(&doubled_ranks)
        .filter_map(|((_, positive), rank)| positive.then_some(*rank))
        .sum();
    let v = doubled_v as f64 / 2.0;
    if n <= EXACT_LIMIT {
        let shares = sum_distribution(&doubled_ranks);
        let at_most: f64 = shares[..=doubled_v].iter().sum();
        let at_least: f64 = shares[doubled_v..].iter().sum();
        return Some(SignedRank {
            v,
            p_two_sided: (2.0 * at_most.min(at_least)).min(1.0),
            exact: true,
        });
    }
    let n = n as f64;
    let variance = n * (n + 1.0) * (2.0 * n + 1.0) / 24.0 - tie_term / 48.0;
    let distance = ((v - n * (n + 1.0) / 4.0).abs() - 0.5).max(0.0);
    Some(SignedRank {
        v,
        p_two_sided: normal::two_sided_tail(distance / variance.sqrt()),
        exact: false,
    })
}

/// Median of all averages of two differences (Walsh averages), and its interval of coverage at
/// least `level`.
pub fn hodges_lehmann(differences: &[f64], level: f64) -> Option<Shift> {
    if differences.is_empty() || differences.iter().any(|d| d.is_nan()) {
        return None;
    }
    let mut averages: Vec<f64> = differences
        .iter()
        .enumerate()
        .flat_map(|(i, a)| differences[i..].iter().map(move |b| f64::midpoint(*a, *b)))
        .collect();
    let n = averages.len();
    let estimate = f64::midpoint(
        order_statistic(&mut averages, (n - 1) / 2),
        order_statistic(&mut averages, n / 2),
    );
    let k = critical_count(differences.len(), (1.0 - level) / 2.0);
    let interval = (k > 0).then(|| {
        (
            order_statistic(&mut averages, k - 1),
            order_statistic(&mut averages, n - k),
        )
    });
    Some(Shift { estimate, interval })
}

/// Smallest p-value for this many differences: all of one sign.
pub fn smallest_p(n: usize) -> f64 {
    0.5_f64
        .powi(i32::try_from(n).unwrap_or(i32::MAX) - 1)
        .min(1.0)
}

/// The value at `position` of the ascending order; hundreds of thousands need no sorting.
fn order_statistic(values: &mut [f64], position: usize) -> f64 {
    *values.select_nth_unstable_by(position, f64::total_cmp).1
}

/// The largest k with P(V <= k - 1) <= tail; 0 where there is none. Without ties.
fn critical_count(n: usize, tail: f64) -> usize {
    if n > EXACT_LIMIT {
        let n = n as f64;
        let spread = (n * (n + 1.0) * (2.0 * n + 1.0) / 24.0).sqrt();
        let count = n * (n + 1.0) / 4.0 - normal::quantile(1.0 - tail) * spread;
        return count.floor().max(0.0) as usize;
    }
    let ranks: Vec<usize> = (1..=n).collect();
    let mut cumulated = 0.0;
    for (k, share) in sum_distribution(&ranks).iter().enumerate() {
        cumulated += share;
        if cumulated > tail {
            return k;
        }
    }
    0
}

/// Probability of each sum of the ranks that got a plus, when every sign is as likely.
fn sum_distribution(ranks: &[usize]) -> Vec<f64> {
    let mut shares = vec![0.0; ranks.iter().sum::<usize>() + 1];
    shares[0] = 1.0;
    let mut reached = 0;
    for &rank in ranks {
        reached += rank;
        for sum in (0..=reached).rev() {
            let with = if sum >= rank { shares[sum - rank] } else { 0.0 };
            shares[sum] = f64::midpoint(shares[sum], with);
        }
    }
    shares
}

#[expect(
    clippy::float_cmp,
    reason = "a tie is two equal values, not two close ones"
)]
/// Twice the mid-rank of every size (ascending), and the sum of t^3 - t over the tied groups.
fn doubled_mid_ranks(sizes: &[(f64, bool)]) -> (Vec<usize>, f64) {
    let mut ranks = Vec::with_capacity(sizes.len());
    let mut tie_term = 0.0;
    for group in sizes.chunk_by(|a, b| a.0 == b.0) {
        let t = group.len();
        let doubled = 2 * ranks.len() + t + 1;
        ranks.extend(std::iter::repeat_n(doubled, t));
        tie_term += (t.pow(3) - t) as f64;
    }
    (ranks, tie_term)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Depression scores of nine patients before and after a tranquillizer: Hollander and Wolfe,
    /// table 3.1, example of R's `wilcox.test`. V = 40, one-sided p = 0.01953; shift 0.46 with the
    /// interval 0.010 to 0.786.
    #[test]
    #[expect(clippy::approx_constant, reason = "a patient's score is 3.14")]
    fn agrees_with_hollander_and_wolfe() {
        let before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30];
        let after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29];
        let differences: Vec<f64> = before.iter().zip(after).map(|(b, a)| b - a).collect();
        let got = wilcoxon(&differences).unwrap();
        assert!(got.exact);
        assert_eq!(got.v, 40.0);
        assert!((got.p_two_sided - 2.0 * 0.019_531_25).abs() < 1e-12);
        let shift = hodges_lehmann(&differences, 0.95).unwrap();
        assert!((shift.estimate - 0.46).abs() < 1e-9, "{shift:?}");
        let (low, high) = shift.interval.unwrap();
        assert!((low - 0.010).abs() < 1e-9 && (high - 0.786).abs() < 1e-9);
    }

    /// Darwin's maize, the example of scipy's documentation of `wilcoxon`: the smaller sum is 24,
    /// p = 0.041259765625.
    #[test]
    fn agrees_with_the_scipy_example() {
        let differences = [
            6.0, 8.0, 14.0, 16.0, 23.0, 24.0, 28.0, 29.0, 41.0, -48.0, 49.0, 56.0, 60.0, -67.0,
            75.0,
        ];
        let got = wilcoxon(&differences).unwrap();
        assert_eq!(got.v, 120.0 - 24.0);
        assert!((got.p_two_sided - 0.041_259_765_625).abs() < 1e-12);
    }

    /// Critical values that every table of the test prints (two-sided 5 %): the largest sum that
    /// is significant, for n = 6, 8, 10, 15, 20, 25, 50.
    #[test]
    fn critical_values_agree_with_the_tables() {
        for (n, largest) in [
            (6, 0),
            (8, 3),
            (10, 8),
            (15, 25),
            (20, 52),
            (25, 89),
            (50, 434),
        ] {
            assert_eq!(critical_count(n, 0.025), largest + 1, "n = {n}");
        }
        assert_eq!(critical_count(5, 0.025), 0);
    }

    /// Counted by hand: |d| = 1, 1, 2 has the ranks 1.5, 1.5, 3; of the eight signs, two reach a
    /// sum of 1.5 or less that way round (nothing; one of the ties counts twice).
    #[test]
    fn exact_distribution_honours_ties_and_leaves_zeros_out() {
        let got = wilcoxon(&[-1.0, 1.0, -2.0]).unwrap();
        assert_eq!(got.v, 1.5);
        assert!((got.p_two_sided - 2.0 * 3.0 / 8.0).abs() < 1e-12);
        assert_eq!(wilcoxon(&[0.0, -1.0, 1.0, -2.0]), Some(got));
        assert_eq!(wilcoxon(&[0.0, 0.0]).unwrap().p_two_sided, 1.0);
        assert_eq!(wilcoxon(&[]), None);
        assert_eq!(wilcoxon(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn exact_and_approximate_meet_at_the_limit() {
        let differences = |n: i32| -> Vec<f64> {
            (0..n)
                .map(|i| f64::from(i * 37 % 101) / 10.0 - 4.03)
                .collect()
        };
        let exact = wilcoxon(&differences(50)).unwrap();
        let approximate = wilcoxon(&differences(51)).unwrap();
        assert!(exact.exact && !approximate.exact);
        assert!(
            (exact.p_two_sided - approximate.p_two_sided).abs() < 0.03,
            "{exact:?} {approximate:?}"
        );
        assert!(critical_count(51, 0.025).abs_diff(critical_count(50, 0.025)) < 30);
    }

    #[test]
    fn few_differences_can_never_convince() {
        assert!((smallest_p(5) - 2.0 / 32.0).abs() < 1e-12);
        assert!((smallest_p(6) - 2.0 / 64.0).abs() < 1e-12);
        assert_eq!(smallest_p(0), 1.0);
        assert_eq!(
            hodges_lehmann(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.95)
                .unwrap()
                .interval,
            None
        );
        assert_eq!(hodges_lehmann(&[], 0.95), None);
    }
}
