//! `POST /v1/chat/completions`: the next message of a conversation.
//!
//! Deliberately absent: reading tool calls back out of the text. Tools go to the chat template,
//! and what the model writes about them is the message's content.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::{FinishedChoice, Format, Heading, SharedModel, respond};
use super::cached::look_up;
use super::choice::{Choice, ChoiceSpec, Piece};
use super::error::ApiError;
use super::fields::Fields;
use super::logprobs;
use super::messages::{self, Conversation};
use super::prompt::{encode, fit};
use super::sampling_fields::Generation;
use super::state::AppState;

pub async fn chat(
    State(state): State<Arc<AppState>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let model = state.model()?;
    model.check_name(fields.string("model")?.as_deref())?;
    let conversation = Conversation::take(&mut fields)?;
    refuse_unsupported(&mut fields)?;
    let n_logprobs = logprobs::take_chat_fields(&mut fields)?;
    let generation = Generation::take(&mut fields, &model.limits, &model.seeds, n_logprobs)?;
    let add_special = fields.bool("add_special_tokens")?.unwrap_or(false);
    let text = messages::render(model, conversation).await?;
    let ids = encode(&model.tokenizer, text, add_special, "messages").await?;
    let limits = &model.limits;
    let default = limits.max_sequence_tokens;
    let fitted = fit(ids, generation.max_tokens, default, limits, "messages")?;
    let lookup = look_up(
        &state.result_cache,
        "chat",
        fields.digest(),
        model,
        &generation,
        std::iter::once(&*fitted.prompt),
        generation.n,
    )
    .await;
    let n_started = if lookup.is_hit() { 0 } else { generation.n };
    let choices = (0..n_started)
        .map(|index| {
            let spec = ChoiceSpec {
                index,
                sample_index: index,
                prompt: Arc::clone(&fitted.prompt),
                max_new_tokens: fitted.max_new_tokens,
            };
            Choice::start(model, &generation, spec)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let format = ChatFormat {
        heading: Heading::new("chatcmpl", model),
        model: Arc::clone(model),
        with_logprobs: n_logprobs.is_some(),
        n_choices: generation.n,
    };
    respond(
        lookup,
        choices,
        generation.n,
        generation.n,
        generation.streaming,
        state.http.stream_interval,
        format,
    )
    .await
}

fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.refuse("tool_choice", &[json!("none"), json!("auto")])?;
    fields.refuse("functions", &[json!([])])?;
    fields.refuse("function_call", &[json!("none"), json!("auto")])?;
    fields.refuse("modalities", &[json!(["text"])])?;
    fields.refuse("audio", &[])?;
    fields.refuse("echo", &[json!(false)])?;
    fields.refuse("continue_final_message", &[json!(false)])?;
    fields.refuse("chat_template", &[])
}

struct ChatFormat {
    heading: Heading,
    model: SharedModel,
    with_logprobs: bool,
    n_choices: usize,
}

impl ChatFormat {
    fn choice(&self, index: usize, key: &str, message: Value, piece: &Piece) -> Value {
        let logprobs = if self.with_logprobs {
            logprobs::chat(&self.model.tokenizer, &piece.tokens)
        } else {
            Value::Null
        };
        let mut choice = json!({"index": index});
        choice[key] = message;
        choice["logprobs"] = logprobs;
        choice["finish_reason"] = json!(piece.end.as_ref().map(|end| end.finish_reason));
        choice["stop_reason"] = json!(piece.end.as_ref().map(|end| &end.stop_reason));
        choice
    }
}

impl Format for ChatFormat {
    fn opening(&mut self) -> Vec<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        (0..self.n_choices)
            .map(|index| {
                let choice = json!({
                    "index": index,
                    "delta": delta,
                    "logprobs": null,
                    "finish_reason": null,
                });
                self.heading.object("chat.completion.chunk", vec![choice])
            })
            .collect()
    }

    fn chunk(&mut self, index: usize, piece: &Piece) -> Value {
        let delta = json!({"content": piece.text});
        let choice = self.choice(index, "delta", delta, piece);
        self.heading.object("chat.completion.chunk", vec![choice])
    }

    fn usage_chunk(&mut self, usage: Value) -> Value {
        let mut object = self.heading.object("chat.completion.chunk", Vec::new());
        object["usage"] = usage;
        object
    }

    fn whole(&mut self, choices: Vec<FinishedChoice>, usage: Value) -> Value {
        let choices = choices
            .into_iter()
            .enumerate()
            .map(|(index, choice)| {
                let message = json!({"role": "assistant", "content": choice.text});
                let piece = Piece {
                    text: String::new(),
                    tokens: choice.tokens,
                    end: Some(choice.end),
                };
                self.choice(index, "message", message, &piece)
            })
            .collect();
        let mut object = self.heading.object("chat.completion", choices);
        object["usage"] = usage;
        object
    }
}
