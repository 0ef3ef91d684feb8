//! Percentile bootstrap intervals, with the server start as the outer unit.
//!
//! With several runs, a resample draws runs and then requests within each drawn run, so the
//! interval carries the spread between server starts. With one run only its requests can be
//! drawn, and few runs give an interval that is too narrow; callers ask for enough of them.
//!
//! Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 6, 13.

use super::describe::percentile_of_sorted;
use super::rng::SplitMix64;

/// How to resample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BootstrapConfig {
    pub n_resamples: usize,
    pub seed: u64,
    /// Coverage, between 0 and 1.
    pub level: f64,
}

impl Default for BootstrapConfig {
    fn default() -> Self {
        Self {
            n_resamples: 1000,
            seed: 20_250_916,
            level: 0.95,
        }
    }
}

/// Requests resampled per run at most: an interval of a median gains nothing visible beyond it,
/// and a million rows stay affordable. Larger runs are thinned to evenly spaced order statistics.
const MAX_PER_RUN: usize = 2000;

/// Two-sided interval of `statistic` over `runs` (ascending samples, one slice a server start).
/// None without data or where the statistic is not defined.
pub fn interval(
    runs: &[&[f64]],
    statistic: impl Fn(&[f64]) -> Option<f64>,
    config: BootstrapConfig,
) -> Option<(f64, f64)> {
    let mut estimates = distribution(runs, statistic, config)?;
    estimates.sort_by(f64::total_cmp);
    let tail = (1.0 - config.level) / 2.0;
    Some((
        percentile_of_sorted(&estimates, tail)?,
        percentile_of_sorted(&estimates, 1.0 - tail)?,
    ))
}

/// The resampled estimates in the order drawn.
pub fn distribution(
    runs: &[&[f64]],
    statistic: impl Fn(&[f64]) -> Option<f64>,
    config: BootstrapConfig,
) -> Option<Vec<f64>> {
    let runs: Vec<Vec<f64>> = runs
        .iter()
        .filter(|r| !r.is_empty())
        .map(|r| thinned(r))
        .collect();
    if runs.is_empty() || config.n_resamples == 0 {
        return None;
    }
    // Every value has its place among all of them, so a resample comes out sorted by counting.
    let mut all: Vec<(f64, usize, usize)> = Vec::new();
    for (r, run) in runs.iter().enumerate() {
        all.extend(run.iter().enumerate().map(|(i, value)| (*value, r, i)));
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut places: Vec<Vec<usize>> = runs.iter().map(|run| vec![0; run.len()]).collect();
    for (place, (_, r, i)) in all.iter().enumerate() {
        places[*r][*i] = place;
    }
    let mut rng = SplitMix64::new(config.seed);
    let mut counts = vec![0_usize; all.len()];
    let mut resample = Vec::with_capacity(all.len());
    (0..config.n_resamples)
        .map(|_| {
            counts.fill(0);
            for _ in 0..places.len() {
                let run = &places[rng.below(places.len())];
                for _ in 0..run.len() {
                    counts[run[rng.below(run.len())]] += 1;
                }
            }
            resample.clear();
            for ((value, ..), &n) in all.iter().zip(&counts) {
                resample.extend(std::iter::repeat_n(*value, n));
            }
            statistic(&resample)
        })
        .collect()
}

fn thinned(sorted: &[f64]) -> Vec<f64> {
    if sorted.len() <= MAX_PER_RUN {
        return sorted.to_vec();
    }
    let last = (sorted.len() - 1) as f64;
    (0..MAX_PER_RUN)
        .map(|i| sorted[(i as f64 * last / (MAX_PER_RUN - 1) as f64).round() as usize])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::describe::{mean, std_dev};

    /// Mouse survival times, Efron and Tibshirani table 2.1: standard errors of the mean 25.24
    /// (treatment, n = 7) and 14.14 (control, n = 9); the ideal bootstrap divides by n instead of
    /// n - 1 (formula 5.12), which makes them 23.36 and 13.33.
    #[test]
    fn standard_error_of_the_mouse_data() {
        let config = BootstrapConfig {
            n_resamples: 20_000,
            ..Default::default()
        };
        for (sample, want) in [
            (&[16.0, 23.0, 38.0, 94.0, 99.0, 141.0, 197.0][..], 23.36),
            (
                &[10.0, 27.0, 30.0, 40.0, 46.0, 51.0, 52.0, 104.0, 146.0][..],
                13.33,
            ),
        ] {
            let got = std_dev(&distribution(&[sample], mean, config).unwrap()).unwrap();
            assert!((got / want - 1.0).abs() < 0.02, "{got} against {want}");
        }
    }

    #[test]
    fn runs_that_differ_widen_the_interval() {
        let config = BootstrapConfig::default();
        let (a, b): (Vec<f64>, Vec<f64>) = (
            (0..20).map(|i| 10.0 + 0.01 * i as f64).collect(),
            (0..20).map(|i| 20.0 + 0.01 * i as f64).collect(),
        );
        let (low, high) = interval(&[&a, &b], mean, config).unwrap();
        assert!(low < 11.0 && high > 19.0, "{low} {high}");
        let (low, high) = interval(&[&a], mean, config).unwrap();
        assert!(low > 10.0 && high < 10.2, "{low} {high}");
    }

    #[test]
    fn same_seed_same_digits_and_no_data_no_interval() {
        let sample = [1.0, 2.0, 4.0, 8.0];
        let median = |v: &[f64]| percentile_of_sorted(v, 0.5);
        let config = BootstrapConfig::default();
        assert_eq!(
            interval(&[&sample], median, config),
            interval(&[&sample], median, config)
        );
        assert_eq!(interval(&[&[]], median, config), None);
        assert_eq!(interval(&[&[5.0; 3]], median, config), Some((5.0, 5.0)));
    }
}
