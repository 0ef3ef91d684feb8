//! `/flush_cache` (SGLang) and `/reset_prefix_cache` (vLLM): measurements start with empty caches.
//! Frees the KV of cached prefixes of all models, on the device and in the host tier, and the
//! entries of `--result-cache`.
//!
//! A model with running or waiting requests is not flushed and the response is 400, as in SGLang;
//! `?timeout=SECONDS` waits for them to finish.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::engine_loop::FlushError;
use crate::errors::Code;
use crate::server::error::ApiError;
use crate::server::request::parts::Asked;
use crate::server::state::AppState;

const MAX_TIMEOUT_S: f64 = 600.0;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(20);

#[derive(Debug, Deserialize)]
pub struct Wait {
    timeout: Option<String>,
}

pub async fn flush_cache(
    State(state): State<Arc<AppState>>,
    Asked(wait): Asked<Wait>,
) -> Result<&'static str, ApiError> {
    let timeout = match wait.timeout.as_deref() {
        None => Duration::ZERO,
        Some(text) => seconds(text)?,
    };
    flush(&state, timeout).await?;
    Ok("Cache flushed.\n")
}

/// What vLLM's `/reset_prefix_cache` may be asked.
#[derive(Debug, Deserialize)]
pub struct Reset {
    reset_running_requests: Option<String>,
    reset_external: Option<String>,
}

/// The host tier, what vLLM calls external, is always reset too.
pub async fn reset_prefix_cache(
    State(state): State<Arc<AppState>>,
    Asked(reset): Asked<Reset>,
) -> Result<Json<Value>, ApiError> {
    if is_true("reset_running_requests", reset.reset_running_requests)? {
        let message = "reset_running_requests is true; running requests keep their KV here: wait, \
                       or end them with /abort_request first";
        return Err(ApiError::unsupported("reset_running_requests", message));
    }
    is_true("reset_external", reset.reset_external)?;
    flush(&state, Duration::ZERO).await?;
    Ok(Json(json!({"success": true})))
}

fn is_true(name: &str, text: Option<String>) -> Result<bool, ApiError> {
    match text.as_deref() {
        Some("true" | "1") => Ok(true),
        None | Some("false" | "0") => Ok(false),
        Some(other) => {
            let message = format!("{name} is {other:?}, but must be true or false");
            Err(ApiError::invalid(name, message))
        }
    }
}

pub(crate) fn timeout_schema() -> Value {
    json!({"type": "number", "minimum": 0, "maximum": MAX_TIMEOUT_S})
}

fn seconds(text: &str) -> Result<Duration, ApiError> {
    let range = 0.0..=MAX_TIMEOUT_S;
    let number = text.parse::<f64>().ok().filter(|s| range.contains(s));
    number.map(Duration::from_secs_f64).ok_or_else(|| {
        let message = format!("timeout is {text:?}, but must be from 0 to {MAX_TIMEOUT_S} seconds");
        ApiError::invalid("timeout", message)
    })
}

async fn flush(state: &AppState, timeout: Duration) -> Result<(), ApiError> {
    state.check_started()?;
    let deadline = Instant::now() + timeout;
    for model in state.models.loaded() {
        loop {
            match model.engine.flush_cache().await {
                Ok(()) => break,
                Err(FlushError::Busy { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(BETWEEN_ATTEMPTS).await;
                }
                Err(error @ FlushError::Busy { .. }) => {
                    let message = format!(
                        "the cache of {:?} was not flushed: {error}; it is flushed when no request \
                         is there",
                        model.name()
                    );
                    return Err(ApiError::new(Code::CacheBusy, message));
                }
                Err(FlushError::Stopped) => {
                    let message = FlushError::Stopped.to_string();
                    return Err(ApiError::new(Code::EngineStopped, message));
                }
            }
        }
    }
    if !state.result_cache.clear().await {
        let message = "the prefixes' KV was flushed, but the Redis of --result-cache cannot be \
                       reached, so kept answers are still there";
        return Err(ApiError::new(Code::CacheUnreachable, message));
    }
    tracing::info!("caches flushed");
    Ok(())
}
