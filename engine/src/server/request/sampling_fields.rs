//! The fields that control sampling and the end of output, shared by completions and chat.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use crate::errors::Code;
use crate::guide::Guide;
use crate::request::SamplingParams;
use crate::request::exclusions::Exclusions;
use crate::request::ranges;
use crate::served_model::{Limits, Seeds};
use crate::server::error::ApiError;
use crate::server::kept_streams::KeepStream;
use crate::server::request::cache_salt;
use crate::server::request::exclusion_fields::{BadWords, take_allowed, take_min_tokens};
use crate::server::request::fields::{Fields, as_integer, integers, show};
use crate::server::request::prompt::SizedPrompt;
use crate::server::request::structured_fields::{RequestedFormat, take_constraint};
use crate::text::Tokenizer;
use crate::traces::RequestTrace;

/// Maximum number of log-probabilities for each token, as in OpenAI's chat API.
pub const MAX_LOGPROBS: i64 = 20;
/// Maximum number of sequences that one HTTP request may ask for (prompts × n).
pub const MAX_CHOICES: usize = 128;
const MAX_STOP_CHARS: usize = 1024;
const MAX_STOP_IDS: usize = 1024;

/// The parsed fields of a request, checked except for its length.
#[derive(Debug, Clone)]
pub struct Generation {
    pub params: SamplingParams,
    /// Choices for each prompt.
    pub n: usize,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub ignore_eos: bool,
    /// The output does not end before it has this many tokens.
    pub min_tokens: usize,
    pub bad_words: BadWords,
    pub skip_special_tokens: bool,
    pub include_stop_str: bool,
    /// As requested; `None` means the endpoint's default.
    pub max_tokens: Option<usize>,
    pub priority: i32,
    /// The root of the radix tree whose cached KV the prompt may share.
    pub prefix_root: u64,
    pub streaming: Option<Streaming>,
    /// The required output format.
    pub asked: Option<RequestedFormat>,
    /// When the request was received.
    pub received: Instant,
    /// The request's spans, if they are sent.
    pub trace: Option<Arc<RequestTrace>>,
}

/// How the response is streamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streaming {
    pub include_usage: bool,
    /// Each chunk carries its choice's usage so far; only with `include_usage`.
    pub continuous_usage: bool,
    /// How it is kept, so that it can be resumed.
    pub keeping: Option<KeepStream>,
}

/// Refuses fields that other servers support and this one does not, unless their value has no
/// effect. Other unknown fields are ignored, as in other OpenAI-compatible servers.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    for name in [
        "logits_processors",
        "prompt_logprobs",
        "truncate_prompt_tokens",
        "lora_path",
    ] {
        fields.refuse(name, &[json!([])])?;
    }
    for name in ["use_beam_search", "return_hidden_states"] {
        fields.refuse(name, &[json!(false)])?;
    }
    for name in ["stop_regex", "custom_logit_processor"] {
        fields.refuse(name, &[json!(""), json!([])])?;
    }
    fields.refuse("logprob_token_ids", &[json!([])])?;
    // Each with the number that switches it off.
    for (name, off) in [
        ("length_penalty", 1),
        ("repeat_penalty", 1),
        ("typical_p", 1),
        ("mirostat", 0),
        ("n_probs", 0),
        ("dry_multiplier", 0),
        ("xtc_probability", 0),
        ("dynatemp_range", 0),
        ("top_n_sigma", -1),
    ] {
        fields.refuse(name, &[json!(off), json!(f64::from(off))])?;
    }
    Ok(())
}

impl Generation {
    /// Takes the shared fields. `n_logprobs` is the endpoint's own interpretation of its fields.
    ///
    /// # Errors
    ///
    /// The first field that is of the wrong type, out of its range, not supported, or differs
    /// from another field with the same meaning.
    pub fn take(
        fields: &mut Fields,
        limits: &Limits,
        seeds: &Seeds,
        n_logprobs: Option<usize>,
    ) -> Result<Self, ApiError> {
        refuse_unsupported(fields)?;
        let most = i64::from(i32::MAX);
        let max_tokens = take_same(fields, "max_tokens", "max_completion_tokens", 1..=most)?;
        let n = fields.integer("n", 1..=MAX_CHOICES as i64)?.unwrap_or(1) as usize;
        if let Some(best_of) = fields.integer("best_of", 1..=MAX_CHOICES as i64)?
            && best_of as usize != n
        {
            let message = format!("best_of is {best_of}, but only the value of n ({n}) works here");
            return Err(ApiError::unsupported("best_of", message));
        }
        let generation = Self {
            params: take_params(fields, limits, seeds, n_logprobs)?,
            n,
            stop: take_stop(fields, limits)?,
            stop_token_ids: take_stop_ids(fields, limits)?,
            ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
            min_tokens: take_min_tokens(fields)?,
            bad_words: BadWords::take(fields)?,
            skip_special_tokens: fields.bool("skip_special_tokens")?.unwrap_or(true),
            include_stop_str: fields.bool("include_stop_str_in_output")?.unwrap_or(false),
            max_tokens: max_tokens.map(|n| n as usize),
            priority: fields
                .integer("priority", i64::from(i32::MIN)..=most)?
                .unwrap_or(0) as i32,
            prefix_root: cache_salt::take(fields)?,
            streaming: take_streaming(fields)?,
            asked: take_constraint(fields)?,
            received: fields.received(),
            trace: fields.trace().cloned(),
        };
        generation.check_min_tokens()?;
        Ok(generation)
    }

    fn check_min_tokens(&self) -> Result<(), ApiError> {
        let min_tokens = self.min_tokens;
        if let Some(max_tokens) = self.max_tokens.filter(|most| *most < min_tokens) {
            let message =
                format!("min_tokens is {min_tokens}, but max_tokens allows {max_tokens} tokens");
            return Err(ApiError::invalid("min_tokens", message));
        }
        if min_tokens > 0 && self.asked.is_some() {
            let message = format!(
                "min_tokens is {min_tokens}, but the form of the output says where it ends"
            );
            return Err(ApiError::unsupported("min_tokens", message));
        }
        Ok(())
    }

    /// Refuses `min_tokens` above `max_tokens` (its default, or the room that the prompt leaves).
    pub(crate) fn check_sized(&self, fitted: &SizedPrompt) -> Result<(), ApiError> {
        let (least, most) = (self.min_tokens, fitted.max_new_tokens);
        if least <= most {
            return Ok(());
        }
        let why = match self.max_tokens {
            None => "its default here, since it is not given",
            Some(_) => "the room that the prompt leaves",
        };
        let message = format!("min_tokens is {least}, but max_tokens is {most} ({why})");
        Err(ApiError::invalid("min_tokens", message))
    }

    /// Parameters of one choice: the shared ones, with its own random stream and guide. `ends` are
    /// all tokens that end it.
    pub(crate) fn params_of_choice(
        &self,
        choice: usize,
        guide: Option<Guide>,
        ends: &Arc<[u32]>,
        tokenizer: &Tokenizer,
    ) -> Result<Arc<SamplingParams>, ApiError> {
        let mut params = self.params.clone();
        params.seed = params.seed.wrapping_add(choice as u64);
        params.guide = guide;
        params.exclusions.min_tokens = self.min_tokens;
        params.exclusions.ends = Arc::clone(ends);
        if !self.bad_words.is_empty() {
            params.exclusions.bad_words = self.bad_words.ids(tokenizer)?;
        }
        Ok(Arc::new(params))
    }
}

/// A field with two names. Both may be given if they agree.
pub(crate) fn take_same(
    fields: &mut Fields,
    name: &str,
    other_name: &str,
    range: RangeInclusive<i64>,
) -> Result<Option<i64>, ApiError> {
    let value = fields.integer(name, range.clone())?;
    let other = fields.integer(other_name, range)?;
    match (value, other) {
        (Some(value), Some(other)) if value != other => {
            let message =
                format!("{name} is {value}, but {other_name}, which means the same, is {other}");
            Err(ApiError::invalid(other_name, message))
        }
        _ => Ok(value.or(other)),
    }
}

fn take_params(
    fields: &mut Fields,
    limits: &Limits,
    seeds: &Seeds,
    n_logprobs: Option<usize>,
) -> Result<SamplingParams, ApiError> {
    let defaults = &limits.sampling_defaults;
    // -1 keeps all tokens, as 0 does.
    let top_k = fields
        .integer("top_k", ranges::TOP_K)?
        .map_or(defaults.top_k.unwrap_or(0), |k| k.max(0) as usize);
    let or = |own: Option<f32>, recommended: Option<f32>, neutral: f32| {
        own.or(recommended).unwrap_or(neutral)
    };
    Ok(SamplingParams {
        temperature: or(
            fields.parameter(ranges::TEMPERATURE)?,
            defaults.temperature,
            1.0,
        ),
        top_k,
        top_p: or(fields.parameter(ranges::TOP_P)?, defaults.top_p, 1.0),
        min_p: or(fields.parameter(ranges::MIN_P)?, defaults.min_p, 0.0),
        repetition_penalty: or(
            fields.parameter(ranges::REPETITION_PENALTY)?,
            defaults.repetition_penalty,
            1.0,
        ),
        presence_penalty: fields.parameter(ranges::PRESENCE_PENALTY)?.unwrap_or(0.0),
        frequency_penalty: fields.parameter(ranges::FREQUENCY_PENALTY)?.unwrap_or(0.0),
        logit_bias: take_logit_bias(fields, limits)?,
        seed: match fields.integer("seed", i64::MIN..=i64::MAX)? {
            Some(seed) => seed as u64,
            None => seeds.draw(),
        },
        n_logprobs,
        n_prompt_logprobs: None,
        exclusions: Exclusions {
            allowed: take_allowed(fields, limits)?,
            ..Exclusions::default()
        },
        guide: None,
    })
}

fn take_logit_bias(fields: &mut Fields, limits: &Limits) -> Result<Vec<(u32, f32)>, ApiError> {
    const NAME: &str = "logit_bias";
    fields.shape(NAME, || {
        let ids = json!({"pattern": "^[0-9]+$"});
        let bias = ranges::LOGIT_BIAS.schema();
        json!({"type": "object", "propertyNames": ids, "additionalProperties": bias})
    });
    let Some(biases) = fields.object(NAME)? else {
        return Ok(Vec::new());
    };
    biases
        .into_map()
        .into_iter()
        .map(|(key, value)| {
            let path = format!("{NAME}[{key:?}]");
            let id = key
                .parse::<u32>()
                .ok()
                .filter(|&id| (id as usize) < limits.vocab);
            let Some(id) = id else {
                let vocab = limits.vocab;
                let message = format!("{path} is no token id; ids are from 0 to {}", vocab - 1);
                return Err(ApiError::invalid(path, message));
            };
            let range = ranges::LOGIT_BIAS;
            let bias = value.as_f64().and_then(|bias| range.take(bias));
            let bias = bias.ok_or_else(|| {
                let message = format!("{path} is {}, but must be from {range}", show(&value));
                ApiError::invalid(path, message)
            })?;
            Ok((id, bias))
        })
        .collect()
}

fn take_stop(fields: &mut Fields, limits: &Limits) -> Result<Vec<String>, ApiError> {
    const NAME: &str = "stop";
    let limit = limits.max_stop_strings;
    fields.shape(NAME, || {
        let text = json!({"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS});
        let texts = json!({"type": "array", "items": text, "maxItems": limit});
        json!({"anyOf": [text, texts]})
    });
    let items = match fields.value(NAME) {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(text @ Value::String(_)) => vec![text],
        Some(other) => {
            return Err(fields.wrong_type(NAME, &other, "a string or an array of strings"));
        }
    };
    if items.len() > limit {
        let message = format!("stop has {} strings, the limit is {limit}", items.len());
        return Err(ApiError::of_field(Code::TooManyStopStrings, NAME, message));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(i, item)| match item {
            Value::String(text) if text.is_empty() => {
                let message = format!("stop[{i}] is empty; it must have at least one character");
                Err(ApiError::invalid(format!("stop[{i}]"), message))
            }
            Value::String(text) if text.chars().count() > MAX_STOP_CHARS => {
                let n_chars = text.chars().count();
                let message =
                    format!("stop[{i}] has {n_chars} characters, the limit is {MAX_STOP_CHARS}");
                let param = format!("stop[{i}]");
                Err(ApiError::of_field(Code::TooManyStopStrings, param, message))
            }
            Value::String(text) => Ok(text),
            other => Err(fields.wrong_type(&format!("stop[{i}]"), &other, "a string")),
        })
        .collect()
}

fn take_stop_ids(fields: &mut Fields, limits: &Limits) -> Result<Vec<u32>, ApiError> {
    const NAME: &str = "stop_token_ids";
    fields.shape(NAME, || id_list(limits, 0, MAX_STOP_IDS));
    let items = fields.array(NAME)?.unwrap_or_default();
    if items.len() > MAX_STOP_IDS {
        let message = format!(
            "stop_token_ids has {} ids, the limit is {MAX_STOP_IDS}",
            items.len()
        );
        return Err(ApiError::invalid(NAME, message));
    }
    token_ids(NAME, &items, limits)
}

/// The schema of a list of token ids.
pub(crate) fn id_list(limits: &Limits, least: usize, most: usize) -> Value {
    let id = integers(&(0..=limits.vocab as i64 - 1));
    json!({"type": "array", "items": id, "minItems": least, "maxItems": most})
}

/// Token ids of the vocabulary, from JSON.
pub(crate) fn token_ids(
    path: &str,
    items: &[Value],
    limits: &Limits,
) -> Result<Vec<u32>, ApiError> {
    items
        .iter()
        .enumerate()
        .map(|(i, item)| {
            as_integer(item)
                .and_then(|id| u32::try_from(id).ok())
                .filter(|&id| (id as usize) < limits.vocab)
                .ok_or_else(|| {
                    let path = format!("{path}[{i}]");
                    let most = limits.vocab - 1;
                    let message = format!(
                        "{path} is {}, but token ids are from 0 to {most}",
                        show(item)
                    );
                    ApiError::invalid(path, message)
                })
        })
        .collect()
}

fn take_streaming(fields: &mut Fields) -> Result<Option<Streaming>, ApiError> {
    let stream = fields.bool("stream")?.unwrap_or(false);
    let options = fields.object("stream_options")?;
    if !stream {
        return match options {
            Some(_) => Err(ApiError::invalid(
                "stream_options",
                "stream_options is only allowed when stream is true",
            )),
            None => Ok(None),
        };
    }
    let mut options = options.unwrap_or_default();
    Ok(Some(Streaming {
        include_usage: options.bool("include_usage")?.unwrap_or(false),
        continuous_usage: options.bool("continuous_usage_stats")?.unwrap_or(false),
        keeping: fields.stream_keeping(),
    }))
}
