//! Speculative decoding: guesses at a request's next tokens, which one step verifies together.
//!
//! A [`Drafter`] guesses; a file for each kind. [`choose`] decides how many drafts a row gets, from
//! how often drafts were right ([`Acceptance`]) and how long steps take ([`StepTimes`]). The scheduler puts
//! the drafts into decode rows, the executor computes them like known tokens and samples after each
//! of them. A draft counts if it is the token that was sampled there, so the text is the one that
//! would be generated without drafts.
//!
//! What a draft model or a head guesses is made by the executor
//! ([`crate::executor::Executor::draft`]).

mod acceptance;
mod choice;
pub mod ngram;
#[cfg(feature = "testkit")]
pub mod scripted;
mod standalone;
pub mod suffix;
mod times;

pub use self::acceptance::{Acceptance, PooledAcceptance};
pub use self::choice::{Candidate, choose};
pub use self::ngram::NgramConfig;
pub use self::suffix::{Answers, SuffixConfig};
pub use self::times::{StepTimes, TimesMeter};
use crate::request::Request;
pub use crate::step::MAX_DRAFTS;

/// Guesses the next tokens of one request.
pub trait Drafter: std::fmt::Debug + Send {
    /// Appends up to `max` guesses at what follows `tokens`, the prompt and the output so far. They
    /// only grow from call to call.
    fn draft(&mut self, shared: &mut Shared, tokens: &[u32], max: usize, drafts: &mut Vec<u32>);

    /// False only if [`Self::draft`] will certainly have no guess when one more token, still
    /// unknown, follows `tokens`: then the next step can begin before that token is known.
    fn may_draft_next(&self, tokens: &[u32]) -> bool;

    /// The request has ended, with `tokens`.
    fn end(&mut self, _shared: &mut Shared, _tokens: &[u32]) {}
}

/// What the drafters of all requests share.
#[derive(Debug, Default)]
pub struct Shared {
    /// `None` if no answers are kept.
    pub answers: Option<Answers>,
}

/// Makes the drafter of each request.
pub trait Drafters: std::fmt::Debug + Send {
    fn drafter_of(&self, request: &Request) -> Box<dyn Drafter>;

    fn shared(&self) -> Shared {
        Shared::default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[serde(tag = "algorithm", rename_all = "UPPERCASE")]
pub enum Algorithm {
    Ngram(NgramConfig),
    Suffix(SuffixConfig),
    /// A draft model.
    Standalone,
    /// A head on the model's own states.
    Eagle3,
}

impl Algorithm {
    /// Whether an executor guesses ([`crate::executor::Executor::draft`]), not a [`Drafter`].
    pub fn is_of_model(self) -> bool {
        matches!(self, Self::Standalone | Self::Eagle3)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
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
            Algorithm::Suffix(config) => Box::new(config),
            Algorithm::Standalone | Algorithm::Eagle3 => Box::new(standalone::DraftedElsewhere),
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
