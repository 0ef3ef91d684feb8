//! The contract between the scheduler, which plans steps, and an executor, which carries them out:
//! what a step computes, and what each of its rows got.

use kernels::sampling::cuda::TokenError;

use crate::kv::{PageCopies, PageIdx};
use crate::request::{Failure, RequestId, SampledToken, SamplingParams, ScoredToken};
use crate::sampler::{SampleSpec, SamplerError};

/// One step: every row's tokens go through the model once; rows with `sample` then get a token.
#[derive(Debug, Clone, Default)]
pub struct StepPlan {
    pub rows: Vec<PlanRow>,
    /// Above 1 only if every row is a decode row (one token, `sample` set): the executor feeds each
    /// sampled token back itself and returns `n_steps` tokens for each row. The rows already have
    /// the pages for all of them. 1 if a row is guided.
    pub n_steps: usize,
    /// Number of steps that the next plan will have for the same rows if nothing new happens, with
    /// pages for them already in the rows; 0 if that plan will differ. A hint: an executor may
    /// begin them ahead, and the next plan decides whether the result is used.
    pub lookahead_steps: usize,
    /// Pages to copy between device and host during the step; see [`PageCopies`] for the order.
    pub copies: PageCopies,
    /// Rows whose tokens' log-probabilities are needed, in ascending order; empty if `n_steps` is
    /// above 1.
    pub scores: Vec<ScoreSpec>,
}

/// For one row: tokens to score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreSpec {
    /// Index in the plan's rows.
    pub row: usize,
    /// The token after the row's first token, after its second, …; at most one for each.
    pub targets: Vec<u32>,
    /// Number of most likely tokens to report for each.
    pub n_top: usize,
}

/// A token to score, and the position of its logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub row: usize,
    /// Index in the row's tokens of the preceding token.
    pub at: usize,
    pub token: u32,
    pub n_top: usize,
}

/// Time for masks after drafts, all rows of a step together: they are made beside its forward pass.
const MAX_DRAFT_MASKS_US: u64 = 4_000;

impl StepPlan {
    /// Lets grammars check the drafts of their rows, and cuts those at the first that is not
    /// allowed. Call it before the plan is executed.
    pub fn check_drafts(&mut self) {
        let mut left_us = MAX_DRAFT_MASKS_US;
        for row in &mut self.rows {
            let spec = row.sample.as_ref().filter(|_| row.n_drafts > 0);
            if let Some(spec) = spec
                && let Some(guide) = &spec.params.guide
            {
                let n_kept = guide.take_drafts(spec.output_index, row.drafts(), &mut left_us);
                row.cut_drafts(n_kept);
            }
        }
    }

    /// All tokens to score, in the order of the rows' tokens.
    pub(crate) fn targets(&self) -> impl Iterator<Item = Target> {
        self.scores.iter().flat_map(|spec| {
            let targets = spec.targets.iter().enumerate();
            targets.map(move |(at, &token)| Target {
                row: spec.row,
                at,
                token,
                n_top: spec.n_top,
            })
        })
    }
}

/// Maximum number of drafts of a row.
pub const MAX_DRAFTS: usize = 31;

/// One sequence's part of a step.
#[derive(Debug, Clone)]
pub struct PlanRow {
    pub request: RequestId,
    /// Tokens to compute, at positions `start .. start + tokens.len()`. Never empty.
    pub tokens: Vec<u32>,
    /// How many of the last tokens are drafts: guesses of what will be sampled. Above 0 only in a
    /// decode row, whose tokens are then the known one and the drafts, in a plan of one step. A
    /// token is sampled after each of them, and those up to the first that is not the draft count
    /// ([`RowOutput::push_verified`]). The others' KV is overwritten later. A grammar that the row
    /// follows has taken them ([`crate::guide::Guide::take_drafts`]).
    pub n_drafts: usize,
    /// Tokens of this sequence whose KV is already in `pages`.
    pub start: usize,
    /// Physical page of each logical page; covers `start + tokens.len() + n_steps - 1` tokens.
    pub pages: Vec<PageIdx>,
    /// Set if the logits of the row's last token choose a new token; unset for the inner chunks of
    /// a long prompt.
    pub sample: Option<SampleSpec>,
}

impl PlanRow {
    /// The last tokens, which are only guessed.
    pub fn drafts(&self) -> &[u32] {
        &self.tokens[self.tokens.len() - self.n_drafts.min(self.tokens.len())..]
    }

    /// Keeps the first `n` drafts.
    pub fn cut_drafts(&mut self, n: usize) {
        let n_cut = self.n_drafts.saturating_sub(n);
        self.tokens
            .truncate(self.tokens.len() - n_cut.min(self.tokens.len()));
        self.n_drafts -= n_cut;
    }

    /// Whether its grammar, if it follows one, has masks after each of the drafts.
    pub(crate) fn grammar_knows_drafts(&self) -> bool {
        let sample = self.sample.as_ref();
        sample.is_none_or(|spec| match &spec.params.guide {
            Some(guide) => guide.has_taken(spec.output_index, self.drafts()),
            None => true,
        })
    }

    /// Whether it computes one known token, and perhaps drafts, and samples.
    pub fn is_decode(&self) -> bool {
        self.tokens.len() == 1 + self.n_drafts && self.sample.is_some()
    }
}

/// The result of a plan's row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowOutput {
    /// `n_steps` tokens if the row samples, otherwise none; fewer if `error` is set. With drafts:
    /// the accepted ones and one more.
    pub tokens: Vec<SampledToken>,
    /// One for each target of the row's [`ScoreSpec`]; fewer if `error` is set.
    pub scores: Vec<ScoredToken>,
    /// Why the row stopped. It ends only the row's own request.
    pub error: Option<RowError>,
}

impl RowOutput {
    /// Appends the next token or sets the error. Nothing is appended after an error.
    pub fn push(&mut self, chosen: Result<SampledToken, impl Into<RowError>>) {
        match chosen {
            Ok(token) => self.tokens.push(token),
            Err(error) => self.error = Some(error.into()),
        }
    }

    /// Takes what was sampled after the first `n_before` of the row's drafts. Call it for 0, 1, …,
    /// up to all drafts: what follows a wrong draft or an error is dropped.
    pub fn push_verified(
        &mut self,
        drafts: &[u32],
        n_before: usize,
        chosen: Result<SampledToken, impl Into<RowError>>,
    ) {
        let is_draft = |token: &SampledToken| drafts.get(n_before - 1) == Some(&token.token);
        let goes_on = n_before == 0 || self.tokens.last().is_some_and(is_draft);
        if goes_on && self.tokens.len() == n_before && !self.has_failed() {
            self.push(chosen);
        }
    }

    /// Appends the next score, like [`Self::push`].
    pub fn push_score(&mut self, scored: Result<ScoredToken, impl Into<RowError>>) {
        match scored {
            Ok(score) if self.error.is_none() => self.scores.push(score),
            Ok(_) => {}
            Err(error) => {
                self.error.get_or_insert_with(|| error.into());
            }
        }
    }

    pub fn has_failed(&self) -> bool {
        self.error.is_some()
    }

    /// How many of the row's tokens belong to the text: all but wrong drafts.
    pub fn n_valid(&self, row: &PlanRow) -> usize {
        match (self.has_failed(), row.sample.is_some()) {
            (true, _) => 0,
            (false, true) => {
                let n_wrong = (row.n_drafts + 1).saturating_sub(self.tokens.len());
                row.tokens.len() - n_wrong.min(row.n_drafts)
            }
            (false, false) => row.tokens.len(),
        }
    }
}

impl From<Vec<SampledToken>> for RowOutput {
    fn from(tokens: Vec<SampledToken>) -> Self {
        Self {
            tokens,
            ..Self::default()
        }
    }
}

/// The result of each plan row, in order.
#[derive(Debug, Clone, Default)]
pub struct StepOutput {
    pub rows: Vec<RowOutput>,
}

/// Why a row got no token. It ends only the row's own request: the step, its other rows and the
/// engine's health are unaffected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RowError {
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The code that the device wrote instead of a token.
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("more than {limit} distinct tokens have a penalty or a bias, the device's limit")]
    ListFull { limit: usize },
}

impl RowError {
    /// The failure reported to the client. `params`: the request's, which name what excluded all
    /// tokens.
    pub fn failure(&self, params: &SamplingParams) -> Failure {
        let message = self.to_string();
        match self {
            Self::Sampler(SamplerError::NotFinite { .. }) | Self::Token(TokenError::NotFinite) => {
                Failure::Logits { message }
            }
            Self::Sampler(SamplerError::AllMasked) | Self::Token(TokenError::AllMasked) => {
                nothing_left(params)
            }
            Self::Sampler(_) | Self::Token(_) | Self::ListFull { .. } => {
                Failure::Sampling { message }
            }
        }
    }
}

/// No token is allowed: caused by the request if it excludes some, otherwise by its output format
/// or the model.
fn nothing_left(params: &SamplingParams) -> Failure {
    let names = params.exclusions.names().join(" and ");
    match (names.as_str(), params.guide.is_some()) {
        ("", true) => Failure::Form {
            message: "the model gives every allowed token the logit -inf".to_owned(),
        },
        (names, true) => Failure::Form {
            message: format!("{names} and the output format together exclude every next token"),
        },
        ("", false) => Failure::Logits {
            message: SamplerError::AllMasked.to_string(),
        },
        (names, false) => Failure::Sampling {
            message: format!("{names}: every next token is excluded"),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::request::exclusions::Exclusions;

    /// What a row with drafts 5, 6, 7 keeps of what was sampled after each of them.
    fn verified(chosen: [Result<u32, RowError>; 4]) -> (Vec<u32>, Option<RowError>) {
        let mut made = RowOutput::default();
        for (n_before, chosen) in chosen.into_iter().enumerate() {
            let chosen = chosen.map(|token| SampledToken {
                token,
                logprob: None,
                top_logprobs: Vec::new(),
            });
            made.push_verified(&[5, 6, 7], n_before, chosen);
        }
        (made.tokens.iter().map(|t| t.token).collect(), made.error)
    }

    #[test]
    fn drafts_count_up_to_the_first_wrong_one() {
        let kept = |chosen: [u32; 4]| verified(chosen.map(Ok)).0;
        assert_eq!(kept([5, 6, 7, 8]), [5, 6, 7, 8]);
        assert_eq!(kept([5, 6, 9, 8]), [5, 6, 9]);
        // Right again after a wrong one: computed from the wrong one, so it does not count.
        assert_eq!(kept([5, 9, 7, 8]), [5, 9]);
        assert_eq!(kept([9, 6, 7, 8]), [9]);
        // A draft that is right, but one place late.
        assert_eq!(kept([6, 5, 6, 7]), [6]);
    }

    #[test]
    fn an_error_counts_only_after_right_drafts() {
        let broken = || Err(RowError::Token(TokenError::NotFinite));
        let error = broken().map(|_: u32| ()).err();
        assert_eq!(
            verified([Ok(5), broken(), Ok(7), Ok(8)]),
            (vec![5], error.clone())
        );
        assert_eq!(
            verified([Ok(9), broken(), broken(), broken()]),
            (vec![9], None)
        );
        assert_eq!(verified([broken(), Ok(6), Ok(7), Ok(8)]), (vec![], error));
    }
    use crate::structured::guide_of;

    #[test]
    fn each_kind_of_row_error_has_its_own_failure() {
        let not_finite = SamplerError::NotFinite {
            token: 3,
            value: f32::NAN,
        };
        let logits = [
            RowError::Sampler(not_finite),
            RowError::Token(TokenError::NotFinite),
        ];
        let free = SamplingParams::default();
        let guided = SamplingParams {
            guide: Some(guide_of("a")),
            ..free.clone()
        };
        for error in logits {
            for params in [&free, &guided] {
                let failure = error.failure(params);
                assert!(matches!(failure, Failure::Logits { .. }), "{failure:?}");
            }
        }
        let excluding = |params: &SamplingParams| SamplingParams {
            exclusions: Exclusions {
                allowed: Some(Arc::from([1])),
                bad_words: Arc::from([vec![2]]),
                min_tokens: 1,
                ends: Arc::from([3]),
            },
            ..params.clone()
        };
        let masked = [
            RowError::Sampler(SamplerError::AllMasked),
            RowError::Token(TokenError::AllMasked),
        ];
        for error in masked {
            // The request excludes no token, so the model is the cause.
            let failure = error.failure(&free);
            assert!(matches!(failure, Failure::Logits { .. }), "{failure:?}");
            let failure = error.failure(&guided);
            assert!(matches!(failure, Failure::Form { .. }), "{failure:?}");
            for (params, is_form) in [(excluding(&free), false), (excluding(&guided), true)] {
                let failure = error.failure(&params);
                assert_eq!(matches!(failure, Failure::Form { .. }), is_form);
                assert_eq!(matches!(failure, Failure::Sampling { .. }), !is_form);
                let message = failure.to_string();
                for name in ["allowed_token_ids", "bad_words", "min_tokens"] {
                    assert!(message.contains(name), "{message}");
                }
            }
        }
        let full = RowError::ListFull { limit: 4096 }.failure(&free);
        assert!(full.to_string().contains("4096"), "{full}");
    }
}
