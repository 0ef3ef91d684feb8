//! Reads `config.json` (and `generation_config.json`) as Hugging Face writes them, in the old
//! key style (`rope_theta`, `rope_scaling.type`) and the new one (`rope_parameters.rope_type`).
//!
//! Deliberately absent: options that would change the arithmetic in a way no executor knows
//! (other activations, MLP biases, multimodal RoPE). They are refused, never ignored.

use std::path::Path;

use serde_json::Value;

use super::config::{
    ConfigError, Family, ModelConfig, RopeConfig, RopeScaling, yarn_attention_factor,
};
use super::json_fields::Fields;

/// A folder's configuration: the model's and how its matrices are quantised.
#[derive(Debug, Clone, PartialEq)]
pub struct FolderConfig {
    pub model: ModelConfig,
    pub awq: Option<AwqConfig>,
}

/// `quantization_config` of an AutoAWQ checkpoint: 4 bits, `gemm` layout, with zero points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AwqConfig {
    /// Input columns that share a scale; `None` (-1 in the file) is one group a row.
    pub group_size: Option<usize>,
}

/// A configuration is a few kilobytes; anything near this is not one.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Reads `config.json` and, where it is there, `generation_config.json` of a folder.
pub fn read_folder(dir: &Path) -> Result<FolderConfig, ConfigError> {
    let config = read_json(&dir.join("config.json"))?;
    let generation_path = dir.join("generation_config.json");
    let generation = if generation_path.exists() {
        Some(read_json(&generation_path)?)
    } else {
        None
    };
    parse(&config, generation.as_ref())
}

fn read_json(path: &Path) -> Result<Value, ConfigError> {
    let fail = |message: String| ConfigError::File {
        file: path.display().to_string(),
        message,
    };
    let n_bytes = std::fs::metadata(path)
        .map_err(|e| fail(e.to_string()))?
        .len();
    if n_bytes > MAX_CONFIG_BYTES {
        return Err(fail(format!(
            "has {n_bytes} bytes; at most {MAX_CONFIG_BYTES} are read"
        )));
    }
    let text = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    serde_json::from_slice(&text).map_err(|e| fail(format!("is not valid JSON: {e}")))
}

/// Turns the parsed files into a validated configuration.
pub fn parse(config: &Value, generation: Option<&Value>) -> Result<FolderConfig, ConfigError> {
    let fields = Fields::of(config, "")?;
    let family = family(&fields)?;
    if let Some(activation) = fields.text("hidden_act")?
        && activation != "silu"
    {
        return Err(unsupported("hidden_act", activation, "silu"));
    }
    if fields.flag("mlp_bias")?.unwrap_or(false) {
        return Err(unsupported("mlp_bias", "true", "false"));
    }

    let hidden = fields.required_size("hidden_size")?;
    let n_q_heads = fields.required_size("num_attention_heads")?;
    let head_dim = match fields.size("head_dim")? {
        Some(head_dim) => head_dim,
        None if n_q_heads > 0 && hidden.is_multiple_of(n_q_heads) => hidden / n_q_heads,
        None => {
            let limit = format!("a multiple of the {n_q_heads} attention heads");
            return Err(ConfigError::invalid("hidden_size", hidden, limit));
        }
    };
    let max_positions = fields.required_size("max_position_embeddings")?;
    let (rope, scaled_context) = rope(&fields, max_positions)?;
    let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
    let (qkv_bias, o_bias) = match family {
        Family::Qwen2 => (true, false),
        Family::Qwen3 | Family::Llama => (attention_bias, attention_bias),
    };

    let model = ModelConfig {
        family,
        n_layers: fields.required_size("num_hidden_layers")?,
        hidden,
        intermediate: fields.required_size("intermediate_size")?,
        n_q_heads,
        n_kv_heads: fields.size("num_key_value_heads")?.unwrap_or(n_q_heads),
        head_dim,
        vocab: fields.required_size("vocab_size")?,
        context_length: full_attention_context(&fields, scaled_context)?,
        rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope,
        tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias,
        o_bias,
        qk_norm: family == Family::Qwen3,
        eos_token_ids: eos_ids(&fields, generation)?,
        bos_token_id: fields.ids("bos_token_id")?.first().copied(),
    };
    Ok(FolderConfig {
        model: model.validated()?,
        awq: awq(&fields)?,
    })
}

fn family(fields: &Fields) -> Result<Family, ConfigError> {
    const SUPPORTED: &str = "Qwen3ForCausalLM, Qwen2ForCausalLM, LlamaForCausalLM";
    let named = match fields.map.get("architectures") {
        Some(Value::Array(names)) => names.first().and_then(Value::as_str).unwrap_or_default(),
        // Some re-quantised checkpoints carry the model type alone.
        _ => fields.text("model_type")?.unwrap_or_default(),
    };
    match named {
        "Qwen3ForCausalLM" | "qwen3" => Ok(Family::Qwen3),
        "Qwen2ForCausalLM" | "qwen2" => Ok(Family::Qwen2),
        "LlamaForCausalLM" | "llama" => Ok(Family::Llama),
        "" => Err(ConfigError::Missing {
            key: "architectures".into(),
        }),
        other => Err(unsupported("architectures", other, SUPPORTED)),
    }
}

/// RoPE and the context length that it stretches `max_positions` to.
fn rope(fields: &Fields, max_positions: usize) -> Result<(RopeConfig, usize), ConfigError> {
    let parameters = match fields.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_scaling")?,
    };
    let top_theta = fields.number("rope_theta")?;
    let plain = |theta: Option<f64>| RopeConfig {
        theta: theta.unwrap_or(10_000.0) as f32,
        scaling: RopeScaling::None,
    };
    let Some(p) = parameters else {
        return Ok((plain(top_theta), max_positions));
    };
    let theta = p.number("rope_theta")?.or(top_theta);
    if let Some(share) = p.number("partial_rotary_factor")?
        && (share - 1.0).abs() > f64::EPSILON
    {
        return Err(unsupported("partial_rotary_factor", share, "1"));
    }
    let kind = match p.text("rope_type")? {
        Some(kind) => kind,
        None => p.text("type")?.unwrap_or("default"),
    };
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

    let (scaling, context_length) = match kind {
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
            (
                RopeScaling::Dynamic { factor, original },
                stretched(factor).max(max_positions),
            )
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
            if p.map.contains_key("mscale") || p.map.contains_key("mscale_all_dim") {
                return Err(unsupported(&p.key("mscale"), "set", "attention_factor"));
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
        other => {
            let supported = "default, linear, dynamic, llama3, yarn";
            return Err(unsupported(&p.key("rope_type"), other, supported));
        }
    };
    Ok((
        RopeConfig {
            scaling,
            ..plain(theta)
        },
        context_length,
    ))
}

/// Attention here is always full. Up to the window's size it equals windowed attention, so a
/// model with a window is served up to that length and not beyond.
fn full_attention_context(fields: &Fields, context: usize) -> Result<usize, ConfigError> {
    if fields.flag("use_sliding_window")?.unwrap_or(false)
        && let Some(window) = fields.size("sliding_window")?
        && window < context
    {
        tracing::warn!(
            window,
            context,
            "context length limited to the model's sliding window"
        );
        return Ok(window);
    }
    Ok(context)
}

/// Ids of both files: `generation_config.json` often has the chat model's additional one.
fn eos_ids(fields: &Fields, generation: Option<&Value>) -> Result<Vec<u32>, ConfigError> {
    let mut ids = match generation {
        Some(generation) => Fields::of(generation, "generation_config.")?.ids("eos_token_id")?,
        None => Vec::new(),
    };
    for id in fields.ids("eos_token_id")? {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn awq(fields: &Fields) -> Result<Option<AwqConfig>, ConfigError> {
    let Some(q) = fields.object("quantization_config")? else {
        return Ok(None);
    };
    let method = q.text("quant_method")?.unwrap_or("unnamed");
    if method != "awq" {
        return Err(unsupported(&q.key("quant_method"), method, "awq"));
    }
    let bits = match q.size("bits")? {
        Some(bits) => Some(bits),
        None => q.size("w_bit")?,
    };
    if let Some(bits) = bits
        && bits != 4
    {
        return Err(unsupported(&q.key("bits"), bits, "4"));
    }
    if let Some(version) = q.text("version")?
        && !version.eq_ignore_ascii_case("gemm")
    {
        return Err(unsupported(&q.key("version"), version, "gemm"));
    }
    if q.flag("zero_point")? == Some(false) {
        return Err(unsupported(&q.key("zero_point"), "false", "true"));
    }
    let group_key = if q.map.contains_key("group_size") {
        "group_size"
    } else {
        "q_group_size"
    };
    let group_size = match q.map.get(group_key).and_then(Value::as_i64) {
        Some(-1) => None,
        Some(group @ 1..=1_048_576) => Some(group as usize),
        Some(group) => {
            return Err(ConfigError::invalid(
                q.key(group_key),
                group,
                "-1 or 1 to 1048576",
            ));
        }
        None => {
            return Err(ConfigError::Missing {
                key: q.key("group_size"),
            });
        }
    };
    Ok(Some(AwqConfig { group_size }))
}

fn unsupported(key: &str, value: impl ToString, supported: &'static str) -> ConfigError {
    ConfigError::Unsupported {
        key: key.into(),
        value: value.to_string(),
        supported,
    }
}

#[cfg(test)]
#[path = "config_json_tests.rs"]
mod tests;
