//! `POST /v1/completions`: a prompt's continuation.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use crate::server::error::ApiError;
use crate::server::request::completion_request::CompletionRequest;
use crate::server::request::fields::Fields;
use crate::server::request::foreign_fields;
use crate::server::request::grammar_compiling::{CompiledForm, compile};
use crate::server::request::prompt::fit_prompts;
use crate::server::response::answer::{
    AnswerFormat, FinishedChoice, ResponseEnvelope, SharedModel, respond,
};
use crate::server::response::cached::{CacheRequest, lookup};
use crate::server::response::choice::{Choice, ChoiceSpec, Piece, PromptScores, token_ids};
use crate::server::response::logprobs;
use crate::server::response::logprobs::{CompletionLogprobs, TextOffsets, TokenNames};
use crate::server::state::AppState;
use crate::structured::Preamble;

/// Default output tokens, as in OpenAI's and vLLM's servers.
const DEFAULT_MAX_TOKENS: usize = 16;

pub async fn complete(
    State(state): State<Arc<AppState>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let model = &state.model(fields.string("model")?.as_deref())?;
    let CompletionRequest {
        prompts,
        mut generation,
        n_logprobs,
        n_prompt_logprobs,
        names,
        with_ids,
        id,
        add_special,
        echo,
    } = CompletionRequest::take(&mut fields, &model.limits, &model.seeds)?;
    foreign_fields::check_priority(model, generation.priority)?;
    let n_scored = generation.params.n_prompt_logprobs;
    let asked = generation.asked.take();
    let n = generation.n;
    let fitted = fit_prompts(
        model,
        prompts,
        add_special,
        generation.max_tokens,
        DEFAULT_MAX_TOKENS,
    )
    .await?;
    for fitted in &fitted {
        generation.check_sized(fitted)?;
    }
    let n_choices = fitted.len() * n;
    let preamble = Preamble::Nothing;
    let lookup = lookup(
        &state.result_cache,
        &CacheRequest {
            endpoint: "completions",
            // Prompt scores are not cached.
            body: fields.digest().filter(|_| n_scored.is_none()),
            form: asked.as_ref().map(|asked| (&asked.constraint, preamble)),
            n_choices,
        },
        model,
        &generation,
        &fitted,
    )
    .await;
    let grammar = if lookup.is_hit() {
        None
    } else {
        compile(model, asked, preamble, &generation, n_choices).await?
    };
    let mut shown = Vec::new();
    let mut choices = Vec::with_capacity(n_choices);
    for (prompt_index, fitted) in fitted.into_iter().enumerate() {
        for sample_index in 0..n {
            let mut prompt = ShownPrompt {
                ids: Arc::clone(&fitted.prompt),
                scores: PromptScores::default(),
                is_echoed: echo,
                ids_are_told: with_ids,
            };
            let spec = ChoiceSpec {
                index: prompt_index * n + sample_index,
                sample_index,
                prompt: Arc::clone(&fitted.prompt),
                max_new_tokens: fitted.max_new_tokens,
                form: grammar.as_ref().map(CompiledForm::form),
            };
            if !lookup.is_hit() {
                let choice = Choice::start(model, &generation, spec)?;
                prompt.scores = choice.prompt_scores();
                choices.push(choice);
            }
            shown.push(prompt);
        }
    }
    let format = CompletionFormat {
        envelope: ResponseEnvelope::new("cmpl", id, model),
        offsets: shown
            .iter()
            .map(|_| TextOffsets::of_output(&model.tokenizer, generation.skip_special_tokens, 0))
            .collect(),
        model: Arc::clone(model),
        skip_special: generation.skip_special_tokens,
        names,
        with_ids,
        n_logprobs,
        n_prompt_logprobs,
        shown,
    };
    respond(
        lookup,
        choices,
        n_choices,
        n,
        generation.streaming,
        &state,
        format,
    )
    .await
}

/// What a choice's response includes of its prompt.
struct ShownPrompt {
    ids: Arc<[u32]>,
    scores: PromptScores,
    /// Whether the prompt's text has yet to be echoed.
    is_echoed: bool,
    /// Whether the prompt's ids have yet to be sent.
    ids_are_told: bool,
}

struct CompletionFormat {
    envelope: ResponseEnvelope,
    model: SharedModel,
    skip_special: bool,
    names: TokenNames,
    /// Whether choices include their token ids.
    with_ids: bool,
    n_logprobs: Option<usize>,
    /// Set if vLLM's field of this name was given.
    n_prompt_logprobs: Option<usize>,
    /// One for each choice, like all fields below.
    shown: Vec<ShownPrompt>,
    offsets: Vec<TextOffsets>,
}

impl CompletionFormat {
    fn choice(&mut self, index: usize, piece: &Piece) -> Value {
        let tokenizer = &self.model.tokenizer;
        let (mut text, mut logprobs) = (String::new(), CompletionLogprobs::new(self.names));
        let shown = &mut self.shown[index];
        let scores = shown.scores.get().map_or(&[][..], Vec::as_slice);
        if std::mem::take(&mut shown.is_echoed) {
            text = tokenizer.decode(&shown.ids, self.skip_special);
            if let Some(n_top) = self.n_logprobs {
                let offsets = TextOffsets::of_prompt(tokenizer, self.skip_special, &shown.ids);
                logprobs.extend_prompt(tokenizer, &shown.ids, scores, offsets, n_top);
                let n_chars = text.chars().count();
                self.offsets[index] = TextOffsets::of_output(tokenizer, self.skip_special, n_chars);
            }
        }
        text.push_str(&piece.text);
        let logprobs = if self.n_logprobs.is_some() {
            logprobs.extend(tokenizer, &piece.tokens, &mut self.offsets[index]);
            logprobs.into_json()
        } else {
            Value::Null
        };
        let mut choice = json!({
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": piece.end.as_ref().map(|end| end.finish_reason),
            "stop_reason": piece.end.as_ref().map(|end| &end.stop_reason),
        });
        if let Some(n_top) = self.n_prompt_logprobs {
            choice["prompt_logprobs"] = logprobs::prompt_logprobs(tokenizer, scores, n_top);
        }
        if self.with_ids {
            let ids = std::mem::take(&mut shown.ids_are_told).then_some(&*shown.ids);
            choice["prompt_token_ids"] = json!(ids);
            choice["token_ids"] = token_ids(piece);
        }
        choice
    }
}

impl AnswerFormat for CompletionFormat {
    fn id(&self, _index: usize) -> &str {
        &self.envelope.id
    }

    fn opening(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn chunks(&mut self, index: usize, piece: &Piece) -> Vec<Value> {
        let choice = self.choice(index, piece);
        vec![self.envelope.object("text_completion", vec![choice])]
    }

    fn closing(&mut self, usage: Value) -> Vec<Value> {
        let mut object = self.envelope.object("text_completion", Vec::new());
        object["usage"] = usage;
        vec![object]
    }

    fn whole(&mut self, choices: Vec<FinishedChoice>, usage: Value) -> Value {
        let choices = choices
            .into_iter()
            .enumerate()
            .map(|(index, choice)| {
                let FinishedChoice { text, tokens, end } = choice;
                self.choice(
                    index,
                    &Piece {
                        text,
                        tokens,
                        end: Some(end),
                    },
                )
            })
            .collect();
        let mut object = self.envelope.object("text_completion", choices);
        object["usage"] = usage;
        object
    }
}
