//! Energy per output token and mean power of every case that was metered, and what the electricity
//! costs at a price.

use serde::Serialize;

use crate::render::compare::{Metric, VerdictRow};
use crate::render::context::PeerComparison;
use crate::render::tables::CaseRow;

/// A kilowatt-hour in joules.
const JOULES_PER_KWH: f64 = 3.6e6;

#[derive(Debug, Serialize)]
pub struct EnergyTable {
    /// Whose energy it is: the GPU's board, else the processor's packages.
    pub is_gpu: bool,
    /// Some figure is a sum of power samples.
    pub any_estimate: bool,
    pub rows: Vec<EnergyRow>,
    pub price_per_kwh: Option<f64>,
}

#[derive(Debug, Serialize)]
pub struct EnergyRow {
    pub experiment: String,
    pub case: String,
    pub joules_per_token: f64,
    pub mean_w: f64,
    pub n_runs: usize,
    /// Against the baseline.
    pub verdict: Option<VerdictRow>,
    /// Electricity of a million output tokens, in the price's currency.
    pub cost_per_million: Option<f64>,
}

/// `tables`: rows of configurations; `None` where nothing was metered.
pub fn table_of(
    tables: [&[CaseRow]; 3],
    peers: &[PeerComparison],
    is_gpu: bool,
) -> Option<EnergyTable> {
    let of_peer = |peer: &PeerComparison| -> Vec<CaseRow> {
        let all = peer.latency.iter().chain(&peer.users).chain(&peer.rate);
        let own = all.filter(|row| row.experiment == peer.peer);
        // What its rows are judged against is not the baseline.
        own.map(|row| CaseRow {
            verdicts: Vec::new(),
            ..row.clone()
        })
        .collect()
    };
    let all: Vec<CaseRow> = tables
        .into_iter()
        .flatten()
        .cloned()
        .chain(peers.iter().flat_map(of_peer))
        .collect();
    let energy_of = |row: &CaseRow| row.stats.as_ref().and_then(|stats| stats.energy);
    let rows: Vec<EnergyRow> = all
        .iter()
        .filter_map(|row| {
            let energy = energy_of(row)?;
            let is_it = |v: &&VerdictRow| v.key == Metric::Energy.key();
            Some(EnergyRow {
                experiment: row.experiment.clone(),
                case: row.case.clone(),
                joules_per_token: energy.joules_per_token,
                mean_w: energy.mean_w,
                n_runs: energy.n_runs,
                verdict: row.verdicts.iter().find(is_it).cloned(),
                cost_per_million: None,
            })
        })
        .collect();
    (!rows.is_empty()).then(|| EnergyTable {
        is_gpu,
        any_estimate: all.iter().filter_map(energy_of).any(|e| e.is_estimate),
        rows,
        price_per_kwh: None,
    })
}

impl EnergyTable {
    pub fn take_price(&mut self, price_per_kwh: f64) {
        self.price_per_kwh = Some(price_per_kwh);
        for row in &mut self.rows {
            let joules = 1e6 * row.joules_per_token;
            row.cost_per_million = Some(joules / JOULES_PER_KWH * price_per_kwh);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tables::{CaseStats, EnergyStats};

    fn row(energy: Option<EnergyStats>) -> CaseRow {
        CaseRow {
            experiment: "a".into(),
            case: "users-20".into(),
            stats: Some(CaseStats {
                energy,
                ..CaseStats::default()
            }),
            ..CaseRow::default()
        }
    }

    #[test]
    fn a_million_tokens_cost_their_kilowatt_hours() {
        let energy = EnergyStats {
            joules_per_token: 1.8,
            mean_w: 540.0,
            n_runs: 6,
            is_estimate: false,
        };
        let rows = [row(None), row(Some(energy))];
        let mut table = table_of([&rows, &[], &[]], &[], true).unwrap();
        assert_eq!((table.rows.len(), table.any_estimate), (1, false));
        assert_eq!(table.rows[0].cost_per_million, None);
        // 1.8 MJ are half a kilowatt-hour.
        table.take_price(0.3);
        assert!((table.rows[0].cost_per_million.unwrap() - 0.15).abs() < 1e-12);
    }

    #[test]
    fn nothing_metered_is_no_table() {
        assert!(table_of([&[row(None)], &[], &[]], &[], true).is_none());
    }
}
