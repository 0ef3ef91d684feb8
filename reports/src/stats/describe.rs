//! Mean, spread and percentiles of a sample.
//!
//! Percentiles interpolate linearly between order statistics (type 7 of Hyndman and Fan, the
//! default of R and numpy), so that figures can be checked with either.

/// A sample in ascending order without NaN: what every function below wants.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sorted(Vec<f64>);

impl Sorted {
    /// Sorts; NaN values are refused (`None`), because no order holds with them.
    pub fn new(mut values: Vec<f64>) -> Option<Self> {
        if values.iter().any(|v| v.is_nan()) {
            return None;
        }
        values.sort_by(f64::total_cmp);
        Some(Self(values))
    }

    pub fn values(&self) -> &[f64] {
        &self.0
    }

    pub fn n(&self) -> usize {
        self.0.len()
    }

    pub fn min(&self) -> Option<f64> {
        self.0.first().copied()
    }

    pub fn max(&self) -> Option<f64> {
        self.0.last().copied()
    }

    pub fn mean(&self) -> Option<f64> {
        mean(&self.0)
    }

    /// `q` in 0..=1.
    pub fn percentile(&self, q: f64) -> Option<f64> {
        percentile_of_sorted(&self.0, q)
    }

    pub fn median(&self) -> Option<f64> {
        self.percentile(0.5)
    }

    /// Values beyond Tukey's outer fences: further than three interquartile ranges from the
    /// quartiles.
    pub fn n_outliers(&self) -> usize {
        const OUTER_FENCE: f64 = 3.0;
        self.beyond_fences(OUTER_FENCE).len()
    }

    /// Values further than `factor` interquartile ranges from the quartiles.
    fn beyond_fences(&self, factor: f64) -> Vec<f64> {
        let (Some(q1), Some(q3)) = (self.percentile(0.25), self.percentile(0.75)) else {
            return Vec::new();
        };
        let reach = factor * (q3 - q1);
        let outside = |v: &&f64| **v < q1 - reach || **v > q3 + reach;
        self.0.iter().filter(outside).copied().collect()
    }
}

pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Standard deviation with n - 1 below the sum; none for fewer than two values.
pub fn std_dev(values: &[f64]) -> Option<f64> {
    let centre = mean(values)?;
    (values.len() > 1).then(|| {
        let squares: f64 = values.iter().map(|v| (v - centre).powi(2)).sum();
        (squares / (values.len() - 1) as f64).sqrt()
    })
}

/// Type 7 percentile of ascending values; `q` outside 0..=1 gives none.
pub fn percentile_of_sorted(sorted: &[f64], q: f64) -> Option<f64> {
    if sorted.is_empty() || !(0.0..=1.0).contains(&q) {
        return None;
    }
    let position = q * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    let weight = position - below as f64;
    Some(sorted[below] + weight * (sorted[above] - sorted[below]))
}

/// Median of values in any order.
///
/// ```
/// use reports::stats::describe::{median, percentile_of_sorted};
///
/// assert_eq!(median(&[5.0, 1.0, 3.0]), Some(3.0));
/// assert_eq!(percentile_of_sorted(&[1.0, 2.0], 0.25), Some(1.25));
/// ```
pub fn median(values: &[f64]) -> Option<f64> {
    Sorted::new(values.to_vec())?.median()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Example of numpy's documentation of `percentile`, and R's `quantile(1:10, ...)`.
    #[test]
    fn percentiles_agree_with_numpy_and_r() {
        let sample = Sorted::new(vec![10.0, 7.0, 4.0, 3.0, 2.0, 1.0]).unwrap();
        assert_eq!(sample.percentile(0.5), Some(3.5));
        let one_to_ten = Sorted::new((1..=10).map(f64::from).collect()).unwrap();
        for (q, want) in [
            (0.0, 1.0),
            (0.25, 3.25),
            (0.75, 7.75),
            (0.9, 9.1),
            (1.0, 10.0),
        ] {
            assert!(
                (one_to_ten.percentile(q).unwrap() - want).abs() < 1e-12,
                "q = {q}"
            );
        }
    }

    /// NIST/SEMATECH e-Handbook of Statistical Methods, 7.1.6: of these 90 values 1441 is beyond
    /// the inner fences (1.5 interquartile ranges) and none beyond the outer ones.
    #[test]
    fn fences_agree_with_the_nist_handbook() {
        let values = [
            30, 171, 184, 201, 212, 250, 265, 270, 272, 289, 305, 306, 322, 322, 336, 346, 351,
            370, 390, 404, 409, 411, 436, 437, 439, 441, 444, 448, 451, 453, 470, 480, 482, 487,
            494, 495, 499, 503, 514, 521, 522, 527, 548, 550, 559, 560, 570, 572, 574, 578, 585,
            592, 592, 607, 616, 618, 621, 629, 637, 638, 640, 656, 668, 707, 709, 719, 737, 739,
            752, 758, 766, 792, 792, 794, 802, 818, 830, 832, 843, 858, 860, 869, 918, 925, 953,
            991, 1000, 1005, 1068, 1441,
        ];
        let sample = Sorted::new(values.map(f64::from).to_vec()).unwrap();
        assert_eq!(sample.n(), 90);
        assert_eq!(sample.beyond_fences(1.5), [1441.0]);
        assert_eq!(sample.n_outliers(), 0);
        assert_eq!(Sorted::default().n_outliers(), 0);
    }

    #[test]
    fn edges_are_answers_or_none_but_never_a_wrong_number() {
        assert_eq!(Sorted::default().median(), None);
        assert_eq!(Sorted::new(vec![1.0, f64::NAN]), None);
        assert_eq!(percentile_of_sorted(&[1.0, 2.0], 1.01), None);
        assert_eq!(std_dev(&[4.0]), None);
        assert!(
            (std_dev(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap() - 2.138_089_935).abs()
                < 1e-9
        );
    }
}
