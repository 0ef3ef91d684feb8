//! The fields of Anthropic's `/v1/messages` as those of a chat.
//!
//! Without `thinking` the model is asked not to think, as Anthropic documents it. A budget of
//! thinking is checked and has no effect: `max_tokens` bounds thoughts and answer together. Hints
//! for caching have none either, since prefixes are always cached. Unknown fields are refused.

use serde_json::{Map, Value, json};

use crate::server::error::ApiError;
use crate::server::request::anthropic_messages::{take_messages, take_system};
use crate::server::request::converted::{
    Converted, SAMPLING, Transcript, function_tool, pass, take_stream,
};
use crate::server::request::fields::{Fields, show};

/// Fields of a chat, and those that they are called here.
const RENAMED: &[(&str, &str)] = &[
    ("stop", "stop_sequences"),
    ("continue_final_message", "messages"),
    ("reasoning_effort", "output_config.effort"),
    ("response_format.json_schema", "output_config.format"),
    ("response_format", "output_config.format"),
];

/// Takes the fields of a message, or of counting its tokens, which needs no `max_tokens`.
///
/// # Errors
///
/// The first field that is missing, of the wrong type, out of its range or not known, with its
/// place.
pub fn convert(fields: &mut Fields, only_counts: bool) -> Result<Converted, ApiError> {
    let mut body = Map::new();
    let mut transcript = Transcript::default();
    take_system(fields, &mut transcript)?;
    if take_messages(fields, &mut transcript)? {
        body.insert("continue_final_message".to_owned(), json!(true));
    }
    let max_tokens = fields.integer("max_tokens", 1..=i64::from(i32::MAX))?;
    if !only_counts {
        let what = "the number of tokens that may be generated";
        fields.required("max_tokens", max_tokens, what)?;
    }
    if let Some(max_tokens) = max_tokens {
        body.insert("max_tokens".to_owned(), json!(max_tokens));
    }
    if let Some(texts) = fields.array("stop_sequences")? {
        body.insert("stop".to_owned(), texts.into());
    }
    take_tools(fields, &mut body)?;
    take_tool_choice(fields, &mut body)?;
    pass(fields, &SAMPLING, &mut body);
    pass(fields, &["temperature", "top_p"], &mut body);
    take_thinking(fields, max_tokens, &mut body)?;
    take_output_config(fields, &mut body)?;
    take_stream(fields, &mut body)?;
    take_without_effect(fields)?;
    fields.refuse_rest()?;
    Ok(Converted::new(fields, body, transcript, RENAMED))
}

/// Removes a hint for caching, or says what is wrong with it.
pub(super) fn take_cache_control(fields: &mut Fields) -> Result<(), ApiError> {
    fields.object("cache_control").map(|_| ())
}

fn take_without_effect(fields: &mut Fields) -> Result<(), ApiError> {
    take_cache_control(fields)?;
    if let Some(mut metadata) = fields.object("metadata")? {
        metadata.string("user_id")?;
        metadata.refuse_rest()?;
    }
    fields.refuse("service_tier", &[json!("auto"), json!("standard_only")])?;
    fields.refuse("mcp_servers", &[json!([])])?;
    if let Some(mut management) = fields.object("context_management")? {
        // Which earlier thoughts the model sees is the chat template's choice.
        let is_of_thoughts = |edit: &Value| edit["type"] == "clear_thinking_20251015";
        let edits = management.array("edits")?.unwrap_or_default();
        if let Some(edit) = edits.iter().find(|edit| !is_of_thoughts(edit)) {
            let path = management.path("edits");
            let message = format!(
                "{path} has {}; no edit but clear_thinking_20251015 is known here",
                show(edit)
            );
            return Err(ApiError::unsupported(path, message));
        }
        management.refuse_rest()?;
    }
    Ok(())
}

fn take_thinking(
    fields: &mut Fields,
    max_tokens: Option<i64>,
    body: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    const SWITCH: &str = "enable_thinking";
    let Some(mut thinking) = fields.object("thinking")? else {
        let own = body.get("chat_template_kwargs");
        if own.is_none_or(|own| own.get(SWITCH).is_none()) {
            body.insert(SWITCH.to_owned(), json!(false));
        }
        return Ok(());
    };
    thinking.shape(
        "type",
        || json!({"enum": ["enabled", "disabled", "adaptive"]}),
    );
    let kind = thinking.string("type")?;
    match kind.as_deref() {
        Some("disabled") => {
            body.insert(SWITCH.to_owned(), json!(false));
        }
        // The model decides.
        Some("adaptive") => {}
        Some("enabled") => {
            body.insert(SWITCH.to_owned(), json!(true));
            let most = max_tokens.map_or(i64::from(i32::MAX), |most| most - 1);
            if let Some(budget) = thinking.integer("budget_tokens", 1..=i64::from(i32::MAX))?
                && budget > most
            {
                let path = thinking.path("budget_tokens");
                let message = format!(
                    "{path} is {budget}, but must be less than max_tokens, which is {}",
                    most + 1
                );
                return Err(ApiError::invalid(path, message));
            }
        }
        other => {
            let path = thinking.path("type");
            let shown = other.map_or_else(|| "missing".to_owned(), |kind| format!("{kind:?}"));
            let message =
                format!("{path} is {shown}, but must be \"enabled\", \"disabled\" or \"adaptive\"");
            return Err(ApiError::invalid(path, message));
        }
    }
    thinking.refuse("display", &[json!("summarized")])?;
    thinking.refuse_rest()
}

fn take_output_config(fields: &mut Fields, body: &mut Map<String, Value>) -> Result<(), ApiError> {
    let Some(mut config) = fields.object("output_config")? else {
        return Ok(());
    };
    if let Some(effort) = config.string("effort")? {
        body.insert("reasoning_effort".to_owned(), effort.into());
    }
    if let Some(mut format) = config.object("format")? {
        format.shape("type", || json!({"enum": ["json_schema"]}));
        let kind = format.value("type").unwrap_or_default();
        if kind != "json_schema" {
            let path = format.path("type");
            let message = format!("{path} is {}, but must be \"json_schema\"", show(&kind));
            return Err(ApiError::invalid(path, message));
        }
        let schema = format.value("schema");
        let schema = format.required("schema", schema, "a JSON schema")?;
        format.refuse_rest()?;
        let form =
            json!({"type": "json_schema", "json_schema": {"name": "output", "schema": schema}});
        body.insert("response_format".to_owned(), form);
    }
    config.refuse_rest()
}

fn take_tools(fields: &mut Fields, body: &mut Map<String, Value>) -> Result<(), ApiError> {
    let Some(tools) = fields.array("tools")? else {
        return Ok(());
    };
    let tools = tools.into_iter().enumerate();
    let tools = tools.map(|(i, tool)| take_tool(fields.element(&format!("tools[{i}]"), tool)?));
    let tools = tools.collect::<Result<Vec<_>, _>>()?;
    body.insert("tools".to_owned(), tools.into());
    Ok(())
}

fn take_tool(mut tool: Fields) -> Result<Value, ApiError> {
    tool.shape("type", || json!({"enum": ["custom"]}));
    if let Some(kind) = tool.string("type")?
        && kind != "custom"
    {
        let path = tool.path("type");
        let message = format!(
            "{path} is {kind:?}, a tool that this server does not have; only tools of the client \
             (\"custom\") can be called"
        );
        return Err(ApiError::unsupported(path, message));
    }
    let name = tool.string("name")?.filter(|name| !name.is_empty());
    let name = tool.required("name", name, "the tool's name")?;
    let schema = tool.object("input_schema")?;
    let schema = tool.required(
        "input_schema",
        schema,
        "the JSON schema of the tool's input",
    )?;
    let description = tool.string("description")?;
    let strict = tool.bool("strict")?;
    take_cache_control(&mut tool)?;
    tool.bool("eager_input_streaming")?;
    tool.refuse("defer_loading", &[json!(false)])?;
    tool.refuse("allowed_callers", &[json!([]), json!(["direct"])])?;
    tool.refuse_rest()?;
    let schema = Value::Object(schema.into_map());
    Ok(function_tool(name, description, Some(schema), strict))
}

fn take_tool_choice(fields: &mut Fields, body: &mut Map<String, Value>) -> Result<(), ApiError> {
    let Some(mut choice) = fields.object("tool_choice")? else {
        return Ok(());
    };
    choice.shape("type", || json!({"enum": ["auto", "any", "tool", "none"]}));
    let kind = choice.string("type")?;
    let chosen = match kind.as_deref() {
        Some(kind @ ("auto" | "none")) => json!(kind),
        Some("any") => json!("required"),
        Some("tool") => {
            let name = choice.string("name")?;
            let name = choice.required("name", name, "the name of one of tools")?;
            json!({"type": "function", "function": {"name": name}})
        }
        other => {
            let path = choice.path("type");
            let shown = other.map_or_else(|| "missing".to_owned(), |kind| format!("{kind:?}"));
            let message =
                format!("{path} is {shown}, but must be \"auto\", \"any\", \"tool\" or \"none\"");
            return Err(ApiError::invalid(path, message));
        }
    };
    if let Some(is_single) = choice.bool("disable_parallel_tool_use")? {
        body.insert("parallel_tool_calls".to_owned(), json!(!is_single));
    }
    choice.refuse_rest()?;
    body.insert("tool_choice".to_owned(), chosen);
    Ok(())
}
