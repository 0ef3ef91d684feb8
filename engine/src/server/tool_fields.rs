//! `tools`, `tool_choice` and `parallel_tool_calls`: how the output is read, and whether it has to
//! be a call.
//!
//! Deliberately absent: `strict` (arguments follow their schema only where a call is forced), and
//! choices among some of the tools.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Fields, show};
use crate::structured::Constraint;
use crate::text::ToolCallFormat;
use crate::text::tool_calls::forced::{self, Tool};

/// What a request wants of its tools.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ToolUse {
    /// Calls are read out of the output; `None` where there are none to expect.
    pub format: Option<ToolCallFormat>,
    /// The output has to be calls.
    pub forced: Option<Constraint>,
    /// One call at most.
    pub is_single: bool,
}

enum Choice {
    Auto,
    Required,
    Named(String),
}

impl ToolUse {
    /// `tools` are those that the model sees, `format` is how it calls them.
    pub fn take(
        fields: &mut Fields,
        tools: &[Value],
        format: Option<ToolCallFormat>,
    ) -> Result<Self, ApiError> {
        const NAME: &str = "tool_choice";
        let may_repeat = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        let choice = take_choice(fields)?;
        let chosen: Vec<Tool> = match &choice {
            Choice::Auto => {
                return Ok(Self {
                    format: format.filter(|_| !tools.is_empty()),
                    forced: None,
                    is_single: !may_repeat,
                });
            }
            Choice::Required => tools.iter().filter_map(tool).collect(),
            Choice::Named(name) => {
                let named = tools
                    .iter()
                    .filter_map(tool)
                    .find(|tool| tool.name == *name);
                Vec::from_iter(named)
            }
        };
        if chosen.is_empty() {
            let message = match choice {
                Choice::Named(name) => {
                    format!("tool_choice names {name:?}, which is none of tools")
                }
                _ => "tool_choice asks for a call, but tools is missing or empty".to_owned(),
            };
            return Err(ApiError::invalid(NAME, message));
        }
        let format = format.ok_or_else(|| {
            let message = "tool_choice asks for a call, but this model's chat template teaches it \
                           no way to write one; --tool-call-parser chooses one";
            ApiError::unsupported(NAME, message)
        })?;
        let may_repeat = may_repeat && matches!(choice, Choice::Required);
        Ok(Self {
            format: Some(format),
            forced: Some(forced::constraint(format, &chosen, may_repeat)),
            is_single: !may_repeat,
        })
    }
}

/// `none` was taken before: the model sees no tools then.
fn take_choice(fields: &mut Fields) -> Result<Choice, ApiError> {
    const NAME: &str = "tool_choice";
    const WANTED: &str =
        "\"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": …}}";
    let Some(value) = fields.value(NAME) else {
        return Ok(Choice::Auto);
    };
    match (value.as_str(), value.pointer("/function/name")) {
        (Some("auto"), _) => Ok(Choice::Auto),
        (Some("required"), _) => Ok(Choice::Required),
        (None, Some(Value::String(name))) => Ok(Choice::Named(name.clone())),
        _ => {
            let message = format!("tool_choice is {}, but must be {WANTED}", show(&value));
            Err(ApiError::invalid(NAME, message))
        }
    }
}

/// Names were checked with the conversation.
fn tool(value: &Value) -> Option<Tool> {
    let function = value.get("function")?;
    let parameters = function.get("parameters");
    // An empty schema would allow what is no object, too.
    let says_something = |schema: &&Value| !schema.is_null() && **schema != json!({});
    Some(Tool {
        name: function.get("name")?.as_str()?.to_owned(),
        parameters: parameters.filter(says_something).cloned(),
    })
}
