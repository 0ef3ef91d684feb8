//! How a checkpoint's matrices are packed: a decision made from `config.json` alone, before a byte
//! of weights is fetched. Which matrices are packed is what the files hold: lists of exceptions
//! (`modules_to_not_convert`, `ignore`, `extra_config`) only say the same again, and fork from tool
//! to tool.
//!
//! Deliberately absent: 2, 3 and 8 bits, and formats whose activations are rounded, too. They are
//! refused by name.

use std::fmt;

use serde_json::Value;

use super::config::ConfigError;
use super::json_fields::Fields;

/// What is read, for messages about what is not.
pub const SUPPORTED: &str = "awq, gptq, auto-round and compressed-tensors (pack-quantized), each in \
                             4 bits (or the same model in 16 bits, or as GGUF)";

/// The method that a checkpoint names, in the spelling of `--quantization`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantMethod {
    Awq,
    Gptq,
    AutoRound,
    CompressedTensors,
}

/// How 4-bit matrices lie in the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Words along the outputs, their nibbles in AutoAWQ's order.
    AwqGemm,
    /// Words along the inputs of a row.
    AwqGemv,
    /// Words along the inputs of a column, zero points along the outputs.
    Gptq {
        /// Zero points are stored minus one: all but `checkpoint_format: gptq_v2`.
        zeros_minus_one: bool,
    },
    /// compressed-tensors: words along the inputs of a row, everything plus 8.
    PackQuantized,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantization {
    pub method: QuantMethod,
    pub packing: Packing,
    /// Input columns that share a scale; `None` (-1, or by channel) is one group for each row.
    pub group_size: Option<usize>,
    /// False where all weights are symmetric, whose zero points may be left out of the files.
    pub has_zero_points: bool,
    /// The columns of a group may lie anywhere (`desc_act`, `actorder: group`).
    pub act_order: bool,
}

impl fmt::Display for QuantMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Awq => "awq",
            Self::Gptq => "gptq",
            Self::AutoRound => "auto-round",
            Self::CompressedTensors => "compressed-tensors",
        })
    }
}

/// The files beside `config.json` in which older versions of two tools describe a checkpoint.
pub const OLDER_FILES: [(&str, QuantMethod); 2] = [
    ("quant_config.json", QuantMethod::Awq),
    ("quantize_config.json", QuantMethod::Gptq),
];

/// From `quantization_config` or `compression_config` of `config.json`.
///
/// # Errors
///
/// If the format is not supported, naming the key, its value and what is.
pub(super) fn of_config(fields: &Fields) -> Result<Option<Quantization>, ConfigError> {
    for (key, default) in [
        ("quantization_config", None),
        // The older name of the same object.
        ("compression_config", Some("compressed-tensors")),
    ] {
        let object = fields.object(key)?.filter(|object| !object.map.is_empty());
        let Some(object) = object else { continue };
        let Some(method) = object.text("quant_method")?.or(default) else {
            return Err(ConfigError::Missing {
                key: object.key("quant_method"),
            });
        };
        return match method.to_ascii_lowercase().as_str() {
            "awq" => awq(&object),
            "gptq" => gptq(&object),
            "auto-round" | "auto_round" | "intel/auto-round" => auto_round(&object),
            "compressed-tensors" | "compressed_tensors" => compressed_tensors(&object),
            _ => Err(unsupported(&object.key("quant_method"), method, SUPPORTED)),
        }
        .map(Some);
    }
    Ok(None)
}

/// From one of [`OLDER_FILES`], which have no `quant_method`.
pub(super) fn of_older_file(
    file: &str,
    method: QuantMethod,
    value: &Value,
) -> Result<Quantization, ConfigError> {
    let fields = Fields::of(value, &format!("{file}: "))?;
    match method {
        QuantMethod::Gptq => gptq(&fields),
        _ => awq(&fields),
    }
}

fn awq(q: &Fields) -> Result<Quantization, ConfigError> {
    four_bits(q, &["bits", "w_bit"])?;
    let version = q.text("version")?.unwrap_or("gemm");
    let packing = match version.to_ascii_lowercase().as_str() {
        "gemm" => Packing::AwqGemm,
        "gemv" => Packing::AwqGemv,
        _ => return Err(unsupported(&q.key("version"), version, "gemm, gemv")),
    };
    Ok(Quantization {
        method: QuantMethod::Awq,
        packing,
        group_size: group_size(q, &["group_size", "q_group_size"])?,
        has_zero_points: q.flag("zero_point")?.unwrap_or(true),
        act_order: false,
    })
}

fn gptq(q: &Fields) -> Result<Quantization, ConfigError> {
    four_bits(q, &["bits"])?;
    if q.flag("is_marlin_format")? == Some(true) {
        return Err(unsupported(&q.key("is_marlin_format"), "true", "false"));
    }
    // GPTQModel calls it `format`.
    let key = if q.map.contains_key("checkpoint_format") {
        "checkpoint_format"
    } else {
        "format"
    };
    let zeros_minus_one = match q.text(key)?.unwrap_or("gptq") {
        "gptq" => true,
        "gptq_v2" => false,
        other => return Err(unsupported(&q.key(key), other, "gptq, gptq_v2")),
    };
    if let Some(word) = q.text("pack_dtype")?
        && word != "int32"
    {
        return Err(unsupported(&q.key("pack_dtype"), word, "int32"));
    }
    let group_size = group_size(q, &["group_size"])?;
    let mut act_order = q.flag("desc_act")?.unwrap_or(false);
    if let Some(modules) = q.object("dynamic")? {
        for (pattern, settings) in modules.map {
            // A module that is left in 16 bits.
            if pattern.starts_with("-:") {
                continue;
            }
            let settings = Fields::of(settings, &modules.key(&format!("{pattern}.")))?;
            same_as_the_rest(&settings, group_size)?;
            act_order |= settings.flag("desc_act")?.unwrap_or(false);
        }
    }
    // Static groups lie in the order of the columns, and one group has no order.
    let in_order = q.flag("static_groups")?.unwrap_or(false) || group_size.is_none();
    Ok(Quantization {
        method: QuantMethod::Gptq,
        packing: Packing::Gptq { zeros_minus_one },
        group_size,
        has_zero_points: true,
        act_order: act_order && !in_order,
    })
}

/// AutoRound's own exports, packed as one of the two others. Those in `llm_compressor` and in
/// AutoAWQ's and AutoGPTQ's formats say so in `quant_method`.
fn auto_round(q: &Fields) -> Result<Quantization, ConfigError> {
    const PACKINGS: &str = "auto_round:auto_gptq, auto_round:auto_awq";
    four_bits(q, &["bits"])?;
    integers_alone(q)?;
    // The first versions called it `backend`, and the kernel's name followed.
    let key = if q.map.contains_key("packing_format") {
        "packing_format"
    } else {
        "backend"
    };
    let named = q.text(key)?.unwrap_or("auto_round:auto_gptq");
    let packing = match named.to_ascii_lowercase() {
        name if name.contains("awq") => Packing::AwqGemm,
        name if name.contains("gptq") => Packing::Gptq {
            zeros_minus_one: true,
        },
        _ => return Err(unsupported(&q.key(key), named, PACKINGS)),
    };
    let group_size = group_size(q, &["group_size"])?;
    if let Some(modules) = q.object("extra_config")? {
        for (module, settings) in modules.map {
            let settings = Fields::of(settings, &modules.key(&format!("{module}.")))?;
            // 16 bits: a plain `weight`.
            if settings.size("bits")?.is_some_and(|bits| bits >= 16) {
                continue;
            }
            integers_alone(&settings)?;
            same_as_the_rest(&settings, group_size)?;
        }
    }
    Ok(Quantization {
        method: QuantMethod::AutoRound,
        packing,
        group_size,
        has_zero_points: true,
        act_order: false,
    })
}

/// AutoRound's weights are integers, and its activations not rounded.
fn integers_alone(q: &Fields) -> Result<(), ConfigError> {
    if let Some(kind) = q.text("data_type")?
        && kind != "int"
    {
        return Err(unsupported(&q.key("data_type"), kind, "int"));
    }
    match q.size("act_bits")? {
        Some(bits) if bits < 16 => Err(unsupported(&q.key("act_bits"), bits, "16")),
        _ => Ok(()),
    }
}

fn compressed_tensors(q: &Fields) -> Result<Quantization, ConfigError> {
    const FORMAT: &str = "pack-quantized (4-bit integers, activations in 16 bits)";
    for key in ["sparsity_config", "transform_config"] {
        if let Some(object) = q.object(key)?
            && !object.map.is_empty()
            && object.text("format")? != Some("dense")
        {
            return Err(unsupported(&q.key(key), "set", "null"));
        }
    }
    let groups = q
        .object("config_groups")?
        .filter(|groups| !groups.map.is_empty())
        .ok_or_else(|| ConfigError::Missing {
            key: q.key("config_groups"),
        })?;
    let format = q.text("format")?;
    let mut found: Option<Quantization> = None;
    for name in groups.map.keys() {
        let Some(group) = groups.object(name)? else {
            continue;
        };
        let (holder, format) = match group.text("format")? {
            Some(format) => (&group, Some(format)),
            None => (q, format),
        };
        if let Some(format) = format
            && format != "pack-quantized"
        {
            return Err(unsupported(&holder.key("format"), format, FORMAT));
        }
        for key in ["input_activations", "output_activations"] {
            if group.object(key)?.is_some() {
                return Err(unsupported(&group.key(key), "set", "null"));
            }
        }
        let weights = group
            .object("weights")?
            .ok_or_else(|| ConfigError::Missing {
                key: group.key("weights"),
            })?;
        let group = scheme(&weights)?;
        if let Some(other) = found
            && other.group_size != group.group_size
        {
            let limit = "the same in all of config_groups";
            let size = group_name(group.group_size);
            return Err(ConfigError::invalid(weights.key("group_size"), size, limit));
        }
        // Tensors say which of several groups has zero points.
        found = Some(Quantization {
            act_order: group.act_order || found.is_some_and(|other| other.act_order),
            has_zero_points: group.has_zero_points && found.is_none_or(|g| g.has_zero_points),
            ..group
        });
    }
    if q.object("kv_cache_scheme")?.is_some() {
        tracing::warn!(
            "kv_cache_scheme of config.json is not used: --kv-cache-dtype says how KV is stored"
        );
    }
    found.ok_or_else(|| ConfigError::Missing {
        key: q.key("config_groups"),
    })
}

/// The weights of one group of compressed-tensors.
fn scheme(weights: &Fields) -> Result<Quantization, ConfigError> {
    four_bits(weights, &["num_bits"])?;
    if let Some(kind) = weights.text("type")?
        && kind != "int"
    {
        return Err(unsupported(&weights.key("type"), kind, "int"));
    }
    let group_size = match weights.text("strategy")? {
        Some("channel") => None,
        Some("group") | None => group_size(weights, &["group_size"])?,
        Some(other) => {
            return Err(unsupported(
                &weights.key("strategy"),
                other,
                "group, channel",
            ));
        }
    };
    // `static` and `weight` keep the columns where they are.
    let act_order = match weights.map.get("actorder") {
        Some(Value::Bool(flag)) => *flag,
        Some(Value::String(name)) => matches!(name.as_str(), "group" | "dynamic"),
        _ => false,
    };
    Ok(Quantization {
        method: QuantMethod::CompressedTensors,
        packing: Packing::PackQuantized,
        group_size,
        has_zero_points: !weights.flag("symmetric")?.unwrap_or(true),
        act_order: act_order && group_size.is_some(),
    })
}

/// Refuses settings of single modules that differ from the checkpoint's own.
fn same_as_the_rest(settings: &Fields, of_all: Option<usize>) -> Result<(), ConfigError> {
    four_bits(settings, &["bits"])?;
    if !settings.map.contains_key("group_size") {
        return Ok(());
    }
    let own = group_size(settings, &["group_size"])?;
    if own == of_all {
        return Ok(());
    }
    let limit = format!("{} as everywhere else", group_name(of_all));
    Err(ConfigError::invalid(
        settings.key("group_size"),
        group_name(own),
        limit,
    ))
}

/// As it stands in configurations.
fn group_name(size: Option<usize>) -> String {
    size.map_or_else(|| "-1".to_owned(), |size| size.to_string())
}

/// The first of `keys` that is there says 4.
fn four_bits(q: &Fields, keys: &[&str]) -> Result<(), ConfigError> {
    for key in keys {
        if let Some(bits) = q.size(key)? {
            return match bits {
                4 => Ok(()),
                _ => Err(unsupported(&q.key(key), bits, "4")),
            };
        }
    }
    Ok(())
}

/// Every kernel reads 32 columns or more under one scale.
const GROUP_STEP: i64 = 32;

fn group_size(q: &Fields, keys: &[&str]) -> Result<Option<usize>, ConfigError> {
    let is_there = |key: &&&str| q.map.get(**key).is_some_and(|value| !value.is_null());
    let Some(key) = keys.iter().find(is_there) else {
        return Err(ConfigError::Missing {
            key: q.key(keys.first().copied().unwrap_or_default()),
        });
    };
    match q.map.get(*key).and_then(Value::as_i64) {
        Some(-1) => Ok(None),
        Some(group @ GROUP_STEP..=1_048_576) if group % GROUP_STEP == 0 => Ok(Some(group as usize)),
        _ => {
            let value = q.map.get(*key).map(Value::to_string).unwrap_or_default();
            let limit = "-1, or a multiple of 32 up to 1048576";
            Err(ConfigError::invalid(q.key(key), value, limit))
        }
    }
}

fn unsupported(key: &str, value: impl ToString, supported: &'static str) -> ConfigError {
    ConfigError::Unsupported {
        key: key.into(),
        value: value.to_string(),
        supported,
    }
}

#[cfg(test)]
#[path = "quantization_tests.rs"]
mod tests;
