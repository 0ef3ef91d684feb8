//! Grammars for output that must call a tool.

use serde_json::{Value, json};

use super::{Constraint, literal, moved};
use crate::text::ToolCallFormat;

/// A tool that may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: String,
    /// JSON schema of its arguments; any object if there is none.
    pub parameters: Option<Value>,
}

/// Requires one call, or several if `may_repeat`, of these tools and nothing else.
pub fn constraint(format: ToolCallFormat, tools: &[Tool], may_repeat: bool) -> Constraint {
    Constraint::LarkWithJson {
        lark: format!("start: calls\n{}", rules(format, tools, may_repeat)),
        schemas: tools.iter().map(Tool::schema).collect(),
    }
}

/// Allows calls, or a response in the required format, at the model's choice. Arguments may be any
/// object, as they may without a format.
pub fn calls_or_form(
    format: ToolCallFormat,
    tools: &[Tool],
    may_repeat: bool,
    form: Value,
) -> Constraint {
    match format {
        ToolCallFormat::Hermes => {
            let rules = rules(format, tools, may_repeat);
            let schemas = tools.iter().map(|_| any_object()).chain([form]);
            Constraint::LarkWithJson {
                lark: format!("start: calls | @json_{}\n{rules}", tools.len()),
                schemas: schemas.collect(),
            }
        }
        // Both begin with a brace, so only one schema for both can distinguish them; it allows one
        // call.
        ToolCallFormat::Llama3Json => {
            let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
            let call = json!({
                "type": "object",
                "properties": {"name": {"enum": names}, "parameters": any_object()},
                "required": ["name", "parameters"],
                "additionalProperties": false,
            });
            Constraint::JsonSchema(json!({"anyOf": [call, moved(form, "#/anyOf/1")]}))
        }
    }
}

fn rules(format: ToolCallFormat, tools: &[Tool], may_repeat: bool) -> String {
    let call = |i: usize, tool: &Tool| {
        let name = Value::from(tool.name.as_str());
        let (before, after) = match format {
            ToolCallFormat::Hermes => (
                format!("<tool_call>\n{{\"name\": {name}, \"arguments\": "),
                "}\n</tool_call>",
            ),
            ToolCallFormat::Llama3Json => (format!("{{\"name\": {name}, \"parameters\": "), "}"),
        };
        format!("{} @json_{i} {}", literal(&before), literal(after))
    };
    let calls: Vec<String> = tools.iter().enumerate().map(|(i, t)| call(i, t)).collect();
    let separator = literal(match format {
        ToolCallFormat::Hermes => "\n",
        ToolCallFormat::Llama3Json => "; ",
    });
    let repeated = if may_repeat {
        format!(" ({separator} call)*")
    } else {
        String::new()
    };
    format!("calls: call{repeated}\ncall: {}", calls.join(" | "))
}

impl Tool {
    fn schema(&self) -> Value {
        self.parameters.clone().unwrap_or_else(any_object)
    }
}

fn any_object() -> Value {
    json!({"type": "object"})
}
