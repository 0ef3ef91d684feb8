//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, in vLLM's shapes.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use serde_json::{Value, json};

use crate::server::error::ApiError;
use crate::server::request::fields::Fields;
use crate::server::request::messages;
use crate::server::request::messages::Conversation;
use crate::server::request::prompt::encode;
use crate::server::request::sampling_fields::token_ids;
use crate::server::state::AppState;

/// `prompt` (with special tokens unless `add_special_tokens` is false), or `messages` rendered
/// by the chat template.
pub async fn tokenize(
    State(state): State<Arc<AppState>>,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let model = &state.model(fields.string("model")?.as_deref())?;
    let add_special = fields.bool("add_special_tokens")?;
    let with_texts = fields.bool("return_token_strs")?.unwrap_or(false);
    let ids = if let Some(prompt) = fields.string("prompt")? {
        if fields.value("messages").is_some() {
            let message = "prompt and messages are both there; only one may be";
            return Err(ApiError::invalid("messages", message));
        }
        encode(model, prompt, add_special.unwrap_or(true), "prompt").await?
    } else if let Some(messages) = fields.value("messages") {
        fields.put_back("messages", messages);
        let text = messages::render(model, Conversation::take(&mut fields)?).await?;
        encode(model, text, add_special.unwrap_or(false), "messages").await?
    } else {
        return Err(ApiError::invalid(
            "prompt",
            "prompt is missing; it or messages is needed",
        ));
    };
    let texts = with_texts.then(|| {
        let text =
            |&id: &u32| String::from_utf8_lossy(&model.tokenizer.token_bytes(id)).into_owned();
        ids.iter().map(text).collect::<Vec<_>>()
    });
    Ok(Json(json!({
        "count": ids.len(),
        "max_model_len": model.limits.max_sequence_tokens,
        "tokens": ids,
        "token_strs": texts,
    })))
}

pub async fn detokenize(
    State(state): State<Arc<AppState>>,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let model = &state.model(fields.string("model")?.as_deref())?;
    let tokens = fields.array("tokens")?.ok_or_else(|| {
        ApiError::invalid("tokens", "tokens is missing; it is an array of token ids")
    })?;
    let ids = token_ids("tokens", &tokens, &model.limits)?;
    // SGLang's field; vLLM's endpoint always shows them.
    let skips_special = fields.bool("skip_special_tokens")?.unwrap_or(false);
    Ok(Json(
        json!({"prompt": model.tokenizer.decode(&ids, skips_special)}),
    ))
}

/// `GET /tokenizer_info`, in vLLM's format: what a client needs to count tokens and to render chats
/// itself. With several models, the one of `?model=`.
pub async fn tokenizer_info(
    State(state): State<Arc<AppState>>,
    Query(asked): Query<AskedModel>,
) -> Result<Json<Value>, ApiError> {
    let model = &state.model(asked.model.as_deref())?;
    let mut info = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.limits.max_sequence_tokens,
        "chat_template": model.chat_template.source(),
    });
    for (name, text) in model.chat_template.special_texts() {
        info[name] = json!(text);
    }
    Ok(Json(info))
}

#[derive(Debug, serde::Deserialize)]
pub struct AskedModel {
    model: Option<String>,
}
