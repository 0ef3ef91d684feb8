//! A conversation as clients send it, checked and put into the form that chat templates know.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use super::error::ApiError;
use super::fields::{Fields, kind_of, show};
use super::state::ServedModel;
use super::turn::in_turn;
use crate::text::ChatInput;

const MAX_MESSAGES: usize = 4096;

/// What the template is rendered with.
#[derive(Debug, Clone)]
pub struct Conversation {
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
    add_generation_prompt: bool,
    template_kwargs: Map<String, Value>,
}

impl Conversation {
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let messages = fields.array("messages")?.ok_or_else(|| {
            ApiError::invalid(
                "messages",
                "messages is missing; it is an array of messages",
            )
        })?;
        if messages.is_empty() || messages.len() > MAX_MESSAGES {
            let n = messages.len();
            let message =
                format!("messages has {n} messages, but must have from 1 to {MAX_MESSAGES}");
            return Err(ApiError::invalid("messages", message));
        }
        let messages = messages
            .into_iter()
            .enumerate()
            .map(|(i, message)| check_message(i, message))
            .collect::<Result<_, _>>()?;
        let tools = fields.array("tools")?.filter(|tools| !tools.is_empty());
        for (i, tool) in tools.iter().flatten().enumerate() {
            check_tool(i, tool)?;
        }
        // `none` hides the tools from the model, as vLLM does.
        let tools = tools.filter(|_| !is_none_choice(fields));
        let template_kwargs = fields
            .object("chat_template_kwargs")?
            .map(Fields::into_map)
            .unwrap_or_default();
        Ok(Self {
            messages,
            tools,
            add_generation_prompt: fields.bool("add_generation_prompt")?.unwrap_or(true),
            template_kwargs,
        })
    }
}

impl Conversation {
    /// Those that the model sees.
    pub fn tools(&self) -> &[Value] {
        self.tools.as_deref().unwrap_or_default()
    }
}

fn is_none_choice(fields: &mut Fields) -> bool {
    match fields.value("tool_choice") {
        Some(Value::String(choice)) if choice == "none" => true,
        Some(other) => {
            fields.put_back("tool_choice", other);
            false
        }
        None => false,
    }
}

fn check_tool(i: usize, tool: &Value) -> Result<(), ApiError> {
    let path = format!("tools[{i}].function.name");
    match tool.pointer("/function/name") {
        Some(Value::String(name)) if !name.is_empty() => Ok(()),
        other => {
            let shown = other.map_or_else(|| "missing".to_owned(), show);
            let message = format!("{path} is {shown}, but must be the function's name");
            Err(ApiError::invalid(path, message))
        }
    }
}

fn check_message(i: usize, message: Value) -> Result<Value, ApiError> {
    let path = format!("messages[{i}]");
    let Value::Object(mut message) = message else {
        let text = format!("{path} is {}, but must be an object", kind_of(&message));
        return Err(ApiError::invalid(path, text));
    };
    match message.get("role") {
        Some(Value::String(role)) if !role.is_empty() => {}
        other => {
            let path = format!("{path}.role");
            let shown = other.map_or_else(|| "missing".to_owned(), show);
            let text = format!("{path} is {shown}, but must be a role such as \"user\"");
            return Err(ApiError::invalid(path, text));
        }
    }
    let has_calls = message
        .get("tool_calls")
        .is_some_and(|calls| !calls.is_null());
    let content = match message.remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => join_parts(&path, parts)?,
        // An assistant's message that only calls tools.
        None | Some(Value::Null) if has_calls => String::new(),
        None | Some(Value::Null) => {
            let path = format!("{path}.content");
            return Err(ApiError::invalid(
                path.clone(),
                format!("{path} is missing"),
            ));
        }
        Some(other) => {
            let path = format!("{path}.content");
            let text = format!(
                "{path} is {}, but must be a string or an array of text parts",
                kind_of(&other)
            );
            return Err(ApiError::invalid(path, text));
        }
    };
    message.insert("content".to_owned(), Value::String(content));
    if let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) {
        calls.iter_mut().for_each(parse_arguments);
    }
    Ok(Value::Object(message))
}

/// Templates want one text; parts are joined by line breaks, as vLLM joins them.
fn join_parts(path: &str, parts: Vec<Value>) -> Result<String, ApiError> {
    let texts = parts
        .into_iter()
        .enumerate()
        .map(|(i, part)| match (part.get("type"), part.get("text")) {
            (Some(Value::String(kind)), Some(Value::String(text))) if kind == "text" => {
                Ok(text.clone())
            }
            (kind, _) => {
                let path = format!("{path}.content[{i}]");
                let kind = kind.map_or_else(|| "missing".to_owned(), show);
                let text =
                    format!("{path} has type {kind}; only \"text\" parts with text are read");
                Err(ApiError::unsupported(path, text))
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(texts.join("\n"))
}

/// OpenAI sends a call's arguments as a string that holds JSON; templates want the object.
fn parse_arguments(call: &mut Value) {
    let Some(arguments) = call.pointer_mut("/function/arguments") else {
        return;
    };
    let parsed = arguments
        .as_str()
        .and_then(|text| serde_json::from_str::<Value>(text).ok());
    if let Some(object @ Value::Object(_)) = parsed {
        *arguments = object;
    } else if arguments.as_str() == Some("") {
        *arguments = json!({});
    }
}

/// Templates that are rendered at once: as many as there are threads that bring them work.
static RENDERING: Semaphore = Semaphore::const_new(2);

/// The prompt's text. Rendering runs the checkpoint's program, so it does not run on an async
/// thread.
pub async fn render(model: &ServedModel, conversation: Conversation) -> Result<String, ApiError> {
    let template = Arc::clone(&model.chat_template);
    let rendered = in_turn(&RENDERING, "the chat template", move || {
        let input = ChatInput {
            messages: &conversation.messages,
            tools: conversation.tools.as_deref(),
            add_generation_prompt: conversation.add_generation_prompt,
            extra: conversation.template_kwargs,
        };
        template.render(&input)
    })
    .await?;
    rendered.map_err(|error| ApiError::invalid("messages", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(body: &Value) -> Result<Conversation, ApiError> {
        Conversation::take(&mut Fields::parse(body.to_string().as_bytes())?)
    }

    #[test]
    fn parts_become_one_text_and_arguments_an_object() {
        let conversation = take(&json!({"messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
        ]}))
        .expect("a valid conversation");
        assert_eq!(conversation.messages[0]["content"], "a\nb");
        assert_eq!(conversation.messages[1]["content"], "");
        let call = &conversation.messages[1]["tool_calls"][0]["function"];
        assert_eq!(call["arguments"], json!({"x": 1}));
    }

    #[test]
    fn every_refusal_names_its_place() {
        for (body, param) in [
            (json!({}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": ["hello"]}), "messages[0]"),
            (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
            (
                json!({"messages": [{"role": "user"}]}),
                "messages[0].content",
            ),
            (
                json!({"messages": [{"role": "user", "content": 3}]}),
                "messages[0].content",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
                "messages[0].content[0]",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x"}], "tools": [{}]}),
                "tools[0].function.name",
            ),
        ] {
            let error = take(&body).expect_err("refused");
            assert_eq!(error.param.as_deref(), Some(param), "{}", error.message);
        }
    }
}
