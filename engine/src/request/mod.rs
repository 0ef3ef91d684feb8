//! What a client asked for, after validation, and what it gets back, token by token.
//!
//! Text does not appear here: prompts are token ids already, stop strings belong to the
//! stream that turns tokens into text.

pub mod exclusions;
pub mod ranges;
pub mod sampling_defaults;

use std::sync::Arc;

use self::exclusions::Exclusions;
use crate::guide::{Guide, GuideError};

/// One request's name inside the engine; never reused while the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A validated request: every limit was checked before it was made.
#[derive(Debug, Clone)]
pub struct Request {
    pub id: RequestId,
    /// Token ids, at least one, shorter than the context length.
    pub prompt: Arc<[u32]>,
    pub sampling: Arc<SamplingParams>,
    /// Output tokens at most; prompt + output fits the context length. With 0 the prompt is
    /// computed, and scored if that is asked, and nothing follows.
    pub max_new_tokens: usize,
    /// Ids that end the sequence (end-of-sequence ids are in here unless `ignore_eos` was asked).
    /// The stopping token is counted and reported, its text is not shown.
    pub stop_token_ids: Arc<[u32]>,
    /// Larger runs earlier under `--schedule-policy priority`.
    pub priority: i32,
    /// KV of the prompt is shared with requests of the same root alone; 0 unless the client sends a
    /// salt.
    pub prefix_root: u64,
}

/// How the next token is chosen. The neutral value of each field switches it off.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the k likeliest; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens below this share of the likeliest one's probability; 0 keeps all.
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
    /// Report the log-probability of the chosen token and of this many likeliest ones.
    pub n_logprobs: Option<usize>,
    /// Report the log-probability of each prompt token but the first, and of this many likeliest
    /// ones in its place.
    pub n_prompt_logprobs: Option<usize>,
    /// Tokens that may not come.
    pub exclusions: Exclusions,
    /// Says before each token which ones may come. Belongs to one request alone.
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
    /// True where choosing a token needs the tokens that came before it.
    pub fn needs_history(&self) -> bool {
        self.has_penalties() || self.exclusions.need_history()
    }

    /// True where tokens that came before are more or less likely to come again.
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
    /// `max_new_tokens` reached.
    Length,
    /// The client went away or asked to stop (a stop string was found, for one).
    Cancelled,
}

/// One sampled token.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    pub token: u32,
    /// Natural log of the token's probability under the model's own distribution (before
    /// temperature and truncation, after no penalty); `None` unless log-probabilities were asked.
    pub logprob: Option<f32>,
    /// The likeliest tokens with their log-probabilities, best first.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// A token of a prompt, as the model expected it behind those before.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    pub token: u32,
    /// As [`SampledToken::logprob`].
    pub logprob: f32,
    /// 1 for the likeliest.
    pub rank: u32,
    /// The likeliest tokens in its place with their log-probabilities, best first.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// What a request's stream carries. The last event is `Finished` or `Failed`.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenEvent {
    /// Of all prompt tokens but the first, before any output token; only where asked for.
    PromptLogprobs(Vec<ScoredToken>),
    Token(SampledToken),
    Finished {
        reason: FinishReason,
        usage: Usage,
    },
    /// It ends without its text.
    Failed(Failure),
}

/// Why a request ended without its text; the message is fit for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The step that held this request failed.
    #[error("{message}")]
    Step { message: String },
    /// The model's own output for this request is no distribution.
    #[error("{message}")]
    Logits { message: String },
    /// Its parameters leave no token, or are outside their limits.
    #[error("{message}")]
    Sampling { message: String },
    /// The device answers nothing any more; the process ends.
    #[error("{message}")]
    DeviceLost { message: String },
    #[error(
        "the request waited {waited_ms} ms for a place in the running batch, the limit is \
         {limit_ms} ms (--max-queue-s)"
    )]
    QueueTimeout { waited_ms: u64, limit_ms: u64 },
    #[error("the request took {taken_ms} ms, the limit is {limit_ms} ms (--max-request-s)")]
    RequestTimeout { taken_ms: u64, limit_ms: u64 },
    #[error("the server is shutting down, or unloads this model")]
    ShuttingDown,
    #[error("the model is put to sleep")]
    Asleep,
    /// The form that it asked for took too much, or leaves no token.
    #[error("the output cannot follow its form: {message}")]
    Form { message: String },
    /// What follows the form broke.
    #[error("following the form of the output failed: {message}")]
    Guide { message: String },
    #[error("the engine has stopped after an internal error")]
    Stopped,
    /// The scheduler's own checks refused it, behind those at the door.
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
}
