//! The experts of a mixture-of-experts model: how many, how a token's are chosen, which layers have them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::config::{ConfigError, ModelConfig, in_range, limit};
use super::json_fields::Fields;

/// Validated with the model's configuration: `n_active` is at most `n_experts`, and `dense_layers` are
/// ascending layers of the model.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Experts {
    /// Of every sparse layer.
    pub n_experts: usize,
    /// Chosen for a token in every sparse layer.
    pub n_active: usize,
    /// Width of one expert.
    pub intermediate: usize,
    /// Whether the weights of those chosen are divided by their sum.
    pub norm_topk_prob: bool,
    /// Layers that have one MLP of the model's `intermediate` instead.
    pub dense_layers: Vec<usize>,
}

impl Experts {
    /// Checks the sizes against the limits and against the model's.
    pub(super) fn check(&self, model: &ModelConfig) -> Result<(), ConfigError> {
        in_range("number of experts", self.n_experts, 1, limit::EXPERTS)?;
        in_range(
            "number of experts a token",
            self.n_active,
            1,
            self.n_experts,
        )?;
        in_range(
            "intermediate size of an expert",
            self.intermediate,
            1,
            limit::INTERMEDIATE,
        )?;
        let n_layers = model.n_layers;
        in_range(
            "number of layers x number of experts",
            n_layers * self.n_experts,
            1,
            limit::EXPERTS_OF_ALL_LAYERS,
        )?;
        in_range(
            "experts x their intermediate x hidden size",
            self.n_experts * self.intermediate * model.hidden,
            1,
            limit::MATRIX_ELEMENTS,
        )?;
        match self.dense_layers.iter().find(|layer| **layer >= n_layers) {
            None => Ok(()),
            Some(layer) => {
                let limit = format!("below the number of layers {n_layers}");
                Err(ConfigError::invalid("dense layer", layer, limit))
            }
        }
    }
}

/// Fields of other families' experts, with the values that change nothing.
const FOREIGN: [(&str, &[&str]); 6] = [
    ("shared_expert_intermediate_size", &["0"]),
    ("n_shared_experts", &["0"]),
    ("n_group", &["0", "1"]),
    ("first_k_dense_replace", &["0"]),
    ("routed_scaling_factor", &["1", "1.0"]),
    ("scoring_func", &["\"softmax\""]),
];

/// Reads the experts of a `Qwen3MoeForCausalLM`. A layer is dense if `mlp_only_layers` has it, or if
/// its number, counted from 1, is no multiple of `decoder_sparse_step`.
pub(super) fn read(fields: &Fields, n_layers: usize) -> Result<Experts, ConfigError> {
    for (key, neutral) in FOREIGN {
        if let Some(value) = fields.map.get(key)
            && !value.is_null()
            && !neutral.contains(&value.to_string().as_str())
        {
            return Err(ConfigError::Unsupported {
                key: fields.key(key),
                value: value.to_string().chars().take(80).collect(),
                supported: "experts as Qwen3-MoE has them",
            });
        }
    }
    let step = fields.size("decoder_sparse_step")?.unwrap_or(1);
    in_range("decoder_sparse_step", step, 1, limit::LAYERS)?;
    let mut dense_layers: BTreeSet<usize> = listed(fields, "mlp_only_layers", n_layers)?;
    if n_layers <= limit::LAYERS {
        dense_layers.extend((0..n_layers).filter(|i| !(i + 1).is_multiple_of(step)));
    }
    Ok(Experts {
        n_experts: n_experts(fields)?,
        n_active: fields.required_size("num_experts_per_tok")?,
        intermediate: fields.required_size("moe_intermediate_size")?,
        norm_topk_prob: fields.flag("norm_topk_prob")?.unwrap_or(false),
        dense_layers: dense_layers.into_iter().collect(),
    })
}

/// `num_experts`, or newer transformers' name of it.
fn n_experts(fields: &Fields) -> Result<usize, ConfigError> {
    let (key, newer) = ("num_experts", "num_local_experts");
    match (fields.size(key)?, fields.size(newer)?) {
        (Some(n), Some(other)) if n != other => {
            let limit = format!("the same as {key}, which is {n}");
            Err(ConfigError::invalid(fields.key(newer), other, limit))
        }
        (Some(n), _) | (None, Some(n)) => Ok(n),
        (None, None) => fields.required_size(key),
    }
}

/// A list of layers.
fn listed(fields: &Fields, key: &str, n_layers: usize) -> Result<BTreeSet<usize>, ConfigError> {
    let Some(value) = fields.map.get(key).filter(|value| !value.is_null()) else {
        return Ok(BTreeSet::new());
    };
    let layer = |value: &Value| {
        let layer = value.as_u64().and_then(|layer| usize::try_from(layer).ok());
        layer.filter(|layer| *layer < n_layers)
    };
    let layers = value
        .as_array()
        .and_then(|list| list.iter().map(layer).collect());
    layers.ok_or_else(|| {
        let shown: String = value.to_string().chars().take(80).collect();
        let limit = format!("a list of layers, each below the number of layers {n_layers}");
        ConfigError::invalid(fields.key(key), shown, limit)
    })
}
