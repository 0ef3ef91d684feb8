//! Endpoints for SGLang's and vLLM's own programs (routers, load generators, probes) beyond
//! OpenAI's API: the loaded model, and whether it generates. Their load is in [`super::loads`].
//!
//! With several models, `/model_info` describes the first one. Deliberately absent: updating
//! weights, profiling, and anything about multiple devices.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::{Value, json};

use crate::errors::Code;
use crate::request::{Request, SamplingParams, TokenEvent};
use crate::served_model::ServedModel;
use crate::server::endpoints::status;
use crate::server::error::ApiError;
use crate::server::state::AppState;

/// How long one token may take before `/health_generate` reports an error.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

pub async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// `/model_info` and `/get_model_info`.
pub async fn model_info(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    let loaded = status::loaded(&state)?;
    let Some(model) = loaded.first() else {
        return Err(ApiError::loading());
    };
    let part = |path: &str| model.server_info.pointer(path).cloned();
    let family = part("/loaded_model/config/family");
    let architecture = family
        .as_ref()
        .and_then(Value::as_str)
        .map(|family| format!("{}ForCausalLM", capitalised(family)));
    let path = part("/loaded_model/used").unwrap_or_else(|| json!(model.name()));
    Ok(Json(json!({
        "model_path": path,
        "tokenizer_path": path,
        "served_model_name": model.name(),
        "is_generation": true,
        "preferred_sampling_params": null,
        "weight_version": "default",
        "has_image_understanding": false,
        "has_audio_understanding": false,
        "model_type": family.as_ref().and_then(Value::as_str).map(str::to_lowercase),
        "architectures": architecture.map(|name| vec![name]),
        "max_model_len": model.limits.max_sequence_tokens,
    })))
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    let first = letters.next().map(char::to_uppercase);
    first.into_iter().flatten().chain(letters).collect()
}

/// `/health_generate`: like `/health`, and each idle model generates one token. A busy model shows
/// by its steps whether it works, so it is not probed.
pub async fn health_generate(
    State(state): State<Arc<AppState>>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    /// One probe at a time: this path needs no key.
    static PROBING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let answer = status::health(State(Arc::clone(&state)), headers).await?;
    let _one = PROBING.lock().await;
    for entry in state.models.list() {
        if let Ok(model) = entry.serving()
            && model.engine.n_in_flight() == 0
        {
            make_a_token(&model).await?;
        }
    }
    Ok(answer)
}

async fn make_a_token(model: &ServedModel) -> Result<(), ApiError> {
    let request = Request {
        id: model.engine.next_request_id(),
        prompt: [0].into(),
        sampling: Arc::new(SamplingParams::default()),
        max_new_tokens: 1,
        stop_token_ids: [].into(),
        priority: 0,
        prefix_root: 0,
    };
    let mut stream = model.engine.submit(request)?;
    let until_its_end = async {
        while let Some(event) = stream.next().await {
            if let TokenEvent::Failed(failure) = event {
                return Err(ApiError::from(failure));
            }
        }
        Ok(())
    };
    match tokio::time::timeout(PROBE_TIMEOUT, until_its_end).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ApiError::new(
            Code::EngineUnhealthy,
            format!(
                "{:?} made no token within {} s",
                model.name(),
                PROBE_TIMEOUT.as_secs()
            ),
        )),
    }
}
