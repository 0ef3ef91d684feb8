//! `lof`: least outstanding first. Outstanding = tokens not yet computed + output tokens still
//! allowed; the request with the fewest goes first, which shortens the mean wait like
//! shortest-job-first. Each outstanding token counts as [`TOKEN_WEIGHT_US`] of waiting.

use super::{Candidate, Policy, TOKEN_WEIGHT_US};

#[derive(Debug)]
pub struct Lof;

impl Policy for Lof {
    fn handicap_us(&self, candidate: &Candidate<'_>) -> i64 {
        let n_outstanding = candidate.n_uncomputed_tokens + candidate.n_output_left;
        (n_outstanding as i64).saturating_mul(TOKEN_WEIGHT_US)
    }
}
