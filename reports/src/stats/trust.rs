//! How far the verdicts can be trusted, by simulation with the noise of real runs.
//!
//! A campaign is simulated by drawing server starts for two arms from the deviations that real
//! starts showed from their own arm's mean. With no true difference every "faster" or "slower" is
//! false; with a true one, "found" means that some metric is called faster and none slower.
//!
//! A start's deviations of all metrics are drawn together, so metrics stay as correlated as they
//! are. Deviations from a mean of n starts are too small by √((n − 1)/n); they are stretched back.

use super::describe::mean;
use super::rng::SplitMix64;
use super::verdict::{Better, MetricSamples, Verdict, VerdictConfig, compare_family};

/// Deviations of one server start, one a metric, on the logarithmic scale.
pub type Deviations = Vec<f64>;

/// Deviations of every start of one arm from the arm's mean; `values[start][metric]`, all positive.
/// None for fewer than two starts.
pub fn deviations(values: &[Vec<f64>]) -> Option<Vec<Deviations>> {
    let n = values.len();
    let n_metrics = values.first()?.len();
    if n < 2
        || values
            .iter()
            .flatten()
            .any(|v| !(v.is_finite() && *v > 0.0))
    {
        return None;
    }
    let stretch = (n as f64 / (n - 1) as f64).sqrt();
    let centres: Option<Vec<f64>> = (0..n_metrics)
        .map(|m| mean(&values.iter().map(|start| start[m].ln()).collect::<Vec<_>>()))
        .collect();
    let centres = centres?;
    let of_start = |start: &Vec<f64>| {
        let pairs = start.iter().zip(&centres);
        pairs
            .map(|(v, centre)| (v.ln() - centre) * stretch)
            .collect()
    };
    Some(values.iter().map(of_start).collect())
}

/// Shares of the simulated campaigns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trust {
    pub n_starts: usize,
    /// Without a difference, some metric was called faster or slower.
    pub false_share: f64,
    /// With the difference, some metric was called faster and none slower.
    pub found_share: f64,
}

/// `noise`: deviations to draw from; `better`: one a metric; `effect`: the true improvement (0.03).
pub fn simulate(
    noise: &[Deviations],
    better: &[Better],
    n_starts: usize,
    n_campaigns: usize,
    effect: f64,
    config: VerdictConfig,
) -> Trust {
    const SEED: u64 = 20_261_122;
    let mut rng = SplitMix64::new(SEED);
    let mut share = |effect: f64, counts: fn(&[Verdict]) -> bool| {
        let hits = (0..n_campaigns).filter(|_| {
            let (before, after) = (
                draw(noise, n_starts, &mut rng),
                draw(noise, n_starts, &mut rng),
            );
            let verdicts = verdicts_of(&before, &after, better, effect, config);
            counts(&verdicts)
        });
        hits.count() as f64 / n_campaigns.max(1) as f64
    };
    Trust {
        n_starts,
        false_share: share(0.0, |verdicts| {
            verdicts
                .iter()
                .any(|v| matches!(v, Verdict::Faster | Verdict::Slower))
        }),
        found_share: share(effect, |verdicts| {
            verdicts.contains(&Verdict::Faster) && !verdicts.contains(&Verdict::Slower)
        }),
    }
}

fn draw<'a>(noise: &'a [Deviations], n: usize, rng: &mut SplitMix64) -> Vec<&'a Deviations> {
    (0..n).map(|_| &noise[rng.below(noise.len())]).collect()
}

fn verdicts_of(
    before: &[&Deviations],
    after: &[&Deviations],
    better: &[Better],
    effect: f64,
    config: VerdictConfig,
) -> Vec<Verdict> {
    let family: Vec<MetricSamples> = better
        .iter()
        .enumerate()
        .map(|(m, &better)| {
            let factor = match better {
                Better::Lower => 1.0 - effect,
                Better::Higher => 1.0 + effect,
            };
            MetricSamples {
                metric: String::new(),
                better,
                before: before.iter().map(|start| start[m].exp()).collect(),
                after: after.iter().map(|start| start[m].exp() * factor).collect(),
            }
        })
        .collect();
    compare_family(&family, config)
        .iter()
        .map(|c| c.verdict)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_have_the_spread_of_their_starts() {
        let values: Vec<Vec<f64>> = [1.00, 1.02, 0.98, 1.01, 0.99]
            .iter()
            .map(|v| vec![*v])
            .collect();
        let got: Vec<f64> = deviations(&values).unwrap().iter().map(|d| d[0]).collect();
        let logs: Vec<f64> = values.iter().map(|v| v[0].ln()).collect();
        let population = |v: &[f64]| {
            let centre = mean(v).unwrap();
            (v.iter().map(|x| (x - centre).powi(2)).sum::<f64>() / v.len() as f64).sqrt()
        };
        let want = crate::stats::describe::std_dev(&logs).unwrap();
        assert!((population(&got) - want).abs() < 1e-12);
        assert_eq!(deviations(&values[..1]), None);
        assert_eq!(deviations(&[vec![1.0], vec![0.0]]), None);
    }

    /// Starts that differ by half a per cent: few false verdicts, and three per cent are found with
    /// five starts an arm, but never with three.
    #[test]
    fn little_noise_needs_few_starts() {
        let noise: Vec<Deviations> = (0..40)
            .map(|i| {
                let at = |k: usize| 0.005 * ((i * (7 + 4 * k) % 40) as f64 - 19.5) / 11.5;
                vec![at(0), at(1), at(2)]
            })
            .collect();
        let better = [Better::Lower, Better::Higher, Better::Lower];
        let config = VerdictConfig::default();
        let five = simulate(&noise, &better, 5, 1000, 0.03, config);
        assert!(five.false_share <= 0.05, "{five:?}");
        assert!(five.found_share >= 0.8, "{five:?}");
        assert_eq!(
            simulate(&noise, &better, 3, 200, 0.03, config).found_share,
            0.0
        );
    }
}
