//! The simulated day: a made trace, the same for every fleet. Its load follows the hours, with bursts
//! that no hour announces, and nights in which hours pass without a request.

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

pub const DAY_S: f64 = 86_400.0;
/// Nothing is sent after it, so that everything ends within the day.
const LAST_S: f64 = DAY_S - 900.0;
const SEED: u64 = 20_261_201;
const N_BURSTS: usize = 8;
const BURST_S: f64 = 600.0;
/// How much more comes in a burst.
const BURST_FACTOR: f64 = 2.0;
const NIGHT_PER_S: f64 = 1.0 / 1200.0;
const PEAK_PER_S: f64 = 2.0;
/// Median, and standard deviation of the logarithm, least and most.
const PROMPT_TOKENS: (f64, f64, u32, u32) = (1200.0, 0.8, 32, 6000);
const OUTPUT_TOKENS: (f64, f64, u32, u32) = (120.0, 0.7, 8, 500);

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DayRequest {
    pub at_s: f64,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
}

/// Arrivals of a Poisson process whose rate changes, by thinning.
pub fn requests() -> Vec<DayRequest> {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let working = 8.0 * 3600.0..20.0 * 3600.0;
    let bursts: Vec<f64> = (0..N_BURSTS)
        .map(|_| random.random_range(working.clone()))
        .collect();
    let most = PEAK_PER_S * BURST_FACTOR;
    let mut requests = Vec::new();
    let mut at_s = 0.0;
    loop {
        at_s += -(1.0 - random.random::<f64>()).ln() / most;
        if at_s > LAST_S {
            return requests;
        }
        let is_burst = bursts
            .iter()
            .any(|from| (*from..*from + BURST_S).contains(&at_s));
        let rate = rate_per_s(at_s) * if is_burst { BURST_FACTOR } else { 1.0 };
        if random.random::<f64>() * most < rate {
            requests.push(DayRequest {
                at_s,
                prompt_tokens: tokens(&mut random, PROMPT_TOKENS),
                output_tokens: tokens(&mut random, OUTPUT_TOKENS),
            });
        }
    }
}

/// From seven to midnight half a sine, with its peak at half past three; else the night's.
fn rate_per_s(at_s: f64) -> f64 {
    let hour = at_s / 3600.0;
    let phase = (hour - 7.0) / 17.0;
    let day = if (0.0..1.0).contains(&phase) {
        (phase * std::f64::consts::PI).sin()
    } else {
        0.0
    };
    NIGHT_PER_S + PEAK_PER_S * day * day
}

fn tokens(random: &mut ChaCha8Rng, (median, spread, least, most): (f64, f64, u32, u32)) -> u32 {
    // Box and Muller.
    let (u, v): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
    let normal = (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos();
    ((median * (spread * normal).exp()) as u32).clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_is_the_same_each_time_and_has_hours_bursts_and_a_night() {
        let day = requests();
        assert_eq!(day, requests());
        assert!(day.is_sorted_by(|a, b| a.at_s <= b.at_s));
        let between = |from_h: f64, to_h: f64| {
            let hours = from_h * 3600.0..to_h * 3600.0;
            day.iter().filter(|r| hours.contains(&r.at_s)).count()
        };
        assert!((40_000..100_000).contains(&day.len()), "{}", day.len());
        assert!(
            (1..60).contains(&between(0.0, 7.0)),
            "{}",
            between(0.0, 7.0)
        );
        assert!(between(15.0, 16.0) > 5 * between(8.0, 9.0));
        assert_eq!(between(23.75, 24.0), 0);
        let busiest = (0..144)
            .map(|i| between(f64::from(i) / 6.0, f64::from(i + 1) / 6.0))
            .max();
        assert!(busiest > Some(1500), "a burst in the day: {busiest:?}");
    }
}
