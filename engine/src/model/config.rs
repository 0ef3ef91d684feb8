//! The shapes and options of one decoder-only transformer: Qwen3, Qwen2/2.5 or Llama.
//!
//! All three are the same block (RMSNorm, GQA attention with RoPE, SwiGLU) and differ in
//! the switches below. Read from `config.json` or from GGUF metadata.

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    Qwen3,
    Qwen2,
    Llama,
}

/// Validated: every size is non-zero, `n_q_heads` is a multiple of `n_kv_heads`, sizes that
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
    /// Positions the model was made for.
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
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RopeConfig {
    pub theta: f32,
    pub scaling: RopeScaling,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum RopeScaling {
    None,
    Linear { factor: f32 },
    /// NTK-aware, grows with the sequence beyond `original` positions.
    Dynamic { factor: f32, original: usize },
    Llama3 { factor: f32, low_freq: f32, high_freq: f32, original: usize },
    Yarn { factor: f32, original: usize, beta_fast: f32, beta_slow: f32, attention_factor: f32 },
}
