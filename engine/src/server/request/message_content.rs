//! Converts one message to the form that chat templates expect: a role, a text as content, tool
//! calls with their arguments as objects, and reasoning as `reasoning_content`.
//!
//! Contents are a string, `null`, or a list of parts in the spellings of the chat, responses and
//! Anthropic APIs. Parts other than text (images, audio, files) are refused. Special tokens typed
//! into a content become those tokens, as in transformers: a program that forwards untrusted text
//! must remove them first.

use serde_json::{Map, Value, json};

use crate::model::json_fields::kind_of;
use crate::server::error::ApiError;
use crate::server::request::fields::show;
use crate::text::has_large_integers;

/// The schema of what [`check_message`] accepts; templates may read further fields.
pub fn message_schema() -> Value {
    let text = json!({"type": ["string", "null"]});
    let no = json!({"type": "null"});
    let kind = json!({"enum": ["text", "input_text", "output_text", "refusal", "thinking"]});
    let part = json!({"type": "object", "properties": {"type": kind}, "required": ["type"]});
    let parts = json!({"type": "array", "items": {"anyOf": [{"type": "string"}, part]}});
    json!({
        "type": "object",
        "properties": {
            "role": {"type": "string", "minLength": 1},
            "content": {"anyOf": [text, parts]},
            "refusal": text,
            "reasoning_content": text,
            "reasoning": text,
            "name": text,
            "tool_calls": {"type": ["array", "null"], "items": {"type": "object"}},
            "tool_call_id": text,
            "function_call": no,
            "audio": no,
        },
        "required": ["role"],
    })
}

/// Message `i` of a request, validated.
pub fn check_message(i: usize, message: Value) -> Result<Value, ApiError> {
    let path = format!("messages[{i}]");
    let Value::Object(mut message) = message else {
        let text = format!("{path} is {}, but must be an object", kind_of(&message));
        return Err(ApiError::invalid(path, text));
    };
    let is_assistant = match message.get("role") {
        Some(Value::String(role)) if !role.is_empty() => role == "assistant",
        other => {
            let path = format!("{path}.role");
            let shown = other.map_or_else(|| "missing".to_owned(), show);
            let text = format!("{path} is {shown}, but must be a role such as \"user\"");
            return Err(ApiError::invalid(path, text));
        }
    };
    for (name, instead) in [
        ("function_call", "calls of tools are read from `tool_calls`"),
        ("audio", "this server reads text only"),
    ] {
        refuse_part(&path, name, instead, &mut message)?;
    }
    let mut read = match message.remove("content") {
        Some(Value::String(text)) => Content::of(text),
        Some(Value::Array(parts)) => join_parts(&path, parts, is_assistant)?,
        None | Some(Value::Null) => Content::default(),
        Some(other) => {
            let path = format!("{path}.content");
            let text = format!(
                "{path} is {}, but must be a string or an array of text parts",
                kind_of(&other)
            );
            return Err(ApiError::invalid(path, text));
        }
    };
    // A refusal is passed on as received: in its own field, with content null.
    if let Some(Value::String(refusal)) = message.remove("refusal")
        && read.text.is_empty()
    {
        read.text = refusal;
    }
    message.insert("content".to_owned(), Value::String(read.text));
    keep_thought(&mut message, read.thought);
    if let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) {
        for (i, call) in calls.iter_mut().enumerate() {
            parse_arguments(&format!("{path}.tool_calls[{i}]"), call)?;
        }
    }
    Ok(Value::Object(message))
}

fn refuse_part(
    path: &str,
    name: &str,
    instead: &str,
    message: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    match message.remove(name) {
        None | Some(Value::Null) => Ok(()),
        Some(value) => {
            let path = format!("{path}.{name}");
            let text = format!("{path} is {}, which is not read; {instead}", show(&value));
            Err(ApiError::unsupported(path, text))
        }
    }
}

/// Templates read reasoning from `reasoning_content`; newer clients send it as `reasoning`.
fn keep_thought(message: &mut Map<String, Value>, of_parts: String) {
    const NAME: &str = "reasoning_content";
    let newer = match message.get("reasoning") {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        _ => None,
    };
    let has_own = message.get(NAME).is_some_and(|thought| !thought.is_null());
    if let Some(thought) = newer.or((!of_parts.is_empty()).then_some(of_parts))
        && !has_own
    {
        message.insert(NAME.to_owned(), Value::String(thought));
    }
}

#[derive(Default)]
struct Content {
    text: String,
    /// The reasoning in the assistant's parts.
    thought: String,
}

impl Content {
    fn of(text: String) -> Self {
        Self {
            text,
            thought: String::new(),
        }
    }
}

/// Templates expect one text; parts are joined with newlines, as in vLLM.
fn join_parts(path: &str, parts: Vec<Value>, is_assistant: bool) -> Result<Content, ApiError> {
    let (mut texts, mut thoughts) = (Vec::new(), Vec::new());
    for (i, part) in parts.into_iter().enumerate() {
        let kind = match part.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            _ => "",
        };
        let holder = match kind {
            "text" | "input_text" | "output_text" => "text",
            "refusal" => "refusal",
            "thinking" => "thinking",
            _ => "",
        };
        match (part.get(holder), part.as_str()) {
            (_, Some(text)) => texts.push(text.to_owned()),
            (Some(Value::String(text)), None) if is_assistant && kind == "thinking" => {
                thoughts.push(text.clone());
            }
            (Some(Value::String(text)), None) => texts.push(text.clone()),
            _ => {
                let path = format!("{path}.content[{i}]");
                let kind = part.get("type").map_or_else(|| "missing".to_owned(), show);
                let text = format!(
                    "{path} has type {kind}; only \"text\", \"input_text\", \"output_text\", \
                     \"refusal\" and \"thinking\" parts with their text are read"
                );
                return Err(ApiError::unsupported(path, text));
            }
        }
    }
    Ok(Content {
        text: texts.join("\n"),
        thought: thoughts.join("\n"),
    })
}

/// OpenAI sends a call's arguments as a string of JSON; templates expect the object. Arguments with
/// integers beyond 64 bits stay a string, which the template environment parses.
fn parse_arguments(path: &str, call: &mut Value) -> Result<(), ApiError> {
    let Some(arguments) = call.pointer_mut("/function/arguments") else {
        return Ok(());
    };
    let Some(text) = arguments.as_str() else {
        return Ok(());
    };
    if text.is_empty() {
        *arguments = json!({});
        return Ok(());
    }
    let Ok(object @ Value::Object(_)) = serde_json::from_str::<Value>(text) else {
        return Ok(());
    };
    match has_large_integers(text) {
        Ok(true) => {}
        Ok(false) => *arguments = object,
        Err(number) => {
            let path = format!("{path}.function.arguments");
            let number = show(&Value::from(number));
            let text = format!(
                "{path} has the integer {number}, but integers may have 128 bits; send it as a \
                 string"
            );
            return Err(ApiError::invalid(path, text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: Value) -> Value {
        check_message(0, message).expect("a valid message")
    }

    #[test]
    fn a_content_of_null_is_an_empty_text_in_every_role() {
        for role in ["system", "user", "assistant", "tool"] {
            for message in [
                json!({"role": role, "content": null}),
                json!({"role": role}),
            ] {
                assert_eq!(read(message)["content"], "", "{role}");
            }
        }
        let cut_off = read(json!({
            "role": "assistant", "content": null, "reasoning_content": "thought",
        }));
        assert_eq!(
            (&cut_off["content"], &cut_off["reasoning_content"]),
            (&json!(""), &json!("thought"))
        );
    }

    #[test]
    fn parts_are_read_in_every_spelling() {
        for part in [
            json!("a"),
            json!({"type": "text", "text": "a"}),
            json!({"type": "input_text", "text": "a"}),
            json!({"type": "output_text", "text": "a", "annotations": []}),
            json!({"type": "refusal", "refusal": "a"}),
        ] {
            let message = read(json!({"role": "user", "content": [part, "b"]}));
            assert_eq!(message["content"], "a\nb", "{part}");
        }
        let thinking = json!({"type": "thinking", "thinking": "hm"});
        let parts = json!([thinking, {"type": "text", "text": "a"}]);
        let assistant = read(json!({"role": "assistant", "content": parts}));
        assert_eq!(
            (&assistant["content"], &assistant["reasoning_content"]),
            (&json!("a"), &json!("hm"))
        );
        let user = read(json!({"role": "user", "content": parts}));
        assert_eq!(user["content"], "hm\na", "only the assistant thinks");
    }

    #[test]
    fn what_a_message_says_elsewhere_is_not_lost() {
        let refusal = read(json!({"role": "assistant", "content": null, "refusal": "no"}));
        assert_eq!(refusal["content"], "no");
        let newer = read(json!({"role": "assistant", "content": "x", "reasoning": "hm"}));
        assert_eq!(newer["reasoning_content"], "hm");
        for (name, value) in [
            ("function_call", json!({"name": "f", "arguments": "{}"})),
            ("audio", json!({"id": "x"})),
        ] {
            let message = json!({"role": "assistant", "content": null, name: value});
            let error = check_message(3, message).expect_err("refused");
            assert_eq!(error.param, Some(format!("messages[3].{name}")));
        }
        read(json!({"role": "assistant", "content": "x", "function_call": null, "audio": null}));
    }

    #[test]
    fn arguments_become_an_object() {
        let message = read(json!({"role": "assistant", "content": null, "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
            {"type": "function", "function": {"name": "f", "arguments": ""}},
        ]}));
        let arguments = |i: usize| &message["tool_calls"][i]["function"]["arguments"];
        assert_eq!((arguments(0), arguments(1)), (&json!({"x": 1}), &json!({})));
    }
    /// As floats, they would reach the model as different numbers.
    #[test]
    fn integers_beyond_64_bits_stay_text_and_those_beyond_128_are_refused() {
        let message = |number: &str| {
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": format!("{{\"n\": {number}}}")}},
            ]})
        };
        let large = "123456789012345678901234567890";
        let read = read(message(large));
        let arguments = &read["tool_calls"][0]["function"]["arguments"];
        assert_eq!(arguments, &json!(format!("{{\"n\": {large}}}")));
        let error = check_message(2, message(&"9".repeat(40))).expect_err("refused");
        let path = "messages[2].tool_calls[0].function.arguments";
        assert_eq!(error.param.as_deref(), Some(path));
        assert!(error.message.contains("128 bits"), "{error}");
    }
}
