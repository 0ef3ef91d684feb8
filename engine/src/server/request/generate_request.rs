//! Parses the body of `/generate`: prompts, ids, and the generation fields under SGLang's names.

use serde_json::{Map, Value, json};

use crate::served_model::{Limits, Seeds};
use crate::server::error::ApiError;
use crate::server::request::cache_salt;
use crate::server::request::description::Description;
use crate::server::request::fields::{Fields, as_integer, integers, show};
use crate::server::request::foreign_fields;
use crate::server::request::prompt::{Prompt, texts_schema};
use crate::server::request::sampling_fields::{
    Generation, MAX_CHOICES, MAX_LOGPROBS, id_list, token_ids,
};
use crate::server::response::generate_format::Shown;
use crate::server::running::{check_id, id_schema};

/// Default output tokens, as in SGLang.
const DEFAULT_MAX_TOKENS: usize = 128;
pub const PARAMS: &str = "sampling_params";

/// SGLang's names in `sampling_params` and the corresponding OpenAI or vLLM fields.
const NAMES: [(&str, &str); 21] = [
    ("max_new_tokens", "max_tokens"),
    ("min_new_tokens", "min_tokens"),
    ("sampling_seed", "seed"),
    ("no_stop_trim", "include_stop_str_in_output"),
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("min_p", "min_p"),
    ("frequency_penalty", "frequency_penalty"),
    ("presence_penalty", "presence_penalty"),
    ("repetition_penalty", "repetition_penalty"),
    ("n", "n"),
    ("stop", "stop"),
    ("stop_token_ids", "stop_token_ids"),
    ("ignore_eos", "ignore_eos"),
    ("skip_special_tokens", "skip_special_tokens"),
    ("logit_bias", "logit_bias"),
    ("json_schema", "json_schema"),
    ("regex", "regex"),
    ("ebnf", "ebnf"),
    ("structural_tag", "structural_tag"),
];
/// Known but unsupported fields, with the values that have no effect.
const NOT_DONE: [&str; 4] = [
    "stop_regex",
    "custom_params",
    "stream_interval",
    "spaces_between_special_tokens",
];

/// The schema of one object of `sampling_params`: the fields that [`Generation`] reads, by SGLang's
/// names.
///
/// # Errors
///
/// If a field of an empty object is refused, which none is.
pub(crate) fn params_schema(limits: &Limits, seeds: &Seeds) -> Result<Value, ApiError> {
    let description = Description::default();
    let mut fields = Fields::sample(Map::new(), &description);
    take_generation(&mut fields, limits, seeds, None)?;
    let read = description.schema();
    let properties: Map<String, Value> = NAMES
        .iter()
        .copied()
        .chain(NOT_DONE.map(|name| (name, name)))
        .map(|(theirs, ours)| (theirs.to_owned(), read["properties"][ours].clone()))
        .collect();
    Ok(json!({"type": "object", "properties": properties, "additionalProperties": false}))
}

/// A parsed request, checked except for its length.
pub struct GenerateRequest {
    pub prompts: Vec<Prompt>,
    /// Whether the prompts were given as a list, so that the response is a list too.
    pub is_list: bool,
    /// One for each prompt.
    pub ids: Vec<String>,
    pub is_streamed: bool,
    pub shown: Shown,
    /// One for each prompt, or one for all.
    pub planned: Vec<Planned>,
    /// Choices for each prompt.
    pub n: usize,
}

/// One object of `sampling_params`.
pub struct Planned {
    pub generation: Generation,
    /// Output tokens if the request does not give a number.
    pub default: usize,
}

impl GenerateRequest {
    /// Takes the fields of `/generate`.
    ///
    /// # Errors
    ///
    /// The first field that is missing, of the wrong type, out of its range or not supported;
    /// also if `n` differs between prompts, or prompts times `n` are more than [`MAX_CHOICES`].
    pub fn take(fields: &mut Fields, limits: &Limits, seeds: &Seeds) -> Result<Self, ApiError> {
        let (prompts, is_list) = take_inputs(fields, limits)?;
        let ids = take_ids(fields, prompts.len())?;
        let is_streamed = fields.bool("stream")?.unwrap_or(false);
        let shown = take_shown(fields)?;
        let prefix_root = cache_salt::take(fields)?;
        let priority = fields.integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?;
        refuse_unsupported(fields)?;
        let params = take_params(fields, prompts.len())?;
        let mut planned = Vec::with_capacity(params.len());
        for (path, params) in params {
            let mut plan = Planned::new(params, &path, limits, seeds, shown.n_logprobs)?;
            plan.generation.priority = priority.unwrap_or(0) as i32;
            plan.generation.received = fields.received();
            plan.generation.trace = fields.trace().cloned();
            plan.generation.prefix_root = prefix_root;
            planned.push(plan);
        }
        let n = planned.first().map_or(1, |plan| plan.generation.n);
        if planned.iter().any(|plan| plan.generation.n != n) {
            let message = format!("{PARAMS} differ in n; it must be the same for all prompts");
            return Err(ApiError::invalid(PARAMS, message));
        }
        if prompts.len() * n > MAX_CHOICES {
            let message = format!(
                "{} prompts with n = {n} are {} choices, the limit is {MAX_CHOICES}",
                prompts.len(),
                prompts.len() * n
            );
            return Err(ApiError::invalid(PARAMS, message));
        }
        Ok(Self {
            prompts,
            is_list,
            ids,
            is_streamed,
            shown,
            planned,
            n,
        })
    }

    /// The index in `planned` of a prompt's parameters.
    pub fn plan_of(&self, prompt: usize) -> usize {
        prompt.min(self.planned.len().saturating_sub(1))
    }
}

impl Planned {
    fn new(
        params: Map<String, Value>,
        path: &str,
        limits: &Limits,
        seeds: &Seeds,
        n_logprobs: Option<usize>,
    ) -> Result<Self, ApiError> {
        // `null` means the rest of the sequence; an absent field means the default.
        let is_open = params.get("max_new_tokens").is_some_and(Value::is_null);
        let mut renamed = Map::new();
        for (name, value) in params {
            match NAMES.iter().find(|(known, _)| *known == name) {
                Some((_, ours)) => {
                    renamed.insert((*ours).to_owned(), value);
                }
                None if NOT_DONE.contains(&name.as_str()) => {
                    renamed.insert(name, value);
                }
                None => {
                    let path = format!("{path}.{name}");
                    let known = NAMES.map(|(name, _)| name).join(", ");
                    let message = format!("{path} is not known; known are {known}");
                    return Err(ApiError::unsupported(path, message));
                }
            }
        }
        let mut fields = Fields::nested(renamed, &format!("{path}."));
        let generation = take_generation(&mut fields, limits, seeds, n_logprobs)
            .map_err(|error| in_sglangs_names(error, path))?;
        Ok(Self {
            generation,
            default: if is_open {
                limits.max_sequence_tokens
            } else {
                DEFAULT_MAX_TOKENS
            },
        })
    }
}

/// The fields of one object of `sampling_params`, by our names.
fn take_generation(
    fields: &mut Fields,
    limits: &Limits,
    seeds: &Seeds,
    n_logprobs: Option<usize>,
) -> Result<Generation, ApiError> {
    fields.refuse("stream_interval", &[])?;
    fields.refuse("spaces_between_special_tokens", &[json!(true)])?;
    foreign_fields::refuse(fields)?;
    Generation::take(fields, limits, seeds, n_logprobs)
}

/// Converts an error about one of our fields to one about the field that the client sent.
pub fn in_sglangs_names(mut error: ApiError, path: &str) -> ApiError {
    let ours_alone = |param: &str| match param.strip_prefix(path) {
        Some(rest) => rest.strip_prefix('.').map(str::to_owned),
        None => Some(param.to_owned()),
    };
    let Some(param) = error.param.as_deref().and_then(ours_alone) else {
        return error;
    };
    let differing = || NAMES.iter().filter(|(theirs, ours)| theirs != ours);
    if let Some((theirs, ours)) = differing().find(|(_, ours)| *ours == param) {
        error.param = Some(format!("{path}.{theirs}"));
        // One length can only be explained by the other.
        let is_length = |name: &str| matches!(name, "max_tokens" | "min_tokens");
        for (theirs, other) in differing() {
            if other == ours || is_length(ours) && is_length(other) {
                error.message = error.message.replace(other, theirs);
            }
        }
    }
    error
}

/// The prompts, and whether they were given as a list.
fn take_inputs(fields: &mut Fields, limits: &Limits) -> Result<(Vec<Prompt>, bool), ApiError> {
    fields.shape("text", || json!({"anyOf": texts_schema()}));
    fields.shape("input_ids", || {
        let ids = id_list(limits, 1, limits.max_sequence_tokens);
        let lists = json!({"type": "array", "items": ids, "minItems": 1, "maxItems": MAX_CHOICES});
        json!({"anyOf": [ids, lists]})
    });
    fields.shape_one_of(&["text", "input_ids"]);
    let inputs = (fields.value("text"), fields.value("input_ids"));
    let (prompts, is_list) = match inputs {
        (Some(_), Some(_)) => {
            let message = "text and input_ids are both there; only one may be";
            return Err(ApiError::invalid("input_ids", message));
        }
        (None, None) => {
            let message = "text is missing; it or input_ids is needed";
            return Err(ApiError::invalid("text", message));
        }
        (Some(Value::String(text)), None) => (vec![Prompt::Text(text)], false),
        (Some(Value::Array(texts)), None) => {
            let texts = texts.into_iter().enumerate().map(|(i, text)| match text {
                Value::String(text) => Ok(Prompt::Text(text)),
                other => Err(fields.wrong_type(&format!("text[{i}]"), &other, "a string")),
            });
            (texts.collect::<Result<Vec<_>, _>>()?, true)
        }
        (None, Some(Value::Array(items))) if items.first().is_some_and(Value::is_array) => {
            let lists = items.iter().enumerate().map(|(i, item)| {
                let path = format!("input_ids[{i}]");
                match item {
                    Value::Array(ids) => Ok(Prompt::Ids(token_ids(&path, ids, limits)?)),
                    other => Err(fields.wrong_type(&path, other, "an array of token ids")),
                }
            });
            (lists.collect::<Result<Vec<_>, _>>()?, true)
        }
        (None, Some(Value::Array(items))) => {
            let ids = token_ids("input_ids", &items, limits)?;
            (vec![Prompt::Ids(ids)], false)
        }
        (Some(other), None) => {
            return Err(fields.wrong_type("text", &other, "a string or an array of strings"));
        }
        (None, Some(other)) => {
            return Err(fields.wrong_type("input_ids", &other, "an array of token ids"));
        }
    };
    if prompts.is_empty() || prompts.len() > MAX_CHOICES {
        let n = prompts.len();
        let message = format!("text has {n} prompts, but must have from 1 to {MAX_CHOICES}");
        return Err(ApiError::invalid("text", message));
    }
    Ok((prompts, is_list))
}

/// An id for each prompt: the client's, or generated ones.
fn take_ids(fields: &mut Fields, n_prompts: usize) -> Result<Vec<String>, ApiError> {
    let made = || format!("{:032x}", rand::random::<u128>());
    fields.shape(
        "rid",
        || json!({"anyOf": [id_schema(), {"type": "array", "items": id_schema()}]}),
    );
    let sent = match fields.value("rid") {
        None => return Ok((0..n_prompts).map(|_| made()).collect()),
        Some(Value::Array(ids)) => ids,
        // One id for a list of prompts: each prompt's id gets its index as a suffix, as in SGLang.
        Some(Value::String(id)) if n_prompts > 1 => {
            let numbered = (0..n_prompts).map(|i| Value::String(format!("{id}_{i}")));
            numbered.collect()
        }
        Some(other) => vec![other],
    };
    let ids = sent.into_iter().map(|id| match id {
        Value::String(id) => check_id("rid", &id).map(|()| id),
        other => Err(fields.wrong_type("rid", &other, "a string, or one a prompt")),
    });
    let ids = ids.collect::<Result<Vec<String>, _>>()?;
    if ids.len() != n_prompts {
        let message = format!("rid has {} ids for {n_prompts} prompts", ids.len());
        return Err(ApiError::invalid("rid", message));
    }
    Ok(ids)
}

fn take_shown(fields: &mut Fields) -> Result<Shown, ApiError> {
    let with_logprobs = of_all(fields, "return_logprob", &json!({"type": "boolean"}))?;
    let with_logprobs = match with_logprobs {
        None => false,
        Some(Value::Bool(flag)) => flag,
        Some(other) => return Err(fields.wrong_type("return_logprob", &other, "true or false")),
    };
    let n_top = match of_all(fields, "top_logprobs_num", &integers(&(0..=MAX_LOGPROBS)))? {
        None => 0,
        Some(value) => as_integer(&value)
            .filter(|n| (0..=MAX_LOGPROBS).contains(n))
            .ok_or_else(|| {
                let message = format!(
                    "top_logprobs_num is {}, but must be from 0 to {MAX_LOGPROBS}",
                    show(&value)
                );
                ApiError::invalid("top_logprobs_num", message)
            })?,
    };
    if n_top > 0 && !with_logprobs {
        let message = "top_logprobs_num is only allowed when return_logprob is true";
        return Err(ApiError::invalid("top_logprobs_num", message));
    }
    let whole = json!({"type": "integer"});
    if let Some(start) = of_all(fields, "logprob_start_len", &whole)? {
        const NAME: &str = "logprob_start_len";
        let number = as_integer(&start);
        let number = number.ok_or_else(|| fields.wrong_type(NAME, &start, "an integer"))?;
        if number != -1 && with_logprobs {
            let message = format!(
                "{NAME} is {number}, but only -1 works here: the output's log-probabilities"
            );
            return Err(ApiError::unsupported(NAME, message));
        }
    }
    Ok(Shown {
        n_logprobs: with_logprobs.then_some(n_top as usize),
        with_texts: fields.bool("return_text_in_logprobs")?.unwrap_or(false),
    })
}

/// A value of the schema `each`, or a list of equal values.
fn of_all(fields: &mut Fields, name: &str, each: &Value) -> Result<Option<Value>, ApiError> {
    fields.shape(
        name,
        || json!({"anyOf": [each, {"type": "array", "items": each}]}),
    );
    match fields.value(name) {
        Some(Value::Array(mut items)) => {
            if items.windows(2).any(|pair| pair[0] != pair[1]) {
                let message = format!("{name} differs among the prompts; it must be the same");
                return Err(ApiError::unsupported(name, message));
            }
            Ok(items.pop())
        }
        other => Ok(other),
    }
}

/// One object of `sampling_params`, as it came.
type Params = Map<String, Value>;

/// The objects, each with its path in the body.
fn take_params(fields: &mut Fields, n_prompts: usize) -> Result<Vec<(String, Params)>, ApiError> {
    fields.shape(PARAMS, || {
        let params = json!({"type": "object"});
        json!({"anyOf": [params, {"type": "array", "items": params}]})
    });
    match fields.value(PARAMS) {
        None => Ok(vec![(PARAMS.to_owned(), Map::new())]),
        Some(Value::Object(params)) => Ok(vec![(PARAMS.to_owned(), params)]),
        Some(Value::Array(items)) if items.len() == n_prompts => items
            .into_iter()
            .enumerate()
            .map(|(i, item)| match (format!("{PARAMS}[{i}]"), item) {
                (path, Value::Object(params)) => Ok((path, params)),
                (path, other) => Err(fields.wrong_type(&path, &other, "an object")),
            })
            .collect(),
        Some(other) => {
            let wanted = "an object, or an array of one a prompt";
            Err(fields.wrong_type(PARAMS, &other, wanted))
        }
    }
}

fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    foreign_fields::refuse(fields)?;
    for name in ["extra_key", "lora_id", "bootstrap_port", "return_bytes"] {
        fields.refuse(name, &[json!(""), json!([]), json!(false)])?;
    }
    for name in ["routed_dp_rank", "data_parallel_rank"] {
        fields.refuse(name, &[json!(0)])?;
    }
    Ok(())
}
