//! `/v1/stream/{id}`: `GET` reads on in a stream that was kept (`X-Conversation-Id`, or `background`
//! of `/v1/responses`), after the event that `Last-Event-ID` or `starting_after` names; `DELETE`
//! cancels it.
//!
//! Path and header are llama.cpp's. Its `from` counts bytes, which a client of events does not
//! know, so it is refused.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use serde_json::{Value, json};

use crate::server::endpoints::responses::{Query, unknown};
use crate::server::error::ApiError;
use crate::server::kept_streams::not_kept;
use crate::server::request::fields::show;
use crate::server::request::parts::{Asked, InPath};
use crate::server::state::AppState;
use crate::server::transport::auth::SentKeys;

pub const STARTING_AFTER: &str = "starting_after";
pub const LAST_EVENT_ID: &str = "Last-Event-ID";

pub async fn resume(
    State(state): State<Arc<AppState>>,
    InPath(id): InPath,
    Asked(asked): Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let mut after = None;
    for (name, value) in asked {
        match name.as_str() {
            STARTING_AFTER => after = Some(value),
            "from" => {
                let message = "from counts bytes in llama.cpp's server; here starting_after or \
                               Last-Event-ID names the last event that was received";
                return Err(ApiError::unsupported("from", message));
            }
            _ => return Err(unknown(&name, &value)),
        }
    }
    read_on(&state, &id, after.as_deref(), &headers)
}

/// The events of a stream after the one that the query or the header names.
pub(crate) fn read_on(
    state: &AppState,
    id: &str,
    starting_after: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    // An empty header is what a client sends that has seen no event.
    let of_header = headers.get(LAST_EVENT_ID).map(HeaderValue::as_bytes);
    let of_header = of_header.filter(|id| !id.is_empty());
    let of_header = of_header.map(String::from_utf8_lossy);
    let (param, text) = match (starting_after, &of_header) {
        (Some(text), _) => (STARTING_AFTER, Some(text)),
        (None, text) => (LAST_EVENT_ID, text.as_deref()),
    };
    let after = text.map(|text| {
        text.parse::<u64>().map_err(|_| {
            let shown = show(&json!(text));
            let message = format!("{param} is {shown}, but must be the number of an event");
            ApiError::invalid(param, message)
        })
    });
    let keys = SentKeys::of(headers);
    let reader = state
        .kept_streams
        .resume(id, &keys, after.transpose()?, param)?;
    Ok(reader.respond())
}

pub async fn cancel(
    State(state): State<Arc<AppState>>,
    InPath(id): InPath,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    if !state.kept_streams.remove(&id, &SentKeys::of(&headers)) {
        return Err(not_kept(&id));
    }
    Ok(Json(json!({"id": id, "object": "stream", "deleted": true})))
}
