//! `quant_method: compressed-tensors`, as llm-compressor writes it: one format for all groups of
//! layers.

use serde_json::Value;

use super::super::config::ConfigError;
use super::super::json_fields::Fields;
use super::{
    Packed, Packing, QuantMethod, Quantization, Scaled, ScaledKind, four_bits, fp8, group_name,
    group_size, unsupported,
};

const FORMATS: &str = "pack-quantized (4-bit integers, activations in 16 bits), float-quantized \
                       (FP8), int-quantized (8-bit integers), nvfp4-pack-quantized";

pub(super) fn read(q: &Fields) -> Result<Quantization, ConfigError> {
    for key in ["sparsity_config", "transform_config"] {
        if let Some(object) = q.object(key)?
            && !object.map.is_empty()
            && object.text("format")? != Some("dense")
        {
            return Err(unsupported(&q.key(key), "set", "null"));
        }
    }
    let no_groups = || ConfigError::Missing {
        key: q.key("config_groups"),
    };
    let groups = q
        .object("config_groups")?
        .filter(|groups| !groups.map.is_empty())
        .ok_or_else(no_groups)?;
    let mut found: Option<Quantization> = None;
    for name in groups.map.keys() {
        let Some(group) = groups.object(name)? else {
            continue;
        };
        let read = group_of(q, &group)?;
        found = Some(match found {
            None => read,
            Some(others) => joined(&group, others, read)?,
        });
    }
    if q.object("kv_cache_scheme")?.is_some() {
        tracing::warn!(
            "kv_cache_scheme of config.json is not used: --kv-cache-dtype says how KV is stored"
        );
    }
    found.ok_or_else(no_groups)
}

fn group_of(q: &Fields, group: &Fields) -> Result<Quantization, ConfigError> {
    let holder = if group.text("format")?.is_some() {
        group
    } else {
        q
    };
    let format = holder.text("format")?.unwrap_or("pack-quantized");
    if group.object("output_activations")?.is_some() {
        let key = group.key("output_activations");
        return Err(unsupported(&key, "set", "null"));
    }
    let weights = group
        .object("weights")?
        .ok_or_else(|| ConfigError::Missing {
            key: group.key("weights"),
        })?;
    let scaled = |kind| {
        Quantization::Scaled(Scaled {
            method: QuantMethod::CompressedTensors,
            kind,
        })
    };
    match (format, weights.text("type")?.unwrap_or("int")) {
        ("pack-quantized", _) => {
            if group.object("input_activations")?.is_some() {
                let key = group.key("input_activations");
                return Err(unsupported(&key, "set", "null"));
            }
            words(&weights).map(Quantization::Packed)
        }
        // The older name of both.
        ("float-quantized", _) | ("naive-quantized", "float") => floats(&weights).map(scaled),
        ("nvfp4-pack-quantized", _) => fp4(&weights).map(scaled),
        ("int-quantized", _) | ("naive-quantized", "int") => integers(&weights).map(scaled),
        _ => Err(unsupported(&holder.key("format"), format, FORMATS)),
    }
}

/// Tensors say which of several groups has zero points.
fn joined(
    group: &Fields,
    others: Quantization,
    own: Quantization,
) -> Result<Quantization, ConfigError> {
    match (others, own) {
        (Quantization::Packed(others), Quantization::Packed(own)) => {
            if others.group_size != own.group_size {
                let key = group.key("weights.group_size");
                let limit = "the same in all of config_groups";
                let size = group_name(own.group_size);
                return Err(ConfigError::invalid(key, size, limit));
            }
            Ok(Quantization::Packed(Packed {
                act_order: own.act_order || others.act_order,
                has_zero_points: own.has_zero_points && others.has_zero_points,
                ..own
            }))
        }
        (Quantization::Scaled(others), Quantization::Scaled(own)) if others == own => {
            Ok(Quantization::Scaled(own))
        }
        _ => {
            let key = group.key("weights");
            let limit = "in the same format in all of config_groups";
            Err(ConfigError::invalid(key, "in another format", limit))
        }
    }
}

/// `pack-quantized`.
fn words(weights: &Fields) -> Result<Packed, ConfigError> {
    four_bits(weights, &["num_bits"])?;
    of_type(weights, "int")?;
    let group_size = match weights.text("strategy")? {
        Some("channel") => None,
        Some("group") | None => group_size(weights, &["group_size"])?,
        Some(other) => {
            let key = weights.key("strategy");
            return Err(unsupported(&key, other, "group, channel"));
        }
    };
    // `static` and `weight` keep the columns where they are.
    let act_order = match weights.map.get("actorder") {
        Some(Value::Bool(flag)) => *flag,
        Some(Value::String(name)) => matches!(name.as_str(), "group" | "dynamic"),
        _ => false,
    };
    Ok(Packed {
        method: QuantMethod::CompressedTensors,
        packing: Packing::PackQuantized,
        group_size,
        has_zero_points: !weights.flag("symmetric")?.unwrap_or(true),
        act_order: act_order && group_size.is_some(),
    })
}

/// `float-quantized`: E4M3.
fn floats(weights: &Fields) -> Result<ScaledKind, ConfigError> {
    eight_bits(weights)?;
    of_type(weights, "float")?;
    let block = match weights.text("strategy")? {
        Some("tensor" | "channel") | None => None,
        Some("block") => {
            let block = fp8::block(weights, "block_structure")?;
            Some(block.ok_or_else(|| ConfigError::Missing {
                key: weights.key("block_structure"),
            })?)
        }
        Some(other) => {
            let key = weights.key("strategy");
            return Err(unsupported(&key, other, "tensor, channel, block"));
        }
    };
    Ok(ScaledKind::Fp8 { block })
}

/// `int-quantized`.
fn integers(weights: &Fields) -> Result<ScaledKind, ConfigError> {
    eight_bits(weights)?;
    of_type(weights, "int")?;
    match weights.text("strategy")? {
        Some("tensor" | "channel") | None => Ok(ScaledKind::Int8),
        Some(other) => {
            let key = weights.key("strategy");
            Err(unsupported(&key, other, "tensor, channel"))
        }
    }
}

/// `nvfp4-pack-quantized`: E2M1.
fn fp4(weights: &Fields) -> Result<ScaledKind, ConfigError> {
    four_bits(weights, &["num_bits"])?;
    of_type(weights, "float")?;
    symmetric(weights)?;
    if let Some(group) = weights.size("group_size")?
        && group != 16
    {
        return Err(unsupported(&weights.key("group_size"), group, "16"));
    }
    match weights.text("strategy")? {
        Some("tensor_group") | None => Ok(ScaledKind::Nvfp4 { divides: true }),
        Some(other) => {
            let key = weights.key("strategy");
            Err(unsupported(&key, other, "tensor_group"))
        }
    }
}

/// Symmetric numbers of 8 bits.
fn eight_bits(weights: &Fields) -> Result<(), ConfigError> {
    if let Some(bits) = weights.size("num_bits")?
        && bits != 8
    {
        return Err(unsupported(&weights.key("num_bits"), bits, "8"));
    }
    symmetric(weights)
}

fn symmetric(weights: &Fields) -> Result<(), ConfigError> {
    match weights.flag("symmetric")? {
        Some(false) => Err(unsupported(&weights.key("symmetric"), "false", "true")),
        Some(true) | None => Ok(()),
    }
}

fn of_type(weights: &Fields, expected: &'static str) -> Result<(), ConfigError> {
    match weights.text("type")? {
        Some(kind) if kind != expected => Err(unsupported(&weights.key("type"), kind, expected)),
        _ => Ok(()),
    }
}
