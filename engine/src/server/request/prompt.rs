//! Converts a client's prompt to token ids that fit.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::errors::Code;
use crate::served_model::{Limits, ServedModel};
use crate::server::error::ApiError;
use crate::server::request::fields::Fields;
use crate::server::request::sampling_fields::{MAX_CHOICES, id_list, token_ids};
use crate::server::transport::blocking::run_blocking_limited;

/// Shorter texts are tokenized inline; longer ones on a blocking thread.
pub(crate) const INLINE_BYTES: usize = 4096;

/// Number of longer texts tokenized concurrently: each needs a hundred times its size meanwhile.
pub(crate) const LONG_TEXTS_AT_ONCE: usize = 2;
static LONG_TEXTS: Semaphore = Semaphore::const_new(LONG_TEXTS_AT_ONCE);

/// One prompt of a completion request.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// Reads `prompt`: a string, an array of strings, of token ids, or of arrays of token ids.
///
/// # Errors
///
/// If `prompt` is missing, empty, of another type, has too many elements, or a token id that the
/// model does not have.
pub fn take_prompts(fields: &mut Fields, limits: &Limits) -> Result<Vec<Prompt>, ApiError> {
    const NAME: &str = "prompt";
    const WANTED: &str = "a string, an array of strings, an array of token ids, or an array of \
                          arrays of token ids";
    fields.shape(NAME, || prompts_schema(limits));
    let prompt = fields.value(NAME);
    let items = match fields.required(NAME, prompt, WANTED)? {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) => items,
        other => return Err(fields.wrong_type(NAME, &other, WANTED)),
    };
    match items.first() {
        None => Err(ApiError::invalid(
            NAME,
            "prompt is an empty array; it needs an element",
        )),
        Some(Value::Number(_)) => Ok(vec![Prompt::Ids(token_ids(NAME, &items, limits)?)]),
        Some(_) if items.len() > MAX_CHOICES => Err(ApiError::invalid(
            NAME,
            format!(
                "prompt has {} elements, the limit is {MAX_CHOICES}",
                items.len()
            ),
        )),
        Some(_) => items
            .into_iter()
            .enumerate()
            .map(|(i, item)| match item {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(ids) => Ok(Prompt::Ids(token_ids(
                    &format!("{NAME}[{i}]"),
                    &ids,
                    limits,
                )?)),
                other => Err(fields.wrong_type(&format!("{NAME}[{i}]"), &other, WANTED)),
            })
            .collect(),
    }
}

/// The schema of one prompt or several, as texts or token ids.
fn prompts_schema(limits: &Limits) -> Value {
    let ids = id_list(limits, 1, limits.max_sequence_tokens);
    let [text, list] = texts_schema();
    let lists = json!({"type": "array", "items": ids, "minItems": 1, "maxItems": MAX_CHOICES});
    json!({"anyOf": [text, list, ids, lists]})
}

/// The schemas of a text and of several.
pub(crate) fn texts_schema() -> [Value; 2] {
    let text = json!({"type": "string"});
    let list = json!({"type": "array", "items": text, "minItems": 1, "maxItems": MAX_CHOICES});
    [text, list]
}

/// Tokenizes a text, off the async threads if it is long. A text that cannot fit the model, judging
/// by its size in bytes, is refused before it is tokenized.
pub(crate) async fn encode(
    model: &ServedModel,
    text: String,
    add_special: bool,
    param: &str,
) -> Result<Vec<u32>, ApiError> {
    let tokenizer = &model.tokenizer;
    let limits = &model.limits;
    if text.len() > INLINE_BYTES && !limits.allow_auto_truncate {
        check_length(text.len(), tokenizer.least_tokens(&text), limits, param)?;
    }
    let encoded = if text.len() <= INLINE_BYTES {
        tokenizer.encode(&text, add_special)
    } else {
        let tokenizer = Arc::clone(tokenizer);
        run_blocking_limited(&LONG_TEXTS, "tokenizing", move || {
            tokenizer.encode(&text, add_special)
        })
        .await?
    };
    encoded.map_err(|error| ApiError::invalid(param, error.to_string()))
}

/// Refuses a text whose `least_tokens` tokens exceed the limit.
fn check_length(
    n_bytes: usize,
    least_tokens: usize,
    limits: &Limits,
    param: &str,
) -> Result<(), ApiError> {
    let (code, limit, said) = match limits.max_prompt_tokens {
        Some(most) if most < limits.max_sequence_tokens => (
            Code::PromptTooLong,
            most,
            format!("the limit is {most} tokens (--max-prompt-tokens)"),
        ),
        _ => (
            Code::ContextLengthExceeded,
            limits.max_sequence_tokens,
            context_limit(limits),
        ),
    };
    if least_tokens <= limit {
        return Ok(());
    }
    let message =
        format!("{param} has {n_bytes} bytes, which are {least_tokens} tokens at least; {said}");
    Err(ApiError::of_field(code, param, message))
}

/// A prompt and the output it may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizedPrompt {
    pub prompt: Arc<[u32]>,
    pub max_new_tokens: usize,
}

/// Checks prompt and output against the maximum sequence length, in tokens.
///
/// `max_tokens` is the client's value; `default` applies otherwise and is cut to what fits. With
/// `--allow-auto-truncate` nothing is refused for its length: a prompt that leaves no room is
/// truncated to its first tokens, as many as leave room for the requested output (but at least half
/// the sequence), and the output is cut to the room left.
///
/// # Errors
///
/// If the prompt is empty or has a token id that the model does not have, the output is longer
/// than `--max-output-tokens`, or prompt and output are longer than a sequence may be and
/// nothing may be cut.
pub fn fit(
    mut ids: Vec<u32>,
    max_tokens: Option<usize>,
    default: usize,
    limits: &Limits,
    param: &str,
) -> Result<SizedPrompt, ApiError> {
    let limit = limits.max_sequence_tokens;
    if ids.is_empty() {
        let message = format!("{param} has no tokens; at least one is needed");
        return Err(ApiError::invalid(param, message));
    }
    // A tokenizer may have ids that the model lacks; one such id would fail the whole step.
    if let Some(id) = ids.iter().find(|id| **id as usize >= limits.vocab) {
        let message = format!(
            "{param} has the token {id}, but this model's ids are from 0 to {}",
            limits.vocab.saturating_sub(1)
        );
        return Err(ApiError::invalid(param, message));
    }
    let default = limits
        .max_output_tokens
        .map_or(default, |most| default.min(most));
    if let (Some(asked), Some(most)) = (max_tokens, limits.max_output_tokens)
        && asked > most
    {
        let message = format!(
            "max_tokens is {asked}, the limit is {most} output tokens (--max-output-tokens)"
        );
        return Err(ApiError::of_field(
            Code::OutputTooLong,
            "max_tokens",
            message,
        ));
    }
    if let Some(most) = limits.max_prompt_tokens
        && ids.len() > most
    {
        if !limits.allow_auto_truncate {
            let message = format!(
                "{param} has {} tokens, the limit is {most} prompt tokens (--max-prompt-tokens)",
                ids.len()
            );
            return Err(ApiError::of_field(Code::PromptTooLong, param, message));
        }
        tracing::info!(n_prompt = ids.len(), n_kept = most, "prompt truncated");
        ids.truncate(most);
    }
    let wanted = max_tokens.unwrap_or(1);
    if ids.len() + wanted > limit {
        if !limits.allow_auto_truncate {
            return Err(too_long(ids.len(), max_tokens, limits, param));
        }
        if ids.len() >= limit {
            let output = max_tokens.unwrap_or(default);
            let n_kept = limit.saturating_sub(output).max(limit / 2).max(1);
            tracing::info!(n_prompt = ids.len(), n_kept, "prompt truncated");
            ids.truncate(n_kept);
        }
    }
    let room = limit.saturating_sub(ids.len());
    // A request for no output needs no room.
    let least = usize::from(max_tokens != Some(0));
    if room < least {
        return Err(too_long(ids.len(), max_tokens, limits, param));
    }
    let max_new_tokens = max_tokens.unwrap_or(default).clamp(least, room);
    Ok(SizedPrompt {
        prompt: ids.into(),
        max_new_tokens,
    })
}

fn too_long(n_prompt: usize, max_tokens: Option<usize>, limits: &Limits, param: &str) -> ApiError {
    let said = context_limit(limits);
    match max_tokens {
        Some(max_tokens) => ApiError::too_long(
            if n_prompt < limits.max_sequence_tokens {
                "max_tokens"
            } else {
                param
            },
            format!(
                "{param} has {n_prompt} tokens and max_tokens is {max_tokens}, together {}; {said}",
                n_prompt + max_tokens
            ),
        ),
        None => ApiError::too_long(
            param,
            format!("{param} has {n_prompt} tokens, which leaves no room for output; {said}"),
        ),
    }
}

/// Worded like OpenAI's and vLLM's message, by which clients that ignore the code recognise this
/// error (LiteLLM, to retry with a model with a longer context).
fn context_limit(limits: &Limits) -> String {
    format!(
        "this model's maximum context length is {} tokens ({})",
        limits.max_sequence_tokens, limits.sequence_limit_name
    )
}

/// Converts texts and ids to ids that fit, in order.
pub(crate) async fn fit_prompts(
    model: &ServedModel,
    prompts: Vec<Prompt>,
    add_special: bool,
    max_tokens: Option<usize>,
    default: usize,
) -> Result<Vec<SizedPrompt>, ApiError> {
    let is_one = prompts.len() == 1;
    let mut fitted = Vec::with_capacity(prompts.len());
    for (i, prompt) in prompts.into_iter().enumerate() {
        let param = if is_one {
            "prompt".to_owned()
        } else {
            format!("prompt[{i}]")
        };
        let ids = match prompt {
            Prompt::Text(text) => encode(model, text, add_special, &param).await?,
            Prompt::Ids(ids) => ids,
        };
        fitted.push(fit(ids, max_tokens, default, &model.limits, &param)?);
    }
    Ok(fitted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::sampling_defaults::SamplingDefaults;

    fn limits(allow_auto_truncate: bool) -> Limits {
        Limits {
            max_sequence_tokens: 100,
            sequence_limit_name: "--context-length",
            allow_auto_truncate,
            max_stop_strings: 4,
            max_prompt_tokens: None,
            max_output_tokens: None,
            vocab: 256,
            max_schema_bytes: 1 << 16,
            sampling_defaults: SamplingDefaults::default(),
        }
    }

    fn fit_n(
        n: usize,
        max_tokens: Option<usize>,
        truncate: bool,
    ) -> Result<(usize, usize), String> {
        fit(vec![7; n], max_tokens, 16, &limits(truncate), "prompt")
            .map(|fitted| (fitted.prompt.len(), fitted.max_new_tokens))
            .map_err(|error| error.message)
    }

    #[test]
    fn what_fits_is_left_alone() {
        assert_eq!(fit_n(90, Some(10), false), Ok((90, 10)));
        assert_eq!(fit_n(10, None, false), Ok((10, 16)));
        // The default output is cut; only an explicit value is refused.
        assert_eq!(fit_n(95, None, false), Ok((95, 5)));
        // A prompt that is only scored may fill the whole sequence.
        assert_eq!(fit_n(100, Some(0), false), Ok((100, 0)));
        assert!(fit_n(101, Some(0), false).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let message = fit_n(90, Some(11), false).expect_err("one too many");
        assert!(
            message.contains("90 tokens") && message.contains("101"),
            "{message}"
        );
        assert!(
            message
                .contains("this model's maximum context length is 100 tokens (--context-length)"),
            "{message}"
        );
        assert!(
            fit_n(100, None, false)
                .expect_err("no room")
                .contains("no room for output")
        );
        assert!(
            fit_n(0, None, false)
                .expect_err("empty")
                .contains("at least one")
        );
    }

    #[test]
    fn the_operators_limits_on_prompt_and_output_are_named() {
        let limits = Limits {
            max_prompt_tokens: Some(20),
            max_output_tokens: Some(8),
            ..limits(false)
        };
        let fit = |n, max_tokens| fit(vec![7; n], max_tokens, 16, &limits, "prompt");
        let error = fit(21, None).expect_err("too long a prompt");
        assert_eq!(error.code, Code::PromptTooLong);
        assert!(
            error.message.contains("21 tokens, the limit is 20"),
            "{error}"
        );
        let error = fit(20, Some(9)).expect_err("too much output");
        assert_eq!(
            (error.code, error.param.as_deref()),
            (Code::OutputTooLong, Some("max_tokens"))
        );
        assert!(
            error.message.contains("max_tokens is 9, the limit is 8"),
            "{error}"
        );
        // A default value is cut.
        assert_eq!(fit(20, None).map(|fitted| fitted.max_new_tokens), Ok(8));
        let limits = Limits {
            allow_auto_truncate: true,
            ..limits.clone()
        };
        let cut = super::fit(vec![7; 30], Some(8), 16, &limits, "prompt");
        assert_eq!(cut.map(|fitted| fitted.prompt.len()), Ok(20));
    }

    #[test]
    fn auto_truncate_keeps_first_tokens_and_leaves_room() {
        assert_eq!(fit_n(500, Some(20), true), Ok((80, 20)));
        assert_eq!(fit_n(500, Some(90), true), Ok((50, 50)));
        assert_eq!(fit_n(500, None, true), Ok((84, 16)));
        assert_eq!(fit_n(90, Some(50), true), Ok((90, 10)));
    }
}
