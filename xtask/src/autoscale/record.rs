//! What is kept of a simulated day: `data/autoscaling/<commit>.json`, which report 03 shows.

use serde::Serialize;

use super::fleet::Outcome;
use super::scaled_object::ScaledObject;

pub const SCHEMA_VERSION: u32 = 1;

#[derive(Serialize)]
pub struct Record {
    pub schema_version: u32,
    pub git: Git,
    pub card: String,
    pub flags: Vec<String>,
    pub prometheus: String,
    pub scaled_object: ScaledObject,
    pub assumed: Assumed,
    pub n_requests: usize,
    pub slo: Slo,
    pub fleets: Vec<FleetFigures>,
}

#[derive(Serialize)]
pub struct Git {
    pub commit: String,
    pub tree: String,
    pub dirty: bool,
}

/// What the simulation takes and no record measures.
#[derive(Clone, Copy, Serialize)]
#[expect(clippy::struct_field_names, reason = "the unit is in the name")]
pub struct Assumed {
    pub start_s: f64,
    pub hold_s: f64,
    pub grace_s: f64,
    pub scrape_s: f64,
}

#[derive(Clone, Copy, Serialize)]
pub struct Slo {
    pub ttft_s: f64,
    /// A request's mean between tokens.
    pub tpot_s: f64,
    /// Share of the requests that have to keep both.
    pub share: f64,
}

#[derive(Clone, Serialize)]
pub struct FleetFigures {
    /// A fixed fleet's replicas; `null` for the autoscaled ones.
    pub fixed: Option<u32>,
    pub min_replicas: u32,
    pub max_replicas: u32,
    pub start_s: f64,
    pub card_hours: f64,
    pub share_in_slo: f64,
    pub ttft_p50_s: f64,
    pub ttft_p99_s: f64,
    pub tpot_p99_s: f64,
    pub n_lost: usize,
    pub most_replicas: u32,
    pub n_changes: usize,
}

impl FleetFigures {
    pub fn of(outcome: &Outcome, slo: Slo) -> Self {
        let ttft = sorted(outcome.requests.iter().filter_map(|r| r.ttft_s));
        let tpot = sorted(outcome.requests.iter().filter_map(|r| r.tpot_s));
        let n_within = outcome.requests.iter().filter(|request| {
            let first_in_time = request.ttft_s.is_some_and(|s| s <= slo.ttft_s);
            first_in_time && request.tpot_s.is_none_or(|s| s <= slo.tpot_s)
        });
        let n_requests = outcome.requests.len();
        Self {
            fixed: None,
            min_replicas: 0,
            max_replicas: 0,
            start_s: 0.0,
            card_hours: rounded(outcome.card_s / 3600.0),
            share_in_slo: rounded(n_within.count() as f64 / n_requests.max(1) as f64),
            ttft_p50_s: rounded(quantile(&ttft, 0.5)),
            ttft_p99_s: rounded(quantile(&ttft, 0.99)),
            tpot_p99_s: rounded(quantile(&tpot, 0.99)),
            n_lost: n_requests - ttft.len(),
            most_replicas: 0,
            n_changes: 0,
        }
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The smallest value that this share does not exceed; 0 of none.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

fn rounded(value: f64) -> f64 {
    (value * 1e5).round() / 1e5
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lost_request_is_out_of_the_slo_and_has_no_time() {
        let outcome: Outcome = serde_json::from_value(json!({"card_s": 7200.0, "requests": [
            {"sent_s": 0.0, "ttft_s": 1.0, "tpot_s": 0.01},
            {"sent_s": 1.0, "ttft_s": 5.0, "tpot_s": 0.01},
            {"sent_s": 2.0, "ttft_s": 1.0, "tpot_s": 0.2},
            {"sent_s": 3.0, "ttft_s": 0.5, "tpot_s": null},
            {"sent_s": 4.0, "ttft_s": null, "tpot_s": null},
        ]}))
        .expect("an outcome");
        let slo = Slo {
            ttft_s: 3.0,
            tpot_s: 0.1,
            share: 0.9,
        };
        let figures = FleetFigures::of(&outcome, slo);
        assert_eq!(figures.n_lost, 1);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(near(figures.share_in_slo, 0.4) && near(figures.card_hours, 2.0));
        assert!(near(figures.ttft_p50_s, 1.0) && near(figures.ttft_p99_s, 5.0));
        assert!(near(figures.tpot_p99_s, 0.2));
    }
}
