//! `random`: a seeded shuffle of the requests that arrive within one minute of each other. A
//! baseline for what a policy gains over no order at all.

use super::{Candidate, Policy};
use crate::kv::prefix::mix;

const SPREAD_US: u64 = 60_000_000;

#[derive(Debug)]
pub struct Random {
    pub seed: u64,
}

impl Policy for Random {
    fn handicap_us(&self, candidate: &Candidate<'_>) -> i64 {
        (mix(mix(self.seed) ^ candidate.request.0) % SPREAD_US) as i64
    }
}
