//! `quant_method: modelopt` (NVIDIA's Model Optimizer): NVFP4, or FP8 with a scale a matrix. Its first
//! versions wrote `hf_quant_config.json` alone.

use super::super::config::ConfigError;
use super::super::json_fields::Fields;
use super::{QuantMethod, Scaled, ScaledKind, unsupported};

const ALGORITHMS: &str = "NVFP4, FP8";
const NVFP4_GROUP: usize = 16;

/// From `quantization_config`.
pub(super) fn read(q: &Fields) -> Result<Scaled, ConfigError> {
    of_algorithm(q)?.ok_or_else(|| ConfigError::Missing {
        key: q.key("quant_algo"),
    })
}

/// From `hf_quant_config.json`; `None` if it is about the KV cache alone.
pub(super) fn read_file(file: &Fields) -> Result<Option<Scaled>, ConfigError> {
    match file.object("quantization")? {
        Some(q) => of_algorithm(&q),
        None => Err(ConfigError::Missing {
            key: file.key("quantization"),
        }),
    }
}

fn of_algorithm(q: &Fields) -> Result<Option<Scaled>, ConfigError> {
    let Some(algorithm) = q.text("quant_algo")? else {
        return Ok(None);
    };
    let kind = match algorithm {
        "NVFP4" => ScaledKind::Nvfp4 { divides: false },
        "FP8" => ScaledKind::Fp8 { block: None },
        _ => return Err(unsupported(&q.key("quant_algo"), algorithm, ALGORITHMS)),
    };
    if let Some(group) = q.size("group_size")?
        && kind == (ScaledKind::Nvfp4 { divides: false })
        && group != NVFP4_GROUP
    {
        return Err(unsupported(&q.key("group_size"), group, "16"));
    }
    if q.text("kv_cache_quant_algo")?.is_some() {
        tracing::warn!("kv_cache_quant_algo is not used: --kv-cache-dtype says how KV is stored");
    }
    Ok(Some(Scaled {
        method: QuantMethod::ModelOpt,
        kind,
    }))
}
