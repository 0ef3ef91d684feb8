//! Fields of other servers' APIs that would change the output and are not supported here.
//!
//! They are refused by name: a response that silently differs from the request is worse than an
//! error. Fields that no server reads, and those that only identify the caller (`user`, `metadata`,
//! `store`, `service_tier`, `safety_identifier`, `prompt_cache_key`), are ignored, as in other
//! OpenAI-compatible servers. Fields with their own parser (sampling, output formats, tools,
//! templates) are not listed here.

use serde_json::{Value, json};

use crate::scheduler::PolicyName;
use crate::served_model::ServedModel;
use crate::server::error::ApiError;
use crate::server::request::fields::Fields;

/// The fields, for every endpoint that generates, with the values that have no effect.
fn table() -> Vec<(&'static str, Vec<Value>)> {
    let off = || vec![json!(false), json!([]), json!({}), json!("")];
    let zero = || vec![json!(0), json!(0.0), json!(false), json!([])];
    let one = || vec![json!(1), json!(1.0)];
    vec![
        // vLLM's
        ("logprob_token_ids", off()),
        ("kv_transfer_params", off()),
        ("ec_transfer_params", off()),
        ("vllm_xargs", off()),
        ("thinking_token_budget", vec![]),
        ("return_prompt_text", off()),
        ("repetition_detection", off()),
        ("include_reasoning", vec![json!(true)]),
        ("spaces_between_special_tokens", vec![json!(true)]),
        ("guided_whitespace_pattern", off()),
        // SGLang's
        ("return_hidden_states", off()),
        ("return_routed_experts", off()),
        ("return_entropy", off()),
        ("token_ids_logprob", off()),
        ("stop_regex", off()),
        ("custom_logit_processor", off()),
        ("custom_params", off()),
        ("session_params", off()),
        ("session_id", off()),
        ("lora_path", off()),
        ("input_embeds", off()),
        ("image_data", off()),
        ("video_data", off()),
        ("audio_data", off()),
        ("bootstrap_host", off()),
        ("bootstrap_room", off()),
        ("require_reasoning", off()),
        ("stream_reasoning", vec![json!(true)]),
        ("no_stop_trim", off()),
        ("extra_key", off()),
        ("lora_id", off()),
        // llama.cpp's
        ("typical_p", one()),
        ("typ_p", one()),
        (
            "top_n_sigma",
            vec![json!(-1), json!(-1.0), json!(0), json!(0.0)],
        ),
        ("tfs_z", one()),
        ("mirostat", zero()),
        ("dynatemp_range", zero()),
        ("xtc_probability", zero()),
        ("dry_multiplier", zero()),
        ("samplers", vec![json!([])]),
        ("n_probs", zero()),
        ("post_sampling_probs", off()),
        ("lora", off()),
        ("n_predict", vec![]),
        ("n_keep", zero()),
        ("n_indent", zero()),
        ("t_max_predict_ms", zero()),
        ("reasoning_format", vec![json!("auto")]),
        ("reasoning_budget", vec![json!(-1)]),
        ("reasoning_budget_tokens", vec![json!(-1)]),
        ("thinking_budget_tokens", vec![json!(-1)]),
        ("min_keep", zero()),
        ("penalize_nl", vec![json!(false)]),
        ("response_fields", off()),
        // Anthropic's, Ollama's
        ("thinking", vec![]),
        ("think", vec![]),
        ("output_config", off()),
        ("json_mode", off()),
        ("format", off()),
        ("options", off()),
        ("system", off()),
        ("stop_sequences", off()),
        ("max_tokens_to_sample", vec![]),
        ("num_predict", vec![]),
        ("num_ctx", vec![]),
        ("raw", off()),
        ("template", off()),
        ("images", off()),
        ("lora", off()),
        // OpenAI's, TGI's
        ("instructions", off()),
        ("adapter_id", off()),
        ("truncate", vec![]),
        ("return_full_text", vec![json!(false)]),
        ("do_sample", vec![json!(true)]),
        ("num_beams", one()),
        ("web_search_options", vec![]),
        ("prediction", vec![]),
        ("verbosity", vec![json!("medium")]),
        ("top_a", zero()),
        ("epsilon_cutoff", zero()),
        ("eta_cutoff", zero()),
        ("no_repeat_ngram_size", zero()),
        ("watermark", zero()),
    ]
}

/// Refuses every field of the table whose value would have an effect.
pub fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    for (name, asks_for_nothing) in table() {
        fields
            .refuse(name, &asks_for_nothing)
            .map_err(|error| with_ours(name, error))?;
    }
    Ok(())
}

/// Adds the field that has the same effect here, if there is one.
fn with_ours(name: &str, mut error: ApiError) -> ApiError {
    let ours = match name {
        "thinking" | "think" | "reasoning_budget" => {
            "chat_template_kwargs: {\"enable_thinking\": false}, where the model's template reads it"
        }
        "format" | "json_mode" | "output_config" => "response_format",
        "stop_sequences" => "stop",
        "max_tokens_to_sample" | "num_predict" | "n_predict" => "max_tokens",
        "system" | "instructions" => "a message of the role \"system\"",
        _ => return error,
    };
    error.message = format!("{}; use {ours}", error.message);
    error
}

/// Refuses a `priority` that the scheduling policy does not read, as vLLM does.
pub fn check_priority(model: &ServedModel, priority: i32) -> Result<(), ApiError> {
    let policy = model.engine.config().scheduler.policy;
    if priority == 0 || policy == PolicyName::Priority {
        return Ok(());
    }
    let message = format!(
        "priority is {priority}, but this server's --schedule-policy is {policy}, which does not \
         look at it; leave it out, or as operator set --schedule-policy priority"
    );
    Err(ApiError::unsupported("priority", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_asks_for_something_is_refused_by_its_name_and_what_asks_for_nothing_is_not() {
        for (name, asks_for_nothing) in table() {
            let body = |value: &Value| {
                let body = json!({name: value}).to_string();
                Fields::parse(body.as_bytes()).expect("an object")
            };
            for value in asks_for_nothing.iter().chain([&Value::Null]) {
                assert_eq!(refuse(&mut body(value)), Ok(()), "{name}: {value}");
            }
            let error = refuse(&mut body(&json!("something"))).expect_err(name);
            assert_eq!(error.param.as_deref(), Some(name));
            assert!(error.message.contains(name), "{error}");
        }
    }

    /// Features that this server supports under another name.
    #[test]
    fn a_refusal_names_the_field_that_does_the_same() {
        for (body, ours) in [
            (json!({"thinking": {"type": "disabled"}}), "enable_thinking"),
            (json!({"think": false}), "enable_thinking"),
            (json!({"reasoning_budget": 0}), "enable_thinking"),
            (json!({"format": "json"}), "response_format"),
            (json!({"json_mode": true}), "response_format"),
            (json!({"stop_sequences": ["x"]}), "use stop"),
        ] {
            let text = body.to_string();
            let mut fields = Fields::parse(text.as_bytes()).expect("an object");
            let error = refuse(&mut fields).expect_err("refused");
            assert!(error.message.contains(ours), "{error}");
        }
        for body in [json!({"min_keep": 3}), json!({"options": {"num_ctx": 8}})] {
            let text = body.to_string();
            let mut fields = Fields::parse(text.as_bytes()).expect("an object");
            refuse(&mut fields).expect_err("refused");
        }
    }
}
