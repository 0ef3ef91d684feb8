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
