//! A request as seen by the engine thread.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::request::{FinishReason, Observer, RequestTimes, TokenEvent};

/// Where a request's events go, and the times that metrics need.
pub(super) struct RequestTracker {
    pub events: mpsc::UnboundedSender<TokenEvent>,
    pub n_prompt: usize,
    pub max_new_tokens: usize,
    pub n_tokens: u64,
    /// When the client's request was received: work before its submission takes time too.
    pub received: Instant,
    pub n_preemptions: u64,
    pub submitted: Instant,
    /// When it was first admitted to the running batch.
    pub admitted: Option<Instant>,
    pub first_token: Instant,
    pub last_token: Instant,
    /// Who is told of its end.
    pub observer: Option<Arc<dyn Observer>>,
}

impl RequestTracker {
    pub fn record(&mut self, event: &TokenEvent, now: Instant, metrics: &Metrics) {
        self.tell(event, now);
        let seconds_since = |then: Instant| now.saturating_duration_since(then).as_secs_f64();
        match event {
            TokenEvent::PromptLogprobs(_) => {}
            TokenEvent::Token(_) => {
                if self.n_tokens == 0 {
                    self.first_token = now;
                    metrics.prompt_tokens.add(self.n_prompt as u64);
                    metrics.ttft_s.observe(seconds_since(self.submitted));
                    let admitted = self.admitted.unwrap_or(self.submitted);
                    metrics.prefill_s.observe(seconds_since(admitted));
                } else {
                    metrics.itl_s.observe(seconds_since(self.last_token));
                }
                self.n_tokens += 1;
                self.last_token = now;
                metrics.generation_tokens.add(1);
            }
            TokenEvent::Finished { reason, .. } => {
                metrics.record_finish(*reason);
                if *reason == FinishReason::Cancelled {
                    return;
                }
                if self.n_tokens == 0 {
                    // The request asked for no output.
                    metrics.prompt_tokens.add(self.n_prompt as u64);
                    self.first_token = now;
                }
                metrics.e2e_s.observe(seconds_since(self.submitted));
                let admitted = self.admitted.unwrap_or(self.submitted);
                metrics.inference_s.observe(seconds_since(admitted));
                let decode_s = seconds_since(self.first_token);
                metrics.decode_s.observe(decode_s);
                metrics.n_prompt.observe(self.n_prompt as f64);
                metrics.n_generated.observe(self.n_tokens as f64);
                metrics
                    .n_request_preemptions
                    .observe(self.n_preemptions as f64);
                metrics.n_asked.observe(self.max_new_tokens as f64);
                if self.n_tokens > 1 {
                    metrics
                        .tpot_s
                        .observe(decode_s / (self.n_tokens - 1) as f64);
                }
            }
            TokenEvent::Failed(failure) => metrics.record_failure(failure),
        }
    }

    /// Tells the observer of the request's end.
    fn tell(&mut self, event: &TokenEvent, now: Instant) {
        if matches!(event, TokenEvent::Finished { .. } | TokenEvent::Failed(_))
            && let Some(observer) = self.observer.take()
        {
            let times = RequestTimes {
                submitted: self.submitted,
                admitted: self.admitted,
                first_token: (self.n_tokens > 0).then_some(self.first_token),
                ended: now,
            };
            observer.left(times, event);
        }
    }
}
