//! `POST /v1/completions`: a prompt's continuation.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::{FinishedChoice, Format, Heading, SharedModel, respond};
use super::cached::{Question, look_up};
use super::choice::{Choice, ChoiceSpec, Piece, token_ids};
use super::error::ApiError;
use super::fields::Fields;
use super::foreign_fields;
use super::grammar_compiling::compile;
use super::logprobs::{self, CompletionLogprobs, TokenNames};
use super::prompt::{fit_prompts, take_prompts};
use super::running::take_id;
use super::sampling_fields::{Generation, MAX_CHOICES};
use super::state::AppState;
use crate::structured::{Grammar, Preamble};

/// Output tokens where the client does not say, as OpenAI's and vLLM's servers have it.
const DEFAULT_MAX_TOKENS: usize = 16;

pub async fn complete(
    State(state): State<Arc<AppState>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let model = &state.model(fields.string("model")?.as_deref())?;
    let prompts = take_prompts(&mut fields, &model.limits)?;
    let n_logprobs = logprobs::take_completion_fields(&mut fields)?;
    let names = TokenNames::take(&mut fields)?;
    let with_ids = fields.bool("return_token_ids")?.unwrap_or(false);
    let id = take_id(&mut fields, "cmpl")?;
    foreign_fields::refuse(&mut fields)?;
    fields.refuse("suffix", &[json!("")])?;
    fields.refuse("prompt_embeds", &[])?;
    let add_special = fields.bool("add_special_tokens")?.unwrap_or(true);
    let echo = fields.bool("echo")?.unwrap_or(false);
    if echo && n_logprobs.is_some() {
        let message = "echo together with logprobs asks for the prompt's log-probabilities, which \
                       this server does not compute";
        return Err(ApiError::unsupported("echo", message));
    }
    let mut generation = Generation::take(&mut fields, &model.limits, &model.seeds, n_logprobs)?;
    foreign_fields::check_priority(model, generation.priority)?;
    let asked = generation.asked.take();
    let n = generation.n;
    if prompts.len() * n > MAX_CHOICES {
        let message = format!(
            "{} prompts with n = {n} are {} choices, the limit is {MAX_CHOICES}",
            prompts.len(),
            prompts.len() * n
        );
        return Err(ApiError::invalid("n", message));
    }
    let fitted = fit_prompts(
        model,
        prompts,
        add_special,
        generation.max_tokens,
        DEFAULT_MAX_TOKENS,
    )
    .await?;
    let n_choices = fitted.len() * n;
    let preamble = Preamble::Nothing;
    let lookup = look_up(
        &state.result_cache,
        &Question {
            endpoint: "completions",
            body: fields.digest(),
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
        compile(model, asked, preamble, n_choices).await?
    };
    let mut echoes = Vec::new();
    let mut prompt_ids = Vec::new();
    let mut choices = Vec::with_capacity(n_choices);
    for (prompt_index, fitted) in fitted.into_iter().enumerate() {
        for sample_index in 0..n {
            echoes.push(echo.then(|| {
                model
                    .tokenizer
                    .decode(&fitted.prompt, generation.skip_special_tokens)
            }));
            prompt_ids.push(with_ids.then(|| Arc::clone(&fitted.prompt)));
            let spec = ChoiceSpec {
                index: prompt_index * n + sample_index,
                sample_index,
                prompt: Arc::clone(&fitted.prompt),
                max_new_tokens: fitted.max_new_tokens,
                guide: grammar.as_ref().map(Grammar::guide),
            };
            if !lookup.is_hit() {
                choices.push(Choice::start(model, &generation, spec)?);
            }
        }
    }
    let format = CompletionFormat {
        heading: Heading::new("cmpl", id, model),
        offsets: vec![0; n_choices],
        model: Arc::clone(model),
        with_logprobs: n_logprobs.is_some(),
        names,
        echoes,
        with_ids,
        prompt_ids,
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

struct CompletionFormat {
    heading: Heading,
    model: SharedModel,
    with_logprobs: bool,
    names: TokenNames,
    /// The choices say the ids of their tokens.
    with_ids: bool,
    /// Of each choice, where they are still to be said.
    prompt_ids: Vec<Option<Arc<[u32]>>>,
    /// The prompt's text where it is still to be put before the output.
    echoes: Vec<Option<String>>,
    /// Characters of output so far.
    offsets: Vec<usize>,
}

impl CompletionFormat {
    fn choice(&mut self, index: usize, piece: &Piece) -> Value {
        let mut text = self.echoes[index].take().unwrap_or_default();
        text.push_str(&piece.text);
        let logprobs = if self.with_logprobs {
            let mut logprobs = CompletionLogprobs::default();
            logprobs.extend(
                &self.model.tokenizer,
                &piece.tokens,
                self.names,
                &mut self.offsets[index],
            );
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
        if self.with_ids {
            choice["prompt_token_ids"] = json!(self.prompt_ids[index].take().as_deref());
            choice["token_ids"] = token_ids(piece);
        }
        choice
    }
}

impl Format for CompletionFormat {
    fn id(&self, _index: usize) -> &str {
        &self.heading.id
    }

    fn opening(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn chunk(&mut self, index: usize, piece: &Piece) -> Value {
        let choice = self.choice(index, piece);
        self.heading.object("text_completion", vec![choice])
    }

    fn usage_chunk(&mut self, usage: Value) -> Value {
        let mut object = self.heading.object("text_completion", Vec::new());
        object["usage"] = usage;
        object
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
        let mut object = self.heading.object("text_completion", choices);
        object["usage"] = usage;
        object
    }
}
