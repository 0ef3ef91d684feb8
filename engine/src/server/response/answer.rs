//! Runs the choices of one HTTP request concurrently and writes the response, whole or streamed.
//!
//! [`AnswerFormat`] covers the differences between the endpoints. Dropping the response, which
//! happens when the client disconnects, cancels all its choices.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Json;
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::{Stream, StreamExt};

use crate::engine_loop::EngineHandle;
use crate::metrics::TrafficMetrics;
use crate::request::SampledToken;
use crate::served_model::ServedModel;
use crate::server::error::ApiError;
use crate::server::kept_streams::KeepStream;
use crate::server::request::sampling_fields::Streaming;
use crate::server::response::cached::{Lookup, Recorder};
use crate::server::response::choice::{Choice, ChoiceEnd, Piece};
use crate::server::response::sent_event::SentEvent;
use crate::server::response::usage::UsageSum;
use crate::server::running::Registered;
use crate::server::state::AppState;

/// How an endpoint formats its response.
pub trait AnswerFormat: Send + Unpin + 'static {
    /// Whether a stream's events are named by their `type` and the last one ends it, instead of
    /// `[DONE]`.
    const IS_TYPED: bool = false;

    /// Chunks that come before any token.
    fn opening(&mut self) -> Vec<Value>;
    /// The chunks of one piece.
    fn chunks(&mut self, index: usize, piece: &Piece) -> Vec<Value>;
    /// The last chunks, with the usage, if the request asks for it.
    fn closing(&mut self, usage: Value) -> Vec<Value>;
    /// The last chunks of a stream that fails.
    fn failure(&mut self, error: &ApiError) -> Vec<Value> {
        vec![error.body()]
    }
    /// The whole response as one object.
    fn whole(&mut self, choices: Vec<FinishedChoice>, usage: Value) -> Value;
    /// The id under which a choice can be aborted; several choices may share one.
    fn id(&self, index: usize) -> &str;
    /// Sees each piece once, before it is written.
    fn record(&mut self, _index: usize, _piece: &Piece) {}
    /// Output tokens of all choices that belong to reasoning, where reasoning is parsed.
    fn n_reasoning_tokens(&self) -> Option<usize> {
        None
    }
    /// The most tokens that a piece may have.
    fn largest_piece(&self) -> usize {
        usize::MAX
    }
}

/// The complete output of one choice.
pub struct FinishedChoice {
    pub text: String,
    pub tokens: Vec<SampledToken>,
    pub end: ChoiceEnd,
}

/// The running choices of one request.
pub struct RunningChoices {
    pieces: mpsc::Receiver<(usize, Result<Piece, ApiError>)>,
    /// Aborts the tasks, and with them the choices, when it is dropped.
    _tasks: JoinSet<()>,
    n_choices: usize,
    usage: UsageSum,
    /// Stores the response in the result cache.
    recorder: Option<Recorder>,
    /// Registration for `/abort_request`.
    _registered: Option<Registered>,
    /// Engine whose metrics count the finished request; `None` for a cached response.
    counted_by: Option<EngineHandle>,
}

impl RunningChoices {
    /// `choices` are in order of index; each run of `choices_per_prompt` shares a prompt.
    /// Pieces have up to `interval` tokens.
    pub fn start(choices: Vec<Choice>, choices_per_prompt: usize, interval: usize) -> Self {
        let n_choices = choices.len();
        let (sender, pieces) = mpsc::channel(n_choices.max(1) * 4);
        let mut tasks = JoinSet::new();
        let n_prompt = choices.iter().map(Choice::n_prompt).collect();
        let counted_by = choices.first().map(|choice| choice.handle().0);
        for choice in choices {
            tasks.spawn(drive(choice, interval, sender.clone()));
        }
        Self {
            pieces,
            _tasks: tasks,
            n_choices,
            usage: UsageSum::new(n_prompt, choices_per_prompt),
            recorder: None,
            _registered: None,
            counted_by,
        }
    }

    /// A cached response, in the pieces in which it was generated.
    pub(crate) fn replay(
        kept: Vec<(usize, Piece)>,
        n_choices: usize,
        choices_per_prompt: usize,
    ) -> Result<Self, ApiError> {
        let (sender, pieces) = mpsc::channel(kept.len().max(1));
        let mut n_prompt = vec![0; n_choices];
        for (index, piece) in &kept {
            if let (Some(n), Some(end)) = (n_prompt.get_mut(*index), &piece.end) {
                *n = end.usage.prompt_tokens;
            }
        }
        for (index, piece) in kept {
            sender
                .try_send((index, Ok(piece)))
                .map_err(|error| ApiError::internal(format!("replaying an answer: {error}")))?;
        }
        Ok(Self {
            pieces,
            _tasks: JoinSet::new(),
            n_choices,
            usage: UsageSum::new(n_prompt, choices_per_prompt),
            recorder: None,
            _registered: None,
            counted_by: None,
        })
    }

    fn record(&mut self, index: usize, piece: &Piece, format: &mut impl AnswerFormat) {
        format.record(index, piece);
        self.usage.count(index, piece.tokens.len());
        if let Some(end) = &piece.end {
            self.usage.add(index, end.usage);
            if let Some(engine) = &self.counted_by
                && self.usage.n_ended == self.n_choices
            {
                self.usage.record(engine.metrics());
            }
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.record(index, piece);
        }
    }

    /// Waits for all choices to finish.
    pub(crate) async fn whole(
        mut self,
        mut format: impl AnswerFormat,
    ) -> Result<Response, ApiError> {
        let mut texts = vec![String::new(); self.n_choices];
        let mut tokens = vec![Vec::new(); self.n_choices];
        let mut ends: Vec<Option<ChoiceEnd>> = vec![None; self.n_choices];
        while let Some((index, piece)) = self.pieces.recv().await {
            let piece = piece?;
            self.record(index, &piece, &mut format);
            texts[index].push_str(&piece.text);
            tokens[index].extend(piece.tokens);
            if let Some(end) = piece.end {
                ends[index] = Some(end);
            }
        }
        let finished: Option<Vec<FinishedChoice>> = texts
            .into_iter()
            .zip(tokens)
            .zip(ends)
            .map(|((text, tokens), end)| {
                Some(FinishedChoice {
                    text,
                    tokens,
                    end: end?,
                })
            })
            .collect();
        let choices =
            finished.ok_or_else(|| ApiError::internal("a choice ended without a reason"))?;
        let usage = self.usage.to_json(format.n_reasoning_tokens());
        Ok(Json(format.whole(choices, usage)).into_response())
    }

    /// Server-sent events, then `[DONE]` unless they are typed.
    fn stream<F: AnswerFormat>(
        self,
        mut format: F,
        streaming: Streaming,
        traffic: Arc<TrafficMetrics>,
    ) -> Events<F> {
        let opening = format.opening();
        let mut events = Events {
            answer: self,
            format,
            streaming,
            traffic,
            queue: VecDeque::new(),
            is_done: false,
        };
        for chunk in opening {
            let index = chunk["choices"][0]["index"].as_u64().unwrap_or_default();
            events.push(chunk, index as usize);
        }
        events
    }
}

async fn drive(
    mut choice: Choice,
    interval: usize,
    sender: mpsc::Sender<(usize, Result<Piece, ApiError>)>,
) {
    let index = choice.index;
    while let Some(piece) = choice.next(interval).await.transpose() {
        let is_error = piece.is_err();
        if sender.send((index, piece)).await.is_err() || is_error {
            return;
        }
    }
}

/// The events of one streamed answer.
struct Events<F> {
    answer: RunningChoices,
    format: F,
    streaming: Streaming,
    traffic: Arc<TrafficMetrics>,
    queue: VecDeque<SentEvent>,
    is_done: bool,
}

impl<F: AnswerFormat> Stream for Events<F> {
    type Item = SentEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(event) = this.queue.pop_front() {
                return Poll::Ready(Some(event));
            }
            if this.is_done {
                return Poll::Ready(None);
            }
            match ready!(this.answer.pieces.poll_recv(cx)) {
                Some((index, Ok(piece))) => {
                    this.answer.record(index, &piece, &mut this.format);
                    for chunk in this.format.chunks(index, &piece) {
                        this.push(chunk, index);
                    }
                }
                Some((_, Err(error))) => {
                    // The status line has already been sent, so the error is counted here.
                    this.traffic.record_error(error.code);
                    let chunks = this.format.failure(&error);
                    this.finish(chunks);
                }
                None => {
                    let mut chunks = Vec::new();
                    if this.streaming.include_usage {
                        let n_reasoning = this.format.n_reasoning_tokens();
                        chunks = this.format.closing(this.answer.usage.to_json(n_reasoning));
                    }
                    this.finish(chunks);
                }
            }
        }
    }
}

impl<F: AnswerFormat> Events<F> {
    fn push(&mut self, mut chunk: Value, index: usize) {
        if !F::IS_TYPED {
            with_usage(&mut chunk, &self.streaming, &self.answer.usage, index);
        }
        self.queue
            .push_back(SentEvent::of_chunk(&chunk, F::IS_TYPED));
    }

    fn finish(&mut self, chunks: Vec<Value>) {
        let events = chunks.iter();
        self.queue
            .extend(events.map(|chunk| SentEvent::of_chunk(chunk, F::IS_TYPED)));
        if !F::IS_TYPED {
            self.queue.push_back(SentEvent::done());
        }
        self.is_done = true;
    }
}

/// If a usage chunk follows, the other chunks carry `"usage": null` or the choice's usage so far.
fn with_usage(chunk: &mut Value, streaming: &Streaming, usage: &UsageSum, index: usize) {
    if streaming.include_usage {
        chunk["usage"] = if streaming.continuous_usage {
            usage.so_far(index)
        } else {
            Value::Null
        };
    }
}

/// The fields common to all responses.
#[derive(Debug, Clone)]
pub struct ResponseEnvelope {
    pub id: String,
    pub created_s: u64,
    pub model: String,
}

impl ResponseEnvelope {
    /// `id`: the id chosen by the client, if any.
    pub fn new(prefix: &str, id: Option<String>, model: &ServedModel) -> Self {
        let made = || format!("{prefix}-{:032x}", rand::random::<u128>());
        Self {
            id: id.unwrap_or_else(made),
            created_s: now_s(),
            model: model.name().to_owned(),
        }
    }

    pub fn object(&self, kind: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
        })
    }
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

/// Writes the response in the form that the request asked for, from the cache if `lookup` is a hit.
pub(crate) async fn respond(
    lookup: Lookup,
    choices: Vec<Choice>,
    n_choices: usize,
    choices_per_prompt: usize,
    streaming: Option<Streaming>,
    state: &AppState,
    format: impl AnswerFormat,
) -> Result<Response, ApiError> {
    // A whole response does not show its pieces, so they may be as large as they come.
    let interval = streaming
        .as_ref()
        .map_or(256, |_| state.http.stream_interval);
    let interval = interval.min(format.largest_piece());
    let cache_read = lookup.as_str();
    let to_register = choices
        .iter()
        .map(|choice| (format.id(choice.index).to_owned(), choice));
    let registered = state.running.enter(to_register)?;
    let answer = match lookup {
        Lookup::Hit(kept) => RunningChoices::replay(kept, n_choices, choices_per_prompt)?,
        Lookup::Miss(recorder) => RunningChoices {
            recorder: Some(recorder),
            ..RunningChoices::start(choices, choices_per_prompt, interval)
        },
        Lookup::Bypass => RunningChoices::start(choices, choices_per_prompt, interval),
    };
    let answer = RunningChoices {
        _registered: Some(registered),
        ..answer
    };
    let response = match streaming {
        Some(streaming) => send_events(answer, format, streaming, state)?,
        None => answer.whole(format).await?,
    };
    Ok(Lookup::mark(cache_read, response))
}

fn send_events(
    answer: RunningChoices,
    format: impl AnswerFormat,
    mut streaming: Streaming,
    state: &AppState,
) -> Result<Response, ApiError> {
    let keeping = streaming.keeping.take();
    let keeping = keeping.map(|KeepStream { id, keys }| {
        let id = id.unwrap_or_else(|| format.id(0).to_owned());
        (id, keys)
    });
    let events = answer.stream(format, streaming, Arc::clone(&state.traffic));
    if let Some((id, keys)) = keeping {
        return state.kept_streams.keep(&id, keys, events);
    }
    let events = events.map(|event| Ok::<_, Infallible>(event.to_sse()));
    let events = Sse::new(events).keep_alive(KeepAlive::default());
    Ok(events.into_response())
}

/// The model as response formats share it.
pub type SharedModel = Arc<ServedModel>;
