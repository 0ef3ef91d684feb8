//! Parses tool calls from a model's output while it is generated.
//!
//! [`hermes`] is also Qwen's format, [`llama`] is Llama 3's; both contain JSON objects that
//! [`json_call`] parses. [`coder`] is Qwen3-Coder's format of tags. Arguments are emitted as the
//! model writes them, character by character. Text that is not a call is content.
//!
//! The reverse, grammars for output that must be a call, is in [`crate::structured::tool_calls`].
//!
//! Deliberately absent: Mistral's `[TOOL_CALLS]` and Llama's Python lists, and validating arguments
//! against a schema where no grammar does.

mod coder;
mod coder_value;
mod hermes;
mod json_call;
mod llama;

use std::sync::Arc;

use serde_json::Value;

use self::coder::CoderParser;
pub(crate) use self::coder_value::is_text;
use self::hermes::HermesParser;
pub(super) use self::hermes::OPEN as HERMES_OPEN;
use self::json_call::Rules;
use self::llama::LlamaParser;

/// The format in which a model writes its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolCallFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`, any number of them.
    Hermes,
    /// `{"name": …, "parameters": …}`, optionally after `<|python_tag|>`, several separated by `;`.
    Llama3Json,
    /// `<tool_call><function=…><parameter=…>…</parameter></function></tool_call>`.
    Qwen3Coder,
}

/// A tool that may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: String,
    /// JSON schema of its arguments; any object if there is none.
    pub parameters: Option<Value>,
}

impl ToolCallFormat {
    /// The format that a chat template describes.
    pub fn of_template(source: &str) -> Option<Self> {
        if source.contains("<function=") && source.contains("<parameter=") {
            Some(Self::Qwen3Coder)
        } else if source.contains("<tool_call>") {
            Some(Self::Hermes)
        } else if source.contains("<|python_tag|>") || source.contains("Environment: ipython") {
            Some(Self::Llama3Json)
        } else {
            None
        }
    }
}

/// The parsed parts of some text, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolEvent {
    Content(String),
    /// A call begins.
    Call {
        name: String,
    },
    /// Continues the arguments of the last call.
    Arguments(String),
}

/// Incremental: the events of all pieces are those of the whole, with contents and arguments
/// concatenated.
#[derive(Debug)]
pub enum ToolCallParser {
    Hermes(HermesParser),
    Llama(LlamaParser),
    Coder(CoderParser),
}

impl ToolCallParser {
    /// Parses calls of any tool.
    pub fn new(format: ToolCallFormat) -> Self {
        Self::for_tools(format, Arc::default(), false)
    }

    /// Parses calls of these tools; calls of others are content if it `is_restricted` to them.
    pub fn for_tools(format: ToolCallFormat, tools: Arc<[Tool]>, is_restricted: bool) -> Self {
        let rules = |needs_arguments, tools| Rules {
            needs_arguments,
            tools: Some(tools).filter(|_| is_restricted),
        };
        match format {
            ToolCallFormat::Hermes => Self::Hermes(HermesParser::new(rules(false, tools))),
            ToolCallFormat::Llama3Json => Self::Llama(LlamaParser::new(rules(true, tools))),
            ToolCallFormat::Qwen3Coder => Self::Coder(CoderParser::new(tools, is_restricted)),
        }
    }

    /// Whether a whole output begins with a call.
    pub fn begins_with_call(format: ToolCallFormat, text: &str) -> bool {
        let mut parser = Self::new(format);
        let mut events = parser.push(text);
        events.extend(parser.finish());
        matches!(events.first(), Some(ToolEvent::Call { .. }))
    }

    /// ```
    /// use engine::text::{ToolCallFormat, ToolCallParser, ToolEvent};
    ///
    /// let mut parser = ToolCallParser::new(ToolCallFormat::Hermes);
    /// let mut events = parser.push(r#"<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>"#);
    /// events.extend(parser.finish());
    /// assert!(matches!(&events[0], ToolEvent::Call { name } if name == "add"));
    /// let arguments: String = events
    ///     .iter()
    ///     .filter_map(|event| match event {
    ///         ToolEvent::Arguments(text) => Some(text.as_str()),
    ///         _ => None,
    ///     })
    ///     .collect();
    /// assert_eq!(arguments, r#"{"a": 1}"#);
    /// ```
    pub fn push(&mut self, text: &str) -> Vec<ToolEvent> {
        let mut events = Vec::new();
        match self {
            Self::Hermes(parser) => parser.push(text, &mut events),
            Self::Llama(parser) => parser.push(text, &mut events),
            Self::Coder(parser) => parser.push(text, &mut events),
        }
        events
    }

    /// The text held back, at the end of the output.
    pub fn finish(&mut self) -> Vec<ToolEvent> {
        let mut events = Vec::new();
        match self {
            Self::Hermes(parser) => parser.finish(&mut events),
            Self::Llama(parser) => parser.finish(&mut events),
            Self::Coder(parser) => parser.finish(&mut events),
        }
        events
    }
}

fn push_content(events: &mut Vec<ToolEvent>, text: String) {
    if !text.is_empty() {
        events.push(ToolEvent::Content(text));
    }
}

#[cfg(test)]
mod tests;
