//! The schemas of request bodies: what the parsers read of a sample that has every object which
//! they look into.

use serde_json::{Map, Value, json};

use crate::served_model::{Limits, Seeds};
use crate::server::endpoints::admin;
use crate::server::endpoints::tokenize::{TokenizeRequest, take_detokenized};
use crate::server::error::ApiError;
use crate::server::request::anthropic_request;
use crate::server::request::chat_request::{ChatForm, ChatRequest};
use crate::server::request::completion_request::CompletionRequest;
use crate::server::request::description::Description;
use crate::server::request::fields::Fields;
use crate::server::request::generate_request::{GenerateRequest, PARAMS, params_schema};
use crate::server::request::responses_request::ResponsesRequest;
use crate::server::running::take_aborted;
use crate::server::stored_responses::ResponseStore;

/// Every body by its name.
pub fn all(limits: &Limits) -> Result<Vec<(&'static str, Value)>, ApiError> {
    let seeds = &Seeds::new(Some(0));
    let store = &ResponseStore::default();
    let mut generate = described(json!({"text": "x"}), |fields| {
        GenerateRequest::take(fields, limits, seeds).map(drop)
    })?;
    let params = params_schema(limits, seeds)?;
    let places = &mut generate["properties"][PARAMS]["anyOf"];
    places[0] = params.clone();
    places[1]["items"] = params;
    let completion = described(with_output(json!({"prompt": "x"})), |fields| {
        CompletionRequest::take(fields, limits, seeds).map(drop)
    });
    let chats = described(with_output(chat()), |fields| {
        ChatForm::take(fields)?;
        ChatRequest::take(fields, limits, seeds, None, None).map(drop)
    });
    let convert = |only_counts| {
        described(message(), |fields| {
            anthropic_request::convert(fields, only_counts).map(drop)
        })
    };
    let response = described(response(), |fields| {
        ResponsesRequest::take(fields, store).map(drop)
    });
    let tokens = described(json!({"tokens": []}), |fields| {
        take_detokenized(fields, limits).map(drop)
    });
    let abort = json!({"abort_all": true});
    Ok(vec![
        ("CompletionRequest", completion?),
        ("ChatRequest", chats?),
        ("MessageRequest", convert(false)?),
        ("CountRequest", convert(true)?),
        ("ResponseRequest", response?),
        ("GenerateRequest", generate),
        (
            "TokenizeRequest",
            described(chat(), |fields| TokenizeRequest::take(fields).map(drop))?,
        ),
        ("DetokenizeRequest", tokens?),
        (
            "AbortRequest",
            described(abort, |fields| take_aborted(fields).map(drop))?,
        ),
        ("ModelChange", admin::change_schema(false)),
        ("ModelChangeInTime", admin::change_schema(true)),
        ("ModelLoad", admin::load_schema()),
    ])
}

/// What a parser reads, and the model's name, which all bodies but those of the operator have.
fn described(
    sample: Value,
    take: impl FnOnce(&mut Fields) -> Result<(), ApiError>,
) -> Result<Value, ApiError> {
    let description = Description::default();
    let Value::Object(sample) = sample else {
        return Err(ApiError::internal("a sample is no object"));
    };
    let is_abort = sample.contains_key("abort_all");
    let mut fields = Fields::sample(sample, &description);
    if !is_abort {
        fields.string("model")?;
    }
    take(&mut fields)?;
    Ok(description.schema())
}

fn chat() -> Value {
    json!({"messages": [{"role": "user", "content": "x"}]})
}

fn with_output(mut sample: Value) -> Value {
    let form = json!({"type": "json_schema", "json_schema": {"schema": {}}});
    sample["response_format"] = form;
    sample["structured_outputs"] = Value::Object(Map::new());
    sample["stream"] = json!(true);
    sample["stream_options"] = Value::Object(Map::new());
    sample
}

fn message() -> Value {
    let text = json!([{"type": "text", "text": "x"}]);
    let call = json!({"type": "tool_use", "id": "1", "name": "f", "input": {}});
    let result = json!({"type": "tool_result", "tool_use_id": "1", "content": text});
    json!({
        "system": text,
        "messages": [
            {"role": "user", "content": text},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, call]},
            {"role": "user", "content": [result]},
        ],
        "max_tokens": 2,
        "tools": [{"name": "f", "input_schema": {}}],
        "tool_choice": {"type": "tool", "name": "f"},
        "thinking": {"type": "enabled"},
        "output_config": {"format": {"type": "json_schema", "schema": {}}},
        "metadata": {},
        "context_management": {},
        "stream": true,
    })
}

fn response() -> Value {
    let thought = json!([{"type": "reasoning_text", "text": "x"}]);
    let summary = json!([{"type": "summary_text", "text": "x"}]);
    json!({
        "input": [
            {"role": "user", "content": "x"},
            {"type": "reasoning", "content": thought, "summary": summary},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "x"},
        ],
        "tools": [{"type": "function", "name": "f"}],
        "text": {"format": {"type": "text"}},
        "reasoning": {},
        "stream_options": {},
        "stream": true,
    })
}
