//! `quant_method: fp8`: weights in E4M3, in blocks (Qwen3-32B-FP8, DeepSeek) or with one scale a
//! matrix (AutoFP8).

use serde_json::Value;

use super::super::config::ConfigError;
use super::super::json_fields::Fields;
use super::{QuantMethod, Scaled, ScaledKind, unsupported};

/// Every kernel reads 16 columns or more under one scale.
const COLUMN_STEP: u64 = 16;
const MAX_BLOCK: u64 = 1 << 20;

pub(super) fn read(q: &Fields) -> Result<Scaled, ConfigError> {
    if let Some(format) = q.text("fmt")?
        && format != "e4m3"
    {
        return Err(unsupported(&q.key("fmt"), format, "e4m3"));
    }
    if let Some(scheme) = q.text("activation_scheme")?
        && !matches!(scheme, "dynamic" | "static")
    {
        let key = q.key("activation_scheme");
        return Err(unsupported(&key, scheme, "dynamic, static"));
    }
    Ok(Scaled {
        method: QuantMethod::Fp8,
        kind: ScaledKind::Fp8 {
            block: block(q, "weight_block_size")?,
        },
    })
}

/// Rows and columns under one scale.
pub(super) fn block(q: &Fields, key: &str) -> Result<Option<[usize; 2]>, ConfigError> {
    let Some(value) = q.map.get(key).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let sizes = value.as_array().map(|sizes| sizes.iter());
    let sizes: Option<Vec<u64>> = sizes.and_then(|sizes| sizes.map(Value::as_u64).collect());
    match sizes.as_deref() {
        Some(&[rows @ 1..=MAX_BLOCK, columns @ 1..=MAX_BLOCK])
            if columns.is_multiple_of(COLUMN_STEP) =>
        {
            Ok(Some([rows as usize, columns as usize]))
        }
        _ => {
            let limit = "[rows, columns], each 1 to 1048576, and columns a multiple of 16";
            Err(ConfigError::invalid(q.key(key), value.to_string(), limit))
        }
    }
}
