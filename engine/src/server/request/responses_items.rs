//! The input items of OpenAI's `/v1/responses` as the messages of a chat. What the assistant said
//! in several items (reasoning, message, calls) becomes one message.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::server::error::ApiError;
use crate::server::request::converted::Transcript;
use crate::server::request::fields::{Fields, show, text_or_list};

/// Collects items in order.
#[derive(Debug, Default)]
pub struct Items {
    transcript: Transcript,
    /// The assistant's message that further items may belong to, and its path.
    open: Option<(String, AssistantMessage)>,
    call_ids: HashSet<String>,
}

#[derive(Debug, Default)]
struct AssistantMessage {
    thoughts: Vec<String>,
    content: Option<Value>,
    calls: Vec<Value>,
}

impl Items {
    /// A message before all items.
    pub fn push_system(&mut self, place: &str, text: &str) {
        let message = json!({"role": "system", "content": text});
        self.transcript.push(place, message);
    }

    /// An item of the body `fields`.
    pub fn push(&mut self, fields: &Fields, place: &str, item: Value) -> Result<(), ApiError> {
        let mut item = fields.element(place, item)?;
        item.shape(
            "type",
            || json!({"enum": ["message", "reasoning", "function_call", "function_call_output"]}),
        );
        let kind = item.string("type")?;
        // They say nothing to the model.
        for name in ["id", "status", "phase"] {
            item.string(name)?;
        }
        match kind.as_deref() {
            None | Some("message") => self.push_message(place, &mut item)?,
            Some("reasoning") => self.push_thought(place, &mut item)?,
            Some("function_call") => self.push_call(place, &mut item)?,
            Some("function_call_output") => self.push_result(place, &mut item)?,
            Some(other) => {
                let path = item.path("type");
                let message = format!(
                    "{path} is {}; only \"message\", \"reasoning\", \"function_call\" and \
                     \"function_call_output\" are read here",
                    show(&Value::from(other))
                );
                return Err(ApiError::unsupported(path, message));
            }
        }
        item.refuse_rest()
    }

    pub fn finish(mut self) -> Transcript {
        self.close();
        self.transcript
    }

    fn push_message(&mut self, place: &str, item: &mut Fields) -> Result<(), ApiError> {
        item.shape(
            "role",
            || json!({"enum": ["user", "assistant", "system", "developer"]}),
        );
        item.shape("content", || text_or_list(0));
        let role = item.string("role")?;
        let content = item.value("content");
        let content = item.required("content", content, "a string or an array of parts")?;
        match role.as_deref() {
            Some("assistant") => {
                let turn = self.turn(place, |turn| {
                    turn.content.is_none() && turn.calls.is_empty()
                });
                turn.content = Some(content);
            }
            Some(role @ ("user" | "system" | "developer")) => {
                self.close();
                let message = json!({"role": role, "content": content});
                self.transcript.push(place, message);
            }
            other => {
                let path = item.path("role");
                let shown = other.map_or_else(|| "missing".to_owned(), |role| format!("{role:?}"));
                let message = format!(
                    "{path} is {shown}, but must be \"user\", \"assistant\", \"system\" or \
                     \"developer\""
                );
                return Err(ApiError::invalid(path, message));
            }
        }
        Ok(())
    }

    fn push_thought(&mut self, place: &str, item: &mut Fields) -> Result<(), ApiError> {
        let mut texts = texts_of(item, "content", "reasoning_text")?;
        let summary = texts_of(item, "summary", "summary_text")?;
        if texts.is_empty() {
            texts = summary;
        }
        let is_sealed = item.string("encrypted_content")?.is_some();
        if texts.is_empty() && is_sealed {
            let path = item.path("encrypted_content");
            let message = format!("{path} cannot be read here; send the reasoning as content");
            return Err(ApiError::unsupported(path, message));
        }
        let turn = self.turn(place, |turn| {
            turn.content.is_none() && turn.calls.is_empty()
        });
        turn.thoughts.extend(texts);
        Ok(())
    }

    fn push_call(&mut self, place: &str, item: &mut Fields) -> Result<(), ApiError> {
        let id = item.string("call_id")?;
        let id = item.required("call_id", id, "the id of the call")?;
        let name = item.string("name")?;
        let name = item.required("name", name, "the name of the function")?;
        let arguments = item.string("arguments")?;
        let arguments = item.required("arguments", arguments, "a string of JSON")?;
        let function = json!({"name": name, "arguments": arguments});
        let call = json!({"id": id, "type": "function", "function": function});
        self.call_ids.insert(id);
        self.turn(place, |_| true).calls.push(call);
        Ok(())
    }

    fn push_result(&mut self, place: &str, item: &mut Fields) -> Result<(), ApiError> {
        let id = item.string("call_id")?;
        let id = item.required("call_id", id, "the id of the call")?;
        if !self.call_ids.contains(&id) {
            let path = item.path("call_id");
            let shown = show(&Value::from(id));
            let message = format!("{path} is {shown}, which no function_call before it has");
            return Err(ApiError::invalid(path, message));
        }
        item.shape("output", || text_or_list(0));
        let output = item.value("output");
        let output = item.required("output", output, "a string or an array of parts")?;
        self.close();
        let message = json!({"role": "tool", "tool_call_id": id, "content": output});
        self.transcript.push(place, message);
        Ok(())
    }

    /// The assistant's open message if it can take the item, otherwise a new one.
    fn turn(
        &mut self,
        place: &str,
        can_take: impl Fn(&AssistantMessage) -> bool,
    ) -> &mut AssistantMessage {
        if self.open.as_ref().is_some_and(|(_, turn)| !can_take(turn)) {
            self.close();
        }
        let begin = || (place.to_owned(), AssistantMessage::default());
        &mut self.open.get_or_insert_with(begin).1
    }

    fn close(&mut self) {
        let Some((place, turn)) = self.open.take() else {
            return;
        };
        let mut message = json!({"role": "assistant", "content": turn.content});
        if !turn.thoughts.is_empty() {
            message["reasoning_content"] = turn.thoughts.join("\n").into();
        }
        if !turn.calls.is_empty() {
            message["tool_calls"] = turn.calls.into();
        }
        self.transcript.push(&place, message);
    }
}

/// The texts of the parts of one type, which are all that there may be.
fn texts_of(item: &mut Fields, name: &str, wanted: &str) -> Result<Vec<String>, ApiError> {
    let path = item.path(name);
    let parts = item.array(name)?.unwrap_or_default();
    let texts = parts.into_iter().enumerate().map(|(i, part)| {
        let mut part = item.element(&format!("{path}[{i}]"), part)?;
        let kind = part.value("type").unwrap_or_default();
        if kind != wanted {
            let path = part.path("type");
            let message = format!("{path} is {}, but must be {wanted:?}", show(&kind));
            return Err(ApiError::invalid(path, message));
        }
        let text = part.string("text")?;
        part.required("text", text, "a string")
    });
    texts.collect()
}
