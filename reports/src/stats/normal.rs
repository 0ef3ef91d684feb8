//! Quantile of the standard normal distribution, by statrs.

use statrs::distribution::{ContinuousCDF, Normal};

pub fn quantile(p: f64) -> f64 {
    Normal::standard().inverse_cdf(p)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Abramowitz and Stegun, table 26.5.
    #[test]
    fn quantiles_agree_with_the_tables() {
        for (p, z) in [
            (0.975, 1.959_963_984_540_054),
            (0.995, 2.575_829_303_548_901),
        ] {
            assert!((quantile(p) - z).abs() < 1e-10, "{}", quantile(p));
        }
    }
}
