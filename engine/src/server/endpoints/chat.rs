//! `POST /v1/chat/completions`: the next message of a conversation.
//!
//! Tools and earlier calls are passed to the chat template. New calls, and reasoning if
//! `--reasoning-parser` names its format, are parsed from the output.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use crate::server::error::ApiError;
use crate::server::request::fields::Fields;
use crate::server::request::foreign_fields;
use crate::server::request::grammar_compiling::{CompiledForm, compile};
use crate::server::request::messages;
use crate::server::request::messages::Conversation;
use crate::server::request::prompt::{encode, fit};
use crate::server::request::sampling_fields::Generation;
use crate::server::request::tool_fields::ToolUse;
use crate::server::response::answer::{
    AnswerFormat, FinishedChoice, ResponseEnvelope, SharedModel, respond,
};
use crate::server::response::cached::{CacheRequest, lookup};
use crate::server::response::choice::{Choice, ChoiceSpec, Piece, token_ids};
use crate::server::response::logprobs;
use crate::server::response::logprobs::TokenNames;
use crate::server::response::message_reader::MessageReader;
use crate::server::response::thought_tokens::ThoughtTokens;
use crate::server::running::take_id;
use crate::server::state::AppState;
use crate::structured::Preamble;
use crate::text::reasoning::content_of_prefill;
use crate::text::{ThoughtSplitter, ThoughtStart};

pub async fn chat(
    State(state): State<Arc<AppState>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let model = &state.model(fields.string("model")?.as_deref())?;
    let conversation = Conversation::take(&mut fields)?;
    refuse_unsupported(&mut fields)?;
    foreign_fields::refuse(&mut fields)?;
    let id = take_id(&mut fields, "chatcmpl")?;
    let with_ids = fields.bool("return_token_ids")?.unwrap_or(false);
    let names = TokenNames::take(&mut fields)?;
    let n_logprobs = logprobs::take_chat_fields(&mut fields)?;
    let mut generation = Generation::take(&mut fields, &model.limits, &model.seeds, n_logprobs)?;
    foreign_fields::check_priority(model, generation.priority)?;
    let mut tool_use = ToolUse::take(&mut fields, conversation.tools(), model.parsers.tool_calls)?;
    let asked = tool_use.output(generation.asked.take());
    let separates = fields.bool("separate_reasoning")?.unwrap_or(true);
    let add_special = fields.bool("add_special_tokens")?.unwrap_or(false);
    let prefill = conversation.prefill().map(str::to_owned);
    let text = messages::render(model, conversation).await?;
    let thought_start = model.parsers.reasoning.then(|| match &prefill {
        None => ThoughtStart::of_prompt(&text),
        Some(prefill) => ThoughtStart::of_prefilled(&text, prefill),
    });
    let ids = encode(model, text, add_special, "messages").await?;
    let limits = &model.limits;
    let default = limits.max_sequence_tokens;
    let fitted = fit(ids, generation.max_tokens, default, limits, "messages")?;
    generation.check_sized(&fitted)?;
    let preamble = thought_start.map_or(Preamble::Nothing, preamble);
    let lookup = lookup(
        &state.result_cache,
        &CacheRequest {
            endpoint: "chat",
            body: fields.digest(),
            form: asked.as_ref().map(|asked| (&asked.constraint, preamble)),
            n_choices: generation.n,
        },
        model,
        &generation,
        std::slice::from_ref(&fitted),
    )
    .await;
    let grammar = if lookup.is_hit() {
        None
    } else {
        compile(model, asked, preamble, &generation, generation.n).await?
    };
    let n_started = if lookup.is_hit() { 0 } else { generation.n };
    let choices = (0..n_started)
        .map(|index| {
            let spec = ChoiceSpec {
                index,
                sample_index: index,
                prompt: Arc::clone(&fitted.prompt),
                max_new_tokens: fitted.max_new_tokens,
                form: grammar.as_ref().map(CompiledForm::form),
            };
            Choice::start(model, &generation, spec)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let thoughts = thought_start.filter(|_| separates);
    let max_calls = if tool_use.is_single { 1 } else { usize::MAX };
    let reader = || {
        let reader = MessageReader::new(
            thoughts.map(|start| ThoughtSplitter::new(start).with_calls(tool_use.format)),
            tool_use.parser(),
            max_calls,
        );
        match prefill.as_deref() {
            None => reader,
            Some(prefill) => reader.after(content_of_prefill(prefill)),
        }
    };
    let counter = |start| {
        ThoughtTokens::new(
            start,
            if tool_use.format.is_some() {
                CALL_TAGS
            } else {
                &[]
            },
        )
    };
    let format = ChatFormat {
        envelope: ResponseEnvelope::new("chatcmpl", id, model),
        model: Arc::clone(model),
        with_logprobs: n_logprobs.is_some(),
        names,
        prompt_ids: with_ids.then(|| Arc::clone(&fitted.prompt)),
        with_ids,
        thought_tokens: thought_start
            .map(|start| (0..generation.n).map(|_| counter(start)).collect()),
        readers: (0..generation.n).map(|_| reader()).collect(),
    };
    respond(
        lookup,
        choices,
        generation.n,
        generation.n,
        generation.streaming,
        &state,
        format,
    )
    .await
}

fn preamble(start: ThoughtStart) -> Preamble {
    match start {
        ThoughtStart::Inside => Preamble::RestOfThought,
        ThoughtStart::Before => Preamble::MaybeThought,
        ThoughtStart::After => Preamble::Nothing,
    }
}

fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.refuse("functions", &[json!([])])?;
    fields.refuse("function_call", &[json!("none"), json!("auto")])?;
    fields.refuse("modalities", &[json!(["text"])])?;
    fields.refuse("audio", &[])?;
    fields.refuse("echo", &[json!(false)])?;
    Ok(())
}

/// A tool call ends reasoning that has not been closed.
const CALL_TAGS: &[&[u8]] = &[b"<tool_call>"];

struct ChatFormat {
    envelope: ResponseEnvelope,
    model: SharedModel,
    with_logprobs: bool,
    names: TokenNames,
    /// The prompt's token ids, until they have been sent.
    prompt_ids: Option<Arc<[u32]>>,
    /// Whether choices include their token ids.
    with_ids: bool,
    /// One for each choice, if reasoning is parsed.
    thought_tokens: Option<Vec<ThoughtTokens>>,
    /// One for each choice.
    readers: Vec<MessageReader>,
}

impl ChatFormat {
    fn choice(&self, index: usize, key: &str, message: Value, piece: &Piece) -> Value {
        let logprobs = if self.with_logprobs {
            logprobs::chat(&self.model.tokenizer, &piece.tokens, self.names)
        } else {
            Value::Null
        };
        let mut choice = json!({"index": index});
        choice[key] = message;
        choice["logprobs"] = logprobs;
        let end = piece.end.as_ref();
        let reason = end.map(|end| self.readers[index].finish_reason(end.finish_reason));
        choice["finish_reason"] = json!(reason);
        choice["stop_reason"] = json!(piece.end.as_ref().map(|end| &end.stop_reason));
        if self.with_ids {
            choice["token_ids"] = token_ids(piece);
        }
        choice
    }

    /// The first object of a response carries the prompt's token ids.
    fn object(&mut self, kind: &str, choices: Vec<Value>) -> Value {
        let mut object = self.envelope.object(kind, choices);
        if let Some(ids) = self.prompt_ids.take() {
            object["prompt_token_ids"] = json!(&*ids);
        }
        object
    }
}

impl AnswerFormat for ChatFormat {
    fn id(&self, _index: usize) -> &str {
        &self.envelope.id
    }

    fn record(&mut self, index: usize, piece: &Piece) {
        let Some(counter) = self.thought_tokens.as_mut().and_then(|c| c.get_mut(index)) else {
            return;
        };
        for sampled in &piece.tokens {
            if !self.model.eos_token_ids.contains(&sampled.token) {
                counter.push(&self.model.tokenizer.token_bytes(sampled.token));
            }
        }
    }

    fn n_reasoning_tokens(&self) -> Option<usize> {
        let counters = self.thought_tokens.as_ref()?;
        Some(counters.iter().map(ThoughtTokens::count).sum())
    }

    fn opening(&mut self) -> Vec<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        (0..self.readers.len())
            .map(|index| {
                let choice = json!({
                    "index": index,
                    "delta": delta,
                    "logprobs": null,
                    "finish_reason": null,
                });
                self.object("chat.completion.chunk", vec![choice])
            })
            .collect()
    }

    fn chunk(&mut self, index: usize, piece: &Piece) -> Value {
        let part = self.readers[index].push(&piece.text, piece.end.is_some());
        let delta = part.into_delta();
        let choice = self.choice(index, "delta", delta, piece);
        self.envelope.object("chat.completion.chunk", vec![choice])
    }

    fn usage_chunk(&mut self, usage: Value) -> Value {
        let mut object = self.envelope.object("chat.completion.chunk", Vec::new());
        object["usage"] = usage;
        object
    }

    fn whole(&mut self, choices: Vec<FinishedChoice>, usage: Value) -> Value {
        let choices = choices
            .into_iter()
            .enumerate()
            .map(|(index, choice)| {
                let part = self.readers[index].push(&choice.text, true);
                let message = part.into_message(&self.readers[index]);
                let piece = Piece {
                    text: String::new(),
                    tokens: choice.tokens,
                    end: Some(choice.end),
                };
                self.choice(index, "message", message, &piece)
            })
            .collect();
        let mut object = self.object("chat.completion", choices);
        object["usage"] = usage;
        object
    }
}
