//! The shapes and options of one decoder-only transformer: Qwen3, Qwen3-MoE, Qwen2/2.5 or Llama.
//!
//! All are the same block (RMSNorm, GQA attention with RoPE, SwiGLU) and differ in the switches below;
//! Qwen3-MoE has [`Experts`] in place of one MLP. Read from `config.json` ([`super::config_json`]) or from GGUF metadata.
//!
//! Every size passes [`ModelConfig::validated`] before anything is allocated for it: a checkpoint
//! is an untrusted file, and an absurd number in it must not exhaust the memory.

pub use kernels::rope::Scaling as RopeScaling;

use super::experts::Experts;
use crate::errors::Code;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    Qwen3,
    Qwen3Moe,
    Qwen2,
    Llama,
}

/// Validated: every size is non-zero, `n_q_heads` is a multiple of `n_kv_heads`, and sizes that
/// would overflow were refused.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ModelConfig {
    pub family: Family,
    pub n_layers: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub n_q_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    /// Number of positions that the model was trained for.
    pub context_length: usize,
    pub rms_norm_eps: f32,
    pub rope: RopeConfig,
    /// lm_head shares the embedding's weights.
    pub tied_embeddings: bool,
    /// Bias on q, k and v (Qwen2) and, rarely, on o (`attention_bias` of Llama).
    pub qkv_bias: bool,
    pub o_bias: bool,
    /// Per-head RMSNorm of q and k before RoPE (Qwen3).
    pub qk_norm: bool,
    pub eos_token_ids: Vec<u32>,
    pub bos_token_id: Option<u32>,
    /// `None`: every layer has one MLP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RopeConfig {
    pub theta: f32,
    pub scaling: RopeScaling,
}

/// Why a configuration was refused; names the key, the value and the limit.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{file}: {message}")]
    File { file: String, message: String },
    #[error("the model configuration has no {key}")]
    Missing { key: String },
    #[error("{key} is {value}; it must be {limit}")]
    Invalid {
        key: String,
        value: String,
        limit: String,
    },
    #[error("{key} is {value}, which is not supported; supported: {supported}")]
    Unsupported {
        key: String,
        value: String,
        supported: &'static str,
    },
}

impl ConfigError {
    pub fn code(&self) -> Code {
        match self {
            Self::Unsupported { key, .. } if key.ends_with("architecture") => {
                Code::UnsupportedArchitecture
            }
            Self::Unsupported { key, .. } if key == "architectures" => {
                Code::UnsupportedArchitecture
            }
            Self::Unsupported { key, .. }
                if key.contains("quant") || key.starts_with("compression_config") =>
            {
                Code::UnsupportedQuantization
            }
            _ => Code::ModelConfig,
        }
    }

    pub(crate) fn invalid(
        key: impl Into<String>,
        value: impl ToString,
        limit: impl Into<String>,
    ) -> Self {
        Self::Invalid {
            key: key.into(),
            value: value.to_string(),
            limit: limit.into(),
        }
    }
}

/// Upper bounds for values from a file: far above any published model, far below an overflow.
pub(super) mod limit {
    pub const LAYERS: usize = 1024;
    pub const HIDDEN: usize = 1 << 17;
    pub const INTERMEDIATE: usize = 1 << 20;
    pub const HEADS: usize = 4096;
    pub const HEAD_DIM: usize = 1024;
    pub const VOCAB: usize = 1 << 22;
    pub const CONTEXT: usize = 1 << 27;
    pub const MATRIX_ELEMENTS: usize = 1 << 36;
    pub const EOS_IDS: usize = 64;
    pub const EXPERTS: usize = 4096;
    pub const EXPERTS_OF_ALL_LAYERS: usize = 1 << 18;
}

impl ModelConfig {
    /// Width of all query heads together: `n_q_heads * head_dim`.
    pub fn q_width(&self) -> usize {
        self.n_q_heads * self.head_dim
    }

    /// Width of all key (or value) heads together: `n_kv_heads * head_dim`.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Elements of K and V that one token occupies in the cache, over all layers.
    pub fn kv_elements_per_token(&self) -> usize {
        2 * self.n_layers * self.kv_width()
    }

    /// The experts of this layer; `None`: it has one MLP.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        let experts = self.experts.as_ref();
        experts.filter(|experts| experts.dense_layers.binary_search(&layer).is_err())
    }

    /// Layers that have experts.
    pub fn n_sparse_layers(&self) -> usize {
        let experts = self.experts.as_ref();
        experts.map_or(0, |experts| self.n_layers - experts.dense_layers.len())
    }

    /// Checks every size against the limits and against the others.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] with the first size that is out of its range or does not fit
    /// another.
    pub fn validated(self) -> Result<Self, ConfigError> {
        in_range("number of layers", self.n_layers, 1, limit::LAYERS)?;
        in_range("hidden size", self.hidden, 1, limit::HIDDEN)?;
        in_range(
            "intermediate size",
            self.intermediate,
            1,
            limit::INTERMEDIATE,
        )?;
        in_range("number of attention heads", self.n_q_heads, 1, limit::HEADS)?;
        in_range(
            "number of key-value heads",
            self.n_kv_heads,
            1,
            self.n_q_heads,
        )?;
        in_range("head dimension", self.head_dim, 2, limit::HEAD_DIM)?;
        in_range("vocabulary size", self.vocab, 1, limit::VOCAB)?;
        in_range("context length", self.context_length, 1, limit::CONTEXT)?;
        in_range(
            "number of end-of-sequence ids",
            self.eos_token_ids.len(),
            0,
            limit::EOS_IDS,
        )?;
        if !self.n_q_heads.is_multiple_of(self.n_kv_heads) {
            return Err(ConfigError::invalid(
                "number of attention heads",
                self.n_q_heads,
                format!("a multiple of the {} key-value heads", self.n_kv_heads),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            let limit = "even, because RoPE rotates pairs";
            return Err(ConfigError::invalid("head dimension", self.head_dim, limit));
        }
        // No product overflows: each factor was bounded above.
        for (name, elements) in [
            ("vocabulary x hidden size", self.vocab * self.hidden),
            (
                "intermediate x hidden size",
                self.intermediate * self.hidden,
            ),
            ("query width x hidden size", self.q_width() * self.hidden),
        ] {
            in_range(name, elements, 1, limit::MATRIX_ELEMENTS)?;
        }
        let named = |key| move |&id| (key, id);
        let eos = self.eos_token_ids.iter().map(named("eos_token_id"));
        let bos = self.bos_token_id.iter().map(named("bos_token_id"));
        for (key, id) in eos.chain(bos) {
            if id as usize >= self.vocab {
                let limit = format!("below the vocabulary size {}", self.vocab);
                return Err(ConfigError::invalid(key, id, limit));
            }
        }
        finite("rms_norm_eps", self.rms_norm_eps, 0.0, 1.0)?;
        finite("rope theta", self.rope.theta, 1.0, 1e12)?;
        check_scaling(self.rope.scaling)?;
        if let Some(experts) = &self.experts {
            experts.check(&self)?;
        }
        Ok(self)
    }
}

fn check_scaling(scaling: RopeScaling) -> Result<(), ConfigError> {
    const FACTOR: &str = "rope scaling factor";
    const ORIGINAL: &str = "rope scaling's original context length";
    match scaling {
        RopeScaling::None => Ok(()),
        RopeScaling::Linear { factor } => finite(FACTOR, factor, 1e-3, 1e6),
        RopeScaling::Dynamic { factor, original } => {
            in_range(ORIGINAL, original, 1, limit::CONTEXT)?;
            finite(FACTOR, factor, 1.0, 1e6)
        }
        RopeScaling::Llama3 {
            factor,
            low_freq,
            high_freq,
            original,
        } => {
            in_range(ORIGINAL, original, 1, limit::CONTEXT)?;
            finite(FACTOR, factor, 1.0, 1e6)?;
            finite("low_freq_factor", low_freq, 1e-6, 1e6)?;
            finite("high_freq_factor", high_freq, 1e-6, 1e6)?;
            if high_freq > low_freq {
                return Ok(());
            }
            let limit = format!("above low_freq_factor {low_freq}");
            Err(ConfigError::invalid("high_freq_factor", high_freq, limit))
        }
        RopeScaling::Yarn {
            factor,
            original,
            beta_fast,
            beta_slow,
            attention_factor,
        } => {
            in_range(ORIGINAL, original, 1, limit::CONTEXT)?;
            finite(FACTOR, factor, 1.0, 1e6)?;
            finite("beta_fast", beta_fast, 1e-6, 1e6)?;
            finite("beta_slow", beta_slow, 1e-6, 1e6)?;
            finite("attention_factor", attention_factor, 1e-3, 1e3)
        }
    }
}

/// YaRN's factor on the scale of the attention logits (on cos and sin) if a file has none: `0.1
/// ln(factor) + 1` (Peng et al. 2023, section 3.4).
pub fn yarn_attention_factor(factor: f32) -> f32 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * factor.ln() + 1.0
    }
}

pub(super) fn in_range(key: &str, value: usize, min: usize, max: usize) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::invalid(key, value, format!("{min} to {max}")))
}

fn finite(key: &str, value: f32, min: f32, max: f32) -> Result<(), ConfigError> {
    // NaN is in no range.
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::invalid(key, value, format!("{min} to {max}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_supported_has_the_code_that_fits() {
        let unsupported = |key: &str| ConfigError::Unsupported {
            key: key.into(),
            value: "x".into(),
            supported: "y",
        };
        for (key, code) in [
            ("architectures", Code::UnsupportedArchitecture),
            ("general.architecture", Code::UnsupportedArchitecture),
            (
                "quantization_config.quant_method",
                Code::UnsupportedQuantization,
            ),
            ("quant_config.json: bits", Code::UnsupportedQuantization),
            ("compression_config.format", Code::UnsupportedQuantization),
            ("rope_scaling.rope_type", Code::ModelConfig),
        ] {
            assert_eq!(unsupported(key).code(), code, "{key}");
        }
    }
}
