//! `GET /openapi.json`: the API as an OpenAPI 3.1 document.
//!
//! Nothing in it is kept by hand beside the code that it describes: paths come from the router's
//! [table](crate::server::routes), bodies from the parsers ([`bodies`]), errors from the catalogue,
//! keys from the configuration. Only the shapes of answers are written here ([`answers`]).
//! Deliberately absent: a page that shows it.

mod answers;
mod bodies;

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use self::answers::the;
use crate::errors::Code;
use crate::request::sampling_defaults::SamplingDefaults;
use crate::served_model::Limits;
use crate::server::error::ApiError;
use crate::server::routes::{Operation, operations};
use crate::server::state::AppState;
use crate::server::transport::anthropic_errors::is_messages;
use crate::server::transport::auth::{Access, access};

pub async fn document(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    let mut paths = json!({});
    let mut errors = BTreeSet::new();
    for operation in operations() {
        for path in operation.paths() {
            let described = described(&state, &operation, &path, &mut errors);
            paths[path.replace("{*", "{")][operation.method.to_lowercase()] = described;
        }
    }
    let mut schemas = json!({});
    let bodies = bodies::all(&limits(&state))?;
    for (name, schema) in bodies.into_iter().chain(answers::all()) {
        schemas[name] = schema;
    }
    let errors = errors.into_iter().map(|(is_theirs, status)| {
        let name = error_name(is_theirs, status);
        (name, error(is_theirs, status))
    });
    let bearer = json!({"type": "http", "scheme": "bearer"});
    let header = json!({"type": "apiKey", "in": "header", "name": "X-Api-Key"});
    Ok(Json(json!({
        "openapi": "3.1.0",
        "info": {"title": "engine", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": errors.collect::<Map<String, Value>>(),
            "headers": {"RequestId": {"required": true, "schema": {"type": "string"}}},
            "securitySchemes": {
                "key": bearer, "keyInHeader": header, "adminKey": bearer, "adminKeyInHeader": header,
            },
        },
    })))
}

/// The limits of the first model; of a server without one, the widest.
fn limits(state: &AppState) -> Limits {
    const WIDEST: usize = i32::MAX as usize;
    let first = state.models.loaded().into_iter().next();
    let widest = || Limits {
        max_sequence_tokens: WIDEST,
        sequence_limit_name: "",
        allow_auto_truncate: false,
        max_stop_strings: state.http.max_stop_strings,
        max_prompt_tokens: None,
        max_output_tokens: None,
        vocab: WIDEST,
        max_schema_bytes: WIDEST,
        sampling_defaults: SamplingDefaults::default(),
    };
    first.map_or_else(widest, |model| model.limits.clone())
}

/// `errors` gets the components that the operation refers to.
fn described(
    state: &AppState,
    operation: &Operation,
    path: &str,
    errors: &mut BTreeSet<(bool, u16)>,
) -> Value {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    let id = format!("{}_{}", operation.method.to_lowercase(), words.join("_"));
    let mut described = json!({"operationId": id, "parameters": parameters(operation, path)});
    if !operation.body.is_empty() {
        let content = json!({"application/json": {"schema": the(operation.body)}});
        described["requestBody"] = json!({"required": true, "content": content});
    }
    let content = content(operation);
    if content != json!({}) {
        described["responses"]["200"] =
            json!({"description": "success", "headers": headers(), "content": content});
    }
    let security = security(state, path);
    let is_theirs = is_messages(path);
    for status in error_statuses(operation, path, security.is_some()) {
        errors.insert((is_theirs, status));
        let name = error_name(is_theirs, status);
        let named = json!({"$ref": format!("#/components/responses/{name}")});
        described["responses"][status.to_string()] = named;
    }
    if let Some(security) = security {
        described["security"] = security;
    }
    described
}

fn parameters(operation: &Operation, path: &str) -> Vec<Value> {
    let in_path = path.split_once('{').map(|(_, rest)| {
        let name = rest.trim_start_matches('*').split('}').next();
        let schema = json!({"type": "string", "minLength": 1});
        json!({"name": name, "in": "path", "required": true, "schema": schema})
    });
    let others = operation.parameters().into_iter().map(|(name, schema)| {
        // Only headers have capitals.
        let is_header = name.starts_with(char::is_uppercase);
        json!({"name": name, "in": if is_header { "header" } else { "query" }, "schema": schema})
    });
    in_path.into_iter().chain(others).collect()
}

/// The keys that open a path; `None` if it needs none.
fn security(state: &AppState, path: &str) -> Option<Value> {
    let (user, admin) = (&state.http.api_key, &state.http.admin_api_key);
    let is_admin = match access(path) {
        Access::Open => return None,
        Access::Admin => true,
        Access::Operator => admin.is_some(),
        Access::Key => false,
    };
    if !is_admin && user.is_none() {
        return None;
    }
    let name = if is_admin { "adminKey" } else { "key" };
    Some(json!([{name: []}, {format!("{name}InHeader"): []}]))
}

fn content(operation: &Operation) -> Value {
    let mut content = json!({});
    match operation.answer {
        "" => {}
        "text" => content["text/plain"] = json!({"schema": {"type": "string"}}),
        name => content["application/json"] = json!({"schema": the(name)}),
    }
    if !operation.event.is_empty() {
        // One event; `[DONE]` may be the last one's data.
        let data = json!({
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": the(operation.event),
        });
        let event = json!({"type": "object", "properties": {"data": data}});
        content["text/event-stream"] = json!({"schema": event});
    }
    content
}

fn headers() -> Value {
    json!({"x-request-id": {"$ref": "#/components/headers/RequestId"}})
}

fn error_statuses(operation: &Operation, path: &str, has_key: bool) -> BTreeSet<u16> {
    // Foreign web pages, and what can happen at any time.
    let mut statuses = BTreeSet::from([403, 500, 503]);
    let parameters = operation.parameters();
    if has_key {
        statuses.insert(401);
    }
    if operation.answer.is_empty() || !parameters.is_empty() {
        statuses.insert(400);
    }
    if path.contains('{') || parameters.iter().any(|(name, _)| *name == "model") {
        statuses.extend([400, 404]);
    }
    if !operation.body.is_empty() {
        statuses.extend([400, 404, 408, 413, 415]);
    }
    if !operation.event.is_empty() {
        statuses.extend([429, 504]);
    }
    match access(path) {
        // Without an admin key there is nothing.
        Access::Admin => statuses.extend([404, 409]),
        Access::Operator => statuses.extend([400]),
        Access::Open | Access::Key => {}
    }
    statuses
}

fn error_name(is_theirs: bool, status: u16) -> String {
    let of = if is_theirs { "Anthropic" } else { "" };
    format!("{of}Error{status}")
}

/// The errors of a status, from the catalogue.
fn error(is_theirs: bool, status: u16) -> Value {
    let codes = Code::ALL.iter().map(|code| code.entry());
    let codes: Vec<_> = codes.filter(|entry| entry.status == Some(status)).collect();
    let words: Vec<&str> = codes.iter().map(|entry| entry.code).collect();
    let mut headers = headers();
    if codes.iter().any(|entry| entry.retry_after_s.is_some()) {
        headers["Retry-After"] = json!({"schema": {"type": "integer"}});
    }
    let name = if is_theirs { "AnthropicError" } else { "Error" };
    let content = json!({"application/json": {"schema": the(name)}});
    json!({"description": words.join(", "), "headers": headers, "content": content})
}
