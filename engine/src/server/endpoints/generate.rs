//! `POST /generate`, SGLang's own endpoint: `text` or `input_ids`, one prompt or a list of them,
//! with the fields of generation in `sampling_params`, one object or one a prompt.
//!
//! A stream's events carry the whole text so far, as SGLang's do. Deliberately absent: prompt
//! log-probabilities (`logprob_start_len` other than -1), images, sessions.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;

use crate::server::error::ApiError;
use crate::server::request::fields::Fields;
use crate::server::request::foreign_fields;
use crate::server::request::generate_request::{GenerateRequest, PARAMS, in_sglangs_names};
use crate::server::request::grammar_compiling::{CompiledForm, compile};
use crate::server::request::prompt::{Prompt, encode, fit};
use crate::server::request::sampling_fields::Streaming;
use crate::server::response::answer::respond;
use crate::server::response::cached::Lookup;
use crate::server::response::choice::{Choice, ChoiceSpec};
use crate::server::response::generate_format::{GenerateFormat, Origin};
use crate::server::state::AppState;
use crate::structured::Preamble;

pub async fn generate(
    State(state): State<Arc<AppState>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let model = &state.model(fields.string("model")?.as_deref())?;
    let mut request = GenerateRequest::take(&mut fields, &model.limits, &model.seeds)?;
    let mut grammars = Vec::with_capacity(request.planned.len());
    for plan in &mut request.planned {
        foreign_fields::check_priority(model, plan.generation.priority)?;
        let asked = plan.generation.asked.take();
        let (generation, n) = (&plan.generation, plan.generation.n);
        grammars.push(compile(model, asked, Preamble::Nothing, generation, n).await?);
    }
    let mut fitted = Vec::with_capacity(request.prompts.len());
    for (i, prompt) in std::mem::take(&mut request.prompts).into_iter().enumerate() {
        let named = |name: &str| {
            if request.is_list {
                format!("{name}[{i}]")
            } else {
                name.to_owned()
            }
        };
        let (param, ids) = match prompt {
            Prompt::Text(text) => {
                let param = named("text");
                let ids = encode(model, text, true, &param).await?;
                (param, ids)
            }
            Prompt::Ids(ids) => (named("input_ids"), ids),
        };
        let plan = &request.planned[request.plan_of(i)];
        let asked = plan.generation.max_tokens;
        let of_prompt = fit(ids, asked, plan.default, &model.limits, &param);
        let of_prompt = of_prompt.and_then(|fitted| {
            plan.generation.check_sized(&fitted)?;
            Ok(fitted)
        });
        fitted.push(of_prompt.map_err(|error| in_sglangs_names(error, PARAMS))?);
    }
    let n = request.n;
    let mut choices = Vec::with_capacity(fitted.len() * n);
    let mut origins = Vec::with_capacity(fitted.len());
    for (i, (fitted, id)) in fitted.into_iter().zip(&request.ids).enumerate() {
        let at = request.plan_of(i);
        for sample_index in 0..n {
            let spec = ChoiceSpec {
                index: i * n + sample_index,
                sample_index,
                prompt: Arc::clone(&fitted.prompt),
                max_new_tokens: fitted.max_new_tokens,
                form: grammars[at].as_ref().map(CompiledForm::form),
            };
            let generation = &request.planned[at].generation;
            choices.push(Choice::start(model, generation, spec)?);
        }
        origins.push(Origin {
            id: id.clone(),
            n_prompt: fitted.prompt.len(),
        });
    }
    let n_choices = choices.len();
    let streaming = request.is_streamed.then_some(Streaming {
        include_usage: false,
        continuous_usage: false,
        keeping: fields.stream_keeping(),
    });
    let format = GenerateFormat::new(
        Arc::clone(model),
        origins,
        n,
        request.is_list || n > 1,
        request.shown,
        started,
    );
    respond(
        Lookup::Bypass,
        choices,
        n_choices,
        n,
        streaming,
        &state,
        format,
    )
    .await
}
