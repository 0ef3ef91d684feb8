//! `priority`: the larger `priority` goes first. One level outweighs [`LEVEL_US`] of waiting;
//! levels beyond ±`MAX_HANDICAP_US / LEVEL_US` are clamped.

use super::{Candidate, Policy};

/// 5 s.
const LEVEL_US: i64 = 5_000_000;

#[derive(Debug)]
pub struct Priority;

impl Policy for Priority {
    fn handicap_us(&self, candidate: &Candidate<'_>) -> i64 {
        -i64::from(candidate.priority) * LEVEL_US
    }
}
