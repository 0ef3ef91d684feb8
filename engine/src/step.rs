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
    /// Above 1 only when every row is a decode row (one token, `sample` set): the executor feeds
    /// each sampled token back itself and returns `n_steps` tokens a row. Pages for all of them
    /// are in the rows already. 1 where a row is guided.
    pub n_steps: usize,
    /// Steps that the next plan will have for the same rows if nothing new happens, with pages
    /// for them in the rows already; 0 where that plan will differ. A hint: an executor may begin
    /// them ahead, and the next plan decides whether that counts.
    pub n_next_steps: usize,
    /// Pages that move between the device and the host meanwhile; see [`PageCopies`] for the order.
    pub copies: PageCopies,
    /// Rows whose tokens' log-probabilities are wanted, by rising row; none where `n_steps` is
    /// above 1.
    pub scores: Vec<ScoreSpec>,
}

/// Of one row: how likely the tokens that follow were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreSpec {
    /// Index in the plan's rows.
    pub row: usize,
    /// What follows the row's first token, its second, …; at most one for each.
    pub targets: Vec<u32>,
    /// How many of the likeliest tokens to report in each place.
    pub n_top: usize,
}

/// A token to score, and where its logits come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub row: usize,
    /// Index in the row's tokens of the one before it.
    pub at: usize,
    pub token: u32,
    pub n_top: usize,
}

impl StepPlan {
    /// Every token to score, in the order of the rows' tokens.
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

/// One sequence's part of a step.
#[derive(Debug, Clone)]
pub struct PlanRow {
    pub request: RequestId,
    /// Tokens to compute, at positions `start .. start + tokens.len()`. Never empty.
    pub tokens: Vec<u32>,
    /// Tokens of this sequence whose KV is in `pages` already.
    pub start: usize,
    /// Physical page of each logical page; covers `start + tokens.len() + n_steps - 1` tokens.
    pub pages: Vec<PageIdx>,
    /// Set where the logits of the row's last token choose a new token; unset for the inner
    /// chunks of a long prompt.
    pub sample: Option<SampleSpec>,
}

/// What a row of a plan got.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowOutput {
    /// `n_steps` where the row samples, none otherwise; fewer where `error` is set.
    pub tokens: Vec<SampledToken>,
    /// One for each target of the row's [`ScoreSpec`]; fewer where `error` is set.
    pub scores: Vec<ScoredToken>,
    /// Why no more came. It ends the row's own request and nothing else.
    pub error: Option<RowError>,
}

impl RowOutput {
    /// Takes in the next token, or why there is none. Nothing comes after an error.
    pub fn push(&mut self, chosen: Result<SampledToken, impl Into<RowError>>) {
        match chosen {
            Ok(token) => self.tokens.push(token),
            Err(error) => self.error = Some(error.into()),
        }
    }

    /// Takes in the next score, as [`Self::push`] does a token.
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
}

impl From<Vec<SampledToken>> for RowOutput {
    fn from(tokens: Vec<SampledToken>) -> Self {
        Self {
            tokens,
            ..Self::default()
        }
    }
}

/// For each plan row in order: what it got.
#[derive(Debug, Clone, Default)]
pub struct StepOutput {
    pub rows: Vec<RowOutput>,
}

/// Why a row got no token. It ends the row's own request: the step, its other rows and the
/// engine's health are as if the row had not been there.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RowError {
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// What the device wrote instead of a token.
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("more than {limit} distinct tokens have a penalty or a bias, the device's limit")]
    ListFull { limit: usize },
}

impl RowError {
    /// What the request's client is told. `params`: the request's, which name what left no token.
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

/// No token may come: the request's own doing where it excludes some, else its form's or the model's.
fn nothing_left(params: &SamplingParams) -> Failure {
    let names = params.exclusions.names().join(" and ");
    match (names.as_str(), params.guide.is_some()) {
        ("", true) => Failure::Form {
            message: "the model gives every token that it allows the logit -inf".to_owned(),
        },
        (names, true) => Failure::Form {
            message: format!("{names} and the form together leave no token that may come next"),
        },
        ("", false) => Failure::Logits {
            message: SamplerError::AllMasked.to_string(),
        },
        (names, false) => Failure::Sampling {
            message: format!("{names}: no token is left that may come next"),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::request::exclusions::Exclusions;
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
            // Nothing that the request asked for excludes a token: the model does.
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
