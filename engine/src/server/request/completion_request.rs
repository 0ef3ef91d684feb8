//! The fields of `/v1/completions`.

use serde_json::json;

use crate::served_model::{Limits, Seeds};
use crate::server::error::ApiError;
use crate::server::request::fields::{Fields, as_integer, integers};
use crate::server::request::foreign_fields;
use crate::server::request::prompt::{Prompt, take_prompts};
use crate::server::request::sampling_fields::{Generation, MAX_CHOICES, MAX_LOGPROBS};
use crate::server::response::logprobs::{TokenNames, take_completion_fields};
use crate::server::running::take_id;

/// A request, checked except for its length.
pub struct CompletionRequest {
    pub prompts: Vec<Prompt>,
    pub generation: Generation,
    pub n_logprobs: Option<usize>,
    /// Set if vLLM's field of this name was given.
    pub n_prompt_logprobs: Option<usize>,
    pub names: TokenNames,
    /// Whether choices include their token ids.
    pub with_ids: bool,
    pub id: Option<String>,
    pub add_special: bool,
    pub echo: bool,
}

impl CompletionRequest {
    /// Takes all fields but the model.
    ///
    /// # Errors
    ///
    /// The first field that is missing, of the wrong type, out of its range or not supported; also
    /// if prompts times `n` are more than [`MAX_CHOICES`].
    pub fn take(fields: &mut Fields, limits: &Limits, seeds: &Seeds) -> Result<Self, ApiError> {
        let prompts = take_prompts(fields, limits)?;
        let n_logprobs = take_completion_fields(fields)?;
        let names = TokenNames::take(fields)?;
        let with_ids = fields.bool("return_token_ids")?.unwrap_or(false);
        let id = take_id(fields, "cmpl")?;
        foreign_fields::refuse(fields)?;
        fields.refuse("suffix", &[json!("")])?;
        fields.refuse("prompt_embeds", &[])?;
        let add_special = fields.bool("add_special_tokens")?.unwrap_or(true);
        let echo = fields.bool("echo")?.unwrap_or(false);
        let n_prompt_logprobs = fields.integer("prompt_logprobs", 0..=MAX_LOGPROBS)?;
        let n_prompt_logprobs = n_prompt_logprobs.map(|n| n as usize);
        let takes_no_output = take_no_output(fields);
        let mut generation = Generation::take(fields, limits, seeds, n_logprobs)?;
        if takes_no_output {
            if let Some(other) = generation.max_tokens {
                let message = format!(
                    "max_tokens is 0, but max_completion_tokens, which means the same, is {other}"
                );
                return Err(ApiError::invalid("max_completion_tokens", message));
            }
            generation.max_tokens = Some(0);
        }
        if n_prompt_logprobs.is_some() && generation.streaming.is_some() {
            let message = "prompt_logprobs comes with whole answers only; leave stream out, or ask \
                           for echo with logprobs";
            return Err(ApiError::unsupported("prompt_logprobs", message));
        }
        generation.params.n_prompt_logprobs = n_logprobs.filter(|_| echo).max(n_prompt_logprobs);
        let n = generation.n;
        if prompts.len() * n > MAX_CHOICES {
            let message = format!(
                "{} prompts with n = {n} are {} choices, the limit is {MAX_CHOICES}",
                prompts.len(),
                prompts.len() * n
            );
            return Err(ApiError::invalid("n", message));
        }
        Ok(Self {
            prompts,
            generation,
            n_logprobs,
            n_prompt_logprobs,
            names,
            with_ids,
            id,
            add_special,
            echo,
        })
    }
}

/// Whether `max_tokens` is 0; leaves other values for their own parser.
fn take_no_output(fields: &mut Fields) -> bool {
    const NAME: &str = "max_tokens";
    fields.shape(NAME, || integers(&(0..=i64::from(i32::MAX))));
    match fields.value(NAME) {
        Some(value) if as_integer(&value) == Some(0) => true,
        Some(value) => {
            fields.put_back(NAME, value);
            false
        }
        None => false,
    }
}
