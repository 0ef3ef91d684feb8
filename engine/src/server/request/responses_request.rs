//! The fields of OpenAI's `/v1/responses` as those of a chat.
//!
//! Built-in tools, prompts and conversations that only OpenAI's servers have are refused by name,
//! and so are unknown fields. Reasoning comes as text in its items: there is no summary
//! and nothing encrypted, so the fields that ask for these have no effect.

use serde_json::{Map, Value, json};

use crate::server::error::ApiError;
use crate::server::request::converted::{Converted, SAMPLING, function_tool, pass, take_stream};
use crate::server::request::fields::{Fields, show, text_or_list};
use crate::server::request::responses_items::Items;
use crate::server::request::sampling_fields::MAX_LOGPROBS;
use crate::server::stored_responses::{ResponseStore, Stored};

/// Fields of a chat, and those that they are called here.
const RENAMED: &[(&str, &str)] = &[
    ("messages", "input"),
    ("max_tokens", "max_output_tokens"),
    ("reasoning_effort", "reasoning.effort"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
];
/// As in OpenAI's API.
const MAX_METADATA: usize = 16;
const MAX_KEY_CHARS: usize = 64;
const MAX_VALUE_CHARS: usize = 512;
const LOGPROBS: &str = "message.output_text.logprobs";

/// A request, converted.
pub struct ResponsesRequest {
    pub chat: Converted,
    /// What the response repeats of the request.
    pub echoed: Map<String, Value>,
    /// The request's own input items, with ids.
    pub input: Vec<Value>,
    pub previous: Option<String>,
    pub is_stored: bool,
    pub n_logprobs: Option<usize>,
}

impl ResponsesRequest {
    /// Takes the fields of a response; `store` has the one that it may continue.
    ///
    /// # Errors
    ///
    /// The first field that is missing, of the wrong type, out of its range or not known, with its
    /// place; also if `previous_response_id` or one before it is not kept.
    pub fn take(fields: &mut Fields, store: &ResponseStore) -> Result<Self, ApiError> {
        let (mut body, mut echoed) = (Map::new(), Map::new());
        let mut items = Items::default();
        let instructions = fields.string("instructions")?;
        if let Some(text) = &instructions {
            items.push_system("instructions", text);
        }
        echoed.insert("instructions".to_owned(), json!(instructions));
        let previous = take_previous(fields, store, &mut items)?;
        echoed.insert("previous_response_id".to_owned(), json!(previous));
        let input = take_input(fields)?;
        for (i, item) in input.iter().enumerate() {
            items.push(fields, &format!("input[{i}]"), item.clone())?;
        }
        let is_stored = fields.bool("store")?.unwrap_or(true);
        echoed.insert("store".to_owned(), json!(is_stored));
        take_tools(fields, &mut body, &mut echoed)?;
        take_text(fields, &mut body, &mut echoed)?;
        take_reasoning(fields, &mut body, &mut echoed)?;
        let n_logprobs = take_logprobs(fields, &mut echoed)?;
        let most = i64::from(i32::MAX);
        let max_tokens = fields.integer("max_output_tokens", 1..=most)?;
        echoed.insert("max_output_tokens".to_owned(), json!(max_tokens));
        if let Some(max_tokens) = max_tokens {
            body.insert("max_tokens".to_owned(), json!(max_tokens));
        }
        pass(fields, &SAMPLING, &mut body);
        pass(fields, &["temperature", "top_p"], &mut body);
        take_stream(fields, &mut body)?;
        take_metadata(fields, &mut echoed)?;
        let is_kept = take_background(fields, is_stored, &body, &mut echoed)?;
        take_without_effect(fields, &mut echoed)?;
        refuse_of_openai(fields)?;
        fields.refuse_rest()?;
        let mut chat = Converted::new(fields, body, items.finish(), RENAMED);
        if is_kept {
            chat.fields.keep_stream();
        }
        Ok(Self {
            chat,
            echoed,
            input,
            previous,
            is_stored,
            n_logprobs,
        })
    }
}

/// The error of an id that is not kept.
pub(crate) fn not_kept(param: &str, id: &str) -> ApiError {
    use crate::errors::Code;
    let shown = show(&Value::from(id));
    let message = format!(
        "{param} is {shown}, which is not kept here: it was never stored, was deleted, or has left \
         the bounded memory"
    );
    ApiError::of_field(Code::ResponseNotFound, param, message)
}

fn take_previous(
    fields: &mut Fields,
    store: &ResponseStore,
    items: &mut Items,
) -> Result<Option<String>, ApiError> {
    const NAME: &str = "previous_response_id";
    let Some(id) = fields.string(NAME)? else {
        return Ok(None);
    };
    let chain = store.chain(&id).map_err(|absent| not_kept(NAME, &absent))?;
    for Stored {
        response, input, ..
    } in chain
    {
        let output = response["output"].as_array().cloned().unwrap_or_default();
        for item in input.into_iter().chain(output) {
            items.push(fields, NAME, item)?;
        }
    }
    Ok(Some(id))
}

/// The items of `input`, each with an id; a string is a user's message.
fn take_input(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    const WANTED: &str = "a string or an array of items";
    fields.shape("input", || text_or_list(1));
    let input = fields.value("input");
    let mut items = match fields.required("input", input, WANTED)? {
        Value::String(text) => {
            let part = json!({"type": "input_text", "text": text});
            vec![json!({"type": "message", "role": "user", "content": [part]})]
        }
        Value::Array(items) if items.is_empty() => {
            let message = "input is an empty array; it needs an item";
            return Err(ApiError::invalid("input", message));
        }
        Value::Array(items) => items,
        other => return Err(fields.wrong_type("input", &other, WANTED)),
    };
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        let id = item.entry("id").or_insert(Value::Null);
        if id.is_null() {
            *id = format!("item_{:032x}", rand::random::<u128>()).into();
        }
    }
    Ok(items)
}

fn take_tools(
    fields: &mut Fields,
    body: &mut Map<String, Value>,
    echoed: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    let tools = fields.array("tools")?.unwrap_or_default();
    echoed.insert("tools".to_owned(), tools.clone().into());
    let tools = tools.into_iter().enumerate();
    let tools = tools.map(|(i, tool)| take_tool(fields.element(&format!("tools[{i}]"), tool)?));
    let tools = tools.collect::<Result<Vec<_>, _>>()?;
    if !tools.is_empty() {
        body.insert("tools".to_owned(), tools.into());
    }
    fields.shape(
        "tool_choice",
        || json!({"$ref": "#/components/schemas/ChatRequest/properties/tool_choice"}),
    );
    let choice = fields.value("tool_choice");
    let shown = choice.clone().unwrap_or_else(|| json!("auto"));
    echoed.insert("tool_choice".to_owned(), shown);
    if let Some(choice) = choice {
        body.insert("tool_choice".to_owned(), choice);
    }
    let may_repeat = fields.bool("parallel_tool_calls")?;
    if let Some(may_repeat) = may_repeat {
        body.insert("parallel_tool_calls".to_owned(), json!(may_repeat));
    }
    let may_repeat = may_repeat.unwrap_or(true);
    echoed.insert("parallel_tool_calls".to_owned(), json!(may_repeat));
    Ok(())
}

fn take_tool(mut tool: Fields) -> Result<Value, ApiError> {
    tool.shape("type", || json!({"enum": ["function"]}));
    let kind = tool.value("type").unwrap_or_default();
    if kind != "function" {
        let path = tool.path("type");
        let message = format!(
            "{path} is {}; only tools of the client (\"function\") can be called, this server has \
             none of its own",
            show(&kind)
        );
        return Err(ApiError::unsupported(path, message));
    }
    let name = tool.string("name")?.filter(|name| !name.is_empty());
    let name = tool.required("name", name, "the function's name")?;
    let parameters = tool.object("parameters")?;
    let description = tool.string("description")?;
    let strict = tool.bool("strict")?;
    tool.refuse("defer_loading", &[json!(false)])?;
    tool.refuse_rest()?;
    let parameters = parameters.map(|schema| Value::Object(schema.into_map()));
    Ok(function_tool(name, description, parameters, strict))
}

/// `text`: the format of the output.
fn take_text(
    fields: &mut Fields,
    body: &mut Map<String, Value>,
    echoed: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    let mut shown = json!({"type": "text"});
    if let Some(mut text) = fields.object("text")? {
        text.refuse("verbosity", &[json!("medium")])?;
        if let Some(format) = text.object("format")? {
            format.shape(
                "type",
                || json!({"enum": ["text", "json_object", "json_schema"]}),
            );
            let path = format.path("type");
            let mut format = format.into_map();
            shown = Value::Object(format.clone());
            let kind = format.remove("type").unwrap_or_default();
            match kind.as_str() {
                Some(kind @ ("text" | "json_object")) => {
                    body.insert("response_format".to_owned(), json!({"type": kind}));
                }
                Some("json_schema") => {
                    let form = json!({"type": "json_schema", "json_schema": format});
                    body.insert("response_format".to_owned(), form);
                }
                _ => {
                    let message = format!(
                        "{path} is {}, but must be \"text\", \"json_object\" or \"json_schema\"",
                        show(&kind)
                    );
                    return Err(ApiError::invalid(path, message));
                }
            }
        }
        text.refuse_rest()?;
    }
    echoed.insert("text".to_owned(), json!({"format": shown}));
    Ok(())
}

fn take_reasoning(
    fields: &mut Fields,
    body: &mut Map<String, Value>,
    echoed: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    let mut effort = None;
    if let Some(mut reasoning) = fields.object("reasoning")? {
        effort = reasoning.string("effort")?;
        // The whole reasoning is in the output.
        for name in ["summary", "generate_summary"] {
            reasoning.refuse(name, &[json!("auto"), json!("detailed")])?;
        }
        reasoning.refuse_rest()?;
    }
    let shown = json!({"effort": effort, "summary": null});
    echoed.insert("reasoning".to_owned(), shown);
    if let Some(effort) = effort {
        body.insert("reasoning_effort".to_owned(), effort.into());
    }
    Ok(())
}

/// `include` and `top_logprobs`: the number of log-probabilities of each token of a text.
fn take_logprobs(
    fields: &mut Fields,
    echoed: &mut Map<String, Value>,
) -> Result<Option<usize>, ApiError> {
    let mut is_on = false;
    fields.shape("include", || {
        let items = json!({"enum": [LOGPROBS, "reasoning.encrypted_content"]});
        json!({"type": "array", "items": items})
    });
    for (i, item) in fields
        .array("include")?
        .unwrap_or_default()
        .iter()
        .enumerate()
    {
        match item.as_str() {
            Some(LOGPROBS) => is_on = true,
            Some("reasoning.encrypted_content") => {}
            _ => {
                let path = format!("include[{i}]");
                let message = format!(
                    "{path} is {}; only {LOGPROBS:?} and \"reasoning.encrypted_content\" are known \
                     here",
                    show(item)
                );
                return Err(ApiError::unsupported(path, message));
            }
        }
    }
    let n_top = fields
        .integer("top_logprobs", 0..=MAX_LOGPROBS)?
        .unwrap_or(0);
    if n_top > 0 && !is_on {
        let message = format!("top_logprobs is {n_top}, but include does not have {LOGPROBS:?}");
        return Err(ApiError::invalid("top_logprobs", message));
    }
    echoed.insert("top_logprobs".to_owned(), json!(n_top));
    Ok(is_on.then_some(n_top as usize))
}

fn take_metadata(fields: &mut Fields, echoed: &mut Map<String, Value>) -> Result<(), ApiError> {
    fields.shape("metadata", || {
        json!({
            "type": "object",
            "maxProperties": MAX_METADATA,
            "propertyNames": {"maxLength": MAX_KEY_CHARS},
            "additionalProperties": {"type": "string", "maxLength": MAX_VALUE_CHARS},
        })
    });
    let metadata = fields.object("metadata")?.unwrap_or_default().into_map();
    if metadata.len() > MAX_METADATA {
        let n = metadata.len();
        let message = format!("metadata has {n} keys, the limit is {MAX_METADATA}");
        return Err(ApiError::invalid("metadata", message));
    }
    let is_short = |text: &str, limit| text.chars().count() <= limit;
    for (name, value) in &metadata {
        let is_text = value
            .as_str()
            .is_some_and(|text| is_short(text, MAX_VALUE_CHARS));
        if !is_text || !is_short(name, MAX_KEY_CHARS) {
            let message = format!(
                "metadata has {}: {}, but keys have up to {MAX_KEY_CHARS} characters, and values \
                 are strings of up to {MAX_VALUE_CHARS}",
                show(&json!(name)),
                show(value)
            );
            return Err(ApiError::invalid("metadata", message));
        }
    }
    echoed.insert("metadata".to_owned(), metadata.into());
    Ok(())
}

/// `background`: the response goes on without its connection, as a stream that can be resumed.
fn take_background(
    fields: &mut Fields,
    is_stored: bool,
    body: &Map<String, Value>,
    echoed: &mut Map<String, Value>,
) -> Result<bool, ApiError> {
    const NAME: &str = "background";
    let is_on = fields.bool(NAME)?.unwrap_or(false);
    echoed.insert(NAME.to_owned(), json!(is_on));
    if is_on && !is_stored {
        let message =
            "background is true, but store is false; a response in the background is kept";
        return Err(ApiError::invalid("store", message));
    }
    if is_on && !body.contains_key("stream") {
        let message = "background is true, but works with stream: true only; a stream that is \
                       interrupted is read on with GET";
        return Err(ApiError::unsupported(NAME, message));
    }
    Ok(is_on)
}

/// Fields that only identify the caller, or choose what this server does anyway.
fn take_without_effect(
    fields: &mut Fields,
    echoed: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    for name in ["user", "safety_identifier", "prompt_cache_key"] {
        let value = fields.string(name)?;
        echoed.insert(name.to_owned(), json!(value));
    }
    for (name, values) in [
        ("truncation", vec![json!("disabled")]),
        ("service_tier", vec![json!("auto"), json!("default")]),
        (
            "prompt_cache_retention",
            vec![json!("in_memory"), json!("in-memory")],
        ),
    ] {
        fields.refuse(name, &values)?;
    }
    // Of built-in tools, which there are none of.
    let n = fields.integer("max_tool_calls", 0..=i64::from(i32::MAX))?;
    echoed.insert("max_tool_calls".to_owned(), json!(n));
    if let Some(mut options) = fields.object("stream_options")? {
        options.refuse("include_obfuscation", &[json!(false)])?;
        options.refuse_rest()?;
    }
    Ok(())
}

fn refuse_of_openai(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["conversation", "prompt", "context_management"] {
        fields.refuse(name, &[])?;
    }
    Ok(())
}
