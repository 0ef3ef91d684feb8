//! Speculative decoding: guesses at a request's next tokens, which one step verifies together.
//!
//! A [`Drafter`] guesses; a file for each kind. [`DraftLength`] decides how many drafts a row gets,
//! from how often this request's drafts were right and from what a row costs. The scheduler puts
//! the drafts into decode rows, the executor computes them like known tokens and samples after each
//! of them. A draft counts if it is the token that was sampled there, so the text is the one that
//! would be generated without drafts.
//!
//! Deliberately absent: drafters that need the model's state or a model of their own.

mod length;
pub mod ngram;
#[cfg(feature = "testkit")]
pub mod scripted;
mod times;

pub use self::length::DraftLength;
pub use self::ngram::NgramConfig;
pub use self::times::{StepTimes, TimesMeter};
use crate::request::Request;

/// Maximum number of drafts of a row that can be asked for.
pub const MAX_DRAFTS: usize = 31;

/// Guesses the next tokens of one request.
pub trait Drafter: std::fmt::Debug + Send {
    /// Appends up to `max` guesses at what follows `tokens`, the prompt and the output so far. They
    /// only grow from call to call.
    fn draft(&mut self, tokens: &[u32], max: usize, drafts: &mut Vec<u32>);

    /// False only if [`Self::draft`] will certainly have no guess when one more token, still
    /// unknown, follows `tokens`: then the next step can begin before that token is known.
    fn may_draft_next(&self, tokens: &[u32]) -> bool;
}

/// Makes the drafter of each request.
pub trait Drafters: std::fmt::Debug + Send {
    fn drafter_of(&self, request: &Request) -> Box<dyn Drafter>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "algorithm", rename_all = "UPPERCASE")]
pub enum Algorithm {
    Ngram(NgramConfig),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct SpeculationConfig {
    #[serde(flatten)]
    pub algorithm: Algorithm,
    /// Maximum number of drafts of a row, at most [`MAX_DRAFTS`].
    pub n_draft_tokens: usize,
}

impl SpeculationConfig {
    pub fn drafters(&self) -> Box<dyn Drafters> {
        match self.algorithm {
            Algorithm::Ngram(config) => Box::new(config),
        }
    }
}

/// What became of all drafts since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpeculationCounts {
    /// Rows that had drafts.
    pub n_drafted_rows: u64,
    pub n_draft_tokens: u64,
    pub n_accepted: u64,
    /// How often the first draft of a row was accepted, the second, …
    pub accepted_at: Vec<u64>,
}

impl SpeculationCounts {
    /// Counts for rows of up to `n_draft_tokens` drafts.
    pub fn new(n_draft_tokens: usize) -> Self {
        Self {
            accepted_at: vec![0; n_draft_tokens],
            ..Self::default()
        }
    }

    /// Records a row whose first `n_accepted` drafts were right.
    pub fn record(&mut self, n_drafts: usize, n_accepted: usize) {
        self.n_drafted_rows += 1;
        self.n_draft_tokens += n_drafts as u64;
        self.n_accepted += n_accepted as u64;
        for count in self.accepted_at.iter_mut().take(n_accepted) {
            *count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_are_counted_by_position() {
        let mut counts = SpeculationCounts::new(3);
        for n_accepted in [3, 1, 0] {
            counts.record(3, n_accepted);
        }
        counts.record(1, 1);
        assert_eq!(counts.accepted_at, [3, 1, 1]);
        let totals = (
            counts.n_drafted_rows,
            counts.n_draft_tokens,
            counts.n_accepted,
        );
        assert_eq!(totals, (4, 10, 5));
    }
}
