//! A simulated figure beside the measured one, and which of them are judged.
//!
//! A figure is judged where it rests on enough requests: the median or mean of a few is a matter of
//! who came first, and so is every 99th percentile of fewer than 100, which is the slowest request
//! or the one before it. Those are shown all the same, with how far measured runs of the same
//! configuration lie apart.

use records::rows::RequestRow;
use serde::{Deserialize, Serialize};

use crate::record::statistics::{mean, percentile};
use crate::record::summary::RequestTimes;

/// Requests from which on medians, means and rates are judged.
pub const ENOUGH_REQUESTS: usize = 20;
/// How far a simulated figure may be from the measured one.
pub const LIMIT: f64 = 0.15;

/// What is laid side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    OutputTokPerS,
    TtftP50Ms,
    TpotP50Ms,
    E2elP50Ms,
    E2elMeanMs,
    TtftP99Ms,
    E2elP99Ms,
    /// The longest time that a request waited for its first token.
    TtftMaxMs,
}

impl Figure {
    pub const ALL: [Self; 8] = [
        Self::OutputTokPerS,
        Self::TtftP50Ms,
        Self::TpotP50Ms,
        Self::E2elP50Ms,
        Self::E2elMeanMs,
        Self::TtftP99Ms,
        Self::E2elP99Ms,
        Self::TtftMaxMs,
    ];

    pub fn heading(self) -> &'static str {
        match self {
            Self::OutputTokPerS => "tok/s",
            Self::TtftP50Ms => "ttft p50",
            Self::TpotP50Ms => "tpot p50",
            Self::E2elP50Ms => "e2e p50",
            Self::E2elMeanMs => "e2e mean",
            Self::TtftP99Ms => "ttft p99",
            Self::E2elP99Ms => "e2e p99",
            Self::TtftMaxMs => "ttft max",
        }
    }

    /// Whether a single request may decide it.
    fn is_tail(self) -> bool {
        matches!(self, Self::TtftP99Ms | Self::E2elP99Ms | Self::TtftMaxMs)
    }

    /// `None` where no request gives it.
    pub fn of(self, rows: &[&RequestRow]) -> Option<f64> {
        let whole: Vec<&&RequestRow> = rows.iter().filter(|row| row.error.is_none()).collect();
        let times: Vec<RequestTimes> = whole
            .iter()
            .filter_map(|row| RequestTimes::of(row))
            .collect();
        let ttft = || times.iter().map(|t| t.ttft_ms).collect::<Vec<_>>();
        let e2el = || times.iter().map(|t| t.e2el_ms).collect::<Vec<_>>();
        match self {
            Self::OutputTokPerS => {
                let began_s = rows.iter().map(|row| row.scheduled_s).reduce(f64::min)?;
                let ended_s = rows.iter().map(|row| row.end_s).reduce(f64::max)?;
                let tokens: u64 = whole.iter().filter_map(|row| row.output_tokens).sum();
                (ended_s > began_s).then(|| tokens as f64 / (ended_s - began_s))
            }
            Self::TtftP50Ms => percentile(&ttft(), 50.0),
            Self::TtftP99Ms => percentile(&ttft(), 99.0),
            Self::TtftMaxMs => percentile(&ttft(), 100.0),
            Self::TpotP50Ms => {
                let tpot: Vec<f64> = times.iter().filter_map(|t| t.tpot_ms).collect();
                percentile(&tpot, 50.0)
            }
            Self::E2elP50Ms => percentile(&e2el(), 50.0),
            Self::E2elP99Ms => percentile(&e2el(), 99.0),
            Self::E2elMeanMs => mean(&e2el()),
        }
    }
}

/// How much a figure can be held against the simulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    Judged,
    /// Percentiles that the slowest request or two decide.
    Tail,
    FewRequests,
}

impl Standing {
    pub fn of(figure: Figure, n_requests: usize) -> Self {
        if n_requests < ENOUGH_REQUESTS {
            Self::FewRequests
        } else if figure.is_tail() {
            Self::Tail
        } else {
            Self::Judged
        }
    }
}

/// One case of a run: a line of `compared.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComparedCase {
    pub run_id: String,
    pub experiment: String,
    /// Flags on top of the experiment's.
    pub extra_flags: Vec<String>,
    pub model: String,
    /// What it was measured on, and what simulated on.
    pub device: String,
    pub simulated_device: String,
    /// A figure of the card's steps was taken from this run.
    pub is_fitted_on: bool,
    pub case: String,
    pub n_requests: usize,
    pub figures: Vec<ComparedFigure>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ComparedFigure {
    pub figure: Figure,
    pub measured: f64,
    pub simulated: f64,
}

impl ComparedFigure {
    /// (simulated − measured) / measured
    pub fn deviation(&self) -> f64 {
        self.simulated / self.measured - 1.0
    }

    pub fn is_within(&self) -> bool {
        self.deviation().abs() <= LIMIT
    }
}

impl ComparedCase {
    /// What two runs have in common whose figures may be expected to agree.
    pub fn configuration(&self) -> (&str, &[String], &str) {
        (&self.experiment, &self.extra_flags, &self.model)
    }

    pub fn get(&self, figure: Figure) -> Option<&ComparedFigure> {
        self.figures.iter().find(|found| found.figure == figure)
    }
}

/// Figures of both that exist.
pub fn compare(measured: &[&RequestRow], simulated: &[&RequestRow]) -> Vec<ComparedFigure> {
    Figure::ALL
        .into_iter()
        .filter_map(|figure| {
            let measured = figure.of(measured).filter(|value| *value > 0.0)?;
            Some(ComparedFigure {
                figure,
                measured,
                simulated: figure.of(simulated)?,
            })
        })
        .collect()
}

/// (largest − smallest) / median of a measured figure over the runs of one configuration, and how
/// many those are.
pub fn spread(all: &[ComparedCase], of: &ComparedCase, figure: Figure) -> (usize, Option<f64>) {
    let values: Vec<f64> = all
        .iter()
        .filter(|other| other.case == of.case && other.configuration() == of.configuration())
        .filter_map(|other| other.get(figure).map(|found| found.measured))
        .collect();
    if values.len() < 2 {
        return (values.len(), None);
    }
    let at = |p| percentile(&values, p).unwrap_or(0.0);
    (values.len(), Some((at(100.0) - at(0.0)) / at(50.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::workload::Phase;

    fn row(sent_s: f64, token_s: &[f64]) -> RequestRow {
        RequestRow {
            case: "users-2".into(),
            phase: Phase::Users,
            warmup: false,
            model: None,
            index: 0,
            user: None,
            n_users: Some(2),
            rate_per_s: None,
            prompt_id: String::new(),
            max_tokens: 3,
            scheduled_s: sent_s,
            sent_s: Some(sent_s),
            first_token_s: token_s.first().copied(),
            token_s: token_s.to_vec(),
            end_s: token_s.last().copied().unwrap_or(sent_s),
            prompt_tokens: Some(10),
            output_tokens: Some(token_s.len() as u64),
            cached_tokens: None,
            finish_reason: None,
            error: None,
        }
    }

    #[test]
    fn figures_worked_by_hand() {
        let rows = [row(0.0, &[0.1, 0.2, 0.4]), row(1.0, &[1.3, 1.5, 2.0])];
        let rows: Vec<&RequestRow> = rows.iter().collect();
        let found: Vec<f64> = Figure::ALL
            .iter()
            .map(|figure| figure.of(&rows).expect("a figure"))
            .collect();
        // 6 tokens in 2 s; ttft 100 and 300; tpot 150 and 350; e2e 400 and 1,000 ms.
        let expected = [3.0, 200.0, 250.0, 700.0, 700.0, 298.0, 994.0, 300.0];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
        }
        assert_eq!(Figure::TtftP50Ms.of(&[]), None);
    }

    #[test]
    fn few_requests_and_tails_are_not_judged() {
        for (figure, n_requests, expected) in [
            (Figure::TtftP50Ms, 20, Standing::Judged),
            (Figure::OutputTokPerS, 60, Standing::Judged),
            (Figure::TtftP50Ms, 19, Standing::FewRequests),
            (Figure::TtftP99Ms, 60, Standing::Tail),
            (Figure::TtftMaxMs, 3, Standing::FewRequests),
        ] {
            assert_eq!(Standing::of(figure, n_requests), expected);
        }
        let figure = |simulated| ComparedFigure {
            figure: Figure::TtftP50Ms,
            measured: 100.0,
            simulated,
        };
        assert!(figure(85.5).is_within() && figure(114.5).is_within());
        assert!(!figure(84.5).is_within() && !figure(115.5).is_within());
    }
}
