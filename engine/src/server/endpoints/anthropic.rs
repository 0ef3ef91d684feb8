//! Anthropic's `POST /v1/messages` and `/v1/messages/count_tokens`, over the chat that they become.
//! Their errors have Anthropic's form
//! ([`anthropic_errors`](crate::server::transport::anthropic_errors)).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use crate::server::endpoints::chat::StartedChat;
use crate::server::error::ApiError;
use crate::server::request::anthropic_request::convert;
use crate::server::request::chat_request::ChatRequest;
use crate::server::request::converted::Converted;
use crate::server::request::fields::Fields;
use crate::server::request::messages;
use crate::server::request::prompt::encode;
use crate::server::response::answer::SharedModel;
use crate::server::response::messages_format::MessagesFormat;
use crate::server::state::AppState;

pub async fn create(
    State(state): State<Arc<AppState>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let model = state.model(fields.string("model")?.as_deref())?;
    let mut chat = convert(&mut fields, false)?;
    let started = StartedChat::start(&state, &model, &mut chat.fields, None).await;
    let started = started.map_err(|error| chat.in_their_names(error))?;
    let format = MessagesFormat::new(started.reading, started.fitted.prompt.len());
    started.running.respond(&state, format).await
}

pub async fn count_tokens(
    State(state): State<Arc<AppState>>,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let model = state.model(fields.string("model")?.as_deref())?;
    let mut chat = convert(&mut fields, true)?;
    let n_tokens = count(&model, &mut chat).await?;
    Ok(Json(json!({"input_tokens": n_tokens})))
}

/// The number of tokens of a converted request's prompt.
pub(crate) async fn count(model: &SharedModel, chat: &mut Converted) -> Result<usize, ApiError> {
    let counted = async {
        let (limits, seeds) = (&model.limits, &model.seeds);
        let format = model.parsers.tool_calls;
        // All of it, so that what cannot be generated is not counted either.
        let taken = ChatRequest::take(&mut chat.fields, limits, seeds, None, format)?;
        let text = messages::render(model, taken.conversation).await?;
        Ok(encode(model, text, false, "messages").await?.len())
    };
    counted.await.map_err(|error| chat.in_their_names(error))
}
