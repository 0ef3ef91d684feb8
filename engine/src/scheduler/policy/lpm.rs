//! `lpm`: longest prefix match first. Prompts are matched, in whole pages, with what is cached and
//! with the prompts of running requests, which are about to be cached. If nothing matches, every
//! handicap is 0 and the order is `fcfs`. Without the prefix cache only the order changes, and no
//! work is saved.

use super::{Candidate, Policy, TOKEN_WEIGHT_US};
use crate::kv::PrefixIndex;

#[derive(Debug)]
pub struct Lpm;

impl Policy for Lpm {
    fn handicap_us(&self, _candidate: &Candidate<'_>) -> i64 {
        0
    }

    fn orders_window(&self) -> bool {
        true
    }

    fn window_handicaps_us(
        &mut self,
        window: &[Candidate<'_>],
        held: &PrefixIndex,
        handicaps_us: &mut Vec<i64>,
    ) {
        handicaps_us.extend(window.iter().map(|candidate| {
            let n_matched = held.matched_tokens(candidate.prefix_hashes);
            (n_matched as i64).saturating_mul(-TOKEN_WEIGHT_US)
        }));
    }
}
