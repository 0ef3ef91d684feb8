//! Reads the model configuration from GGUF metadata (`general.architecture`, `<arch>.*`).

use std::collections::HashMap;

use super::experts;
use super::header::GgufHeader;
use super::value::Value;
use crate::model::config::{
    ConfigError, Family, ModelConfig, RopeConfig, RopeScaling, yarn_attention_factor,
};

/// Reads and validates the configuration. `rope_factors` are the values of `rope_freqs.weight`, if
/// the file has it: the divisors of the RoPE frequencies.
///
/// # Errors
///
/// [`ConfigError::Missing`], [`ConfigError::Invalid`] or [`ConfigError::Unsupported`] with the
/// key: the architecture is none of `llama`, `qwen2`, `qwen3` and `qwen3moe`, or a required size is missing,
/// out of its range or does not fit another.
pub fn read(header: &GgufHeader, rope_factors: Option<&[f32]>) -> Result<ModelConfig, ConfigError> {
    let general = Metadata {
        map: &header.metadata,
        arch: "",
    };
    let arch = general.text("general.architecture")?;
    let arch = arch.ok_or_else(|| ConfigError::Missing {
        key: "general.architecture".into(),
    })?;
    let family = match arch {
        "llama" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        "qwen3moe" => Family::Qwen3Moe,
        other => {
            return Err(ConfigError::Unsupported {
                key: "general.architecture".into(),
                value: other.to_string(),
                supported: "llama, qwen2, qwen3, qwen3moe",
            });
        }
    };
    let m = Metadata {
        map: &header.metadata,
        arch,
    };

    let hidden = m.required_size("embedding_length")?;
    let n_q_heads = m.required_size("attention.head_count")?;
    let head_dim = match (
        m.size("attention.key_length")?,
        m.size("rope.dimension_count")?,
    ) {
        (Some(key_length), _) => key_length,
        (None, Some(rope_dims)) if n_q_heads.checked_mul(rope_dims) == Some(hidden) => rope_dims,
        (None, _) if n_q_heads > 0 && hidden.is_multiple_of(n_q_heads) => hidden / n_q_heads,
        (None, _) => {
            let limit = format!("a multiple of the {n_q_heads} attention heads");
            return Err(ConfigError::invalid(
                m.key("embedding_length"),
                hidden,
                limit,
            ));
        }
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(size) = m.size(key)?
            && size != head_dim
        {
            let limit = format!("the head dimension {head_dim}");
            return Err(ConfigError::invalid(m.key(key), size, limit));
        }
    }
    let experts = match (family, m.size("expert_count")?) {
        (Family::Qwen3Moe, _) => Some(experts::read(&m)?),
        (_, None | Some(0)) => None,
        (_, Some(n_experts)) => {
            let limit = "0 (a dense model)";
            return Err(ConfigError::invalid(
                m.key("expert_count"),
                n_experts,
                limit,
            ));
        }
    };
    let vocab = vocab(header, &general)?;
    let train_context = m.required_size("context_length")?;
    let (scaling, context_length) = rope_scaling(&m, train_context)?;
    let theta = m.number("rope.freq_base")?.unwrap_or(10_000.0) as f32;
    let scaling = match rope_factors {
        None => scaling,
        Some(factors) => llama3_from_factors(factors, theta, head_dim, &scaling, &m)?,
    };
    let has = |name: &str| header.tensors.contains_key(name);

    ModelConfig {
        family,
        n_layers: m.required_size("block_count")?,
        hidden,
        intermediate: m.required_size("feed_forward_length")?,
        n_q_heads,
        n_kv_heads: m.size("attention.head_count_kv")?.unwrap_or(n_q_heads),
        head_dim,
        vocab,
        context_length,
        rms_norm_eps: m
            .number("attention.layer_norm_rms_epsilon")?
            .unwrap_or(1e-6) as f32,
        rope: RopeConfig { theta, scaling },
        tied_embeddings: !has("output.weight"),
        qkv_bias: has("blk.0.attn_q.bias"),
        o_bias: has("blk.0.attn_output.bias"),
        qk_norm: has("blk.0.attn_q_norm.weight"),
        eos_token_ids: eos_ids(&general)?,
        bos_token_id: general.id("tokenizer.ggml.bos_token_id")?,
        experts,
    }
    .validated()
}

/// Rows of the embedding; the token list may be shorter (padded embeddings), never longer.
fn vocab(header: &GgufHeader, general: &Metadata) -> Result<usize, ConfigError> {
    let embedding = header.tensors.get("token_embd.weight");
    let Some(&[rows, _]) = embedding.map(|t| t.shape.as_slice()) else {
        let key = "matrix token_embd.weight".into();
        return Err(ConfigError::Missing { key });
    };
    if let Some(Value::Array(tokens)) = general.map.get("tokenizer.ggml.tokens")
        && tokens.len() > rows
    {
        let limit = format!("at most the embedding's {rows} rows");
        return Err(ConfigError::invalid(
            "length of tokenizer.ggml.tokens",
            tokens.len(),
            limit,
        ));
    }
    Ok(rows)
}

/// The end of a text and, for chat models, the end of a turn.
fn eos_ids(general: &Metadata) -> Result<Vec<u32>, ConfigError> {
    let mut ids = Vec::new();
    for key in ["eos_token_id", "eot_token_id"] {
        if let Some(id) = general.id(&format!("tokenizer.ggml.{key}"))?
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn rope_scaling(m: &Metadata, train_context: usize) -> Result<(RopeScaling, usize), ConfigError> {
    let kind = m.text("rope.scaling.type")?;
    let factor = match m.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        // The name in old files.
        None => m.number("rope.scale_linear")?,
    }
    .map(|factor| factor as f32);
    let original = m
        .size("rope.scaling.original_context_length")?
        .unwrap_or(train_context);
    let stretched =
        |factor: f32| ((original as f64 * f64::from(factor)) as usize).max(train_context);
    match (kind, factor) {
        (None | Some("none"), None) | (Some("none"), Some(_)) => {
            Ok((RopeScaling::None, train_context))
        }
        (None | Some("linear"), Some(factor)) if leaves_as_is(factor) => {
            Ok((RopeScaling::None, train_context))
        }
        (None | Some("linear"), Some(factor)) => {
            Ok((RopeScaling::Linear { factor }, stretched(factor)))
        }
        (Some("yarn"), Some(factor)) => {
            let or = |key: &str, default: f64| -> Result<f32, ConfigError> {
                Ok(m.number(key)?.unwrap_or(default) as f32)
            };
            let scaling = RopeScaling::Yarn {
                factor,
                original,
                beta_fast: or("rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: or("rope.scaling.yarn_beta_slow", 1.0)?,
                attention_factor: or("rope.scaling.attn_factor", 1.0)?
                    * yarn_attention_factor(factor),
            };
            Ok((scaling, stretched(factor)))
        }
        (Some("linear" | "yarn"), None) => Err(ConfigError::Missing {
            key: m.key("rope.scaling.factor"),
        }),
        (Some(other), _) => Err(ConfigError::Unsupported {
            key: m.key("rope.scaling.type"),
            value: other.to_string(),
            supported: "none, linear, yarn",
        }),
    }
}

/// Converters write 0 or 1 for no scaling.
fn leaves_as_is(factor: f32) -> bool {
    factor.abs() < f32::EPSILON || (factor - 1.0).abs() < f32::EPSILON
}

/// llama.cpp's converter replaces Llama 3's scaling by a table of divisors and drops its
/// parameters. They are reconstructed: the largest divisor is the factor, and the published models
/// all have low 1, high 4. A table that these do not reproduce is refused.
fn llama3_from_factors(
    divisors: &[f32],
    theta: f32,
    head_dim: usize,
    beside: &RopeScaling,
    m: &Metadata,
) -> Result<RopeScaling, ConfigError> {
    let refuse = |limit: String| {
        let shown = format!("{} values from {:?}", divisors.len(), divisors.first());
        Err(ConfigError::invalid("rope_freqs.weight", shown, limit))
    };
    if divisors.len() != head_dim / 2 {
        return refuse(format!("{} values, half the head dimension", head_dim / 2));
    }
    if *beside != RopeScaling::None {
        return refuse("absent where rope.scaling.type is set".into());
    }
    let factor = divisors.iter().copied().fold(1.0, f32::max);
    if divisors.iter().all(|&d| (d - 1.0).abs() < 1e-6) {
        return Ok(RopeScaling::None);
    }
    let named = m.size("rope.scaling.original_context_length")?;
    let (low_freq, high_freq) = (1.0, 4.0);
    for original in named.into_iter().chain([8192]) {
        let fits = divisors.iter().enumerate().all(|(i, &found)| {
            let expected = llama3_divisor(i, theta, head_dim, factor, original);
            (found - expected).abs() <= 2e-3 * expected
        });
        if fits {
            return Ok(RopeScaling::Llama3 {
                factor,
                low_freq,
                high_freq,
                original,
            });
        }
    }
    refuse("a Llama 3 table (low 1, high 4, original 8192)".into())
}

/// The divisor of frequency i of `head_dim / 2`: 1 above `high_freq` periods within the original
/// context, `factor` below `low_freq`, and interpolated between.
pub fn llama3_divisor(i: usize, theta: f32, head_dim: usize, factor: f32, original: usize) -> f32 {
    let (low, high) = (1.0, 4.0);
    let frequency = f64::from(theta).powf(-2.0 * i as f64 / head_dim as f64);
    let turns = original as f64 * frequency / std::f64::consts::TAU;
    let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
    (1.0 / ((1.0 - smooth) / f64::from(factor) + smooth)) as f32
}

/// Typed access; keys are relative to the architecture's name.
pub(super) struct Metadata<'a> {
    pub(super) map: &'a HashMap<String, Value>,
    arch: &'a str,
}

impl<'a> Metadata<'a> {
    pub(super) fn key(&self, key: &str) -> String {
        if self.arch.is_empty() {
            key.to_string()
        } else {
            format!("{}.{key}", self.arch)
        }
    }

    fn whole(&self, key: &str) -> Result<Option<u64>, ConfigError> {
        let key = self.key(key);
        let Some(value) = self.map.get(&key) else {
            return Ok(None);
        };
        let whole = match value {
            // One value for each layer: supported models have the same in all.
            Value::Array(values) => match values.first().map(Value::to_u64) {
                Some(Some(first)) if values.iter().all(|v| v.to_u64() == Some(first)) => {
                    Some(first)
                }
                _ => None,
            },
            other => other.to_u64(),
        };
        let limit = "a whole number of at least 0, the same for every layer";
        whole
            .map(Some)
            .ok_or_else(|| ConfigError::invalid(key, shown(value), limit))
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        Ok(self
            .whole(key)?
            .map(|v| usize::try_from(v).unwrap_or(usize::MAX)))
    }

    pub(super) fn required_size(&self, key: &str) -> Result<usize, ConfigError> {
        self.size(key)?
            .ok_or_else(|| ConfigError::Missing { key: self.key(key) })
    }

    fn id(&self, key: &str) -> Result<Option<u32>, ConfigError> {
        let Some(id) = self.whole(key)? else {
            return Ok(None);
        };
        let limit = || ConfigError::invalid(self.key(key), id, "a 32-bit token id");
        u32::try_from(id).map(Some).map_err(|_| limit())
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let key = self.key(key);
        match self.map.get(&key) {
            None => Ok(None),
            Some(Value::F32(v)) => Ok(Some(f64::from(*v))),
            Some(Value::F64(v)) => Ok(Some(*v)),
            Some(other) => match other.to_u64() {
                Some(v) => Ok(Some(v as f64)),
                None => Err(ConfigError::invalid(key, shown(other), "a number")),
            },
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        let key = self.key(key);
        match self.map.get(&key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(ConfigError::invalid(key, shown(other), "a string")),
        }
    }
}

pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Array(values) => format!("an array of {}", values.len()),
        other => format!("{other:?}").chars().take(80).collect(),
    }
}
