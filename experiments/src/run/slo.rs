//! The search for the highest load at which a share of the requests meets its limits.
//!
//! The load is doubled from the first one until it is too much, or halved until it is not; then the
//! interval between the two is bisected. The search ends where the load that is too much is at most a
//! tenth above the one that is not (for users: or one above), where the limit of the search is kept, or
//! after [`MOST_TRIALS`] trials. Every trial is a case of its own.

use records::rows::RequestRow;
use records::slo::{CLOSE_ENOUGH, MOST_TRIALS, SloOutcome, SloTrial};

use crate::record::summary::RequestTimes;
use crate::spec::workload::{Case, LoadKind, SloSearch};

/// How far below its start a search goes.
const MOST_HALVINGS: i32 = 6;

/// A search, and what it has found so far.
#[derive(Debug)]
pub struct Search<'a> {
    spec: &'a SloSearch,
    kept: Option<f64>,
    too_much: Option<f64>,
    trials: Vec<SloTrial>,
}

impl<'a> Search<'a> {
    pub fn new(spec: &'a SloSearch) -> Self {
        Self {
            spec,
            kept: None,
            too_much: None,
            trials: Vec::new(),
        }
    }

    /// The next trial; `None` at the end.
    pub fn next(&self) -> Option<(f64, Case)> {
        if self.trials.len() >= MOST_TRIALS {
            return None;
        }
        let SloSearch {
            load, start, limit, ..
        } = *self.spec;
        let next = match (self.kept, self.too_much) {
            (None, None) => Some(start),
            (Some(kept), None) => (kept < limit).then_some((2.0 * kept).min(limit)),
            (None, Some(too_much)) => {
                let least = match load {
                    LoadKind::Open => start / 2_f64.powi(MOST_HALVINGS),
                    LoadKind::Closed => 1.0,
                };
                // Loads are rounded: one that is nearly the least is the least.
                (too_much > 1.05 * least).then_some((too_much / 2.0).max(least))
            }
            (Some(kept), Some(too_much)) => {
                let is_close = too_much / kept <= CLOSE_ENOUGH
                    || (load == LoadKind::Closed && too_much - kept <= 1.0);
                (!is_close).then_some(f64::midpoint(kept, too_much))
            }
        };
        let next = match load {
            LoadKind::Open => three_digits(next?),
            LoadKind::Closed => next?.floor(),
        };
        Some((next, self.spec.case_at(next)))
    }

    /// What became of a trial. Failed requests do not meet the limits.
    pub fn take(&mut self, load: f64, case: &Case, rows: &[RequestRow]) {
        let limits = self.spec.limits();
        let of_case = || {
            rows.iter()
                .filter(|row| row.case == case.name && !row.warmup)
        };
        let n_requests = of_case().count();
        let n_within = of_case()
            .filter_map(RequestTimes::of)
            .filter(|times| times.meets(&limits))
            .count();
        let kept = n_requests > 0 && n_within as f64 >= self.spec.share * n_requests as f64;
        if kept {
            self.kept = Some(self.kept.map_or(load, |known| known.max(load)));
        } else {
            self.too_much = Some(self.too_much.map_or(load, |known| known.min(load)));
        }
        self.trials.push(SloTrial {
            case: case.name.clone(),
            load,
            n_requests: n_requests as u32,
            n_within: n_within as u32,
            kept,
        });
    }

    pub fn outcome(self) -> SloOutcome {
        SloOutcome {
            highest: self.kept,
            too_much: self.too_much,
            trials: self.trials,
        }
    }
}

/// The trials' names are made of it.
fn three_digits(load: f64) -> f64 {
    let factor = 10_f64.powi(2 - load.log10().floor() as i32);
    (load * factor).round() / factor
}

/// In words, for the terminal.
pub fn told(spec: &SloSearch, outcome: &SloOutcome) -> String {
    let unit = match spec.load {
        LoadKind::Open => "requests/s",
        LoadKind::Closed => "users",
    };
    let n = outcome.trials.len();
    match (outcome.highest, outcome.too_much) {
        (Some(kept), Some(too_much)) => {
            format!("SLO: {kept} {unit} keep the limits, {too_much} do not ({n} trials)")
        }
        (Some(kept), None) => format!(
            "SLO: {kept} {unit} keep the limits, and the search goes no higher ({n} trials)"
        ),
        (None, Some(too_much)) => {
            format!("SLO: not even {too_much} {unit} keep the limits ({n} trials)")
        }
        (None, None) => "SLO: nothing was tried".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::workload::Phase;

    fn spec(load: LoadKind, start: f64, limit: f64) -> SloSearch {
        SloSearch {
            load,
            start,
            limit,
            measured_s: 10.0,
            output_tokens: 4,
            ttft_ms: Some(200.0),
            tpot_ms: None,
            e2el_ms: None,
            share: 0.9,
        }
    }

    /// A request of a case whose first token took so long.
    fn row(case: &Case, ttft_s: f64, error: Option<&str>) -> RequestRow {
        RequestRow {
            case: case.name.clone(),
            phase: Phase::Slo,
            warmup: false,
            model: None,
            index: 0,
            user: None,
            n_users: None,
            rate_per_s: None,
            prompt_id: "p".into(),
            max_tokens: 4,
            scheduled_s: 0.0,
            sent_s: Some(0.0),
            first_token_s: Some(ttft_s),
            token_s: vec![ttft_s],
            end_s: ttft_s + 1.0,
            prompt_tokens: Some(5),
            output_tokens: Some(4),
            cached_tokens: None,
            finish_reason: None,
            error: error.map(String::from),
        }
    }

    /// A server that keeps the limits up to `capacity`.
    fn search(spec: &SloSearch, capacity: f64) -> SloOutcome {
        let mut search = Search::new(spec);
        while let Some((load, case)) = search.next() {
            let ttft_s = if load <= capacity { 0.1 } else { 0.3 };
            let rows: Vec<RequestRow> = (0..10).map(|_| row(&case, ttft_s, None)).collect();
            search.take(load, &case, &rows);
        }
        search.outcome()
    }

    #[test]
    fn a_rate_is_found_within_a_tenth() {
        for capacity in [0.9, 1.0, 3.7, 42.0, 511.0] {
            let found = search(&spec(LoadKind::Open, 1.0, 1024.0), capacity);
            let (kept, too_much) = (found.highest.expect("kept"), found.too_much.expect("not"));
            assert!(kept <= capacity && capacity < too_much, "{found:?}");
            assert!(too_much / kept <= CLOSE_ENOUGH, "{found:?}");
            let mut cases: Vec<&str> = found.trials.iter().map(|t| t.case.as_str()).collect();
            cases.sort_unstable();
            cases.dedup();
            assert_eq!(cases.len(), found.trials.len(), "a load was tried twice");
        }
    }

    #[test]
    fn users_are_found_exactly_while_they_are_few() {
        let found = search(&spec(LoadKind::Closed, 4.0, 256.0), 7.0);
        assert_eq!((found.highest, found.too_much), (Some(7.0), Some(8.0)));
        let loads: Vec<f64> = found.trials.iter().map(|t| t.load).collect();
        assert_eq!(loads, [4.0, 8.0, 6.0, 7.0]);
        let found = search(&spec(LoadKind::Closed, 4.0, 256.0), 0.0);
        assert_eq!((found.highest, found.too_much), (None, Some(1.0)));
    }

    #[test]
    fn a_search_ends_at_its_limit_and_far_below_its_start() {
        let found = search(&spec(LoadKind::Open, 1.0, 6.0), 100.0);
        assert_eq!((found.highest, found.too_much), (Some(6.0), None));
        let found = search(&spec(LoadKind::Open, 1.0, 6.0), 0.0);
        assert_eq!(found.highest, None);
        assert_eq!(found.trials.len(), 7);
        assert!(found.trials.iter().all(|trial| !trial.kept));
    }

    #[test]
    fn the_share_counts_failed_requests() {
        let spec = spec(LoadKind::Open, 1.0, 6.0);
        let mut search = Search::new(&spec);
        let (load, case) = search.next().expect("a first trial");
        let mut rows: Vec<RequestRow> = (0..9).map(|_| row(&case, 0.1, None)).collect();
        rows.push(row(&case, 0.1, Some("refused")));
        search.take(load, &case, &rows);
        assert!(search.trials[0].kept, "nine of ten are enough");
        rows.push(row(&case, 0.1, Some("refused")));
        search.take(load, &case, &rows);
        let last = &search.trials[1];
        assert_eq!((last.n_within, last.n_requests, last.kept), (9, 11, false));
        let mut search = Search::new(&spec);
        search.take(load, &case, &[]);
        assert!(!search.trials[0].kept, "no request keeps nothing");
    }
}
