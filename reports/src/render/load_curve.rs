//! Load curves: latency over the rate of an open loop, and where more load stops paying.
//!
//! The knee is the rate at which throughput divided by mean latency is largest: below it more load costs
//! little time, above it it gives little throughput. A server is saturated where it ends less than nine
//! of ten requests that arrive while they arrive; a case that is too short is not judged.
//!
//! Source: Kleinrock, "Power and deterministic rules of thumb for probabilistic problems in computer
//! communications" (1979).

use serde::Serialize;

use crate::render::context::PeerComparison;
use crate::render::tables::CaseRow;

/// Share of the arrivals below which a server does not keep up.
const KEPT_UP: f64 = 0.9;

/// All open loops of a group.
#[derive(Debug, Serialize)]
pub struct LoadCurves {
    /// Ours by rate, then those of other engines.
    pub rows: Vec<CurveRow>,
    pub curves: Vec<Curve>,
    pub kept_up_percent: f64,
}

/// One rate of one configuration or engine.
#[derive(Debug, Serialize)]
pub struct CurveRow {
    #[serde(flatten)]
    pub row: CaseRow,
    pub is_knee: bool,
    pub is_saturated: bool,
}

/// One configuration or engine.
#[derive(Debug, Serialize)]
pub struct Curve {
    pub experiment: String,
    /// Requests a second that arrive at the knee; none of a single rate.
    pub knee_per_s: Option<f64>,
    /// The knee is the lowest or the highest rate: it may lie beyond.
    pub is_at_end: bool,
    /// Most responses a second.
    pub most_per_s: f64,
    /// The lowest rate at which the server did not keep up.
    pub saturated_per_s: Option<f64>,
    /// Some rate lasted too short to say whether the server kept up.
    pub any_short: bool,
}

/// None where no open loop was measured.
pub fn of_group(rate: &[CaseRow], peers: &[PeerComparison]) -> Option<LoadCurves> {
    let of_peer = |peer: &PeerComparison| -> Vec<CaseRow> {
        let rows = peer.rate.iter().filter(|row| row.experiment == peer.peer);
        rows.cloned().collect()
    };
    let all: Vec<CaseRow> = rate
        .iter()
        .cloned()
        .chain(peers.iter().flat_map(of_peer))
        .filter(|row| row.rate_per_s.is_some() && row.stats.is_some())
        .collect();
    let mut names: Vec<&str> = Vec::new();
    for row in &all {
        if !names.contains(&row.experiment.as_str()) {
            names.push(&row.experiment);
        }
    }
    let curves: Vec<Curve> = names.iter().map(|name| curve_of(name, &all)).collect();
    let rows = all.iter().map(|row| {
        let curve = curves.iter().find(|c| c.experiment == row.experiment);
        CurveRow {
            is_knee: curve.is_some_and(|c| c.knee_per_s == row.rate_per_s),
            is_saturated: !keeps_up(row),
            row: row.clone(),
        }
    });
    let rows: Vec<CurveRow> = rows.collect();
    (!rows.is_empty()).then_some(LoadCurves {
        rows,
        curves,
        kept_up_percent: 100.0 * KEPT_UP,
    })
}

/// Responses a second while requests arrive, or over the whole case of a few.
pub fn achieved_per_s(row: &CaseRow) -> Option<f64> {
    let stats = row.stats.as_ref()?;
    Some(stats.steady_per_s.unwrap_or(stats.requests_per_s))
}

fn keeps_up(row: &CaseRow) -> bool {
    let arrived = row.stats.as_ref().and_then(|stats| stats.arrived_per_s);
    match (achieved_per_s(row), arrived) {
        (Some(achieved), Some(arrived)) if !row.is_short => achieved >= KEPT_UP * arrived,
        _ => true,
    }
}

fn curve_of(name: &str, all: &[CaseRow]) -> Curve {
    let rows: Vec<&CaseRow> = all.iter().filter(|row| row.experiment == name).collect();
    let rates = || rows.iter().filter_map(|row| row.rate_per_s);
    let power = |row: &&&CaseRow| {
        let mean_ms = row.stats.as_ref().map_or(f64::INFINITY, |s| s.mean_ms);
        achieved_per_s(row).unwrap_or(0.0) / mean_ms
    };
    let knee = rows.iter().max_by(|a, b| power(a).total_cmp(&power(b)));
    let knee_per_s = knee
        .and_then(|row| row.rate_per_s)
        .filter(|_| rows.len() > 1);
    let lowest = rates().fold(f64::INFINITY, f64::min);
    let highest = rates().fold(0.0, f64::max);
    Curve {
        experiment: name.to_owned(),
        is_at_end: knee_per_s.is_some_and(|rate| rate <= lowest || rate >= highest),
        knee_per_s,
        any_short: rows.iter().any(|row| row.is_short),
        most_per_s: rows
            .iter()
            .filter_map(|row| achieved_per_s(row))
            .fold(0.0, f64::max),
        saturated_per_s: rows
            .iter()
            .filter(|row| !keeps_up(row))
            .filter_map(|row| row.rate_per_s)
            .min_by(f64::total_cmp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tables::CaseStats;

    /// A rate that arrives, is served, and takes so long.
    fn row(offered: f64, achieved: f64, mean_ms: f64) -> CaseRow {
        let stats = CaseStats {
            mean_ms,
            steady_per_s: Some(achieved),
            arrived_per_s: Some(offered),
            ..CaseStats::default()
        };
        CaseRow {
            experiment: "a".into(),
            case: format!("rate-{offered}"),
            rate_per_s: Some(offered),
            stats: Some(stats),
            ..CaseRow::default()
        }
    }

    /// Of a queue with one server (M/M/1) latency is 1 / (capacity − rate), and the knee half of the
    /// capacity.
    #[test]
    fn the_knee_of_a_queue_is_half_of_its_capacity() {
        let served = [1.0, 2.0, 4.0, 5.0, 6.0, 8.0, 9.5];
        let mut rows: Vec<CaseRow> = served
            .iter()
            .map(|&rate| row(rate, rate, 1000.0 / (10.0 - rate)))
            .collect();
        rows.push(row(16.0, 10.0, 9000.0));
        let found = of_group(&rows, &[]).unwrap();
        let curve = &found.curves[0];
        assert_eq!((curve.knee_per_s, curve.is_at_end), (Some(5.0), false));
        assert_eq!(
            (curve.most_per_s, curve.saturated_per_s),
            (10.0, Some(16.0))
        );
        let marked = |mark: fn(&CurveRow) -> bool| -> Vec<f64> {
            let rows = found.rows.iter().filter(|row| mark(row));
            rows.filter_map(|row| row.row.rate_per_s).collect()
        };
        assert_eq!(marked(|row| row.is_knee), [5.0]);
        assert_eq!(marked(|row| row.is_saturated), [16.0]);
    }

    #[test]
    fn what_the_rates_do_not_reach_is_not_claimed() {
        let found = of_group(&[row(1.0, 1.0, 100.0), row(2.0, 2.0, 101.0)], &[]).unwrap();
        let curve = &found.curves[0];
        assert_eq!((curve.knee_per_s, curve.is_at_end), (Some(2.0), true));
        assert_eq!(curve.saturated_per_s, None);
        // Few arrivals are not their rate, and a short case is not judged.
        let short = CaseRow {
            is_short: true,
            ..row(4.0, 1.0, 100.0)
        };
        let found = of_group(&[row(1.0, 1.0, 100.0), short], &[]).unwrap();
        let curve = &found.curves[0];
        assert_eq!((curve.saturated_per_s, curve.any_short), (None, true));
        let found = of_group(&[row(1.0, 1.0, 100.0)], &[]).unwrap();
        assert_eq!(found.curves[0].knee_per_s, None);
        assert!(of_group(&[], &[]).is_none());
    }
}
