//! Reads RoPE from `config.json`: the old keys (`rope_theta`, `rope_scaling`), the new ones
//! (`rope_parameters`, one set or one for each type of layer), and both together.
//!
//! Every key of the objects is either used or refused by name: a misread scaling produces text that
//! is wrong but looks right.

use serde_json::Value;

use super::config::{ConfigError, RopeConfig, RopeScaling, yarn_attention_factor};
use super::json_fields::Fields;
use super::layer_types::LayerTypes;

/// The supported keys. `finetuned` is an annotation in the first YaRN checkpoints.
const KNOWN_KEYS: [&str; 16] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
    "finetuned",
    "attn_factor",
];
const KINDS: &str = "default, linear, dynamic, llama3, yarn";

/// Reads RoPE and the context length that it extends `max_positions` to.
pub(super) fn read(
    fields: &Fields,
    max_positions: usize,
    layers: &LayerTypes,
) -> Result<(RopeConfig, usize), ConfigError> {
    let parameters = one_set(fields.object("rope_parameters")?, layers)?;
    let older = one_set(fields.object("rope_scaling")?, layers)?;
    let top = ("rope_theta".to_owned(), fields.number("rope_theta")?);
    let thetas = [&older, &parameters]
        .into_iter()
        .flatten()
        .map(|p| Ok((p.key("rope_theta"), p.number("rope_theta")?)))
        .collect::<Result<Vec<_>, ConfigError>>()?;
    let theta = agreed(thetas.into_iter().chain([top]))?.unwrap_or(10_000.0) as f32;

    let scaling_set = match (older, parameters) {
        (Some(older), Some(parameters)) => Some(merged(older, parameters)?),
        (older, parameters) => older.or(parameters),
    };
    let (scaling, context_length) = match &scaling_set {
        None => (RopeScaling::None, max_positions),
        Some(set) => scaling(set, fields, max_positions)?,
    };
    Ok((RopeConfig { theta, scaling }, context_length))
}

/// The set for layers with full attention, if there is one for each type of layer. Unknown keys are
/// refused. An empty object counts as absent.
fn one_set<'a>(
    object: Option<Fields<'a>>,
    layers: &LayerTypes,
) -> Result<Option<Fields<'a>>, ConfigError> {
    let Some(object) = object.filter(|object| !object.map.is_empty()) else {
        return Ok(None);
    };
    let is_nested = object.map.values().any(Value::is_object);
    if is_nested {
        for (kind, set) in object.map {
            let is_used = match kind.as_str() {
                "full_attention" => true,
                "sliding_attention" => layers.has_window,
                _ => return Err(unknown(&object, kind)),
            };
            if !set.is_object() {
                return Err(unknown(&object, kind));
            }
            if is_used && kind != "full_attention" {
                return Err(ConfigError::Unsupported {
                    key: object.key(kind),
                    value: "set for layers with a window".into(),
                    supported: "one set, for layers of full attention",
                });
            }
        }
        let Some(set) = object.object("full_attention")? else {
            let key = object.key("full_attention");
            return Err(ConfigError::Missing { key });
        };
        return one_set(Some(set), layers);
    }
    match object
        .map
        .iter()
        .find(|(key, value)| !value.is_null() && !KNOWN_KEYS.contains(&key.as_str()))
    {
        Some((key, _)) => Err(unknown(&object, key)),
        None => Ok(Some(object)),
    }
}

fn unknown(object: &Fields, key: &str) -> ConfigError {
    ConfigError::Unsupported {
        key: object.key(key),
        value: "set".into(),
        supported: "rope_type, rope_theta and the parameters of default, linear, dynamic, llama3, \
                    yarn",
    }
}

/// A value on which all keys that have it agree.
fn agreed(
    named: impl IntoIterator<Item = (String, Option<f64>)>,
) -> Result<Option<f64>, ConfigError> {
    let mut found: Option<(String, f64)> = None;
    for (key, value) in named {
        match (&found, value) {
            (_, None) => {}
            (None, Some(value)) => found = Some((key, value)),
            (Some((first_key, first)), Some(value)) => {
                if (first - value).abs() > f64::EPSILON * first.abs() {
                    let limit = format!("{first}, as in {first_key}, or absent");
                    return Err(ConfigError::invalid(key, value, limit));
                }
            }
        }
    }
    Ok(found.map(|(_, value)| value))
}

/// The one of two sets that scales. Model cards describe extending a context by adding
/// `rope_scaling` to a file that has `rope_parameters`.
fn merged<'a>(older: Fields<'a>, parameters: Fields<'a>) -> Result<Fields<'a>, ConfigError> {
    let scales = |set: &Fields| Ok::<_, ConfigError>(!matches!(kind(set)?, "default" | "none"));
    match (scales(&older)?, scales(&parameters)?) {
        (true, false) => Ok(older),
        (false, _) => Ok(parameters),
        (true, true) => {
            let is_theirs = |key: &str| !matches!(key, "rope_type" | "type" | "rope_theta");
            let same_kind = kind(&older)? == kind(&parameters)?;
            let keys = older.map.keys().chain(parameters.map.keys());
            let differing = keys
                .filter(|key| is_theirs(key))
                .find(|key| older.map.get(*key) != parameters.map.get(*key));
            let key = match (same_kind, differing) {
                (true, None) => return Ok(parameters),
                (true, Some(key)) => key.as_str(),
                (false, _) => "rope_type",
            };
            let shown = |set: &Fields| match key {
                "rope_type" => kind(set).unwrap_or_default().to_owned(),
                key => set
                    .map
                    .get(key)
                    .map_or_else(|| "absent".to_owned(), Value::to_string),
            };
            let limit = format!(
                "the same as {}, which is {}; remove one of the two objects",
                parameters.key(key),
                shown(&parameters)
            );
            Err(ConfigError::invalid(older.key(key), shown(&older), limit))
        }
    }
}

fn kind<'a>(set: &Fields<'a>) -> Result<&'a str, ConfigError> {
    Ok(match set.text("rope_type")? {
        Some(kind) => kind,
        None => set.text("type")?.unwrap_or("default"),
    })
}

fn scaling(
    p: &Fields,
    fields: &Fields,
    max_positions: usize,
) -> Result<(RopeScaling, usize), ConfigError> {
    if let Some(share) = p.number("partial_rotary_factor")?
        && (share - 1.0).abs() > f64::EPSILON
    {
        return Err(unsupported(&p.key("partial_rotary_factor"), share, "1"));
    }
    let factor = |default: Option<f64>| match p.number("factor")?.or(default) {
        Some(factor) => Ok(factor as f32),
        None => Err(ConfigError::Missing {
            key: p.key("factor"),
        }),
    };
    let named_original = match p.size("original_max_position_embeddings")? {
        Some(original) => Some(original),
        None => fields.size("original_max_position_embeddings")?,
    };
    let original = named_original.unwrap_or(max_positions);
    let stretched = |factor: f32| (original as f64 * f64::from(factor)) as usize;
    let or = |key: &str, default: f64| Ok(p.number(key)?.unwrap_or(default) as f32);

    Ok(match kind(p)? {
        "default" | "none" => (RopeScaling::None, max_positions),
        "linear" => {
            let factor = factor(None)?;
            (
                RopeScaling::Linear { factor },
                stretched(factor).max(max_positions),
            )
        }
        "dynamic" => {
            let factor = factor(None)?;
            // Beyond the original length the base grows with the sequence, so cached keys would
            // have to be rotated again for every token. Up to that length nothing is scaled.
            tracing::warn!(
                context = original,
                "context length limited to the length before dynamic NTK scaling begins; a \
                 checkpoint with yarn or linear scaling can be served beyond it"
            );
            (RopeScaling::Dynamic { factor, original }, original)
        }
        "llama3" => {
            let Some(original) = named_original else {
                let key = p.key("original_max_position_embeddings");
                return Err(ConfigError::Missing { key });
            };
            let scaling = RopeScaling::Llama3 {
                factor: factor(None)?,
                low_freq: or("low_freq_factor", 1.0)?,
                high_freq: or("high_freq_factor", 4.0)?,
                original,
            };
            (scaling, max_positions)
        }
        "yarn" => {
            let factor = factor(Some(max_positions as f64 / original.max(1) as f64))?;
            for key in ["mscale", "mscale_all_dim", "attn_factor"] {
                if p.number(key)?.is_some() {
                    return Err(unsupported(&p.key(key), "set", "attention_factor"));
                }
            }
            if p.flag("truncate")? == Some(false) {
                return Err(unsupported(&p.key("truncate"), "false", "true"));
            }
            let attention_factor = match p.number("attention_factor")? {
                Some(value) => value as f32,
                None => yarn_attention_factor(factor),
            };
            let scaling = RopeScaling::Yarn {
                factor,
                original,
                beta_fast: or("beta_fast", 32.0)?,
                beta_slow: or("beta_slow", 1.0)?,
                attention_factor,
            };
            (scaling, stretched(factor).max(max_positions))
        }
        other => return Err(unsupported(&p.key("rope_type"), other, KINDS)),
    })
}

fn unsupported(key: &str, value: impl ToString, supported: &'static str) -> ConfigError {
    ConfigError::Unsupported {
        key: key.into(),
        value: value.to_string(),
        supported,
    }
}

#[cfg(test)]
#[path = "rope_json_tests.rs"]
mod tests;
