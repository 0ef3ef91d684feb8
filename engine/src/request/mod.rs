//! A validated request, and what it gets back token by token.
//!
//! Text does not appear here: prompts are token ids already, stop strings belong to the
//! stream that turns tokens into text.

pub mod exclusions;
mod observer;
pub mod ranges;
pub mod sampling_defaults;

use std::sync::Arc;

use self::exclusions::Exclusions;
pub use self::observer::{Observer, RequestTimes};
use crate::guide::{Guide, GuideError};

/// Id of a request inside the engine; never reused during the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A validated request: every limit was checked before.
#[derive(Debug, Clone)]
pub struct Request {
    pub id: RequestId,
    /// Token ids, at least one, shorter than the context length.
    pub prompt: Arc<[u32]>,
    pub sampling: Arc<SamplingParams>,
    /// Maximum number of output tokens; prompt + output fits the context length. With 0 the prompt
    /// is computed, and scored if requested, and nothing follows.
    pub max_new_tokens: usize,
    /// Ids that end the sequence (including the end-of-sequence ids unless `ignore_eos` was set).
    /// The stopping token is counted and reported, but its text is not shown.
    pub stop_token_ids: Arc<[u32]>,
    /// Larger values run earlier under `--schedule-policy priority`.
    pub priority: i32,
    /// KV of the prompt is only shared with requests of the same root; 0 unless the client sends a
    /// salt.
    pub prefix_root: u64,
}

/// How the next token is chosen. The neutral value of each field switches it off.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens below this share of the highest probability; 0 keeps all.
    pub min_p: f32,
    /// Divide positive (multiply negative) logits of tokens seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of each token seen in the output; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the output; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The random stream. The draw for output token i depends on (seed, i) alone, so the same
    /// seed gives the same text whatever else is in the batch.
    pub seed: u64,
    /// Report the log-probability of the chosen token and of this many most likely ones.
    pub n_logprobs: Option<usize>,
    /// Report the log-probability of each prompt token except the first, and of this many most
    /// likely ones at its position.
    pub n_prompt_logprobs: Option<usize>,
    /// Tokens that must not be generated.
    pub exclusions: Exclusions,
    /// Determines the allowed tokens before each token. Belongs to one request only.
    pub guide: Option<Guide>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            n_logprobs: None,
            n_prompt_logprobs: None,
            exclusions: Exclusions::default(),
            guide: None,
        }
    }
}

impl SamplingParams {
    /// True if choosing a token needs the previous tokens.
    pub fn needs_history(&self) -> bool {
        self.has_penalties() || self.exclusions.need_history()
    }

    /// True if previous tokens change the probability of later ones.
    #[expect(clippy::float_cmp, reason = "the neutral values are exact")]
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token id was produced.
    Stop,
    /// `max_new_tokens` was reached.
    Length,
    /// The client disconnected or asked to stop (for example, at a stop string).
    Cancelled,
}

/// One sampled token.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    pub token: u32,
    /// Natural log of the token's probability under the model's own distribution (before
    /// temperature and truncation, after no penalty); `None` unless log-probabilities were asked.
    pub logprob: Option<f32>,
    /// The most likely tokens with their log-probabilities, best first.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// A prompt token's score, given the tokens before it.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    pub token: u32,
    /// As [`SampledToken::logprob`].
    pub logprob: f32,
    /// 1 for the most likely token.
    pub rank: u32,
    /// The most likely tokens at its position with their log-probabilities, best first.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// The events of a request's stream. The last event is `Finished` or `Failed`.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenEvent {
    /// Scores of all prompt tokens except the first, before any output token; only if requested.
    PromptLogprobs(Vec<ScoredToken>),
    Token(SampledToken),
    Finished {
        reason: FinishReason,
        usage: Usage,
    },
    /// The request ended by an error.
    Failed(Failure),
}

/// Why a request failed; the message is suitable for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The step that held this request failed.
    #[error("{message}")]
    Step { message: String },
    /// The model's own output for this request is not a distribution.
    #[error("{message}")]
    Logits { message: String },
    /// Its parameters exclude all tokens, or are outside their limits.
    #[error("{message}")]
    Sampling { message: String },
    /// The device cannot be used any more; the process ends.
    #[error("{message}")]
    DeviceLost { message: String },
    #[error(
        "the request waited {waited_ms} ms for admission to the running batch, the limit is \
         {limit_ms} ms (--max-queue-s)"
    )]
    QueueTimeout { waited_ms: u64, limit_ms: u64 },
    #[error("the request took {taken_ms} ms, the limit is {limit_ms} ms (--max-request-s)")]
    RequestTimeout { taken_ms: u64, limit_ms: u64 },
    #[error("the server is shutting down, or unloading this model")]
    ShuttingDown,
    #[error("the model has been put to sleep")]
    Suspended,
    /// The output format exceeded its limits, or allows no token.
    #[error("the output cannot follow its format: {message}")]
    Form { message: String },
    /// The guide for the output format failed.
    #[error("constraining the output failed: {message}")]
    Guide { message: String },
    #[error("the engine has stopped after an internal error")]
    Stopped,
    /// The scheduler's own checks refused it, after the API-level validation.
    #[error("{message}")]
    Rejected { message: String },
}

impl From<GuideError> for Failure {
    fn from(error: GuideError) -> Self {
        let message = error.to_string();
        match error {
            GuideError::TooLarge { .. } | GuideError::DeadEnd => Self::Form { message },
            GuideError::Broken(_) => Self::Guide { message },
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    /// Prompt tokens whose KV came from the prefix cache.
    pub cached_tokens: usize,
    /// Output tokens that had been drafted, and drafts that were computed in vain.
    pub accepted_drafts: usize,
    pub rejected_drafts: usize,
}
