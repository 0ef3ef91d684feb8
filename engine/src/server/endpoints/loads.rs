//! How much each model has to do, in the forms that routers ask for: SGLang's `/v1/loads`, its older
//! `/get_load`, and vLLM's `/load`.
//!
//! SGLang has an entry for each data-parallel rank; here it is one for each model, in the order of
//! `/v1/models`. Deliberately absent: SGLang's `utilization` (a share of what a latency limit
//! allows, and there is none here), its sections `lora`, `disagg` and `queues` (nothing of the kind
//! is here), and `format=prometheus` (`/metrics` has the same figures).

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{self, FormatTime};

use crate::kv::PAGE_TOKENS;
use crate::metrics::Metrics;
use crate::served_model::ServedModel;
use crate::server::endpoints::status;
use crate::server::error::ApiError;
use crate::server::request::fields::show;
use crate::server::request::parts::Asked;
use crate::server::state::AppState;

/// What `include` may name, as in SGLang. A section that a model does not have is left out.
const SECTIONS: [&str; 7] = ["all", "core", "disagg", "lora", "memory", "queues", "spec"];
const BYTES_PER_GB: f64 = (1u64 << 30) as f64;

/// What `/v1/loads` may be asked.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    dp_rank: Option<String>,
    include: Option<String>,
    format: Option<String>,
}

/// `GET /v1/loads?include=SECTION,…&dp_rank=N`.
pub async fn loads(
    State(state): State<Arc<AppState>>,
    Asked(asked): Asked<Wanted>,
) -> Result<Json<Value>, ApiError> {
    if let Some(format) = asked.format.as_deref().filter(|format| *format != "json") {
        let format = show(&format.into());
        let message = format!("format is {format}, but must be json; /metrics is for Prometheus");
        return Err(ApiError::invalid("format", message));
    }
    let sections = sections(asked.include.as_deref())?;
    let loaded = status::loaded(&state)?;
    let rank = rank(asked.dp_rank.as_deref(), loaded.len())?;
    let now = SystemTime::now();
    let now_s = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let loads: Vec<Value> = loaded
        .iter()
        .enumerate()
        .filter(|(i, _)| rank.is_none_or(|rank| rank == *i))
        .map(|(i, model)| load_of(i, model, &sections, now_s.as_secs_f64()))
        .collect();
    let on_gpu = loaded.iter().map(|model| model.engine.executor_info());
    let on_gpu = on_gpu.filter(|info| info.name == "cuda");
    let gpu = on_gpu.map(|info| info.device.clone()).next();
    Ok(Json(json!({
        "timestamp": utc_now(),
        "version": env!("CARGO_PKG_VERSION"),
        "accelerator": gpu,
        "num_accelerators": u8::from(gpu.is_some()),
        "dp_rank_count": loaded.len(),
        "loads": loads,
    })))
}

/// `GET /get_load`: an object for each model.
pub async fn get_load(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    let loaded = status::loaded(&state)?;
    let of_each = loaded.iter().enumerate().map(|(rank, model)| {
        let metrics = model.engine.metrics();
        json!({
            "dp_rank": rank,
            "model": model.name(),
            "num_reqs": model.engine.n_in_flight(),
            "num_waiting_reqs": metrics.n_waiting.get() as u64,
            "num_tokens": used_tokens(metrics),
        })
    });
    Ok(Json(of_each.collect()))
}

/// `GET /load`: the requests of all models that have not ended.
pub async fn load(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    let loaded = status::loaded(&state)?;
    let n_requests: usize = loaded.iter().map(|model| model.engine.n_in_flight()).sum();
    Ok(Json(json!({"server_load": n_requests})))
}

/// A list of [`SECTIONS`].
pub(crate) fn include_schema() -> Value {
    let one = SECTIONS.join("|");
    json!({"type": "string", "pattern": format!("^(({one})(,({one}))*)?$")})
}

fn sections(include: Option<&str>) -> Result<Vec<&str>, ApiError> {
    let sections: Vec<&str> = match include {
        None | Some("") => vec!["all"],
        Some(list) => list.split(',').map(str::trim).collect(),
    };
    match sections.iter().find(|section| !SECTIONS.contains(section)) {
        None => Ok(sections),
        Some(unknown) => {
            let unknown = show(&(*unknown).into());
            let known = SECTIONS.join(", ");
            let message = format!("include has {unknown}; it is a list of {known}");
            Err(ApiError::invalid("include", message))
        }
    }
}

fn rank(text: Option<&str>, n_models: usize) -> Result<Option<usize>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    match text.parse::<usize>() {
        Ok(rank) if rank < n_models => Ok(Some(rank)),
        _ => {
            let text = show(&text.into());
            let message = format!(
                "dp_rank is {text}, but must be less than {n_models}, the number of models"
            );
            Err(ApiError::invalid("dp_rank", message))
        }
    }
}

fn load_of(rank: usize, model: &ServedModel, sections: &[&str], now_s: f64) -> Value {
    let metrics = model.engine.metrics();
    let n_running = metrics.n_running.get() as u64;
    let n_waiting = metrics.n_waiting.get() as u64;
    let (n_used, n_total) = (metrics.kv_pages_used.get(), metrics.kv_pages_total.get());
    let n_queried = metrics.prefix_cache_queries.get() as f64;
    let n_waiting_tokens = metrics.n_waiting_tokens.get() as u64;
    let mut load = json!({
        "dp_rank": rank,
        "model": model.name(),
        "timestamp": now_s,
        "num_running_reqs": n_running,
        "num_waiting_reqs": n_waiting,
        "num_total_reqs": n_running + n_waiting,
        "num_waiting_uncached_tokens": n_waiting_tokens,
        "num_used_tokens": used_tokens(metrics),
        "num_total_tokens": used_tokens(metrics) + n_waiting_tokens,
        "max_total_num_tokens": n_total as u64 * PAGE_TOKENS as u64,
        "max_running_requests": model.engine.config().scheduler.max_running_requests,
        "token_usage": share(n_used, n_total),
        "gen_throughput": metrics.output_rate.get(),
        "cache_hit_rate": share(metrics.prefix_cache_hits.get() as f64, n_queried),
    });
    let has = |section: &str| {
        sections
            .iter()
            .any(|asked| [section, "all"].contains(asked))
    };
    if has("memory") {
        let info = model.engine.executor_info();
        load["memory"] = json!({
            "weight_gb": info.weight_bytes as f64 / BYTES_PER_GB,
            "kv_cache_gb": info.kv_pool_bytes as f64 / BYTES_PER_GB,
            "token_capacity": info.kv_pool_tokens,
        });
    }
    if has("spec") && model.engine.config().scheduler.speculation.is_some() {
        let n_accepted = metrics.accepted_draft_tokens.get() as f64;
        load["speculative"] = json!({
            "accept_length": 1.0 + share(n_accepted, metrics.drafted_rows.get() as f64),
            "accept_rate": share(n_accepted, metrics.draft_tokens.get() as f64),
        });
    }
    load
}

/// Capacity of the pages in use, in tokens.
fn used_tokens(metrics: &Metrics) -> u64 {
    metrics.kv_pages_used.get() as u64 * PAGE_TOKENS as u64
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// RFC 3339.
fn utc_now() -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = time::SystemTime.format_time(&mut Writer::new(&mut text));
    text
}
