//! Grammars for output that must call a tool.

use serde_json::{Value, json};

use super::{Constraint, literal, moved};
use crate::text::{Tool, ToolCallFormat};

/// Requires one call, or several if `may_repeat`, of these tools and nothing else.
pub fn constraint(format: ToolCallFormat, tools: &[Tool], may_repeat: bool) -> Constraint {
    let (rules, schemas) = if format == ToolCallFormat::Qwen3Coder {
        coder::rules(tools, may_repeat, true)
    } else {
        let schemas = tools.iter().map(Tool::schema).collect();
        (rules(format, tools, may_repeat), schemas)
    };
    Constraint::LarkWithJson {
        lark: format!("start: calls\n{rules}"),
        schemas,
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
    let (rules, mut schemas) = match format {
        ToolCallFormat::Hermes => {
            let schemas = tools.iter().map(|_| any_object()).collect();
            (rules(format, tools, may_repeat), schemas)
        }
        ToolCallFormat::Qwen3Coder => coder::rules(tools, may_repeat, false),
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
            let form = moved(form, "#/anyOf/1");
            return Constraint::JsonSchema(json!({"anyOf": [call, form]}));
        }
    };
    schemas.push(form);
    Constraint::LarkWithJson {
        lark: format!("start: calls | @json_{}\n{rules}", schemas.len() - 1),
        schemas,
    }
}

/// The rules of calls whose arguments are one JSON object each.
fn rules(format: ToolCallFormat, tools: &[Tool], may_repeat: bool) -> String {
    let call = |i: usize, tool: &Tool| {
        let name = Value::from(tool.name.as_str());
        let (before, after) = if format == ToolCallFormat::Llama3Json {
            (format!("{{\"name\": {name}, \"parameters\": "), "}")
        } else {
            let before = format!("<tool_call>\n{{\"name\": {name}, \"arguments\": ");
            (before, "}\n</tool_call>")
        };
        format!("{} @json_{i} {}", literal(&before), literal(after))
    };
    let calls: Vec<String> = tools.iter().enumerate().map(|(i, t)| call(i, t)).collect();
    let separator = if format == ToolCallFormat::Llama3Json {
        "; "
    } else {
        "\n"
    };
    joined(&calls, separator, may_repeat)
}

fn joined(calls: &[String], separator: &str, may_repeat: bool) -> String {
    let repeated = if may_repeat {
        format!(" ({} call)*", literal(separator))
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

/// Qwen3-Coder's tags. A text is not checked against a pattern or a length of its schema.
mod coder {
    use serde_json::Value;

    use super::{joined, literal};
    use crate::text::Tool;
    use crate::text::tool_calls::is_text;

    /// A parameter's text ends with its tag.
    const TEXT: &str = "text[suffix=\"\\n</parameter>\\n\"]: /(.|\\n)*/";
    /// Parameters of any name.
    const ANY: &str = "any: (\"<parameter=\" NAME \">\\n\" text)*\nNAME: /[^<>\\n]{1,64}/";

    /// The rules, and the schemas that they refer to. Without `follows_schema` the parameters are
    /// any texts.
    pub fn rules(tools: &[Tool], may_repeat: bool, follows_schema: bool) -> (String, Vec<Value>) {
        let mut schemas = Vec::new();
        let calls: Vec<String> = tools
            .iter()
            .map(|tool| {
                let begin = format!("<tool_call>\n<function={}>\n", tool.name);
                let schema = tool.parameters.as_ref().filter(|_| follows_schema);
                let parameters = parameters(schema, &mut schemas);
                let end = literal("</function>\n</tool_call>");
                format!("{} {parameters} {end}", literal(&begin))
            })
            .collect();
        let calls = joined(&calls, "\n", may_repeat);
        (format!("{calls}\n{TEXT}\n{ANY}"), schemas)
    }

    fn parameters(schema: Option<&Value>, schemas: &mut Vec<Value>) -> String {
        let properties = schema.and_then(|schema| schema.get("properties")?.as_object());
        let (Some(root), Some(properties)) = (schema, properties) else {
            let is_closed = schema.is_some_and(|schema| schema["additionalProperties"] == false);
            return String::from(if is_closed { "" } else { "any" });
        };
        let required = root["required"].as_array();
        let parts = properties.iter().map(|(name, schema)| {
            let begin = literal(&format!("<parameter={name}>\n"));
            let value = value(root, name, schema, schemas);
            let is_required = required.is_some_and(|names| names.iter().any(|n| n == name));
            let mark = if is_required { "" } else { "?" };
            format!("({begin} {value}){mark}")
        });
        parts.collect::<Vec<_>>().join(" ")
    }

    /// A value with its end.
    fn value(root: &Value, name: &str, schema: &Value, schemas: &mut Vec<Value>) -> String {
        const END: &str = "\n</parameter>\n";
        if is_text(Some(root), name) {
            let listed = schema["enum"].as_array().into_iter().flatten();
            let texts = listed.chain(schema.get("const")).filter_map(Value::as_str);
            let texts: Vec<String> = texts.map(|text| literal(&format!("{text}{END}"))).collect();
            if texts.is_empty() {
                return "text".to_owned();
            }
            return format!("({})", texts.join(" | "));
        }
        let mut schema = schema.clone();
        for word in ["$defs", "definitions"] {
            if let (Some(object), Some(shared)) = (schema.as_object_mut(), root.get(word)) {
                object.entry(word).or_insert_with(|| shared.clone());
            }
        }
        schemas.push(schema);
        format!("@json_{} {}", schemas.len() - 1, literal(END))
    }
}
