//! Log-probabilities in the two shapes that OpenAI has for them.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::sampling_fields::MAX_LOGPROBS;
use crate::request::SampledToken;
use crate::text::Tokenizer;

/// A completion request's `logprobs`: how many likeliest tokens to report.
pub fn take_completion_fields(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    Ok(fields
        .integer("logprobs", 0..=MAX_LOGPROBS)?
        .map(|n| n as usize))
}

/// A chat request's `logprobs` and `top_logprobs`.
pub fn take_chat_fields(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let is_on = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_LOGPROBS)?;
    match (is_on, top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
        (false, Some(1..)) => Err(ApiError::invalid(
            "top_logprobs",
            "top_logprobs is only allowed when logprobs is true",
        )),
        (false, _) => Ok(None),
    }
}

/// How a token is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenNames {
    Text,
    /// `token_id:17`, which tells tokens apart that have the same text (vLLM's
    /// `return_tokens_as_token_ids`).
    Ids,
}

impl TokenNames {
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let as_ids = fields.bool("return_tokens_as_token_ids")?.unwrap_or(false);
        Ok(if as_ids { Self::Ids } else { Self::Text })
    }

    fn name(self, id: u32, bytes: &[u8]) -> String {
        match self {
            Self::Text => String::from_utf8_lossy(bytes).into_owned(),
            Self::Ids => format!("token_id:{id}"),
        }
    }
}

/// Chat: `{"content": [{token, logprob, bytes, top_logprobs}]}`.
pub fn chat(tokenizer: &Tokenizer, tokens: &[SampledToken], names: TokenNames) -> Value {
    let entry = |id: u32, logprob: Option<f32>| {
        let bytes = tokenizer.token_bytes(id);
        json!({
            "token": names.name(id, &bytes),
            "logprob": logprob,
            "bytes": bytes,
        })
    };
    let content: Vec<Value> = tokens
        .iter()
        .map(|sampled| {
            let mut object = entry(sampled.token, sampled.logprob);
            let top = sampled.top_logprobs.iter();
            object["top_logprobs"] = top.map(|&(id, logprob)| entry(id, Some(logprob))).collect();
            object
        })
        .collect();
    json!({"content": content})
}

/// Completions: four parallel arrays. `text_offset` counts characters from the output's start.
#[derive(Debug, Default)]
pub struct CompletionLogprobs {
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Appends tokens and advances `offset`, the characters so far.
    pub fn extend(
        &mut self,
        tokenizer: &Tokenizer,
        tokens: &[SampledToken],
        names: TokenNames,
        offset: &mut usize,
    ) {
        let text = |id: u32| names.name(id, &tokenizer.token_bytes(id));
        for sampled in tokens {
            let bytes = tokenizer.token_bytes(sampled.token);
            let token = names.name(sampled.token, &bytes);
            self.text_offset.push(*offset);
            *offset += String::from_utf8_lossy(&bytes).chars().count();
            let mut top: Map<String, Value> = sampled
                .top_logprobs
                .iter()
                .map(|&(id, logprob)| (text(id), json!(logprob)))
                .collect();
            // The chosen token is always among them, as in OpenAI's and vLLM's answers.
            top.entry(token.clone())
                .or_insert_with(|| json!(sampled.logprob));
            self.tokens.push(Value::String(token));
            self.token_logprobs.push(json!(sampled.logprob));
            self.top_logprobs.push(Value::Object(top));
        }
    }

    pub fn into_json(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}
