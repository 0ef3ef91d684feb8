//! What the server says of itself: `/health`, `/metrics`, `/server_info`, `/v1/models`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::error::ApiError;
use super::state::{AppState, ServedModel};
use crate::errors::Code;

/// 200 when requests are served; 503 while loading, when stopping, or when the engine failed.
pub async fn health(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    if state.model()?.engine.is_healthy() {
        Ok(Json(json!({"status": "ok"})))
    } else {
        Err(ApiError::new(
            Code::EngineUnhealthy,
            "the engine has stopped or keeps failing; see the server's log",
        ))
    }
}

/// Prometheus text format.
pub async fn metrics(State(state): State<Arc<AppState>>) -> Result<Response, ApiError> {
    let mut text = state.loaded_model()?.engine.metrics().render();
    text.push_str(&state.traffic.render());
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

pub async fn server_info(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    Ok(Json(state.loaded_model()?.server_info.clone()))
}

pub async fn models(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    let model = state.loaded_model()?;
    let data: Vec<Value> = model
        .names
        .iter()
        .map(|name| model_card(model, name))
        .collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

/// The name may hold slashes, as hub ids do.
pub async fn model(
    State(state): State<Arc<AppState>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let model = state.loaded_model()?;
    model.check_name(Some(&name))?;
    Ok(Json(model_card(model, &name)))
}

fn model_card(model: &ServedModel, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "engine",
        "root": name,
        "parent": null,
        "max_model_len": model.limits.max_sequence_tokens,
    })
}
