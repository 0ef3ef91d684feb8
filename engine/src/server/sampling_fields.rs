//! The fields that say how tokens are chosen and where output ends; the same for completions
//! and chat.

use std::sync::Arc;

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Fields, as_integer, show};
use super::state::{Limits, Seeds};
use super::structured_fields::{Asked, take_constraint};
use crate::errors::Code;
use crate::request::SamplingParams;
use crate::structured::Guide;

/// Most log-probabilities a token, as OpenAI's chat API has it.
pub const MAX_LOGPROBS: i64 = 20;
/// Most sequences one HTTP request may ask for (prompts × n).
pub const MAX_CHOICES: usize = 128;
const MAX_STOP_CHARS: usize = 1024;
const MAX_STOP_IDS: usize = 1024;

/// What one request asked for, checked but for its length.
#[derive(Debug, Clone)]
pub struct Generation {
    pub params: SamplingParams,
    /// Choices per prompt.
    pub n: usize,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub ignore_eos: bool,
    pub skip_special_tokens: bool,
    pub include_stop_str: bool,
    /// As asked; `None` means the endpoint's default.
    pub max_tokens: Option<usize>,
    pub priority: i32,
    pub streaming: Option<Streaming>,
    /// What the output has to be.
    pub asked: Option<Asked>,
}

/// How the answer is streamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streaming {
    pub include_usage: bool,
}

/// Fields that other servers know and this one does not do, with the values that ask for
/// nothing. The rest of the unknown fields is ignored, as OpenAI-compatible servers do.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    for name in [
        "logits_processors",
        "prompt_logprobs",
        "truncate_prompt_tokens",
        "bad_words",
        "lora_path",
    ] {
        fields.refuse(name, &[json!([])])?;
    }
    fields.refuse("use_beam_search", &[json!(false)])?;
    fields.refuse("length_penalty", &[json!(1), json!(1.0)])
}

impl Generation {
    /// Takes the shared fields. `n_logprobs` is the endpoint's own reading of its fields.
    pub fn take(
        fields: &mut Fields,
        limits: &Limits,
        seeds: &Seeds,
        n_logprobs: Option<usize>,
    ) -> Result<Self, ApiError> {
        refuse_unsupported(fields)?;
        let most = i64::from(i32::MAX);
        let max_tokens = fields.integer("max_tokens", 1..=most)?;
        let max_completion_tokens = fields.integer("max_completion_tokens", 1..=most)?;
        let n = fields.integer("n", 1..=MAX_CHOICES as i64)?.unwrap_or(1) as usize;
        if let Some(best_of) = fields.integer("best_of", 1..=MAX_CHOICES as i64)?
            && best_of as usize != n
        {
            let message = format!("best_of is {best_of}, but only the value of n ({n}) works here");
            return Err(ApiError::unsupported("best_of", message));
        }
        let min_tokens = fields.integer("min_tokens", 0..=most)?.unwrap_or(0);
        let generation = Self {
            params: take_params(fields, limits, seeds, n_logprobs)?,
            n,
            stop: take_stop(fields, limits)?,
            stop_token_ids: take_stop_ids(fields, limits)?,
            ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
            skip_special_tokens: fields.bool("skip_special_tokens")?.unwrap_or(true),
            include_stop_str: fields.bool("include_stop_str_in_output")?.unwrap_or(false),
            max_tokens: max_completion_tokens.or(max_tokens).map(|n| n as usize),
            priority: fields
                .integer("priority", i64::from(i32::MIN)..=most)?
                .unwrap_or(0) as i32,
            streaming: take_streaming(fields)?,
            asked: take_constraint(fields)?,
        };
        if min_tokens > 0 && generation.may_end_early() {
            let message = format!(
                "min_tokens is {min_tokens}, which only works together with ignore_eos, and \
                 without stop strings, stop tokens or a form of the output"
            );
            return Err(ApiError::unsupported("min_tokens", message));
        }
        Ok(generation)
    }

    /// Something else than `max_tokens` may end the output.
    fn may_end_early(&self) -> bool {
        !self.ignore_eos
            || !self.stop.is_empty()
            || !self.stop_token_ids.is_empty()
            || self.asked.is_some()
    }

    /// Parameters of one choice: the same, with a random stream and a guide of its own.
    pub fn params_of_choice(&self, choice: usize, guide: Option<Guide>) -> Arc<SamplingParams> {
        let mut params = self.params.clone();
        params.seed = params.seed.wrapping_add(choice as u64);
        params.guide = guide;
        Arc::new(params)
    }
}

fn take_params(
    fields: &mut Fields,
    limits: &Limits,
    seeds: &Seeds,
    n_logprobs: Option<usize>,
) -> Result<SamplingParams, ApiError> {
    let defaults = &limits.sampling_defaults;
    // -1 keeps all, as 0 does.
    let top_k = fields
        .integer("top_k", -1..=i64::from(i32::MAX))?
        .map_or(defaults.top_k.unwrap_or(0), |k| k.max(0) as usize);
    let top_p = fields.number("top_p", 0.0..=1.0)?;
    let top_p = top_p.map_or(defaults.top_p.unwrap_or(1.0), |p| p as f32);
    let repetition = fields.number("repetition_penalty", 0.0..=10.0)?;
    let repetition = repetition.map_or(defaults.repetition_penalty.unwrap_or(1.0), |p| p as f32);
    if repetition <= 0.0 {
        let message = format!("repetition_penalty is {repetition}, but must be above 0, to 10");
        return Err(ApiError::invalid("repetition_penalty", message));
    }
    Ok(SamplingParams {
        temperature: fields
            .number("temperature", 0.0..=2.0)?
            .map_or(defaults.temperature.unwrap_or(1.0), |t| t as f32),
        top_k,
        top_p,
        min_p: fields
            .number("min_p", 0.0..=1.0)?
            .map_or(defaults.min_p.unwrap_or(0.0), |p| p as f32),
        repetition_penalty: repetition,
        presence_penalty: fields
            .number("presence_penalty", -2.0..=2.0)?
            .unwrap_or(0.0) as f32,
        frequency_penalty: fields
            .number("frequency_penalty", -2.0..=2.0)?
            .unwrap_or(0.0) as f32,
        logit_bias: take_logit_bias(fields, limits)?,
        seed: match fields.integer("seed", i64::MIN..=i64::MAX)? {
            Some(seed) => seed as u64,
            None => seeds.draw(),
        },
        n_logprobs,
        guide: None,
    })
}

fn take_logit_bias(fields: &mut Fields, limits: &Limits) -> Result<Vec<(u32, f32)>, ApiError> {
    const NAME: &str = "logit_bias";
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
            let bias = value
                .as_f64()
                .filter(|bias| (-100.0..=100.0).contains(bias));
            let bias = bias.ok_or_else(|| {
                let message = format!("{path} is {}, but must be from -100 to 100", show(&value));
                ApiError::invalid(path, message)
            })?;
            Ok((id, bias as f32))
        })
        .collect()
}

fn take_stop(fields: &mut Fields, limits: &Limits) -> Result<Vec<String>, ApiError> {
    const NAME: &str = "stop";
    let items = match fields.value(NAME) {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(text @ Value::String(_)) => vec![text],
        Some(other) => {
            return Err(fields.wrong_type(NAME, &other, "a string or an array of strings"));
        }
    };
    let limit = limits.max_stop_strings;
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

/// Token ids of the vocabulary, from JSON.
pub fn token_ids(path: &str, items: &[Value], limits: &Limits) -> Result<Vec<u32>, ApiError> {
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
    let include_usage = match options {
        Some(mut options) => options.bool("include_usage")?.unwrap_or(false),
        None => false,
    };
    Ok(Some(Streaming { include_usage }))
}
