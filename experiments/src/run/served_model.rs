//! What a server says of itself, and of the model it serves.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use records::manifest::Manifest;
use serde_json::Value;

use crate::load::{BaseUrl, HttpError};

const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What the server says of itself; `None` where it has no such page (another engine).
pub async fn server_info(base_url: &BaseUrl) -> Result<Option<Value>> {
    match base_url.get_root("/server_info", ANSWER_LIMIT).await {
        Ok(bytes) => Ok(Some(
            serde_json::from_slice(&bytes).context("/server_info is not JSON")?,
        )),
        Err(HttpError::Status {
            status: 404 | 405, ..
        }) => Ok(None),
        Err(error) => Err(error).context("/server_info"),
    }
}

/// The name that requests carry: `wanted`, which the server must have, or else the first of its
/// `/v1/models`.
pub async fn model_name(base_url: &BaseUrl, wanted: Option<&str>) -> Result<String> {
    let bytes = base_url
        .get_api("/models", ANSWER_LIMIT)
        .await
        .context("the list of models")?;
    let models: Value = serde_json::from_slice(&bytes).context("the list of models is not JSON")?;
    let ids: Vec<&str> = models["data"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|model| model["id"].as_str())
        .collect();
    match wanted {
        Some(wanted) if ids.contains(&wanted) => Ok(wanted.to_string()),
        Some(wanted) => bail!(
            "--model {wanted}: the server at {} has no such model; it lists: {}",
            base_url.display(),
            ids.join(", ")
        ),
        None => ids
            .first()
            .map(ToString::to_string)
            .context("the server lists no model"),
    }
}

/// `loaded_model` of `/server_info` (`model` in earlier versions of this engine): {requested, used,
/// fallback_reason, format, sha256}; of a server with several, of each of `models`, joined by ` + `,
/// or of the one that alone is `asked`. False where it does not name the model: another engine's
/// page of that name says other things.
pub fn take_in_model(manifest: &mut Manifest, info: &Value, asked: Option<&str>) -> bool {
    let is_asked = |model: &&Value| asked.is_none_or(|name| model["name"].as_str() == Some(name));
    let models: Vec<&Value> = match info["models"].as_array() {
        Some(models) => {
            let models = models.iter().filter(is_asked);
            models.map(loaded_model).collect()
        }
        None => vec![loaded_model(info)],
    };
    let text = |key: &str| {
        let texts: Vec<&str> = models.iter().filter_map(|m| m[key].as_str()).collect();
        (!texts.is_empty()).then(|| texts.join(" + "))
    };
    let used = text("used");
    let is_named = used.is_some();
    manifest.model.used = used.unwrap_or_else(|| manifest.model.used.clone());
    manifest.model.fallback_reason = text("fallback_reason");
    manifest.model.format = text("format");
    manifest.sha256.model = text("sha256");
    is_named
}

fn loaded_model(info: &Value) -> &Value {
    info.get("loaded_model").unwrap_or(&info["model"])
}

/// `executor.inactive_flags`: flag without its dashes → why it has no effect there. Empty for a
/// server that says nothing of the kind.
pub fn inactive_flags(info: &Value) -> BTreeMap<String, String> {
    let pairs = info["executor"]["inactive_flags"].as_array();
    let pair = |pair: &Value| {
        let flag = pair[0].as_str()?.trim_start_matches('-');
        Some((flag.to_string(), pair[1].as_str()?.to_string()))
    };
    pairs.into_iter().flatten().filter_map(pair).collect()
}
