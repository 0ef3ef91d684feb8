//! Status endpoints: `/health`, `/readiness`, `/liveness`, `/metrics`, `/server_info`, `/v1/models`.
//!
//! With one model each describes that model; with several, all of them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::errors::Code;
use crate::served_model::ServedModel;
use crate::server::endpoints::exposition;
use crate::server::error::ApiError;
use crate::server::models::{ModelEntry, ModelState};
use crate::server::request::parts::InPath;
use crate::server::state::AppState;
use crate::server::transport::auth;

/// Returns 200 if requests can be served: with several models, if at least one is ready and none
/// has failed. Returns 503 while loading or stopping, if an engine has failed, and if all models
/// are sleeping or gone. With several models, their names are shown only to requests with the key,
/// if there is one.
pub async fn health(
    State(state): State<Arc<AppState>>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    state.check_started()?;
    let entries = state.models.list();
    let names_models = entries.len() > 1 && auth::is_trusted(&state, &headers);
    for entry in &entries {
        if entry
            .model()
            .is_some_and(|model| !model.engine.is_healthy())
        {
            let of_which = if names_models {
                format!(" of {}", entry.name())
            } else {
                String::new()
            };
            return Err(ApiError::new(
                Code::EngineUnhealthy,
                format!("the engine{of_which} has stopped or keeps failing; see the server's log"),
            ));
        }
    }
    if entries.iter().all(|entry| entry.serving().is_err()) {
        let first = entries.first();
        let error = first.map_or_else(ApiError::loading, |entry| entry.unavailable());
        if entries.len() == 1 || names_models {
            return Err(error);
        }
        return Err(ApiError::new(
            error.code,
            error.code.entry().cause.to_owned(),
        ));
    }
    if !names_models {
        return Ok(Json(json!({"status": "ok"})));
    }
    let states: serde_json::Map<String, Value> = entries
        .iter()
        .map(|entry| (entry.name(), json!(entry.state())))
        .collect();
    Ok(Json(json!({"status": "ok", "models": states})))
}

/// Whether a router should send requests here: as `/health`, and so 503 from the moment that the
/// server is told to stop.
pub async fn readiness(
    state: State<Arc<AppState>>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let _healthy = health(state, headers).await?;
    Ok(Json(json!({"status": "ready"})))
}

/// Whether the process should be left to run: 200 while it loads, stops or fails steps, which no
/// restart makes faster, and 503 once an engine's thread is gone.
pub async fn liveness(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    let loaded = state.models.loaded();
    if loaded.iter().any(|model| model.engine.has_died()) {
        let message = "an engine has stopped after an internal error; see the server's log";
        return Err(ApiError::new(Code::EngineStopped, message));
    }
    Ok(Json(json!({"status": "alive"})))
}

/// Prometheus text format. The process's metrics are always there, a model's while it is loaded.
pub async fn metrics(State(state): State<Arc<AppState>>) -> Response {
    let mut texts: Vec<String> = state
        .models
        .loaded()
        .iter()
        .map(|model| model.engine.metrics().render())
        .collect();
    texts.push(state.traffic.render());
    texts.push(state.kept_streams.render());
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], exposition::merge(&texts)).into_response()
}

/// The model's own object; with several models, `models` has one for each and the rest is the first
/// one's.
pub async fn server_info(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    let loaded = loaded(&state)?;
    let mut info = match loaded.first() {
        Some(first) => first.server_info.clone(),
        None => json!({"version": env!("CARGO_PKG_VERSION")}),
    };
    let entries = state.models.list();
    if entries.len() > 1 {
        let of_each = entries.iter().map(|entry| {
            let mut of_one = json!({"served_model_names": entry.names()});
            if let Some(model) = entry.model() {
                of_one = model.server_info.clone();
            }
            of_one["state"] = json!(entry.state());
            of_one
        });
        info["models"] = Value::Array(of_each.collect());
    }
    Ok(Json(info))
}

pub async fn models(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    loaded(&state)?;
    let entries = state.models.list();
    let data: Vec<Value> = entries
        .iter()
        .filter_map(|entry| Some((entry, entry.model()?)))
        .flat_map(|(entry, model)| {
            let names = state.models.names_of(entry).into_iter();
            let cards = names.map(|name| card(entry, &model, &name));
            cards.collect::<Vec<_>>()
        })
        .collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

/// The name may contain slashes, as hub ids do.
pub async fn model(
    State(state): State<Arc<AppState>>,
    InPath(name): InPath,
) -> Result<Json<Value>, ApiError> {
    let entry = state.models.find(Some(&name))?;
    match entry.model() {
        Some(model) => Ok(Json(card(&entry, &model, &name))),
        None => Err(entry.unavailable()),
    }
}

/// The models whose engine exists; an error while the first one is still being loaded.
pub fn loaded(state: &AppState) -> Result<Vec<Arc<ServedModel>>, ApiError> {
    let loaded = state.models.loaded();
    if loaded.is_empty() && !state.has_started() {
        return Err(ApiError::loading());
    }
    Ok(loaded)
}

fn card(entry: &ModelEntry, model: &ServedModel, name: &str) -> Value {
    let mut card = json!({
        "id": name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "engine",
        "root": name,
        "parent": null,
        "max_model_len": model.limits.max_sequence_tokens,
    });
    let state = entry.state();
    if state != ModelState::Ready {
        card["state"] = json!(state);
    }
    card
}
