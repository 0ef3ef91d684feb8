//! What happens to one request, until it becomes spans.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, Span};

use super::attributes::{self, RequestFacts};
use super::context_of;
use crate::request::{Observer, RequestTimes, TokenEvent, Usage};

/// Spans have times of the day, the engine has those of a clock that never jumps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub steady: Instant,
    pub wall: SystemTime,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            steady: Instant::now(),
            wall: SystemTime::now(),
        }
    }
}

impl Clock {
    fn wall(&self, at: Instant) -> SystemTime {
        self.wall + at.saturating_duration_since(self.steady)
    }

    fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.steady).as_secs_f64()
    }
}

/// A request whose trace is sampled. The last one to drop it sends its spans.
#[derive(Debug)]
pub struct RequestTrace {
    tracer: SdkTracer,
    clock: Clock,
    operation: &'static str,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// `None` once it has ended.
    span: Option<Span>,
    facts: Option<RequestFacts>,
    choices: Vec<SeenChoice>,
    status: Option<u16>,
    /// The code of an error, and whether it is the server's.
    error: Option<(String, bool)>,
    closed: Option<Instant>,
}

/// What a choice came to.
#[derive(Debug, Default)]
struct SeenChoice {
    index: usize,
    /// The first of its prompt's choices.
    is_first: bool,
    times: Option<RequestTimes>,
    usage: Usage,
    /// As the client reads it.
    finish_reason: Option<&'static str>,
}

impl RequestTrace {
    pub(super) fn new(
        tracer: SdkTracer,
        span: Span,
        operation: &'static str,
        clock: Clock,
    ) -> Self {
        Self {
            tracer,
            clock,
            operation,
            seen: Mutex::new(Seen {
                span: Some(span),
                facts: None,
                choices: Vec::new(),
                status: None,
                error: None,
                closed: None,
            }),
        }
    }

    /// A choice that begins.
    ///
    /// `sample_index`: its index among the choices of its prompt.
    pub fn choice(
        self: &Arc<Self>,
        index: usize,
        sample_index: usize,
        facts: RequestFacts,
    ) -> Arc<ChoiceTrace> {
        let mut seen = self.lock();
        seen.facts.get_or_insert(facts);
        let at = seen.choices.len();
        seen.choices.push(SeenChoice {
            index,
            is_first: sample_index == 0,
            ..SeenChoice::default()
        });
        drop(seen);
        Arc::new(ChoiceTrace {
            request: Arc::clone(self),
            at,
        })
    }

    /// The response's head.
    pub fn answered(&self, status: u16) {
        self.lock().status = Some(status);
    }

    /// The first error counts. `is_ours`: the server's fault, not the client's.
    pub fn failed(&self, code: &str, is_ours: bool) {
        self.lock()
            .error
            .get_or_insert_with(|| (code.to_owned(), is_ours));
    }

    /// The response has ended, to its end or not.
    pub fn close(&self) {
        self.lock().closed.get_or_insert_with(Instant::now);
    }

    /// No method panics between two related changes.
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, span: Span, seen: &Seen) {
        let mut span = span;
        let parent = context_of(&span);
        let times: Vec<RequestTimes> = seen.choices.iter().filter_map(|c| c.times).collect();
        for choice in &seen.choices {
            self.end_choice(choice, &parent);
        }
        let mut usage = Usage::default();
        for choice in &seen.choices {
            // Choices of a prompt share it.
            if choice.is_first {
                usage.prompt_tokens += choice.usage.prompt_tokens;
                usage.cached_tokens += choice.usage.cached_tokens;
            }
            usage.completion_tokens += choice.usage.completion_tokens;
        }
        if let Some(facts) = &seen.facts {
            span.update_name(format!("{} {}", self.operation, facts.model));
            span.set_attributes(facts.attributes());
            span.set_attributes(attributes::of_usage(usage));
            let reasons = seen.choices.iter();
            let reasons: Vec<_> = reasons
                .map(|c| c.finish_reason.unwrap_or("abort"))
                .collect();
            span.set_attribute(attributes::finish_reasons(&reasons));
        }
        if let Some(status) = seen.status {
            span.set_attribute(KeyValue::new(
                "http.response.status_code",
                i64::from(status),
            ));
        }
        if let Some((code, is_ours)) = &seen.error {
            span.set_attribute(KeyValue::new("error.type", code.clone()));
            if *is_ours {
                span.set_status(Status::error(code.clone()));
            }
        }
        let closed = seen.closed.unwrap_or_else(Instant::now);
        let ended = times.iter().map(|t| t.ended).fold(closed, Instant::max);
        span.set_attributes(self.latencies(&times, ended));
        span.end_with_timestamp(self.clock.wall(ended));
    }

    /// vLLM's, in seconds. With several choices they are those of the first that got so far.
    fn latencies(&self, times: &[RequestTimes], ended: Instant) -> Vec<KeyValue> {
        let seconds = |name: &'static str, value: f64| KeyValue::new(name, value);
        let first_token = times.iter().filter_map(|t| t.first_token).min();
        let in_queue = times
            .iter()
            .filter_map(|t| Some(t.admitted?.saturating_duration_since(t.submitted)))
            .min();
        let mut found = Vec::new();
        if let Some(at) = first_token {
            let s = self.clock.seconds(at);
            found.push(seconds("gen_ai.latency.time_to_first_token", s));
        }
        if let Some(waited) = in_queue {
            let s = waited.as_secs_f64();
            found.push(seconds("gen_ai.latency.time_in_queue", s));
        }
        if !times.is_empty() {
            found.push(seconds("gen_ai.latency.e2e", self.clock.seconds(ended)));
        }
        found
    }

    /// Queue, prefill and decode, as far as it got.
    fn end_choice(&self, choice: &SeenChoice, parent: &Context) {
        let Some(times) = choice.times else {
            return;
        };
        let ends = [times.admitted, times.first_token, Some(times.ended)];
        let mut start = times.submitted;
        for (name, end) in ["queue", "prefill", "decode"].into_iter().zip(ends) {
            let stopped_here = end.is_none();
            let end = end.unwrap_or(times.ended);
            let builder = SpanBuilder::from_name(name)
                .with_kind(SpanKind::Internal)
                .with_start_time(self.clock.wall(start))
                .with_attributes([KeyValue::new("engine.choice", choice.index as i64)]);
            let mut span = self.tracer.build_with_context(builder, parent);
            span.end_with_timestamp(self.clock.wall(end));
            if stopped_here {
                return;
            }
            start = end;
        }
    }
}

impl Drop for RequestTrace {
    fn drop(&mut self) {
        let span = self.lock().span.take();
        if let Some(span) = span {
            let seen = self.lock();
            self.end(span, &seen);
        }
    }
}

/// One choice of a request.
#[derive(Debug)]
pub struct ChoiceTrace {
    request: Arc<RequestTrace>,
    /// Its place in the request's list.
    at: usize,
}

impl ChoiceTrace {
    /// It ended as the client reads it.
    pub fn finished(&self, reason: &'static str, usage: Usage) {
        self.change(|choice| {
            choice.finish_reason = Some(reason);
            choice.usage = usage;
        });
    }

    /// It failed.
    pub fn failed(&self, code: &str, is_ours: bool) {
        self.change(|choice| choice.finish_reason = Some("error"));
        self.request.failed(code, is_ours);
    }

    fn change(&self, change: impl FnOnce(&mut SeenChoice)) {
        if let Some(choice) = self.request.lock().choices.get_mut(self.at) {
            change(choice);
        }
    }
}

impl Observer for ChoiceTrace {
    fn left(&self, times: RequestTimes, last: &TokenEvent) {
        self.change(|choice| {
            choice.times = Some(times);
            if let TokenEvent::Finished { usage, .. } = last
                && choice.finish_reason.is_none()
            {
                choice.usage = *usage;
            }
        });
    }
}
