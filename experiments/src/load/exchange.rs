//! One streamed request: what is sent, and when which token came back.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::Bytes;
use records::rows::implausible_usage;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::load::http::{BaseUrl, HttpError, status_error};
use crate::load::prompts::Content;
use crate::load::sse::{SseDecoder, SseError};
use crate::spec::workload::ApiEndpoint;

#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(transparent)]
    Sse(#[from] SseError),
    #[error("an event of the stream is not JSON: {0}")]
    NotJson(String),
    #[error("the server reported: {0}")]
    Reported(String),
    #[error("the stream ended inside an event")]
    Torn,
    #[error("the stream ended before `[DONE]`")]
    NotDone,
    #[error("the stream carried no `usage`, so the output tokens are unknown")]
    NoUsage,
    #[error("not finished within {0} s")]
    TimedOut(f64),
    #[error("{0}")]
    Implausible(String),
}

/// Zero of all times of a run.
#[derive(Debug, Clone, Copy)]
pub struct RunClock(Instant);

impl RunClock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now_s(self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }

    pub fn instant_at(self, t_s: f64) -> Instant {
        self.0 + Duration::from_secs_f64(t_s.max(0.0))
    }
}

/// The server, as every request of a run addresses it.
#[derive(Debug, Clone)]
pub struct Target {
    pub base_url: BaseUrl,
    pub endpoint: ApiEndpoint,
    /// `model` of the request bodies.
    pub model: String,
    pub temperature: f64,
    pub ignore_eos: bool,
    pub timeout: Duration,
}

/// What came back, as far as it came.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    pub sent_s: Option<f64>,
    /// Arrival of every chunk that carried a token.
    pub token_s: Vec<f64>,
    pub end_s: f64,
    pub prompt_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
    pub finish_reason: Option<String>,
    pub error: Option<String>,
}

impl Target {
    /// Sends one prompt and reads the stream to its end. Errors are part of the answer:
    /// a request that failed is a row of the record like any other.
    pub async fn ask(&self, clock: RunClock, prompt: &Content, max_tokens: u32) -> Answer {
        let mut answer = Answer::default();
        let exchange = self.exchange(clock, prompt, max_tokens, &mut answer);
        let outcome = match timeout(self.timeout, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ExchangeError::TimedOut(self.timeout.as_secs_f64())),
        };
        answer.end_s = clock.now_s();
        answer.error = outcome.err().map(|error| error.to_string());
        answer
    }

    async fn exchange(
        &self,
        clock: RunClock,
        prompt: &Content,
        max_tokens: u32,
        answer: &mut Answer,
    ) -> Result<(), ExchangeError> {
        let (path, body) = self.body(prompt, max_tokens);
        let request = self.base_url.post(path, Bytes::from(body.to_string()))?;
        let mut connection = self.base_url.connect().await?;
        answer.sent_s = Some(clock.now_s());
        let response = connection
            .send_request(request)
            .await
            .map_err(HttpError::Broken)?;
        if !response.status().is_success() {
            return Err(status_error(response).await.into());
        }

        let mut body = response.into_body();
        let mut decoder = SseDecoder::default();
        let mut done = false;
        while let Some(frame) = body.frame().await {
            let arrived_s = clock.now_s();
            let frame = frame.map_err(HttpError::Broken)?;
            let Some(bytes) = frame.data_ref() else {
                continue;
            };
            for event in decoder.push(bytes)? {
                if event.trim() == "[DONE]" {
                    done = true;
                } else {
                    let chunk: Value = serde_json::from_str(&event)
                        .map_err(|error| ExchangeError::NotJson(error.to_string()))?;
                    answer.take_in(&chunk, arrived_s)?;
                }
            }
        }
        match (done, answer.output_tokens) {
            (true, Some(output_tokens)) => {
                let (prompt, cached) = (answer.prompt_tokens, answer.cached_tokens);
                // Figures that cannot be would become a throughput that cannot be.
                match implausible_usage(max_tokens, prompt, Some(output_tokens), cached) {
                    Some(problem) => Err(ExchangeError::Implausible(problem)),
                    None => Ok(()),
                }
            }
            (true, None) => Err(ExchangeError::NoUsage),
            (false, _) if !decoder.is_between_events() => Err(ExchangeError::Torn),
            (false, _) => Err(ExchangeError::NotDone),
        }
    }

    fn body(&self, prompt: &Content, max_tokens: u32) -> (&'static str, Value) {
        let mut body = json!({
            "model": self.model,
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "ignore_eos": self.ignore_eos,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        match self.endpoint {
            ApiEndpoint::Completions => {
                body["prompt"] = prompt.to_json();
                ("/completions", body)
            }
            ApiEndpoint::Chat => {
                body["messages"] = json!([{ "role": "user", "content": prompt.to_json() }]);
                ("/chat/completions", body)
            }
        }
    }
}

impl Answer {
    fn take_in(&mut self, chunk: &Value, arrived_s: f64) -> Result<(), ExchangeError> {
        if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
            let message = error.get("message").and_then(Value::as_str);
            return Err(ExchangeError::Reported(
                message.map_or_else(|| error.to_string(), String::from),
            ));
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
            self.prompt_tokens = usage["prompt_tokens"].as_u64();
            self.output_tokens = usage["completion_tokens"].as_u64();
            self.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
        }
        if let Some(choice) = chunk["choices"].get(0) {
            let finish = choice["finish_reason"].as_str();
            if carries_token(choice, finish.is_some()) {
                self.token_s.push(whole_10_us(arrived_s));
            }
            if let Some(reason) = finish {
                self.finish_reason = Some(reason.to_string());
            }
        }
        Ok(())
    }
}

/// Down to 10 µs, which is less than the time from a packet's arrival to the look at the clock varies
/// by. In nanoseconds, times of tokens would be three quarters of a campaign's bytes, most of them
/// noise. Down, so that a token never comes after its answer's end.
fn whole_10_us(time_s: f64) -> f64 {
    (time_s * 1e5).floor() / 1e5
}

/// A token may have no text (a special token, half of a character), so a chunk of a text
/// completion counts unless all it does is to announce the end. A chat opens with a chunk
/// that only names the role, so there an empty delta does not count.
fn carries_token(choice: &Value, is_last: bool) -> bool {
    let has_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    if let Some(text) = choice.get("text") {
        return has_text(text) || !is_last;
    }
    let delta = &choice["delta"];
    has_text(&delta["content"])
        || has_text(&delta["reasoning_content"])
        || delta["tool_calls"]
            .as_array()
            .is_some_and(|calls| !calls.is_empty())
}
