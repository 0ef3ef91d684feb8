//! One running choice: converts the engine's tokens to text, finds stop strings, and maps the
//! finish reason to the protocol's names.

use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use crate::engine_loop::{EngineHandle, RequestStream};
use crate::request::{
    Failure, FinishReason, Observer, Request, RequestId, SampledToken, ScoredToken, TokenEvent,
    Usage,
};
use crate::served_model::ServedModel;
use crate::server::error::ApiError;
use crate::server::request::grammar_compiling::Form;
use crate::server::request::sampling_fields::Generation;
use crate::text::{StopMatcher, TextOrigin, TokenStream};
use crate::traces::{ChoiceTrace, RequestFacts};

/// A choice that the engine is working on. Dropping it cancels the request.
pub struct Choice {
    /// Index in the response's `choices`.
    pub index: usize,
    engine: EngineHandle,
    stream: RequestStream,
    text: TokenStream,
    stop: StopMatcher,
    stop_strings: Arc<[String]>,
    include_stop_str: bool,
    stop_ids: Arc<[u32]>,
    /// End-of-sequence ids end the text silently; ids that the client asked for are reported.
    client_stop_ids: Arc<[u32]>,
    n_prompt: usize,
    n_output: usize,
    /// Stop strings are not searched for in the text of this many first tokens.
    min_tokens: usize,
    max_new_tokens: usize,
    prompt_scores: PromptScores,
    /// The request field that asked for the output format.
    form_param: Option<Arc<str>>,
    is_done: bool,
    trace: Option<Arc<ChoiceTrace>>,
}

/// Log-probabilities of the prompt's tokens except the first. If they were requested, they are
/// available from a choice's first piece on.
pub type PromptScores = Arc<OnceLock<Vec<ScoredToken>>>;

/// The result of one or more tokens.
#[derive(Debug, Clone, Default)]
pub struct Piece {
    /// Whole characters; may be empty while one is incomplete or a stop string is possible.
    pub text: String,
    pub tokens: Vec<SampledToken>,
    pub end: Option<ChoiceEnd>,
}

#[derive(Debug, Clone)]
pub struct ChoiceEnd {
    /// `stop` or `length`.
    pub finish_reason: &'static str,
    /// The stop string or id that ended it, if the client asked for one.
    pub stop_reason: Value,
    pub usage: Usage,
}

/// The ids for vLLM's `return_token_ids`.
pub fn token_ids(piece: &Piece) -> Value {
    piece.tokens.iter().map(|sampled| sampled.token).collect()
}

/// One choice to start.
pub struct ChoiceSpec {
    pub index: usize,
    /// Index among this prompt's choices.
    pub sample_index: usize,
    pub prompt: Arc<[u32]>,
    pub max_new_tokens: usize,
    pub form: Option<Form>,
}

fn facts(model: &ServedModel, generation: &Generation, max_tokens: usize) -> RequestFacts {
    RequestFacts {
        model: model.name().to_owned(),
        n: generation.n,
        max_tokens,
        temperature: generation.params.temperature,
        top_p: generation.params.top_p,
    }
}

impl Choice {
    /// Submits the request to the engine.
    ///
    /// # Errors
    ///
    /// If a stop string is empty, one of `bad_words` has no tokens, or the engine does not take
    /// the request: it could never run, the queue is full, or the model is suspended or stopped.
    pub fn start(
        model: &ServedModel,
        generation: &Generation,
        spec: ChoiceSpec,
    ) -> Result<Self, ApiError> {
        let client_stop_ids: Arc<[u32]> = generation.stop_token_ids.as_slice().into();
        let mut stop_ids = generation.stop_token_ids.clone();
        // After the end of a grammar no token is allowed.
        if !generation.ignore_eos || spec.form.is_some() {
            stop_ids.extend(&model.eos_token_ids);
        }
        stop_ids.sort_unstable();
        stop_ids.dedup();
        let stop_ids: Arc<[u32]> = stop_ids.into();
        let stop = StopMatcher::new(&generation.stop)
            .map_err(|error| ApiError::invalid("stop", error.to_string()))?;
        let text = TokenStream::new(
            Arc::clone(&model.tokenizer),
            TextOrigin::Continuation,
            generation.skip_special_tokens,
        );
        let n_prompt = spec.prompt.len();
        let max_new_tokens = spec.max_new_tokens;
        let (guide, form_param) = spec.form.map(|form| (form.guide, form.param)).unzip();
        let sampling =
            generation.params_of_choice(spec.sample_index, guide, &stop_ids, &model.tokenizer)?;
        let trace = generation.trace.as_ref().map(|trace| {
            let facts = facts(model, generation, max_new_tokens);
            trace.choice(spec.index, spec.sample_index, facts)
        });
        let request = Request {
            id: model.engine.next_request_id(),
            prompt: spec.prompt,
            sampling,
            max_new_tokens,
            stop_token_ids: Arc::clone(&stop_ids),
            priority: generation.priority,
            prefix_root: generation.prefix_root,
        };
        let observer = trace.clone().map(|trace| trace as Arc<dyn Observer>);
        let engine = &model.engine;
        let stream = engine.submit_received(request, generation.received, observer)?;
        Ok(Self {
            index: spec.index,
            engine: model.engine.clone(),
            stream,
            text,
            stop,
            stop_strings: generation.stop.as_slice().into(),
            include_stop_str: generation.include_stop_str,
            stop_ids,
            client_stop_ids,
            n_prompt,
            n_output: 0,
            min_tokens: generation.min_tokens,
            max_new_tokens,
            prompt_scores: PromptScores::default(),
            form_param,
            is_done: false,
            trace,
        })
    }

    /// The handle and id with which this choice can be aborted.
    pub fn handle(&self) -> (EngineHandle, RequestId) {
        (self.engine.clone(), self.stream.id())
    }

    /// Number of tokens of its prompt.
    pub fn n_prompt(&self) -> usize {
        self.n_prompt
    }

    /// Where the prompt's scores will be stored.
    pub fn prompt_scores(&self) -> PromptScores {
        Arc::clone(&self.prompt_scores)
    }

    /// The next piece, of up to `max_tokens` tokens; `None` after the one with an end.
    ///
    /// # Errors
    ///
    /// If the request failed or the engine stopped before its end.
    pub async fn next(&mut self, max_tokens: usize) -> Result<Option<Piece>, ApiError> {
        if self.is_done {
            return Ok(None);
        }
        let mut piece = Piece::default();
        // The last token is held back until its end event arrives, so that both are in one piece.
        let mut is_last = false;
        while piece.end.is_none() && (is_last || piece.tokens.len() < max_tokens) {
            match self.stream.next().await {
                Some(TokenEvent::PromptLogprobs(scores)) => {
                    // They arrive only once.
                    let _ = self.prompt_scores.set(scores);
                }
                Some(TokenEvent::Token(sampled)) => {
                    is_last = self.take_token(sampled, &mut piece);
                    if let Some(found) = self.stop.found() {
                        self.stop_at(found.stop_idx, &mut piece).await?;
                    }
                }
                Some(TokenEvent::Finished { reason, usage }) => {
                    self.finish(reason, usage, &mut piece);
                }
                Some(TokenEvent::Failed(failure)) => return Err(self.error_of(failure)),
                None => {
                    return Err(ApiError::internal(
                        "the engine stopped before the answer's end",
                    ));
                }
            }
        }
        self.is_done = piece.end.is_some();
        if let (Some(end), Some(trace)) = (&piece.end, &self.trace) {
            trace.finished(end.finish_reason, end.usage);
        }
        Ok(Some(piece))
    }

    /// An error about the output format is reported for the field that asked for it.
    fn error_of(&self, failure: Failure) -> ApiError {
        let is_of_form = matches!(failure, Failure::Form { .. });
        let error = ApiError::from(failure);
        if let Some(trace) = &self.trace {
            trace.failed(error.code.word(), error.status().is_server_error());
        }
        match self.form_param.as_ref().filter(|_| is_of_form) {
            Some(param) => {
                let message = format!("{param}: {}", error.message);
                ApiError::of_field(error.code, &**param, message)
            }
            None => error,
        }
    }

    /// Returns true if the engine ends the sequence with this token.
    fn take_token(&mut self, sampled: SampledToken, piece: &mut Piece) -> bool {
        self.n_output += 1;
        let is_stop_id = self.stop_ids.contains(&sampled.token);
        if is_stop_id {
            // The token is counted and reported, but its text is not shown.
            self.stop.push("");
        } else {
            let text = self.text.push(sampled.token).unwrap_or_default();
            if self.n_output <= self.min_tokens {
                piece.text.push_str(&text);
            } else {
                piece.text.push_str(&self.stop.push(&text));
            }
        }
        piece.tokens.push(sampled);
        is_stop_id || self.n_output >= self.max_new_tokens
    }

    fn finish(&mut self, reason: FinishReason, usage: Usage, piece: &mut Piece) {
        let held = self.text.finish().unwrap_or_default();
        piece.text.push_str(&self.stop.push(&held));
        piece.text.push_str(&self.stop.finish());
        let last = piece.tokens.last().map(|sampled| sampled.token);
        let stop_reason = match (reason, last) {
            (FinishReason::Stop, Some(id)) if self.client_stop_ids.contains(&id) => json!(id),
            _ => Value::Null,
        };
        let finish_reason = match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "abort",
        };
        piece.end = Some(ChoiceEnd {
            finish_reason,
            stop_reason,
            usage,
        });
    }

    /// Ends the choice at a stop string, which the engine does not know about. Further output is
    /// dropped. Waits for the engine's final event, which carries the part of the usage that only
    /// the engine knows.
    async fn stop_at(&mut self, stop_idx: usize, piece: &mut Piece) -> Result<(), ApiError> {
        self.engine.cancel(self.stream.id());
        let counted = loop {
            match self.stream.next().await {
                Some(TokenEvent::Token(_) | TokenEvent::PromptLogprobs(_)) => {}
                Some(TokenEvent::Finished { usage, .. }) => break usage,
                Some(TokenEvent::Failed(failure)) => return Err(self.error_of(failure)),
                None => break Usage::default(),
            }
        };
        let stop = self.stop_strings.get(stop_idx).cloned().unwrap_or_default();
        if self.include_stop_str {
            piece.text.push_str(&stop);
        }
        let usage = Usage {
            prompt_tokens: self.n_prompt,
            completion_tokens: self.n_output,
            // Some may have come after the stop string.
            accepted_drafts: counted.accepted_drafts.min(self.n_output),
            ..counted
        };
        let stop_reason = Value::String(stop);
        piece.end = Some(ChoiceEnd {
            finish_reason: "stop",
            stop_reason,
            usage,
        });
        Ok(())
    }
}
