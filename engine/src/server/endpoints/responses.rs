//! OpenAI's `/v1/responses`, over the chat that a request becomes: `POST` makes one, `GET` and
//! `DELETE` find those that are kept in [bounded memory](crate::server::stored_responses).
//!
//! A response in the background is a stream that is [kept](crate::server::kept_streams) under its
//! id. Deliberately absent: built-in tools, conversations.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::errors::Code;
use crate::server::endpoints::anthropic::count;
use crate::server::endpoints::chat::StartedChat;
use crate::server::endpoints::streams::{STARTING_AFTER, read_on};
use crate::server::error::ApiError;
use crate::server::request::fields::{Fields, show};
use crate::server::request::parts::{Asked, InPath};
use crate::server::request::responses_request::{ResponsesRequest, not_kept};
use crate::server::response::responses_format::{Keeping, ResponsesFormat};
use crate::server::state::AppState;
use crate::server::stored_responses::Stored;
use crate::server::transport::auth::SentKeys;

pub async fn create(
    State(state): State<Arc<AppState>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let model = state.model(fields.string("model")?.as_deref())?;
    let mut request = ResponsesRequest::take(&mut fields, &state.stored_responses)?;
    let n_logprobs = request.n_logprobs;
    let started = StartedChat::start(&state, &model, &mut request.chat.fields, n_logprobs).await;
    let started = started.map_err(|error| request.chat.in_their_names(error))?;
    let mut echoed = request.echoed;
    let params = &started.generation.params;
    for (name, value) in [("temperature", params.temperature), ("top_p", params.top_p)] {
        // With the digits of an f32, not those that it has as an f64.
        echoed.insert(
            name.to_owned(),
            json!(value.to_string().parse::<f64>().ok()),
        );
    }
    let keeping = request.is_stored.then(|| Keeping {
        state: Arc::clone(&state),
        input: request.input,
        previous: request.previous,
    });
    let format = ResponsesFormat::new(started.reading, echoed, n_logprobs.is_some(), keeping);
    started.running.respond(&state, format).await
}

/// `POST /v1/responses/input_tokens`: the number of tokens that a request's prompt would have.
pub async fn input_tokens(
    State(state): State<Arc<AppState>>,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let model = state.model(fields.string("model")?.as_deref())?;
    let mut request = ResponsesRequest::take(&mut fields, &state.stored_responses)?;
    let n_tokens = count(&model, &mut request.chat).await?;
    Ok(Json(
        json!({"object": "response.input_tokens", "input_tokens": n_tokens}),
    ))
}

/// The query of a `GET`.
pub type Query = Asked<Vec<(String, String)>>;

pub async fn retrieve(
    State(state): State<Arc<AppState>>,
    InPath(id): InPath,
    Asked(asked): Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (mut is_streamed, mut after) = (false, None);
    for (name, value) in asked {
        match (name.as_str(), value.as_str()) {
            ("stream", "true") => is_streamed = true,
            ("stream", "false") => is_streamed = false,
            (STARTING_AFTER, _) => after = Some(value),
            // The padding that it turns off is not there.
            ("include_obfuscation", "false") => {}
            _ => return Err(unknown(&name, &value)),
        }
    }
    if is_streamed {
        return read_on(&state, &id, after.as_deref(), &headers);
    }
    if let Some(after) = after {
        let shown = show(&json!(after));
        let message = format!("starting_after is {shown}, but is only allowed with stream=true");
        return Err(ApiError::invalid(STARTING_AFTER, message));
    }
    let response = match running(&state, &id, &headers) {
        Some(response) => response,
        None => stored(&state, &id)?.response,
    };
    Ok(Json(response).into_response())
}

/// A response in the background that has not ended, without its output so far.
fn running(state: &AppState, id: &str, headers: &HeaderMap) -> Option<Value> {
    let keys = SentKeys::of(headers);
    let event = state.kept_streams.first_of_running(id, &keys)?;
    let mut event: Value = serde_json::from_str(event.data()).ok()?;
    let response = event["response"].take();
    (response["id"] == id).then_some(response)
}

pub async fn delete(
    State(state): State<Arc<AppState>>,
    InPath(id): InPath,
) -> Result<Json<Value>, ApiError> {
    if !state.stored_responses.remove(&id) {
        return Err(not_kept("response_id", &id));
    }
    Ok(Json(
        json!({"id": id, "object": "response", "deleted": true}),
    ))
}

pub async fn cancel(
    State(state): State<Arc<AppState>>,
    InPath(id): InPath,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    if let Some(mut response) = running(&state, &id, &headers) {
        state.kept_streams.remove(&id, &SentKeys::of(&headers));
        response["status"] = json!("cancelled");
        return Ok(Json(response));
    }
    stored(&state, &id)?;
    let message = format!(
        "{id} does not run in the background any more; close the connection of a response that \
         does not run there to cancel it"
    );
    Err(ApiError::unsupported("response_id", message))
}

const MAX_LISTED: usize = 100;

pub(crate) fn limit_schema() -> Value {
    json!({"type": "integer", "minimum": 1, "maximum": MAX_LISTED})
}

/// The items of a request's own input, the newest first unless `order` is `asc`.
pub async fn input_items(
    State(state): State<Arc<AppState>>,
    InPath(id): InPath,
    Asked(asked): Query,
) -> Result<Json<Value>, ApiError> {
    let (mut limit, mut is_ascending, mut after) = (20, false, None);
    for (name, value) in asked {
        match (name.as_str(), value.as_str()) {
            ("limit", number) => {
                let number = number.parse().ok().filter(|n| (1..=MAX_LISTED).contains(n));
                limit = number.ok_or_else(|| {
                    let shown = show(&json!(value));
                    let message = format!("limit is {shown}, but must be from 1 to {MAX_LISTED}");
                    ApiError::invalid("limit", message)
                })?;
            }
            ("order", "asc") => is_ascending = true,
            ("order", "desc") => is_ascending = false,
            ("after", _) => after = Some(value),
            _ => return Err(unknown(&name, &value)),
        }
    }
    let mut items = stored(&state, &id)?.input;
    if !is_ascending {
        items.reverse();
    }
    if let Some(after) = after {
        let at = items.iter().position(|item| item["id"] == after.as_str());
        let at = at.ok_or_else(|| {
            let message = format!("after is {}, the id of no item", show(&json!(after)));
            ApiError::invalid("after", message)
        })?;
        items.drain(..=at);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id_of = |item: Option<&Value>| item.map(|item| item["id"].clone());
    Ok(Json(json!({
        "object": "list",
        "first_id": id_of(items.first()),
        "last_id": id_of(items.last()),
        "has_more": has_more,
        "data": items,
    })))
}

fn stored(state: &AppState, id: &str) -> Result<Stored, ApiError> {
    let stored = state.stored_responses.get(id);
    stored.ok_or_else(|| not_kept("response_id", id))
}

pub(super) fn unknown(name: &str, value: &str) -> ApiError {
    let shown = show(&json!(value));
    let message = format!("{name} is {shown}, which this endpoint does not know");
    ApiError::of_field(Code::UnsupportedParameter, name, message)
}
