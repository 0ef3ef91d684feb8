//! The result cache: lookup and storage of responses to deterministic requests.
//!
//! A request is deterministic at temperature 0 or with a seed. Its key is a digest of the model
//! (name, weights, kernels and the resolved configuration), the endpoint, the fields of the body as
//! sent, the required output format (including a forced tool call), and the prompts' tokens with
//! the maximum output of each, which the server's limits decide if the client does not. Fields that
//! only affect how the response is sent are left out, so a streamed request can hit what a whole
//! one stored. Stored are the pieces of the choices: text, tokens with log-probabilities, finish
//! reasons and usage. Reasoning and tool calls are parsed from the text again.

use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::metrics::Metrics;
use crate::request::{SampledToken, Usage};
use crate::result_cache::{CacheKey, CacheRead, Put, ResultCache};
use crate::served_model::ServedModel;
use crate::server::request::prompt::SizedPrompt;
use crate::server::request::sampling_fields::Generation;
use crate::server::response::choice::{ChoiceEnd, Piece};
use crate::structured::{Constraint, Preamble};

const HEADER: HeaderName = HeaderName::from_static("x-result-cache");

/// Fields that do not change the content of the response; the prompt is in the key as tokens.
const NOT_IN_KEY: [&str; 12] = [
    "stream",
    "stream_options",
    "user",
    "priority",
    "model",
    "prompt",
    "messages",
    "metadata",
    "rid",
    "request_id",
    "return_token_ids",
    "return_tokens_as_token_ids",
];

/// The part of the key that comes from the body, taken before its fields are consumed.
#[derive(Debug, Clone)]
pub struct BodyDigest {
    sha256: [u8; 32],
    has_seed: bool,
}

impl BodyDigest {
    pub fn of(map: &Map<String, Value>) -> Self {
        let mut names: Vec<&String> = map
            .keys()
            .filter(|name| !NOT_IN_KEY.contains(&name.as_str()))
            .collect();
        names.sort_unstable();
        let mut digest = Sha256::new();
        for name in names {
            // As JSON, so that name and value cannot run into each other.
            digest.update(Value::from(name.as_str()).to_string());
            digest.update(map[name].to_string());
        }
        Self {
            sha256: digest.finalize().into(),
            has_seed: map.get("seed").is_some_and(|seed| !seed.is_null()),
        }
    }
}

/// The outcome of a cache lookup.
pub enum Lookup {
    /// The cache is off, or the request is not deterministic.
    Bypass,
    /// The choices' pieces, each with the index of its choice.
    Hit(Vec<(usize, Piece)>),
    Miss(Recorder),
}

impl Lookup {
    pub fn is_hit(&self) -> bool {
        matches!(self, Self::Hit(_))
    }

    /// Reports the outcome in the response header `x-result-cache`.
    pub fn mark(word: Option<&'static str>, mut response: Response) -> Response {
        if let Some(word) = word {
            let value = HeaderValue::from_static(word);
            response.headers_mut().insert(HEADER, value);
        }
        response
    }

    pub fn as_str(&self) -> Option<&'static str> {
        match self {
            Self::Bypass => None,
            Self::Hit(_) => Some("hit"),
            Self::Miss(_) => Some("miss"),
        }
    }
}

/// What identifies a request besides the model and the prompts.
pub struct CacheRequest<'a> {
    pub endpoint: &'a str,
    pub body: Option<&'a BodyDigest>,
    /// The required output format, before it is compiled.
    pub form: Option<(&'a Constraint, Preamble)>,
    pub n_choices: usize,
}

/// Looks up the response to a request.
pub async fn lookup(
    cache: &ResultCache,
    request: &CacheRequest<'_>,
    model: &Arc<ServedModel>,
    generation: &Generation,
    prompts: &[SizedPrompt],
) -> Lookup {
    let n_choices = request.n_choices;
    let Some(body) = request.body.filter(|_| cache.is_on()) else {
        return Lookup::Bypass;
    };
    if generation.params.temperature > 0.0 && !body.has_seed {
        return Lookup::Bypass;
    }
    let Some(key) = key_of(request, body, model, prompts) else {
        return Lookup::Bypass;
    };
    let metrics = model.engine.metrics();
    match cache.get(&key).await {
        CacheRead::Answer(bytes) => {
            if let Some(pieces) = read(&bytes, n_choices, prompts, model.limits.vocab) {
                metrics.result_cache_hits.add(1);
                return Lookup::Hit(pieces);
            }
        }
        CacheRead::Nothing => {}
        CacheRead::Unreachable => metrics.result_cache_errors.add(1),
    }
    metrics.result_cache_misses.add(1);
    Lookup::Miss(Recorder {
        cache: cache.clone(),
        key,
        model: Arc::clone(model),
        pieces: Vec::new(),
        n_choices_left: n_choices,
    })
}

/// `None` if the output format cannot be serialised.
fn key_of(
    request: &CacheRequest<'_>,
    body: &BodyDigest,
    model: &ServedModel,
    prompts: &[SizedPrompt],
) -> Option<CacheKey> {
    let mut digest = Sha256::new();
    digest.update(model.fingerprint);
    digest.update(model.name());
    digest.update([0]);
    digest.update(request.endpoint);
    digest.update([0]);
    digest.update(body.sha256);
    // As JSON, so that different formats have different bytes.
    let form = serde_json::to_vec(&request.form).ok()?;
    digest.update((form.len() as u64).to_le_bytes());
    digest.update(form);
    for fitted in prompts {
        for number in [fitted.max_new_tokens, fitted.prompt.len()] {
            digest.update((number as u64).to_le_bytes());
        }
        for id in &*fitted.prompt {
            digest.update(id.to_le_bytes());
        }
    }
    Some(digest.finalize().into())
}

/// Records the pieces of a response and stores them when it is complete. An incomplete response is
/// dropped together with this.
pub struct Recorder {
    cache: ResultCache,
    key: CacheKey,
    model: Arc<ServedModel>,
    pieces: Vec<StoredPiece>,
    n_choices_left: usize,
}

impl Recorder {
    pub fn record(&mut self, index: usize, piece: &Piece) {
        self.pieces.push(StoredPiece::of(index, piece));
        let Some(end) = &piece.end else { return };
        // An aborted choice does not count down, so its response is never stored.
        if end.finish_reason != "abort" {
            self.n_choices_left = self.n_choices_left.saturating_sub(1);
        }
        if self.n_choices_left > 0 {
            return;
        }
        let pieces = std::mem::take(&mut self.pieces);
        let (cache, key, model) = (self.cache.clone(), self.key, Arc::clone(&self.model));
        // Storing does not delay the client.
        tokio::spawn(async move {
            let metrics: &Metrics = model.engine.metrics();
            let Ok(bytes) = serde_json::to_vec(&pieces) else {
                return;
            };
            match cache.put(key, bytes.into()).await {
                Put::Kept => metrics.result_cache_stored.add(1),
                Put::Unreachable => metrics.result_cache_errors.add(1),
                Put::TooLarge => {}
            }
        });
    }
}

/// Id, log-probability, and the most likely tokens with their log-probabilities.
type StoredToken = (u32, Option<f32>, Vec<(u32, f32)>);

/// A piece in its stored form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredPiece {
    index: usize,
    text: String,
    tokens: Vec<StoredToken>,
    end: Option<StoredEnd>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StoredEnd {
    finish_reason: String,
    stop_reason: Value,
    /// Prompt, completion, cached.
    usage: (usize, usize, usize),
}

impl StoredPiece {
    fn of(index: usize, piece: &Piece) -> Self {
        let tokens = piece.tokens.iter();
        Self {
            index,
            text: piece.text.clone(),
            tokens: tokens
                .map(|t| (t.token, t.logprob, t.top_logprobs.clone()))
                .collect(),
            end: piece.end.as_ref().map(|end| StoredEnd {
                finish_reason: end.finish_reason.to_owned(),
                stop_reason: end.stop_reason.clone(),
                usage: (
                    end.usage.prompt_tokens,
                    end.usage.completion_tokens,
                    end.usage.cached_tokens,
                ),
            }),
        }
    }

    /// `None` if the bytes are not what this server writes for this prompt: they come from outside.
    fn restore(self, prompt: &SizedPrompt, vocab: usize) -> Option<(usize, Piece)> {
        let is_finite = |logprob: &f32| logprob.is_finite();
        let is_ours = |(id, logprob, top): &StoredToken| {
            (*id as usize) < vocab
                && logprob.iter().all(is_finite)
                && top
                    .iter()
                    .all(|(id, logprob)| (*id as usize) < vocab && logprob.is_finite())
        };
        if !self.tokens.iter().all(is_ours) {
            return None;
        }
        let end = match self.end {
            None => None,
            Some(end) if !end.is_ours(prompt, vocab) => return None,
            Some(end) => Some(ChoiceEnd {
                finish_reason: match end.finish_reason.as_str() {
                    "stop" => "stop",
                    "length" => "length",
                    _ => return None,
                },
                stop_reason: end.stop_reason,
                usage: Usage {
                    prompt_tokens: end.usage.0,
                    completion_tokens: end.usage.1,
                    cached_tokens: end.usage.2,
                    // Nothing is drafted for a stored answer.
                    ..Usage::default()
                },
            }),
        };
        let tokens = self.tokens.into_iter();
        let piece = Piece {
            text: self.text,
            tokens: tokens
                .map(|(token, logprob, top_logprobs)| SampledToken {
                    token,
                    logprob,
                    top_logprobs,
                })
                .collect(),
            end,
        };
        Some((self.index, piece))
    }
}

impl StoredEnd {
    /// Whether the usage is possible for this prompt, and the stop reason one that a client can ask
    /// for.
    fn is_ours(&self, prompt: &SizedPrompt, vocab: usize) -> bool {
        let (n_prompt, n_output, n_cached) = self.usage;
        let is_stop = match &self.stop_reason {
            Value::Null | Value::String(_) => true,
            Value::Number(id) => id.as_u64().is_some_and(|id| id < vocab as u64),
            _ => false,
        };
        is_stop
            && n_prompt == prompt.prompt.len()
            && n_cached <= n_prompt
            && n_output <= prompt.max_new_tokens
    }
}

/// The stored pieces, if they are complete. Choices of one prompt are adjacent.
fn read(
    bytes: &[u8],
    n_choices: usize,
    prompts: &[SizedPrompt],
    vocab: usize,
) -> Option<Vec<(usize, Piece)>> {
    let stored: Vec<StoredPiece> = serde_json::from_slice(bytes).ok()?;
    let n_per_prompt = (n_choices / prompts.len().max(1)).max(1);
    let pieces: Vec<(usize, Piece)> = stored
        .into_iter()
        .map(|piece| {
            let prompt = prompts.get(piece.index / n_per_prompt)?;
            piece.restore(prompt, vocab)
        })
        .collect::<Option<_>>()?;
    let mut has_ended = vec![false; n_choices];
    for (index, piece) in &pieces {
        let ended = has_ended.get_mut(*index)?;
        if *ended {
            return None;
        }
        *ended = piece.end.is_some();
    }
    has_ended.iter().all(|ended| *ended).then_some(pieces)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Reads pieces for one prompt of three tokens and a vocabulary of ten.
    fn read(bytes: &[u8], n_choices: usize) -> Option<Vec<(usize, Piece)>> {
        let prompt = SizedPrompt {
            prompt: [1, 2, 3].into(),
            max_new_tokens: 2,
        };
        super::read(bytes, n_choices, &[prompt], 10)
    }

    fn digest(body: Value) -> [u8; 32] {
        let Value::Object(map) = body else {
            panic!("an object")
        };
        BodyDigest::of(&map).sha256
    }

    #[test]
    fn the_key_is_about_the_content_only() {
        let base = digest(json!({"temperature": 0, "max_tokens": 5, "prompt": "a"}));
        for same in [
            json!({"max_tokens": 5, "temperature": 0, "stream": true, "user": "x"}),
            json!({"max_tokens": 5, "temperature": 0, "stream_options": {"include_usage": true}}),
        ] {
            assert_eq!(digest(same), base);
        }
        for other in [
            json!({"temperature": 0, "max_tokens": 6}),
            json!({"temperature": 0, "max_tokens": 5, "stop": "x"}),
            json!({"temperature": 0, "max_tokens": 5, "seed": 1}),
            json!({"temperature": 0, "max_tokens": 5, "cache_salt": "a"}),
            json!({"temperature": 0, "max_tokens": 5, "cache_salt": "b"}),
        ] {
            assert_ne!(digest(other), base);
        }
    }

    fn piece(text: &str, finish_reason: Option<&'static str>) -> Piece {
        Piece {
            text: text.to_owned(),
            tokens: vec![SampledToken {
                token: 7,
                logprob: Some(-0.5),
                top_logprobs: vec![(7, -0.5), (8, -1.0)],
            }],
            end: finish_reason.map(|finish_reason| ChoiceEnd {
                finish_reason,
                stop_reason: json!("x"),
                usage: Usage {
                    prompt_tokens: 3,
                    completion_tokens: 2,
                    cached_tokens: 1,
                    ..Usage::default()
                },
            }),
        }
    }

    #[test]
    fn pieces_come_back_as_they_were() {
        let pieces = [piece("a", None), piece("b", Some("stop"))];
        let stored: Vec<StoredPiece> = pieces.iter().map(|p| StoredPiece::of(0, p)).collect();
        let bytes = serde_json::to_vec(&stored).expect("JSON");
        let read_back = read(&bytes, 1).expect("whole");
        assert_eq!(read_back.len(), pieces.len());
        for ((index, restored), piece) in read_back.iter().zip(&pieces) {
            assert_eq!(*index, 0);
            assert_eq!(
                (&restored.text, &restored.tokens),
                (&piece.text, &piece.tokens)
            );
            let usage = |piece: &Piece| piece.end.as_ref().map(|end| end.usage);
            assert_eq!(usage(restored), usage(piece));
        }
    }

    #[test]
    fn what_is_broken_or_cut_off_is_no_answer() {
        let stored = |pieces: &[(usize, Piece)]| {
            let pieces: Vec<_> = pieces.iter().map(|(i, p)| StoredPiece::of(*i, p)).collect();
            serde_json::to_vec(&pieces).expect("JSON")
        };
        assert!(read(b"[{]", 1).is_none());
        assert!(
            read(&stored(&[(0, piece("a", None))]), 1).is_none(),
            "no end"
        );
        assert!(
            read(&stored(&[(0, piece("a", Some("stop")))]), 2).is_none(),
            "one choice"
        );
        assert!(
            read(&stored(&[(5, piece("a", Some("stop")))]), 1).is_none(),
            "no such choice"
        );
        let twice = [(0, piece("a", Some("stop"))), (0, piece("a", Some("stop")))];
        assert!(read(&stored(&twice), 1).is_none(), "two ends");
        assert!(
            read(&stored(&[(0, piece("a", Some("abort")))]), 1).is_none(),
            "aborted"
        );
    }

    /// Redis may contain anything, written by other programs.
    #[test]
    fn what_this_server_cannot_have_kept_is_no_answer() {
        let kept = StoredPiece::of(0, &piece("a", Some("stop")));
        let kept = serde_json::to_value([kept]).expect("JSON");
        let with = |pointer: &str, value: Value| {
            let mut kept = kept.clone();
            *kept.pointer_mut(pointer).expect(pointer) = value;
            read(kept.to_string().as_bytes(), 1)
        };
        assert!(with("/0/text", json!("b")).is_some());
        for stop in [json!(null), json!("x"), json!(9)] {
            assert!(with("/0/end/stop_reason", stop).is_some());
        }
        for (pointer, value) in [
            ("/0/end/usage/0", json!(u64::MAX)),
            ("/0/end/usage/0", json!(4)),
            ("/0/end/usage/1", json!(u64::MAX)),
            ("/0/end/usage/1", json!(3)),
            ("/0/end/usage/2", json!(4)),
            ("/0/end/usage/2", json!(-1)),
            ("/0/end/stop_reason", json!({"a": 1})),
            ("/0/end/stop_reason", json!(10)),
            ("/0/end/stop_reason", json!(1.5)),
            ("/0/end/finish_reason", json!("tool_calls")),
            ("/0/tokens/0/0", json!(10)),
            ("/0/tokens/0/1", json!(1e300)),
            ("/0/tokens/0/2/0/0", json!(10)),
            ("/0/tokens/0/2/0/1", json!(-1e300)),
        ] {
            assert!(with(pointer, value.clone()).is_none(), "{pointer} {value}");
        }
    }
}
