//! The Hodges-Lehmann shift of paired differences, and its interval.
//!
//! For runs of one round: same prompts, one after the other on one machine. What a round shares
//! drops out of its difference. The interval inverts Wilcoxon's signed-rank test: with the exact
//! distribution over all signs where differences are few, else with the normal approximation.
//!
//! Sources: Wilcoxon (1945); Hollander and Wolfe, "Nonparametric Statistical Methods", chapter 3.

use super::normal;
use super::rank::Shift;

/// Differences above which the normal approximation is used.
const EXACT_LIMIT: usize = 50;

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Depression scores of nine patients before and after a tranquillizer: Hollander and Wolfe,
    /// table 3.1, example of R's `wilcox.test`: shift 0.46 with the interval 0.010 to 0.786.
    #[test]
    #[expect(clippy::approx_constant, reason = "a patient's score is 3.14")]
    fn agrees_with_hollander_and_wolfe() {
        let before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30];
        let after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29];
        let differences: Vec<f64> = before.iter().zip(after).map(|(b, a)| b - a).collect();
        let shift = hodges_lehmann(&differences, 0.95).unwrap();
        assert!((shift.estimate - 0.46).abs() < 1e-9, "{shift:?}");
        let (low, high) = shift.interval.unwrap();
        assert!((low - 0.010).abs() < 1e-9 && (high - 0.786).abs() < 1e-9);
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

    #[test]
    fn exact_and_approximate_meet_at_the_limit() {
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
