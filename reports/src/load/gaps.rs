//! Inter-token latency: the gaps between arrivals, counted in narrow classes.
//!
//! A million requests have tens of millions of gaps. They are read line by line and only counted,
//! in classes that are 1 % wide, so memory stays small and any percentile is right to 0.5 %.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::ErrorKind;

use serde::Deserialize;

use super::run_folder::{RunFolder, for_each_line, read_side_by_side};
use crate::ReportError;

/// Width of a class.
const RATIO: f64 = 1.01;
/// Shorter gaps are tokens of one packet: they count as this, milliseconds.
const SHORTEST_MS: f64 = 0.001;

/// Gaps of one case of one run, or of several together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gaps(BTreeMap<i32, u64>);

impl Gaps {
    pub fn add(&mut self, gap_ms: f64) {
        let class = (gap_ms.max(SHORTEST_MS).ln() / RATIO.ln()).round() as i32;
        *self.0.entry(class).or_default() += 1;
    }

    pub fn merge(&mut self, other: &Self) {
        for (class, n) in &other.0 {
            *self.0.entry(*class).or_default() += n;
        }
    }

    pub fn n(&self) -> u64 {
        self.0.values().sum()
    }

    /// The class in which the gap of rank `q` (0 to 1) lies, by its middle, milliseconds.
    pub fn percentile(&self, q: f64) -> Option<f64> {
        let wanted = (q * self.n() as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        for (class, n) in &self.0 {
            below += n;
            if below >= wanted {
                return Some(RATIO.powi(*class));
            }
        }
        None
    }
}

/// By run id and case; warm-up and failed requests give none. Runs are read side by side.
///
/// # Errors
///
/// If a run's `requests.jsonl` cannot be read or one of its lines is no request row.
pub fn read_all(runs: &[&RunFolder]) -> Result<BTreeMap<(String, String), Gaps>, ReportError> {
    let mut all = BTreeMap::new();
    for (run, of_run) in runs.iter().zip(read_side_by_side(runs, read_one)?) {
        let keyed = of_run
            .into_iter()
            .map(|(case, gaps)| ((run.run_id.clone(), case), gaps));
        all.extend(keyed);
    }
    Ok(all)
}

fn read_one(run: &RunFolder) -> Result<BTreeMap<String, Gaps>, ReportError> {
    #[derive(Deserialize)]
    struct Row<'a> {
        #[serde(borrow)]
        case: Cow<'a, str>,
        warmup: bool,
        error: Option<serde::de::IgnoredAny>,
        token_s: Vec<f64>,
    }
    let mut of_run: BTreeMap<String, Gaps> = BTreeMap::new();
    let is_there = for_each_line(run, records::REQUESTS, |line| {
        let row: Row<'_> = serde_json::from_str(line).map_err(|error| error.to_string())?;
        if !row.warmup && row.error.is_none() {
            let gaps = of_run.entry(row.case.into_owned()).or_default();
            for pair in row.token_s.windows(2) {
                gaps.add((pair[1] - pair[0]) * 1000.0);
            }
        }
        Ok(())
    })?;
    if !is_there {
        let path = run.files.place().join(records::REQUESTS);
        return Err(ReportError::io(path, ErrorKind::NotFound.into()));
    }
    Ok(of_run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_half_a_per_cent() {
        let mut gaps = Gaps::default();
        for i in 1..=10_000 {
            gaps.add(f64::from(i) * 0.01);
        }
        for (q, want) in [(0.01, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let got = gaps.percentile(q).unwrap();
            assert!((got / want - 1.0).abs() <= 0.0051, "{q}: {got} for {want}");
        }
        assert_eq!(Gaps::default().percentile(0.5), None);
    }

    #[test]
    fn merging_counts_both() {
        let (mut a, mut b) = (Gaps::default(), Gaps::default());
        a.add(1.0);
        b.add(8.0);
        b.add(0.0);
        a.merge(&b);
        assert_eq!(a.n(), 3);
        assert!(a.percentile(0.1).unwrap() < 0.0011);
    }
}
