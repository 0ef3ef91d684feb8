//! `/admin/models`: what each model is doing, and loading, unloading, putting to sleep, waking.
//!
//! Bodies are `{"model": NAME}`; `unload` and `sleep` take `grace_s` too, the seconds that running
//! requests get to finish (`--shutdown-grace-s` unless given). `load` takes a model that is not on
//! the list yet as its flags without dashes: `{"model-path": …, "served-model-name": …}`.
//!
//! Changes are made one at a time, so that it is known what memory is free. The response is sent
//! when the change is complete. A change is completed even if the client disconnects.
//! Deliberately absent: moving a model to another device, and changing the flags of one.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};
use tokio::sync::{MutexGuard, oneshot};

use crate::config::ModelPlan;
use crate::errors::Code;
use crate::server::error::ApiError;
use crate::server::models::{ModelEntry, ModelState};
use crate::server::request::fields::Fields;
use crate::server::state::AppState;

const MAX_GRACE_S: f64 = 3600.0;

pub async fn list(State(state): State<Arc<AppState>>) -> Json<Value> {
    let models: Vec<Value> = state.models.list().iter().map(|e| describe(e)).collect();
    Json(json!({"models": models}))
}

pub async fn load(
    State(state): State<Arc<AppState>>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let fields = fields.into_map();
    to_its_end(async move {
        let _one = state.changing.lock().await;
        let (entry, is_new) = if fields.contains_key("model") {
            (named(&state, &fields, &["model"])?, false)
        } else {
            (added(&state, &fields)?, true)
        };
        expect(&entry, &[ModelState::Unloaded, ModelState::Failed])?;
        let loading = Arc::clone(&entry);
        let outcome = match on_its_own_thread(move || loading.load()).await {
            Ok(outcome) => outcome.map_err(|_| ()),
            Err(error) => {
                entry.set_gone(Some(error.to_string()));
                Err(())
            }
        };
        if outcome.is_ok() {
            tracing::info!(model = entry.name(), "loaded");
            return Ok(Json(describe(&entry)));
        }
        if is_new {
            // The entry is not visible to clients yet.
            state.models.remove(&entry);
        }
        let reason = entry.reason().unwrap_or_default();
        tracing::warn!(model = entry.name(), reason, "not loaded");
        let message = format!("the model {:?} could not be loaded: {reason}", entry.name());
        Err(of_model(Code::ModelLoadFailed, message))
    })
    .await
}

pub async fn unload(
    State(state): State<Arc<AppState>>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let fields = fields.into_map();
    let grace = grace(&state, &fields)?;
    to_its_end(async move {
        let (_one, entry) = begin(
            &state,
            &fields,
            &["model", "grace_s"],
            &[ModelState::Ready, ModelState::Asleep],
        )
        .await?;
        entry.set_state(ModelState::Unloading);
        if let Some(model) = entry.model() {
            model.engine.shutdown(grace).await;
        }
        entry.set_gone(None);
        tracing::info!(model = entry.name(), "unloaded");
        Ok(Json(describe(&entry)))
    })
    .await
}

pub async fn sleep(
    State(state): State<Arc<AppState>>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let fields = fields.into_map();
    let grace = grace(&state, &fields)?;
    to_its_end(async move {
        let (_one, entry) =
            begin(&state, &fields, &["model", "grace_s"], &[ModelState::Ready]).await?;
        let Some(model) = entry.model() else {
            return Err(entry.unavailable());
        };
        entry.set_state(ModelState::FallingAsleep);
        let outcome = model.engine.sleep(grace).await;
        entry.set_state(match outcome {
            Ok(()) => ModelState::Asleep,
            Err(_) => ModelState::Ready,
        });
        tracing::info!(model = entry.name(), outcome = ?outcome, "put to sleep");
        outcome.map_err(|error| {
            let message = format!(
                "the model {:?} could not be put to sleep: {error}",
                entry.name()
            );
            of_model(Code::ModelSleepFailed, message)
        })?;
        Ok(Json(describe(&entry)))
    })
    .await
}

pub async fn wake(
    State(state): State<Arc<AppState>>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let fields = fields.into_map();
    to_its_end(async move {
        let (_one, entry) = begin(&state, &fields, &["model"], &[ModelState::Asleep]).await?;
        let Some(model) = entry.model() else {
            return Err(entry.unavailable());
        };
        entry.set_state(ModelState::Waking);
        let outcome = model.engine.wake().await;
        entry.set_state(match outcome {
            Ok(()) => ModelState::Ready,
            Err(_) => ModelState::Asleep,
        });
        tracing::info!(model = entry.name(), outcome = ?outcome, "woken");
        outcome.map_err(|error| {
            let message = format!("the model {:?} could not be woken: {error}", entry.name());
            of_model(Code::ModelWakeFailed, message)
        })?;
        Ok(Json(describe(&entry)))
    })
    .await
}

/// Runs on a thread that ends with the work. The allocator keeps memory that a thread allocated and
/// others freed, so every blocking thread of the runtime that once loaded a model would retain
/// some.
async fn on_its_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<T> {
    let (done, outcome) = oneshot::channel();
    let thread = std::thread::Builder::new().name("load".to_owned());
    thread.spawn(move || {
        // The model's state records the outcome even if the receiver is gone.
        let _ = done.send(work());
    })?;
    outcome
        .await
        .map_err(|_| std::io::Error::other("loading it panicked"))
}

/// Continues when the client disconnects, which drops the handler.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::spawn(change)
        .await
        .unwrap_or_else(|error| Err(ApiError::internal(error.to_string())))
}

/// The model that the body names, which must be in one of the states `from`, and the lock that no other
/// change begins while it is held.
async fn begin<'a>(
    state: &'a AppState,
    fields: &Map<String, Value>,
    known: &[&str],
    from: &[ModelState],
) -> Result<(MutexGuard<'a, ()>, Arc<ModelEntry>), ApiError> {
    let changing = state.changing.lock().await;
    let entry = named(state, fields, known)?;
    expect(&entry, from)?;
    Ok((changing, entry))
}

/// The model that the body names. Fields other than `known` are refused.
fn named(
    state: &AppState,
    fields: &Map<String, Value>,
    known: &[&str],
) -> Result<Arc<ModelEntry>, ApiError> {
    if let Some(field) = fields.keys().find(|field| !known.contains(&field.as_str())) {
        let message = format!("{field} is not known here; known are {}", known.join(", "));
        return Err(ApiError::invalid(field, message));
    }
    match fields.get("model") {
        Some(Value::String(name)) => state.models.find(Some(name)),
        _ => Err(ApiError::invalid("model", "model is missing; it is a name")),
    }
}

/// Adds an entry for a model that is described by its flags.
fn added(state: &AppState, flags: &Map<String, Value>) -> Result<Arc<ModelEntry>, ApiError> {
    let Some(open) = state.open.get() else {
        let message = "this server takes no further models";
        return Err(ApiError::unsupported("model-path", message));
    };
    if !flags.contains_key("model-path") {
        let message = "model is missing: the name of one on the list, or model-path for a new one";
        return Err(ApiError::invalid("model", message));
    }
    let plan =
        ModelPlan::of_flags(flags).map_err(|error| ApiError::invalid_body(error.to_string()))?;
    let entry = ModelEntry::new(plan.names(), open(plan));
    state
        .models
        .add(entry)
        .map_err(|message| of_model(Code::ModelExists, message))
}

/// The body of a change.
pub(crate) fn change_schema(has_grace: bool) -> Value {
    let mut schema = json!({
        "type": "object",
        "properties": {"model": {"type": "string"}},
        "required": ["model"],
        "additionalProperties": false,
    });
    if has_grace {
        schema["properties"]["grace_s"] =
            json!({"type": "number", "minimum": 0, "maximum": MAX_GRACE_S});
    }
    schema
}

/// The body of `load`: a name, or the flags of a new model.
pub(crate) fn load_schema() -> Value {
    let path = json!({"type": "string"});
    let flags = json!({
        "type": "object", "properties": {"model-path": path}, "required": ["model-path"],
    });
    json!({"anyOf": [change_schema(false), flags]})
}

fn grace(state: &AppState, fields: &Map<String, Value>) -> Result<Duration, ApiError> {
    match fields.get("grace_s") {
        None => Ok(state.http.shutdown_grace),
        Some(value) => match value.as_f64() {
            Some(seconds) if (0.0..=MAX_GRACE_S).contains(&seconds) => {
                Ok(Duration::from_secs_f64(seconds))
            }
            _ => {
                let message = format!("grace_s is {value}; it must be 0 to {MAX_GRACE_S} seconds");
                Err(ApiError::invalid("grace_s", message))
            }
        },
    }
}

fn expect(entry: &ModelEntry, states: &[ModelState]) -> Result<(), ApiError> {
    let state = entry.state();
    if states.contains(&state) {
        return Ok(());
    }
    let wanted: Vec<&str> = states.iter().map(|state| state.name()).collect();
    let message = format!(
        "the model {:?} is {}; it must be {} for this",
        entry.name(),
        state.name(),
        wanted.join(" or ")
    );
    Err(of_model(Code::WrongModelState, message))
}

fn of_model(code: Code, message: String) -> ApiError {
    ApiError::of_field(code, "model", message)
}

fn describe(entry: &ModelEntry) -> Value {
    let mut described = json!({
        "name": entry.name(),
        "names": entry.names(),
        "state": entry.state(),
        "reason": entry.reason(),
    });
    if let Some(model) = entry.model() {
        let info = model.engine.executor_info();
        described["device"] = json!(info.name);
        described["weight_bytes"] = json!(info.weight_bytes);
        described["kv_pool_bytes"] = json!(info.kv_pool_bytes);
        described["n_requests"] = json!(model.engine.n_in_flight());
        described["is_healthy"] = json!(model.engine.is_healthy());
    }
    described
}
