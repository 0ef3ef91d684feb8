//! Checks what other documents print against what else they print.
//!
//! Four questions, answered from `data/imported/` alone:
//! - [`claims`]: does a derived figure (per cent, ratio, sum, spread) follow from the figures it
//!   was derived from?
//! - [`identities`]: do figures that hang together (latency, speed and first token; throughput,
//!   latency and users) bear each other out, and can they be at all?
//! - [`contradictions`]: which figures are printed with two values that cannot be one value
//!   rounded twice, and which values are printed under two names?
//! - [`samples`]: do comparisons rest on the same number of samples, and is it stated at all?
//!
//! Nothing here knows a document: figures are found by metric, subject and condition. A printed
//! figure stands for every number that rounds to it, so "follows" and "does not follow" are said
//! only where rounding leaves no doubt ([`quantity`]).

mod claims;
mod collective;
mod contradictions;
mod identities;
mod quantity;
mod samples;

use std::path::Path;

use serde::Serialize;

use crate::lang::Lang;
use crate::load::imported::Figure;

pub use claims::ClaimRow;
pub use contradictions::{ContradictionRow, LookalikeRow};
pub use identities::IdentityRow;
pub(crate) use quantity::base_and_suffix;
pub use samples::SampleRow;

/// Everything that the audit report shows.
#[derive(Debug, Serialize)]
pub struct Audit {
    pub claims: Vec<ClaimRow>,
    pub n_follows: usize,
    pub n_fails: usize,
    pub n_unknown: usize,
    /// Not to be recomputed, but borne out by another figure.
    pub n_consistent: usize,
    /// What is wrong first.
    pub identities: Vec<IdentityRow>,
    pub contradictions: Vec<ContradictionRow>,
    pub lookalikes: Vec<LookalikeRow>,
    pub samples: Vec<SampleRow>,
}

pub fn audit(figures: &[Figure], lang: Lang) -> Audit {
    // Result files of load generators claim nothing: two of them are two measurements.
    let figures: Vec<Figure> = figures
        .iter()
        .filter(|figure| Path::new(&figure.document).extension() == Some("md".as_ref()))
        .cloned()
        .collect();
    let figures = figures.as_slice();
    let names = quantity::Names::of(figures);
    let claims = claims::rows(figures, &names, lang);
    let count = |verdict| claims.iter().filter(|c| c.verdict == verdict).count();
    Audit {
        n_follows: count("follows"),
        n_fails: count("fails"),
        n_unknown: count("unknown"),
        n_consistent: count("consistent"),
        identities: identities::rows(figures, &names, lang),
        contradictions: contradictions::rows(figures, &names, lang),
        lookalikes: contradictions::lookalikes(figures, &names, lang),
        samples: samples::rows(figures),
        claims,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_result_files_contradict_nothing_and_two_documents_do() {
        let figure = |document: &str, value: f64| Figure {
            source: "vllm".into(),
            document: document.into(),
            section: "result 1".into(),
            metric: "output_throughput".into(),
            subject: "vllm m".into(),
            condition: "rate inf".into(),
            value: value.to_string(),
            number: Some(value),
            unit: "tok/s".into(),
            kind: "measured".into(),
            note: String::new(),
        };
        let n_contradictions = |a: &str, b: &str| {
            let figures = [figure(a, 655.36), figure(b, 301.25)];
            audit(&figures, Lang::En).contradictions.len()
        };
        assert_eq!(n_contradictions("a.md", "b.md"), 1);
        assert_eq!(n_contradictions("a.json", "b.json"), 0);
    }
}
