//! Between the q/k/v projection and attention: per-head RMSNorm (Qwen3), rotary embedding, and
//! the write of keys and values into the paged cache. On the CPU these are three ops
//! (`rms_norm`, `rope`, `attention`); on the GPU a launch costs more than the work.

pub mod cuda;
