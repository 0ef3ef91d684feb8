//! The grammar of output that has to call a tool.

use serde_json::{Value, json};

use super::ToolCallFormat;
use crate::structured::{Constraint, literal};

/// A tool that may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: String,
    /// JSON schema of its arguments; any object where there is none.
    pub parameters: Option<Value>,
}

/// One call, or several where `may_repeat`, of these tools and nothing else.
pub fn constraint(format: ToolCallFormat, tools: &[Tool], may_repeat: bool) -> Constraint {
    let call = |i: usize, tool: &Tool| {
        let name = Value::from(tool.name.as_str());
        let (before, behind) = match format {
            ToolCallFormat::Hermes => (
                format!("<tool_call>\n{{\"name\": {name}, \"arguments\": "),
                "}\n</tool_call>",
            ),
            ToolCallFormat::Llama3Json => (format!("{{\"name\": {name}, \"parameters\": "), "}"),
        };
        format!("{} @json_{i} {}", literal(&before), literal(behind))
    };
    let calls: Vec<String> = tools.iter().enumerate().map(|(i, t)| call(i, t)).collect();
    let separator = literal(match format {
        ToolCallFormat::Hermes => "\n",
        ToolCallFormat::Llama3Json => "; ",
    });
    let start = if may_repeat {
        format!("start: call ({separator} call)*")
    } else {
        "start: call".to_owned()
    };
    let any_object = || json!({"type": "object"});
    let parameters = |tool: &Tool| tool.parameters.clone().unwrap_or_else(any_object);
    Constraint::LarkWithJson {
        lark: format!("{start}\ncall: {}", calls.join(" | ")),
        schemas: tools.iter().map(parameters).collect(),
    }
}
