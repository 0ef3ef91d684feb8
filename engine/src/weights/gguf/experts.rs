//! The experts of `qwen3moe`: every layer has them, and the weights of those chosen are always divided by
//! their sum, as llama.cpp computes it.

use super::config::{Metadata, shown};
use super::value::Value;
use crate::model::config::ConfigError;
use crate::model::experts::Experts;

/// Keys of other architectures' experts, with the numbers that change nothing.
const FOREIGN: [(&str, &[f64]); 6] = [
    ("expert_shared_count", &[0.0]),
    ("expert_shared_feed_forward_length", &[0.0]),
    ("expert_group_count", &[0.0, 1.0]),
    ("leading_dense_block_count", &[0.0]),
    ("expert_weights_scale", &[0.0, 1.0]),
    // Softmax, or not said.
    ("expert_gating_func", &[0.0, 1.0]),
];

pub(super) fn read(m: &Metadata<'_>) -> Result<Experts, ConfigError> {
    for (key, neutral) in FOREIGN {
        if let Some(number) = m.number(key)?
            && !neutral.contains(&number)
        {
            return Err(unsupported(m.key(key), number.to_string()));
        }
    }
    let norm = m.key("expert_weights_norm");
    match m.map.get(&norm) {
        None | Some(Value::Bool(true)) => {}
        Some(other) => return Err(unsupported(norm, shown(other))),
    }
    Ok(Experts {
        n_experts: m.required_size("expert_count")?,
        n_active: m.required_size("expert_used_count")?,
        intermediate: m.required_size("expert_feed_forward_length")?,
        norm_topk_prob: true,
        dense_layers: Vec::new(),
    })
}

fn unsupported(key: String, value: String) -> ConfigError {
    ConfigError::Unsupported {
        key,
        value,
        supported: "experts as Qwen3-MoE has them",
    }
}
