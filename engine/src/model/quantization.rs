//! How a checkpoint's matrices are packed: a decision made from `config.json` alone, before a byte
//! of weights is fetched. Which matrices are packed is what the files hold: lists of exceptions
//! (`modules_to_not_convert`, `ignore`, `extra_config`) only say the same again, and fork from tool
//! to tool.
//!
//! Formats whose activations are to be rounded, too, are read for their weights: products use the
//! activations that the executor has, which are closer to the model than rounded ones.
//!
//! Deliberately absent: integers of 2 and 3 bits, and of 8 bits in groups. They are refused by name.

use std::fmt;

use serde_json::Value;

use super::config::ConfigError;
use super::json_fields::Fields;

mod compressed_tensors;
mod fp8;
mod modelopt;

/// What is read, for messages about what is not.
pub const SUPPORTED: &str = "awq, gptq, auto-round and compressed-tensors (pack-quantized) in 4 bits; \
                             fp8, compressed-tensors (float-quantized, int-quantized) and modelopt \
                             (FP8) in 8 bits; NVFP4 by compressed-tensors and modelopt (or the \
                             same model in 16 bits, or as GGUF)";

/// The method that a checkpoint names, in the spelling of `--quantization`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantMethod {
    Awq,
    Gptq,
    AutoRound,
    CompressedTensors,
    Fp8,
    ModelOpt,
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

/// What the configuration says about the matrices that are not in 16 or 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    Packed(Packed),
    Scaled(Scaled),
}

impl Quantization {
    pub const fn method(self) -> QuantMethod {
        match self {
            Self::Packed(packed) => packed.method,
            Self::Scaled(scaled) => scaled.method,
        }
    }

    /// Whether columns may lie in another order than inputs.
    pub const fn act_order(self) -> bool {
        matches!(
            self,
            Self::Packed(Packed {
                act_order: true,
                ..
            })
        )
    }
}

/// Numbers of 8 bits or fewer, row by row, each times a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scaled {
    pub method: QuantMethod,
    pub kind: ScaledKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaledKind {
    /// E4M3.
    Fp8 {
        /// Rows and columns under one scale; `None`: the scale of a row, or of the matrix.
        block: Option<[usize; 2]>,
    },
    /// Signed integers, with the scale of a row.
    Int8,
    /// E2M1 with E4M3 scales of 16 columns, and a scale of the matrix.
    Nvfp4 {
        /// The matrix's scale divides: compressed-tensors. modelopt's multiplies.
        divides: bool,
    },
}

/// 4-bit integers in words, in groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
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
            Self::Fp8 => "fp8",
            Self::ModelOpt => "modelopt",
        })
    }
}

/// The files beside `config.json` in which older versions of three tools describe a checkpoint.
pub const OLDER_FILES: [(&str, QuantMethod); 3] = [
    ("quant_config.json", QuantMethod::Awq),
    ("quantize_config.json", QuantMethod::Gptq),
    ("hf_quant_config.json", QuantMethod::ModelOpt),
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
            "awq" => awq(&object).map(Quantization::Packed),
            "gptq" => gptq(&object).map(Quantization::Packed),
            "auto-round" | "auto_round" | "intel/auto-round" => {
                auto_round(&object).map(Quantization::Packed)
            }
            "compressed-tensors" | "compressed_tensors" => compressed_tensors::read(&object),
            "fp8" => fp8::read(&object).map(Quantization::Scaled),
            "modelopt" | "modelopt_fp8" | "modelopt_fp4" => {
                modelopt::read(&object).map(Quantization::Scaled)
            }
            _ => Err(unsupported(&object.key("quant_method"), method, SUPPORTED)),
        }
        .map(Some);
    }
    Ok(None)
}

/// From one of [`OLDER_FILES`], which have no `quant_method`. `None`: its weights are not quantised.
pub(super) fn of_older_file(
    file: &str,
    method: QuantMethod,
    value: &Value,
) -> Result<Option<Quantization>, ConfigError> {
    let fields = Fields::of(value, &format!("{file}: "))?;
    Ok(match method {
        QuantMethod::ModelOpt => modelopt::read_file(&fields)?.map(Quantization::Scaled),
        QuantMethod::Gptq => Some(Quantization::Packed(gptq(&fields)?)),
        _ => Some(Quantization::Packed(awq(&fields)?)),
    })
}

fn awq(q: &Fields) -> Result<Packed, ConfigError> {
    four_bits(q, &["bits", "w_bit"])?;
    let version = q.text("version")?.unwrap_or("gemm");
    let packing = match version.to_ascii_lowercase().as_str() {
        "gemm" => Packing::AwqGemm,
        "gemv" => Packing::AwqGemv,
        _ => return Err(unsupported(&q.key("version"), version, "gemm, gemv")),
    };
    Ok(Packed {
        method: QuantMethod::Awq,
        packing,
        group_size: group_size(q, &["group_size", "q_group_size"])?,
        has_zero_points: q.flag("zero_point")?.unwrap_or(true),
        act_order: false,
    })
}

fn gptq(q: &Fields) -> Result<Packed, ConfigError> {
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
    Ok(Packed {
        method: QuantMethod::Gptq,
        packing: Packing::Gptq { zeros_minus_one },
        group_size,
        has_zero_points: true,
        act_order: act_order && !in_order,
    })
}

/// AutoRound's own exports, packed as one of the two others. Those in `llm_compressor` and in
/// AutoAWQ's and AutoGPTQ's formats say so in `quant_method`.
fn auto_round(q: &Fields) -> Result<Packed, ConfigError> {
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
    Ok(Packed {
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
