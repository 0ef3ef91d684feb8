//! Mean, median, standard deviation and percentiles of a sample.
//!
//! Definitions, the same as those of `vllm bench serve`'s figures, so that both can
//! be compared: the percentile interpolates linearly between the two order
//! statistics around rank `p/100 * (n - 1)` (numpy's default, Hyndman-Fan type 7); the
//! standard deviation divides by n. An empty sample has no statistics: `None`, never 0.
//! Deliberately absent: intervals and tests, which belong to the reports.

/// What is reported of one metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub mean: f64,
    pub median: f64,
    pub std: f64,
    pub p95: f64,
    pub p99: f64,
}

impl Spread {
    /// `None` for an empty sample.
    pub fn of(sample: &[f64]) -> Option<Self> {
        let mean = mean(sample)?;
        let n = sample.len() as f64;
        let variance = sample.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        Some(Self {
            mean,
            median: percentile(sample, 50.0)?,
            std: variance.sqrt(),
            p95: percentile(sample, 95.0)?,
            p99: percentile(sample, 99.0)?,
        })
    }
}

/// Arithmetic mean.
pub fn mean(sample: &[f64]) -> Option<f64> {
    (!sample.is_empty()).then(|| sample.iter().sum::<f64>() / sample.len() as f64)
}

/// `p` in 0..=100; `None` outside of it, for an empty sample, or one with NaN in it.
pub fn percentile(sample: &[f64], p: f64) -> Option<f64> {
    if sample.is_empty() || !(0.0..=100.0).contains(&p) || sample.iter().any(|x| x.is_nan()) {
        return None;
    }
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = p / 100.0 * (sorted.len() - 1) as f64;
    let below = sorted[rank.floor() as usize];
    let above = sorted[rank.ceil() as usize];
    Some(below + (above - below) * rank.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: Option<f64>, b: f64) -> bool {
        a.is_some_and(|a| (a - b).abs() <= 1e-12 * b.abs().max(1.0))
    }

    #[test]
    fn percentiles_as_numpy_computes_them() {
        // np.percentile([15, 20, 35, 40, 50], [0, 5, 30, 40, 50, 99, 100])
        let sample = [40.0, 15.0, 50.0, 20.0, 35.0];
        for (p, expected) in [
            (0.0, 15.0),
            (5.0, 16.0),
            (30.0, 23.0),
            (40.0, 29.0),
            (50.0, 35.0),
            (99.0, 49.6),
            (100.0, 50.0),
        ] {
            assert!(
                close(percentile(&sample, p), expected),
                "p{p}: {:?}",
                percentile(&sample, p)
            );
        }
        assert!(close(percentile(&[1.0, 2.0, 3.0, 4.0], 50.0), 2.5));
        assert!(close(percentile(&[7.0], 99.0), 7.0));
    }

    #[test]
    fn spread_of_known_values() {
        // np.mean, np.median, np.std, np.percentile(…, 99) of [2, 4, 4, 4, 5, 5, 7, 9].
        let spread = Spread::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).expect("not empty");
        assert!(close(Some(spread.mean), 5.0));
        assert!(close(Some(spread.median), 4.5));
        assert!(close(Some(spread.std), 2.0));
        assert!(close(Some(spread.p95), 8.3));
        assert!(close(Some(spread.p99), 8.86));
    }

    #[test]
    fn no_figure_without_a_sample() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(percentile(&[1.0], 100.5), None);
        assert_eq!(percentile(&[1.0, f64::NAN], 50.0), None);
    }
}
