//! `tools`, `tool_choice` and `parallel_tool_calls`: how the output is parsed, and whether it must
//! be a call.
//!
//! Deliberately absent: `strict` (arguments follow their schema only if a call is forced).

use std::sync::Arc;

use serde_json::{Value, json};

use crate::server::error::ApiError;
use crate::server::request::fields::{Fields, show};
use crate::server::request::structured_fields::RequestedFormat;
use crate::structured::tool_calls;
use crate::text::{Tool, ToolCallFormat, ToolCallParser};

/// What a request asks of its tools.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ToolUse {
    /// The format of calls in the output; `None` if no calls are expected.
    pub format: Option<ToolCallFormat>,
    /// The tools that may be called.
    tools: Vec<Tool>,
    /// Whether the output must consist of calls.
    is_forced: bool,
    /// Whether only some of the tools that the model sees may be called.
    is_restricted: bool,
    /// At most one call.
    pub is_single: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Choice {
    None,
    Auto,
    Required,
    Named(String),
    /// Some of the tools.
    Among {
        names: Vec<String>,
        is_forced: bool,
    },
}

impl ToolUse {
    /// `tools` are those that the model sees; `format` is how it calls them.
    ///
    /// # Errors
    ///
    /// If `tool_choice` or `parallel_tool_calls` is of the wrong type, `tool_choice` names a
    /// tool that is not in `tools`, or it asks for a call that the model cannot make.
    pub fn take(
        fields: &mut Fields,
        tools: &[Value],
        format: Option<ToolCallFormat>,
    ) -> Result<Self, ApiError> {
        let may_repeat = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        let choice = take_choice(fields)?;
        let mut all: Vec<Tool> = tools.iter().filter_map(tool).collect();
        let use_of = |tools: Vec<Tool>, is_forced, is_restricted| Self {
            format: format.filter(|_| !tools.is_empty()),
            tools,
            is_forced,
            is_restricted,
            is_single: !may_repeat,
        };
        let (chosen, is_forced) = match &choice {
            Choice::None => return Ok(Self::default()),
            Choice::Auto => return Ok(use_of(all, false, false)),
            Choice::Required => (all, true),
            Choice::Named(name) => {
                require_known(std::slice::from_ref(name), &all)?;
                all.retain(|tool| tool.name == *name);
                (all, true)
            }
            Choice::Among { names, is_forced } => {
                require_known(names, &all)?;
                all.retain(|tool| names.contains(&tool.name));
                (all, *is_forced)
            }
        };
        if !is_forced {
            return Ok(use_of(chosen, false, true));
        }
        if chosen.is_empty() {
            let message = "tool_choice asks for a call, but tools is missing or empty";
            return Err(ApiError::invalid(NAME, message));
        }
        if format.is_none() {
            let message = "tool_choice asks for a call, but this model's chat template teaches it \
                           no way to write one; --tool-call-parser chooses one";
            return Err(ApiError::unsupported(NAME, message));
        }
        let is_single = !may_repeat || matches!(choice, Choice::Named(_));
        Ok(Self {
            is_single,
            ..use_of(chosen, true, true)
        })
    }

    /// The constraint on the output, given `asked` from the fields that set one explicitly. A
    /// forced call takes precedence over these. If the model may call a tool, `response_format`
    /// applies to responses without calls. Output that follows another field's format is content,
    /// even if it looks like a call.
    pub fn output(&mut self, asked: Option<RequestedFormat>) -> Option<RequestedFormat> {
        let (format, may_repeat) = (self.format, !self.is_single);
        match (asked, format) {
            (_, Some(format)) if self.is_forced => Some(RequestedFormat {
                constraint: tool_calls::constraint(format, &self.tools, may_repeat),
                param: "tools".to_owned(),
            }),
            (Some(asked), Some(format)) => {
                let Some(form) = asked.response_format() else {
                    self.format = None;
                    return Some(asked);
                };
                Some(RequestedFormat {
                    constraint: tool_calls::calls_or_form(format, &self.tools, may_repeat, form),
                    param: asked.param,
                })
            }
            (asked, _) => asked,
        }
    }

    /// Parses tool calls from the output; `None` if none are expected.
    pub fn parser(&self) -> Option<ToolCallParser> {
        let format = self.format?;
        let tools: Arc<[Tool]> = self.tools.as_slice().into();
        // An object that names no tool may be a JSON response.
        let knows_names = self.is_restricted || format == ToolCallFormat::Llama3Json;
        Some(ToolCallParser::for_tools(format, tools, knows_names))
    }
}

const NAME: &str = "tool_choice";

fn require_known(names: &[String], tools: &[Tool]) -> Result<(), ApiError> {
    let is_known = |name: &&String| tools.iter().any(|tool| tool.name == **name);
    match names.iter().find(|name| !is_known(name)) {
        None => Ok(()),
        Some(name) => {
            let message = format!("tool_choice names {name:?}, which is none of tools");
            Err(ApiError::invalid(NAME, message))
        }
    }
}

/// OpenAI's forms (of both APIs), and equivalent ones of Mistral and Anthropic. `none` with tools
/// was handled before: the model sees no tools then.
fn take_choice(fields: &mut Fields) -> Result<Choice, ApiError> {
    const WANTED: &str = "\"none\", \"auto\", \"required\", {\"type\": \"function\", \
                          \"function\": {\"name\": …}} or {\"type\": \"allowed_tools\", \
                          \"allowed_tools\": {\"mode\": …, \"tools\": […]}}";
    fields.shape(NAME, || {
        let words = json!({"enum": ["none", "auto", "required", "any"]});
        json!({"anyOf": [words, {"type": "object"}], "description": WANTED})
    });
    let Some(value) = fields.value(NAME) else {
        return Ok(Choice::Auto);
    };
    let wrong = || {
        let message = format!("tool_choice is {}, but must be {WANTED}", show(&value));
        ApiError::invalid(NAME, message)
    };
    let kind = value.as_str().or_else(|| value.get("type")?.as_str());
    match kind {
        Some("none") => return Ok(Choice::None),
        Some("auto") => return Ok(Choice::Auto),
        Some("required" | "any") => return Ok(Choice::Required),
        Some("allowed_tools") => {
            let allowed = value.get("allowed_tools").unwrap_or(&value);
            let tools = allowed.get("tools").and_then(Value::as_array);
            let names = tools.into_iter().flatten().map(name_in).collect();
            let names: Option<Vec<String>> = names;
            let is_forced = match allowed.get("mode").and_then(Value::as_str) {
                Some("auto") => false,
                Some("required") => true,
                _ => return Err(wrong()),
            };
            let names = names.filter(|names| !names.is_empty()).ok_or_else(wrong)?;
            return Ok(Choice::Among { names, is_forced });
        }
        Some("function" | "tool") | None => {}
        Some(_) => return Err(wrong()),
    }
    name_in(&value).map(Choice::Named).ok_or_else(wrong)
}

/// The name of a function, within an object or directly.
fn name_in(value: &Value) -> Option<String> {
    let name = value
        .pointer("/function/name")
        .or_else(|| value.get("name"));
    name?.as_str().map(str::to_owned)
}

/// Names were validated with the conversation.
fn tool(value: &Value) -> Option<Tool> {
    let function = value.get("function")?;
    let parameters = function.get("parameters");
    // An empty schema would also allow values that are not objects.
    let says_something = |schema: &&Value| !schema.is_null() && **schema != json!({});
    Some(Tool {
        name: function.get("name")?.as_str()?.to_owned(),
        parameters: parameters.filter(says_something).cloned(),
    })
}
