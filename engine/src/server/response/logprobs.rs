//! Log-probabilities in OpenAI's and vLLM's formats.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::request::{SampledToken, ScoredToken};
use crate::server::error::ApiError;
use crate::server::request::fields::Fields;
use crate::server::request::sampling_fields::MAX_LOGPROBS;
use crate::text::{TextOrigin, TokenStream, Tokenizer};

/// The JSON value for -inf, as in vLLM and SGLang.
const LEAST_LOGPROB: f32 = -9999.0;

/// A completion request's `logprobs`: the number of most likely tokens to report.
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TokenNames {
    #[default]
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

    /// The name in chats, which include the token's bytes separately.
    fn shown(self, id: u32, bytes: &[u8]) -> String {
        match self {
            Self::Text => String::from_utf8_lossy(bytes).into_owned(),
            Self::Ids => format!("token_id:{id}"),
        }
    }

    /// The name in completions, where names are keys.
    fn key(self, tokenizer: &Tokenizer, id: u32) -> String {
        match self {
            Self::Text => name(tokenizer, id),
            Self::Ids => format!("token_id:{id}"),
        }
    }
}

/// Chat: `{"content": [{token, logprob, bytes, top_logprobs}]}`.
pub fn chat(tokenizer: &Tokenizer, tokens: &[SampledToken], names: TokenNames) -> Value {
    let entry = |id: u32, logprob: Option<f32>| {
        let bytes = tokenizer.token_bytes(id);
        json!({
            "token": names.shown(id, &bytes),
            "logprob": logprob.map(in_json),
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

fn in_json(logprob: f32) -> Value {
    json!(logprob.max(LEAST_LOGPROB))
}

/// The token's text. For a token that is part of a character, its bytes as OpenAI writes them:
/// `bytes:\xe2\x80`. So different parts have different names.
fn name(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8(tokenizer.token_bytes(id)).unwrap_or_else(|error| {
        let mut name = "bytes:".to_owned();
        for byte in error.as_bytes() {
            // Writing to a string cannot fail.
            let _ = write!(name, "\\x{byte:02x}");
        }
        name
    })
}

/// The offset of each token in a text, in characters. A token inside a character has that
/// character's offset.
#[derive(Debug)]
pub struct TextOffsets {
    n_chars: usize,
    stream: TokenStream,
}

impl TextOffsets {
    /// Offsets of an output that starts at character `n_chars`.
    pub fn of_output(tokenizer: &Arc<Tokenizer>, skip_special: bool, n_chars: usize) -> Self {
        let origin = TextOrigin::Continuation;
        Self {
            n_chars,
            stream: TokenStream::new(Arc::clone(tokenizer), origin, skip_special),
        }
    }

    /// Offsets of the tokens of an echoed prompt.
    pub fn of_prompt(tokenizer: &Arc<Tokenizer>, skip_special: bool, ids: &[u32]) -> Vec<usize> {
        let stream = TokenStream::new(Arc::clone(tokenizer), TextOrigin::Start, skip_special);
        let mut offsets = Self { n_chars: 0, stream };
        ids.iter().map(|id| offsets.next(*id)).collect()
    }

    fn next(&mut self, id: u32) -> usize {
        let offset = self.n_chars;
        self.n_chars += self.stream.push(id).map_or(0, |text| text.chars().count());
        offset
    }
}

/// Completions: four parallel arrays. `text_offset` counts characters from the text's start.
#[derive(Debug, Default)]
pub struct CompletionLogprobs {
    names: TokenNames,
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    pub fn new(names: TokenNames) -> Self {
        Self {
            names,
            ..Self::default()
        }
    }

    /// Appends the prompt. Its first token has no log-probability. `n_top` as for the output.
    pub fn extend_prompt(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        scores: &[ScoredToken],
        offsets: Vec<usize>,
        n_top: usize,
    ) {
        if let Some(first) = prompt.first() {
            let first = self.names.key(tokenizer, *first);
            self.tokens.push(Value::String(first));
            self.token_logprobs.push(Value::Null);
            self.top_logprobs.push(Value::Null);
        }
        for score in scores {
            let top = &score.top_logprobs[..n_top.min(score.top_logprobs.len())];
            self.push(tokenizer, score.token, Some(score.logprob), top);
        }
        self.text_offset.extend(offsets);
    }

    /// Appends output tokens.
    pub fn extend(
        &mut self,
        tokenizer: &Tokenizer,
        tokens: &[SampledToken],
        offsets: &mut TextOffsets,
    ) {
        for sampled in tokens {
            self.text_offset.push(offsets.next(sampled.token));
            let top = &sampled.top_logprobs;
            self.push(tokenizer, sampled.token, sampled.logprob, top);
        }
    }

    fn push(&mut self, tokenizer: &Tokenizer, id: u32, logprob: Option<f32>, top: &[(u32, f32)]) {
        let token = self.names.key(tokenizer, id);
        let logprob = logprob.map_or(Value::Null, in_json);
        let mut by_name = Map::new();
        for &(other, logprob) in top {
            // Of two tokens with the same text, keep the more likely one.
            by_name
                .entry(self.names.key(tokenizer, other))
                .or_insert_with(|| in_json(logprob));
        }
        // The chosen token is always included with its own log-probability, as in OpenAI's and
        // vLLM's responses.
        by_name.insert(token.clone(), logprob.clone());
        self.tokens.push(Value::String(token));
        self.token_logprobs.push(logprob);
        self.top_logprobs.push(Value::Object(by_name));
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

/// vLLM's `prompt_logprobs`: `null` for the first token, then an object keyed by token id for each.
/// The prompt's own token is always included, whatever its rank.
pub fn prompt_logprobs(tokenizer: &Tokenizer, scores: &[ScoredToken], n_top: usize) -> Value {
    let entry = |id: u32, logprob: f32, rank: usize| {
        let of_token = json!({
            "logprob": in_json(logprob),
            "rank": rank,
            "decoded_token": name(tokenizer, id),
        });
        (id.to_string(), of_token)
    };
    let of_tokens = scores.iter().map(|score| {
        let own = entry(score.token, score.logprob, score.rank as usize);
        let top = score.top_logprobs.iter().take(n_top).zip(1..);
        let top = top.map(|(&(id, logprob), rank)| entry(id, logprob, rank));
        Value::Object(top.chain([own]).collect())
    });
    std::iter::once(Value::Null).chain(of_tokens).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token for each byte.
    fn tokenizer() -> Arc<Tokenizer> {
        Arc::new(Tokenizer::of_bytes(&["<end>"]))
    }

    fn sampled(token: u32, top_logprobs: &[(u32, f32)]) -> SampledToken {
        SampledToken {
            token,
            logprob: Some(-1.5),
            top_logprobs: top_logprobs.to_vec(),
        }
    }

    #[test]
    fn parts_of_a_character_have_names_of_their_own() {
        let tokenizer = tokenizer();
        // 한 is ed 95 9c, in three tokens, between a and b.
        let ids = [0x61, 0xed, 0x95, 0x9c, 0x62];
        let tokens: Vec<SampledToken> = ids
            .iter()
            .map(|id| sampled(*id, &[(0x95, -0.5), (0x9c, -0.75), (0x61, -2.0)]))
            .collect();
        let mut logprobs = CompletionLogprobs::default();
        let mut offsets = TextOffsets::of_output(&tokenizer, true, 10);
        logprobs.extend(&tokenizer, &tokens, &mut offsets);
        let found = logprobs.into_json();
        let names = ["a", "bytes:\\xed", "bytes:\\x95", "bytes:\\x9c", "b"];
        assert_eq!(found["tokens"], json!(names));
        assert_eq!(found["text_offset"], json!([10, 11, 11, 11, 12]));
        for (i, name) in names.iter().enumerate() {
            let top = &found["top_logprobs"][i];
            assert_eq!(top[name], found["token_logprobs"][i], "{top}");
        }
        let of_b = json!({"bytes:\\x95": -0.5, "bytes:\\x9c": -0.75, "a": -2.0, "b": -1.5});
        assert_eq!(found["top_logprobs"][4], of_b);
    }

    #[test]
    fn tokens_without_text_move_nothing() {
        let tokenizer = tokenizer();
        let ids = [256, 0x61, 256, 0x62];
        let shown = TextOffsets::of_prompt(&tokenizer, true, &ids);
        assert_eq!(shown, [0, 0, 1, 1]);
        let all = TextOffsets::of_prompt(&tokenizer, false, &ids);
        assert_eq!(all, [0, 5, 6, 11]);
    }

    #[test]
    fn a_token_that_cannot_come_is_a_number_in_json() {
        let tokenizer = tokenizer();
        let scores = [ScoredToken {
            token: 0x62,
            logprob: f32::NEG_INFINITY,
            rank: 3,
            top_logprobs: vec![(0x61, -0.25), (0x63, -2.0)],
        }];
        let found = prompt_logprobs(&tokenizer, &scores, 1);
        let expected = json!([null, {
            "97": {"logprob": -0.25, "rank": 1, "decoded_token": "a"},
            "98": {"logprob": -9999.0, "rank": 3, "decoded_token": "b"},
        }]);
        assert_eq!(found, expected);
        let mut logprobs = CompletionLogprobs::default();
        let offsets = TextOffsets::of_prompt(&tokenizer, true, &[0x61, 0x62]);
        logprobs.extend_prompt(&tokenizer, &[0x61, 0x62], &scores, offsets, 0);
        let expected = json!({
            "tokens": ["a", "b"],
            "token_logprobs": [null, -9999.0],
            "top_logprobs": [null, {"b": -9999.0}],
            "text_offset": [0, 1],
        });
        assert_eq!(logprobs.into_json(), expected);
    }
}
