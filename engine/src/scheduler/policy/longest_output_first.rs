//! `longest-output-first`: most output tokens still allowed first (what SGLang calls `lof`).
//! Long requests start early and short ones fill the batch up as they end.

use super::{Candidate, Policy, TOKEN_WEIGHT_US};

#[derive(Debug)]
pub struct LongestOutputFirst;

impl Policy for LongestOutputFirst {
    fn handicap_us(&self, candidate: &Candidate<'_>) -> i64 {
        (candidate.n_output_left as i64).saturating_mul(-TOKEN_WEIGHT_US)
    }
}
