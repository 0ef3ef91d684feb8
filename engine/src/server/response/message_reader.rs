//! Splits a chat's output into the fields of OpenAI's messages: reasoning, content, tool calls.

use serde_json::{Map, Value, json};

use crate::text::{ThoughtSplitter, ToolCallParser, ToolEvent};

/// Parses the output of one choice.
#[derive(Debug, Default)]
pub struct MessageReader {
    thoughts: Option<ThoughtSplitter>,
    calls: Option<ToolCallParser>,
    n_calls: usize,
    /// Maximum number of calls; further ones are dropped.
    max_calls: usize,
    /// A call that the prompt has begun, until it has been sent.
    begun: Vec<CallPart>,
    /// The end of the prompt's text that may still be emitted as content.
    prefill_left: String,
}

/// The parsed parts of a piece of text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MessagePart {
    pub(super) thought: String,
    pub(super) content: String,
    pub(super) calls: Vec<CallPart>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct CallPart {
    index: usize,
    /// The name, at the beginning of a call.
    pub(super) name: Option<String>,
    pub(super) arguments: String,
}

impl MessageReader {
    pub fn new(
        thoughts: Option<ThoughtSplitter>,
        calls: Option<ToolCallParser>,
        max_calls: usize,
    ) -> Self {
        Self {
            thoughts,
            calls,
            n_calls: 0,
            max_calls,
            begun: Vec::new(),
            prefill_left: String::new(),
        }
    }

    /// For a response whose content begins in the prompt: that text is not part of the response,
    /// but a call that begins in it is.
    pub fn after(mut self, prefill: &str) -> Self {
        if self.calls.is_none() {
            return self;
        }
        let thoughts = self.thoughts.take();
        let part = self.push(prefill, false);
        self.thoughts = thoughts;
        self.begun = part.calls;
        if let Some(left) = prefill.strip_prefix(part.content.as_str())
            && self.begun.is_empty()
        {
            left.clone_into(&mut self.prefill_left);
        }
        self
    }

    /// Parses the next text, the last one if `is_end`.
    pub fn push(&mut self, text: &str, is_end: bool) -> MessagePart {
        let mut part = self.read(text, is_end);
        let left = std::mem::take(&mut self.prefill_left);
        if part.content.is_empty() && part.calls.is_empty() {
            self.prefill_left = left;
        } else if let Some(new) = part.content.strip_prefix(left.as_str()) {
            part.content = String::from(new);
        }
        let begun = std::mem::take(&mut self.begun);
        let new = std::mem::replace(&mut part.calls, begun);
        for call in new {
            if call.name.is_some() {
                part.calls.push(call);
            } else {
                part.add_arguments(call.index, &call.arguments);
            }
        }
        part
    }

    fn read(&mut self, text: &str, is_end: bool) -> MessagePart {
        let mut part = MessagePart::default();
        let content = match &mut self.thoughts {
            None => text.to_owned(),
            Some(thoughts) => {
                let mut split = thoughts.push(text);
                if is_end {
                    let last = thoughts.finish();
                    split.thought.push_str(&last.thought);
                    split.content.push_str(&last.content);
                }
                part.thought = split.thought;
                split.content
            }
        };
        let Some(calls) = &mut self.calls else {
            part.content = content;
            return part;
        };
        let mut events = calls.push(&content);
        if is_end {
            events.extend(calls.finish());
        }
        for event in events {
            match event {
                ToolEvent::Content(text) => part.content.push_str(&text),
                ToolEvent::Call { name } => {
                    self.n_calls += 1;
                    if self.n_calls <= self.max_calls {
                        part.calls.push(CallPart {
                            index: self.n_calls - 1,
                            name: Some(name),
                            arguments: String::new(),
                        });
                    }
                }
                ToolEvent::Arguments(text) if self.n_calls <= self.max_calls => {
                    part.add_arguments(self.n_calls.saturating_sub(1), &text);
                }
                ToolEvent::Arguments(_) => {}
            }
        }
        part
    }

    /// The protocol's finish reason: output that ends in a tool call gets its own.
    pub fn finish_reason(&self, reason: &'static str) -> &'static str {
        if self.n_calls > 0 && reason == "stop" {
            "tool_calls"
        } else {
            reason
        }
    }

    fn has_thoughts(&self) -> bool {
        self.thoughts.is_some()
    }
}

impl MessagePart {
    fn add_arguments(&mut self, index: usize, text: &str) {
        match self.calls.last_mut().filter(|call| call.index == index) {
            Some(call) => call.arguments.push_str(text),
            None => self.calls.push(CallPart {
                index,
                name: None,
                arguments: text.to_owned(),
            }),
        }
    }

    /// As the delta of a streamed chunk. An empty delta has empty content.
    pub fn into_delta(self) -> Value {
        let mut delta = Map::new();
        if !self.thought.is_empty() {
            delta.insert("reasoning_content".to_owned(), Value::String(self.thought));
        }
        if !self.content.is_empty() || (delta.is_empty() && self.calls.is_empty()) {
            delta.insert("content".to_owned(), Value::String(self.content));
        }
        if !self.calls.is_empty() {
            let calls = self.calls.into_iter().map(|call| match call.name {
                Some(name) => {
                    let mut object = whole_call(&name, call.arguments);
                    object["index"] = json!(call.index);
                    object
                }
                None => json!({
                    "index": call.index,
                    "function": {"arguments": call.arguments},
                }),
            });
            delta.insert("tool_calls".to_owned(), calls.collect());
        }
        Value::Object(delta)
    }

    /// As a whole message; `reader` is the parser that produced it.
    pub fn into_message(self, reader: &MessageReader) -> Value {
        let mut message = json!({"role": "assistant", "content": self.content});
        if reader.has_thoughts() {
            message["reasoning_content"] = match self.thought {
                thought if thought.is_empty() => Value::Null,
                thought => Value::String(thought),
            };
        }
        if !self.calls.is_empty() {
            if self.content.is_empty() {
                message["content"] = Value::Null;
            }
            let calls = self.calls.into_iter();
            message["tool_calls"] = calls
                .map(|call| whole_call(&call.name.unwrap_or_default(), call.arguments))
                .collect();
        }
        message
    }
}

fn whole_call(name: &str, arguments: String) -> Value {
    json!({
        "id": format!("call_{:024x}", rand::random::<u128>() >> 32),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    })
}
