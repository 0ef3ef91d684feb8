//! Anthropic's system prompt and messages as those of a chat: blocks of text, thinking, calls and
//! results. A result is a message of its own. Everything else (images, documents, blocks of
//! Anthropic's own tools) is refused by name.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::server::error::ApiError;
use crate::server::request::anthropic_request::take_cache_control;
use crate::server::request::converted::Transcript;
use crate::server::request::fields::{Fields, show, text_or_list};

pub(super) fn take_system(
    fields: &mut Fields,
    transcript: &mut Transcript,
) -> Result<(), ApiError> {
    fields.shape("system", || text_or_list(0));
    let Some(system) = fields.value("system") else {
        return Ok(());
    };
    let parts = blocks(fields, "system", system)?
        .map(|block| text_of(block?, "only \"text\" is read here"))
        .collect::<Result<Vec<_>, _>>()?;
    if !parts.is_empty() {
        transcript.push("system", json!({"role": "system", "content": parts}));
    }
    Ok(())
}

/// Takes `messages`; returns whether the last one begins the response.
pub(super) fn take_messages(
    fields: &mut Fields,
    transcript: &mut Transcript,
) -> Result<bool, ApiError> {
    fields.shape("messages", || json!({"type": "array", "minItems": 1}));
    let messages = fields.array("messages")?.filter(|all| !all.is_empty());
    let what = "an array of at least one message";
    let messages = fields.required("messages", messages, what)?;
    let mut calls = HashSet::new();
    let mut is_begun = false;
    for (i, message) in messages.into_iter().enumerate() {
        let place = format!("messages[{i}]");
        let mut message = fields.element(&place, message)?;
        message.shape("role", || json!({"enum": ["user", "assistant"]}));
        message.shape("content", || text_or_list(0));
        let role = message.string("role")?;
        let content = message.value("content");
        let content = message.required("content", content, "a string or an array of blocks")?;
        let blocks = blocks(&message, "content", content)?;
        is_begun = role.as_deref() == Some("assistant");
        match role.as_deref() {
            Some("user") => take_user(&place, blocks, &calls, transcript)?,
            Some("assistant") => take_assistant(&place, blocks, &mut calls, transcript)?,
            other => {
                let path = message.path("role");
                let shown = other.map_or_else(|| "missing".to_owned(), |role| format!("{role:?}"));
                let message = format!("{path} is {shown}, but must be \"user\" or \"assistant\"");
                return Err(ApiError::invalid(path, message));
            }
        }
        message.refuse_rest()?;
    }
    Ok(is_begun)
}

/// A block, with its type.
type Block = (String, Fields);

/// The blocks of a content; a string is one of text.
fn blocks(
    fields: &Fields,
    name: &str,
    content: Value,
) -> Result<impl Iterator<Item = Result<Block, ApiError>> + use<>, ApiError> {
    let path = fields.path(name);
    let blocks = match content {
        Value::String(text) => vec![json!({"type": "text", "text": text})],
        Value::Array(blocks) => blocks,
        other => return Err(fields.wrong_type(name, &other, "a string or an array of blocks")),
    };
    let parent = fields.within(Map::new(), "");
    Ok(blocks.into_iter().enumerate().map(move |(i, block)| {
        let mut block = parent.element(&format!("{path}[{i}]"), block)?;
        let kind = block.string("type")?;
        let kind = block.required("type", kind, "the block's type")?;
        take_cache_control(&mut block)?;
        Ok((kind, block))
    }))
}

/// A block of text as a part of a chat's message.
fn text_of((kind, mut block): Block, wanted: &str) -> Result<Value, ApiError> {
    if kind != "text" {
        return Err(unknown(&kind, &block, wanted));
    }
    let text = block.string("text")?;
    let text = block.required("text", text, "a string")?;
    block.refuse("citations", &[json!([])])?;
    block.refuse_rest()?;
    Ok(json!({"type": "text", "text": text}))
}

fn unknown(kind: &str, block: &Fields, wanted: &str) -> ApiError {
    let path = block.path("type");
    let message = format!("{path} is {}; {wanted}", show(&Value::from(kind)));
    ApiError::unsupported(path, message)
}

fn take_user(
    place: &str,
    blocks: impl Iterator<Item = Result<Block, ApiError>>,
    calls: &HashSet<String>,
    transcript: &mut Transcript,
) -> Result<(), ApiError> {
    let mut parts = Vec::new();
    let mut has_results = false;
    let user = |parts: Vec<Value>| json!({"role": "user", "content": parts});
    for (i, block) in blocks.enumerate() {
        let (kind, block) = block?;
        if kind != "tool_result" {
            let wanted = "of a user only \"text\" and \"tool_result\" are read here";
            parts.push(text_of((kind, block), wanted)?);
            continue;
        }
        if !parts.is_empty() {
            transcript.push(place, user(std::mem::take(&mut parts)));
        }
        has_results = true;
        let result = take_result(block, calls)?;
        transcript.push(&format!("{place}.content[{i}]"), result);
    }
    if !parts.is_empty() || !has_results {
        transcript.push(place, user(parts));
    }
    Ok(())
}

fn take_result(mut block: Fields, calls: &HashSet<String>) -> Result<Value, ApiError> {
    let id = block.string("tool_use_id")?;
    let id = block.required("tool_use_id", id, "the id of the call")?;
    if !calls.contains(&id) {
        let path = block.path("tool_use_id");
        let shown = show(&Value::from(id));
        let message = format!("{path} is {shown}, which no tool_use before it has as its id");
        return Err(ApiError::invalid(path, message));
    }
    let mut parts = Vec::new();
    if block.bool("is_error")?.unwrap_or(false) {
        // Chat templates have no other way to say so.
        parts.push(json!({"type": "text", "text": "Error:"}));
    }
    block.shape("content", || text_or_list(0));
    if let Some(content) = block.value("content") {
        for part in blocks(&block, "content", content)? {
            parts.push(text_of(part?, "of a result only \"text\" is read here")?);
        }
    }
    block.refuse_rest()?;
    Ok(json!({"role": "tool", "tool_call_id": id, "content": parts}))
}

fn take_assistant(
    place: &str,
    blocks: impl Iterator<Item = Result<Block, ApiError>>,
    calls: &mut HashSet<String>,
    transcript: &mut Transcript,
) -> Result<(), ApiError> {
    let (mut parts, mut made) = (Vec::new(), Vec::new());
    for block in blocks {
        let (kind, mut block) = block?;
        match kind.as_str() {
            "thinking" => {
                let thought = block.string("thinking")?;
                let thought = block.required("thinking", thought, "a string")?;
                // Signatures are this server's own, and are not checked.
                block.string("signature")?;
                block.refuse_rest()?;
                parts.push(json!({"type": "thinking", "thinking": thought}));
            }
            "tool_use" => {
                let (id, call) = take_call(block)?;
                calls.insert(id);
                made.push(call);
            }
            _ => {
                let wanted =
                    "of an assistant only \"text\", \"thinking\" and \"tool_use\" are read here";
                parts.push(text_of((kind, block), wanted)?);
            }
        }
    }
    let mut message = json!({"role": "assistant", "content": parts});
    if !made.is_empty() {
        message["tool_calls"] = made.into();
    }
    transcript.push(place, message);
    Ok(())
}

fn take_call(mut block: Fields) -> Result<(String, Value), ApiError> {
    let id = block.string("id")?;
    let id = block.required("id", id, "the id of the call")?;
    let name = block.string("name")?;
    let name = block.required("name", name, "the name of the tool")?;
    let input = block.object("input")?;
    let input = block.required("input", input, "an object")?.into_map();
    block.refuse("caller", &[json!({"type": "direct"})])?;
    block.refuse_rest()?;
    let function = json!({"name": name, "arguments": input});
    Ok((
        id.clone(),
        json!({"id": id, "type": "function", "function": function}),
    ))
}
