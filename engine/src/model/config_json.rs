//! Reads `config.json` (and `generation_config.json`) as Hugging Face writes them. [`rope_json`]
//! reads the RoPE part, [`quantization`] what is said about packed matrices, there or in the files
//! of older tools.
//!
//! Deliberately absent: options that would change the arithmetic in ways that no executor supports
//! (other activations, MLP biases, multimodal RoPE). They are refused, never ignored.

use std::path::Path;

use serde_json::Value;

use super::config::{ConfigError, Family, ModelConfig};
use super::experts;
use super::json_fields::Fields;
use super::layer_types::LayerTypes;
use super::quantization::{self, Quantization};
use super::rope_json;

/// A folder's configuration: the model's, and the quantisation of its matrices.
#[derive(Debug, Clone, PartialEq)]
pub struct FolderConfig {
    pub model: ModelConfig,
    pub quantization: Option<Quantization>,
}

/// A configuration has a few kilobytes; a file of this size is something else.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Reads `config.json` of a folder and, if they exist, `generation_config.json` and
/// [`quantization::OLDER_FILES`].
///
/// # Errors
///
/// If a file cannot be read or is no JSON, and as [`parse`].
pub fn read_folder(dir: &Path) -> Result<FolderConfig, ConfigError> {
    let optional = |name: &str| {
        let path = dir.join(name);
        path.exists().then(|| read_json(&path)).transpose()
    };
    let config = read_json(&dir.join("config.json"))?;
    let generation = optional("generation_config.json")?;
    let mut read = parse(&config, generation.as_ref())?;
    for (file, method) in quantization::OLDER_FILES {
        if read.quantization.is_none()
            && let Some(older) = optional(file)?
        {
            read.quantization = quantization::of_older_file(file, method, &older)?;
        }
    }
    Ok(read)
}

pub(crate) fn read_json(path: &Path) -> Result<Value, ConfigError> {
    let fail = |message: String| ConfigError::File {
        file: path.display().to_string(),
        message,
    };
    let n_bytes = std::fs::metadata(path)
        .map_err(|e| fail(e.to_string()))?
        .len();
    if n_bytes > MAX_CONFIG_BYTES {
        return Err(fail(format!(
            "has {n_bytes} bytes; at most {MAX_CONFIG_BYTES} are read"
        )));
    }
    let text = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    // Some editors begin a file with a byte order mark.
    let json = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&text);
    serde_json::from_slice(json).map_err(|e| fail(format!("is not valid JSON: {e}")))
}

/// Converts the parsed files to a validated configuration.
///
/// # Errors
///
/// [`ConfigError::Missing`], [`ConfigError::Invalid`] or [`ConfigError::Unsupported`] with the
/// key: the model is of another family, or a required size is missing, out of its range or does
/// not fit another.
pub fn parse(config: &Value, generation: Option<&Value>) -> Result<FolderConfig, ConfigError> {
    let fields = Fields::of(config, "")?;
    let family = family(&fields)?;
    if let Some(activation) = fields.text("hidden_act")?
        // Another name of the same function.
        && !matches!(activation, "silu" | "swish")
    {
        return Err(unsupported("hidden_act", activation, "silu"));
    }
    if fields.flag("mlp_bias")?.unwrap_or(false) {
        return Err(unsupported("mlp_bias", "true", "false"));
    }

    let hidden = fields.required_size("hidden_size")?;
    let n_q_heads = fields.required_size("num_attention_heads")?;
    let head_dim = head_dim(&fields, hidden, n_q_heads)?;
    let max_positions = fields.required_size("max_position_embeddings")?;
    let n_layers = fields.required_size("num_hidden_layers")?;
    let layers = if is_mistral(&fields)? {
        LayerTypes::of_mistral(&fields)?
    } else if family == Family::Qwen3Moe && !config["layer_types"].is_array() {
        LayerTypes::of_qwen3_moe(&fields)?
    } else {
        LayerTypes::read(&fields, n_layers)?
    };
    let (rope, scaled_context) = rope_json::read(&fields, max_positions, &layers)?;
    let vocab = fields.required_size("vocab_size")?;
    let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
    let (qkv_bias, o_bias) = match family {
        Family::Qwen2 => (true, false),
        Family::Qwen3 | Family::Qwen3Moe | Family::Llama => (attention_bias, attention_bias),
    };
    let is_moe = family == Family::Qwen3Moe;
    let experts = is_moe.then(|| experts::read(&fields, n_layers));

    let model = ModelConfig {
        family,
        n_layers,
        hidden,
        intermediate: fields.required_size("intermediate_size")?,
        n_q_heads,
        n_kv_heads: fields.size("num_key_value_heads")?.unwrap_or(n_q_heads),
        head_dim,
        vocab,
        context_length: layers.context(scaled_context),
        rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope,
        tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias,
        o_bias,
        qk_norm: matches!(family, Family::Qwen3 | Family::Qwen3Moe),
        eos_token_ids: eos_ids(&fields, generation)?,
        bos_token_id: bos_id(&fields, vocab)?,
        experts: experts.transpose()?,
    };
    Ok(FolderConfig {
        model: model.validated()?,
        quantization: quantization::of_config(&fields)?,
    })
}

/// `head_dim`, or an equal share of the hidden size.
pub(super) fn head_dim(
    fields: &Fields,
    hidden: usize,
    n_q_heads: usize,
) -> Result<usize, ConfigError> {
    match fields.size("head_dim")? {
        Some(head_dim) => Ok(head_dim),
        None if n_q_heads > 0 && hidden.is_multiple_of(n_q_heads) => Ok(hidden / n_q_heads),
        None => {
            let limit = format!("a multiple of the {n_q_heads} attention heads");
            Err(ConfigError::invalid("hidden_size", hidden, limit))
        }
    }
}

fn architecture<'a>(fields: &Fields<'a>) -> Result<&'a str, ConfigError> {
    Ok(match fields.map.get("architectures") {
        Some(Value::Array(names)) => names.first().and_then(Value::as_str).unwrap_or_default(),
        // Some re-quantised checkpoints only have the model type.
        _ => fields.text("model_type")?.unwrap_or_default(),
    })
}

fn is_mistral(fields: &Fields) -> Result<bool, ConfigError> {
    let named = architecture(fields)?;
    Ok(matches!(named, "MistralForCausalLM" | "mistral"))
}

fn family(fields: &Fields) -> Result<Family, ConfigError> {
    const SUPPORTED: &str = "Qwen3ForCausalLM, Qwen3MoeForCausalLM, Qwen2ForCausalLM, \
                             LlamaForCausalLM, MistralForCausalLM";
    match architecture(fields)? {
        "Qwen3ForCausalLM" | "qwen3" => Ok(Family::Qwen3),
        "Qwen3MoeForCausalLM" | "qwen3_moe" => Ok(Family::Qwen3Moe),
        "Qwen2ForCausalLM" | "qwen2" => Ok(Family::Qwen2),
        // Mistral is Llama with a head size of its own and, in some models, a window.
        "LlamaForCausalLM" | "llama" | "MistralForCausalLM" | "mistral" => Ok(Family::Llama),
        "" => Err(ConfigError::Missing {
            key: "architectures".into(),
        }),
        other => Err(unsupported("architectures", other, SUPPORTED)),
    }
}

/// A pruned vocabulary often keeps the old id in this file; the tokenizer has its own.
fn bos_id(fields: &Fields, vocab: usize) -> Result<Option<u32>, ConfigError> {
    let id = fields.ids("bos_token_id")?.first().copied();
    if let Some(id) = id
        && id as usize >= vocab
    {
        tracing::warn!(
            bos_token_id = id,
            vocab_size = vocab,
            "bos_token_id of config.json is outside the vocabulary and is not used"
        );
        return Ok(None);
    }
    Ok(id)
}

/// Ids from both files: `generation_config.json` often has the chat model's additional one.
fn eos_ids(fields: &Fields, generation: Option<&Value>) -> Result<Vec<u32>, ConfigError> {
    let mut ids = match generation {
        Some(generation) => Fields::of(generation, "generation_config.")?.ids("eos_token_id")?,
        None => Vec::new(),
    };
    for id in fields.ids("eos_token_id")? {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn unsupported(key: &str, value: impl ToString, supported: &'static str) -> ConfigError {
    ConfigError::Unsupported {
        key: key.into(),
        value: value.to_string(),
        supported,
    }
}

#[cfg(test)]
#[path = "config_json_tests.rs"]
mod tests;
