//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, in vLLM's shapes.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::served_model::Limits;
use crate::server::error::ApiError;
use crate::server::request::fields::{Fields, show};
use crate::server::request::messages::{self, BESIDE_MESSAGES, Conversation};
use crate::server::request::parts::Asked;
use crate::server::request::prompt::encode;
use crate::server::request::sampling_fields::{id_list, token_ids};
use crate::server::state::AppState;

/// `prompt` (with special tokens unless `add_special_tokens` is false), or `messages` rendered
/// by the chat template.
pub async fn tokenize(
    State(state): State<Arc<AppState>>,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let model = &state.model(fields.string("model")?.as_deref())?;
    let TokenizeRequest {
        source,
        add_special,
        with_texts,
    } = TokenizeRequest::take(&mut fields)?;
    let ids = match source {
        Source::Prompt(prompt) => {
            encode(model, prompt, add_special.unwrap_or(true), "prompt").await?
        }
        Source::Chat(chat) => {
            let text = messages::render(model, chat).await?;
            encode(model, text, add_special.unwrap_or(false), "messages").await?
        }
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

/// What is to be tokenized.
enum Source {
    Prompt(String),
    Chat(Conversation),
}

pub(crate) struct TokenizeRequest {
    source: Source,
    add_special: Option<bool>,
    with_texts: bool,
}

impl TokenizeRequest {
    /// Takes all fields but the model.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let add_special = fields.bool("add_special_tokens")?;
        let with_texts = fields.bool("return_token_strs")?.unwrap_or(false);
        fields.shape_one_of(&["prompt", "messages"]);
        let messages = fields.value("messages");
        let source = match (fields.string("prompt")?, messages) {
            (Some(_), Some(_)) => {
                let message = "prompt and messages are both there; only one may be";
                return Err(ApiError::invalid("messages", message));
            }
            (None, None) => {
                let message = "prompt is missing; it or messages is needed";
                return Err(ApiError::invalid("prompt", message));
            }
            (Some(prompt), None) => {
                refuse_of_chat(fields)?;
                Source::Prompt(prompt)
            }
            (None, Some(messages)) => {
                fields.put_back("messages", messages);
                Source::Chat(Conversation::take(fields)?)
            }
        };
        Ok(Self {
            source,
            add_special,
            with_texts,
        })
    }
}

/// What has no meaning beside a prompt.
fn refuse_of_chat(fields: &mut Fields) -> Result<(), ApiError> {
    for name in BESIDE_MESSAGES {
        if let Some(value) = fields.value(name) {
            let shown = show(&value);
            let message = format!("{name} is {shown}, but is only read beside messages");
            return Err(ApiError::unsupported(name, message));
        }
    }
    Ok(())
}

pub async fn detokenize(
    State(state): State<Arc<AppState>>,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let model = &state.model(fields.string("model")?.as_deref())?;
    let (ids, skips_special) = take_detokenized(&mut fields, &model.limits)?;
    Ok(Json(
        json!({"prompt": model.tokenizer.decode(&ids, skips_special)}),
    ))
}

/// The token ids, and whether special tokens are left out.
pub(crate) fn take_detokenized(
    fields: &mut Fields,
    limits: &Limits,
) -> Result<(Vec<u32>, bool), ApiError> {
    fields.shape("tokens", || id_list(limits, 0, 1 << 20));
    let tokens = fields.array("tokens")?;
    let tokens = fields.required("tokens", tokens, "an array of token ids")?;
    let ids = token_ids("tokens", &tokens, limits)?;
    // SGLang's field; vLLM's endpoint always shows them.
    let skips_special = fields.bool("skip_special_tokens")?.unwrap_or(false);
    Ok((ids, skips_special))
}

/// `GET /tokenizer_info`, in vLLM's format: what a client needs to count tokens and to render chats
/// itself. With several models, the one of `?model=`.
pub async fn tokenizer_info(
    State(state): State<Arc<AppState>>,
    Asked(asked): Asked<AskedModel>,
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
