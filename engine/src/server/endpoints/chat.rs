//! `POST /v1/chat/completions`: the next message of a conversation.
//!
//! Tools and earlier calls are passed to the chat template. New calls, and reasoning if
//! `--reasoning-parser` names its format, are parsed from the output. [`StartedChat`] is also what
//! the endpoints of other APIs run, with their own [`AnswerFormat`].

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use crate::server::error::ApiError;
use crate::server::request::chat_request::{ChatForm, ChatRequest};
use crate::server::request::fields::Fields;
use crate::server::request::foreign_fields;
use crate::server::request::grammar_compiling::{CompiledForm, compile};
use crate::server::request::messages;
use crate::server::request::prompt::{SizedPrompt, encode, fit};
use crate::server::request::sampling_fields::{Generation, Streaming};
use crate::server::response::answer::{AnswerFormat, ResponseEnvelope, SharedModel, respond};
use crate::server::response::cached::{CacheRequest, Lookup, lookup};
use crate::server::response::chat_format::ChatFormat;
use crate::server::response::chat_reading::{ChatReading, OutputForm};
use crate::server::response::choice::{Choice, ChoiceSpec};
use crate::server::state::AppState;
use crate::structured::Preamble;
use crate::text::ThoughtStart;

pub async fn chat(
    State(state): State<Arc<AppState>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let model = state.model(fields.string("model")?.as_deref())?;
    let form = ChatForm::take(&mut fields)?;
    let chat = StartedChat::start(&state, &model, &mut fields, form.n_logprobs).await?;
    let format = ChatFormat {
        envelope: ResponseEnvelope::new("chatcmpl", form.id, &model),
        reading: chat.reading,
        with_logprobs: form.n_logprobs.is_some(),
        names: form.names,
        prompt_ids: form.with_ids.then(|| Arc::clone(&chat.fitted.prompt)),
        with_ids: form.with_ids,
    };
    chat.running.respond(&state, format).await
}

/// A chat with its choices running, or found in the result cache.
pub(crate) struct StartedChat {
    pub reading: ChatReading,
    pub generation: Generation,
    pub fitted: SizedPrompt,
    pub running: RunningChat,
}

/// The choices of a chat.
pub(crate) struct RunningChat {
    lookup: Lookup,
    choices: Vec<Choice>,
    n: usize,
    streaming: Option<Streaming>,
}

impl RunningChat {
    pub async fn respond(
        self,
        state: &AppState,
        format: impl AnswerFormat,
    ) -> Result<Response, ApiError> {
        let Self {
            lookup,
            choices,
            n,
            streaming,
        } = self;
        respond(lookup, choices, n, n, streaming, state, format).await
    }
}

impl StartedChat {
    /// Takes a chat's fields, except those that concern only the form of its response.
    pub async fn start(
        state: &AppState,
        model: &SharedModel,
        fields: &mut Fields,
        n_logprobs: Option<usize>,
    ) -> Result<Self, ApiError> {
        let format = model.parsers.tool_calls;
        let ChatRequest {
            conversation,
            mut generation,
            tool_use,
            asked,
            separates,
            add_special,
        } = ChatRequest::take(fields, &model.limits, &model.seeds, n_logprobs, format)?;
        foreign_fields::check_priority(model, generation.priority)?;
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
        let choices = if lookup.is_hit() {
            Vec::new()
        } else {
            let grammar = compile(model, asked, preamble, &generation, generation.n).await?;
            start_choices(model, &generation, &fitted, grammar.as_ref())?
        };
        let form = OutputForm {
            thought_start,
            separates,
            tool_use: &tool_use,
            prefill: prefill.as_deref(),
            n_choices: generation.n,
        };
        Ok(Self {
            reading: ChatReading::new(Arc::clone(model), &form),
            running: RunningChat {
                lookup,
                choices,
                n: generation.n,
                streaming: generation.streaming.take(),
            },
            generation,
            fitted,
        })
    }
}

fn start_choices(
    model: &SharedModel,
    generation: &Generation,
    fitted: &SizedPrompt,
    grammar: Option<&CompiledForm>,
) -> Result<Vec<Choice>, ApiError> {
    let start = |index| {
        let spec = ChoiceSpec {
            index,
            sample_index: index,
            prompt: Arc::clone(&fitted.prompt),
            max_new_tokens: fitted.max_new_tokens,
            form: grammar.map(CompiledForm::form),
        };
        Choice::start(model, generation, spec)
    };
    (0..generation.n).map(start).collect()
}

fn preamble(start: ThoughtStart) -> Preamble {
    match start {
        ThoughtStart::Inside => Preamble::RestOfThought,
        ThoughtStart::Before => Preamble::MaybeThought,
        ThoughtStart::After => Preamble::Nothing,
    }
}
