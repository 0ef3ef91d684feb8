//! Tail and quantile of the standard normal distribution, by statrs.

use statrs::distribution::{ContinuousCDF, Normal};

/// Probability of a value further from 0 than `z`, on either side.
pub fn two_sided_tail(z: f64) -> f64 {
    (2.0 * Normal::standard().sf(z.abs())).min(1.0)
}

pub fn quantile(p: f64) -> f64 {
    Normal::standard().inverse_cdf(p)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Abramowitz and Stegun, tables 26.1 and 26.5.
    #[test]
    fn tail_and_quantile_agree_with_the_tables() {
        for (z, upper) in [(1.0, 0.158_655_253_9), (2.0, 0.022_750_131_9)] {
            assert!((two_sided_tail(z) - 2.0 * upper).abs() < 1e-9);
            assert!((two_sided_tail(-z) - 2.0 * upper).abs() < 1e-9);
        }
        for (p, z) in [
            (0.975, 1.959_963_984_540_054),
            (0.995, 2.575_829_303_548_901),
        ] {
            assert!((quantile(p) - z).abs() < 1e-10, "{}", quantile(p));
        }
    }
}
