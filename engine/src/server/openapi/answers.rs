//! The shapes of answers, written short. A test compares them with what the server sends.

use serde_json::{Map, Value, json};

use crate::errors::Code;
use crate::server::models::ModelState;

/// A line has a name, and the fields of the object with their types; a field with `?` may be absent.
/// Types are `text`, `whole`, `number`, `flag`, `object`, `any`, other names, and lists (`[text]`);
/// with `|` it may be null, too. A type alone is what the name stands for.
const SHAPES: &str = "\
Error error:ErrorBody
AnthropicError type:text error:ErrorBody
ErrorBody message:text type:text param:text| code:Code
Usage prompt_tokens:whole completion_tokens:whole total_tokens:whole prompt_tokens_details?:object completion_tokens_details?:object
ToolCall id?:text| index?:whole type?:text function:object
ChatMessage role?:text content?:text| reasoning_content?:text| tool_calls?:[ToolCall]
ChatChoice index:whole message:ChatMessage logprobs:object| finish_reason:text| stop_reason:any token_ids?:[whole]|
ChatDelta index:whole delta:ChatMessage logprobs:object| finish_reason:text| stop_reason?:any token_ids?:[whole]|
ChatCompletion id:text object:text created:whole model:text choices:[ChatChoice] usage:Usage prompt_token_ids?:[whole]|
ChatCompletionChunk id:text object:text created:whole model:text choices:[ChatDelta] usage?:Usage| prompt_token_ids?:[whole]|
TextChoice index:whole text:text logprobs:object| finish_reason:text| stop_reason:any prompt_logprobs?:[any] prompt_token_ids?:[whole]| token_ids?:[whole]|
Completion id:text object:text created:whole model:text choices:[TextChoice] usage:Usage
CompletionChunk id:text object:text created:whole model:text choices:[TextChoice] usage?:Usage|
GeneratedChunk text:text output_ids:[whole] meta_info:object index?:whole
Block type:text text?:text thinking?:text signature?:text id?:text name?:text input?:any
Message id:text type:text role:text model:text content:[Block] stop_reason:text| stop_sequence:text| usage:object
MessageEvent type:text message?:Message index?:whole content_block?:object delta?:object usage?:object error?:object
TokenCount input_tokens:whole
Item type:text id:text status:text role?:text content?:[any] summary?:[any] encrypted_content?:text| call_id?:text name?:text arguments?:text
Response id:text object:text created_at:whole completed_at?:whole status:text background:flag error:object| incomplete_details:object| instructions:text| max_output_tokens:whole| max_tool_calls:whole| metadata:object model:text output:[Item] parallel_tool_calls:flag previous_response_id:text| prompt_cache_key:text| reasoning:object safety_identifier:text| service_tier:text store:flag temperature:number text:object tool_choice:any tools:[any] top_logprobs:whole top_p:number truncation:text usage:object| user:text|
ResponseEvent type:text sequence_number:whole response?:Response output_index?:whole content_index?:whole item_id?:text item?:object part?:object delta?:text text?:text logprobs?:[any] name?:text arguments?:text
InputTokens object:text input_tokens:whole
Deleted id:text object:text deleted:flag
InputItems object:text data:[any] first_id:text| last_id:text| has_more:flag
StreamEvent any
Model id:text object:text created:whole owned_by:text root:text parent:any max_model_len:whole state?:State
Models object:text data:[Model]
ManagedModel name:text names:[text] state:State reason:text| device?:text weight_bytes?:whole kv_pool_bytes?:whole n_requests?:whole is_healthy?:flag
ManagedModels models:[ManagedModel]
Waiting reason:text limit?:whole n_needed?:whole n_available?:whole
ListedRequest id:text| state:text priority:whole prompt_tokens:whole computed_tokens:whole output_tokens:whole max_tokens:whole age_s:number wait:Waiting|
ListedRequests model:text policy:text n_requests:whole requests:[ListedRequest]
Health status:text models?:object
Version version:text
Anything object
AnyList [object]
Load server_load:whole
Success success:flag
Aborted n_aborted:whole
Tokens count:whole max_model_len:whole tokens:[whole] token_strs:[text]|
Text prompt:text";

/// Every answer by its name.
pub fn all() -> Vec<(&'static str, Value)> {
    let codes = Code::ALL.iter();
    let codes = codes.filter(|code| code.entry().status.is_some());
    let words: Vec<&str> = codes.map(|code| code.word()).collect();
    let states = ModelState::ALL.map(ModelState::name);
    let one = the("GeneratedChunk");
    let mut all = vec![
        ("Code", json!({"enum": words})),
        ("State", json!({"enum": states})),
        (
            "Generated",
            json!({"anyOf": [one, {"type": "array", "items": one}]}),
        ),
    ];
    let shapes = SHAPES.lines().filter_map(|line| line.split_once(' '));
    all.extend(shapes.map(|(name, shape)| (name, object(shape))));
    all
}

/// A component.
pub fn the(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn object(shape: &str) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for field in shape.split(' ') {
        let Some((name, kind)) = field.split_once(':') else {
            return typed(field);
        };
        if !name.ends_with('?') {
            required.push(name);
        }
        properties.insert(name.trim_end_matches('?').to_owned(), typed(kind));
    }
    json!({"type": "object", "properties": properties, "required": required})
}

fn typed(kind: &str) -> Value {
    if let Some(kind) = kind.strip_suffix('|') {
        return json!({"anyOf": [typed(kind), {"type": "null"}]});
    }
    if let Some(kind) = kind
        .strip_prefix('[')
        .and_then(|kind| kind.strip_suffix(']'))
    {
        return json!({"type": "array", "items": typed(kind)});
    }
    match kind {
        "any" => json!({}),
        "text" => json!({"type": "string"}),
        "whole" => json!({"type": "integer"}),
        "flag" => json!({"type": "boolean"}),
        "number" | "object" => json!({"type": kind}),
        name => the(name),
    }
}
