//! `STANDALONE` and `EAGLE3`: a smaller model or a head guesses. It runs beside the target
//! ([`crate::executor::Executor::draft`]) before a plan is made, and its guesses are an input of the
//! plan: here is nothing to draft.

use super::{Drafter, Drafters, Shared};
use crate::request::Request;

#[derive(Debug)]
pub struct DraftedElsewhere;

impl Drafters for DraftedElsewhere {
    fn drafter_of(&self, _: &Request) -> Box<dyn Drafter> {
        Box::new(Self)
    }
}

impl Drafter for DraftedElsewhere {
    fn draft(&mut self, _: &mut Shared, _: &[u32], _: usize, _: &mut Vec<u32>) {}

    fn may_draft_next(&self, _: &[u32]) -> bool {
        true
    }
}
