//! `GET /admin/requests?model=NAME`: the requests of a model one by one, and why those that wait do:
//! what the scheduler recorded as it planned its last step. No text of theirs is in it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::errors::Code;
use crate::scheduler::RequestView;
use crate::server::error::ApiError;
use crate::server::request::parts::Asked;
use crate::server::state::AppState;

/// More are counted, but not described.
const MAX_DESCRIBED: usize = 256;

#[derive(Debug, Deserialize)]
pub struct Wanted {
    model: Option<String>,
}

pub async fn list(
    State(state): State<Arc<AppState>>,
    Asked(asked): Asked<Wanted>,
) -> Result<Json<Value>, ApiError> {
    let entry = state.models.find(asked.model.as_deref())?;
    let model = entry.model().ok_or_else(|| entry.unavailable())?;
    let engine = &model.engine;
    let Some(views) = engine.requests(MAX_DESCRIBED).await else {
        let message = "the engine has stopped; see the server's log";
        return Err(ApiError::new(Code::EngineStopped, message));
    };
    let names = state.running.names(engine);
    let described = views.iter().map(|view| {
        let mut described = described(view);
        described["id"] = json!(names.get(&view.id));
        described
    });
    Ok(Json(json!({
        "model": model.name(),
        "policy": engine.config().scheduler.policy,
        "n_requests": engine.n_in_flight(),
        "requests": described.collect::<Vec<_>>(),
    })))
}

fn described(view: &RequestView) -> Value {
    json!({
        "state": if view.is_running { "running" } else { "waiting" },
        "priority": view.priority,
        "prompt_tokens": view.n_prompt,
        "computed_tokens": view.n_computed,
        "output_tokens": view.n_output,
        "max_tokens": view.max_new_tokens,
        "age_s": view.age.as_secs_f64(),
        "wait": view.wait,
    })
}
