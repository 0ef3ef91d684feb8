//! Reads the `config.json` of an EAGLE-3 head, as SpecForge, AngelSlim and the authors write it.
//!
//! A head is one Llama layer over the target's states and the tokens that follow them. What would
//! change its arithmetic and is not computed is refused by name: a head that is read wrongly only
//! guesses worse, and no test of texts notices.

use std::path::Path;

use serde_json::Value;

use super::config::{ConfigError, Family, ModelConfig};
use super::config_json::{head_dim, read_json};
use super::json_fields::Fields;
use super::layer_types::LayerTypes;
use super::rope_json;

const ARCHITECTURES: [&str; 2] = ["LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM"];
/// States of the target that the head reads, from three places in its layers.
pub const N_STATES: usize = 3;

#[derive(Debug, Clone, PartialEq)]
pub struct EagleConfig {
    /// The head's one layer; `vocab` is the target's.
    pub layer: ModelConfig,
    /// Width of the target's states.
    pub target_hidden: usize,
    /// Rows of the head's lm_head.
    pub draft_vocab: usize,
    /// As the file has them; `None`: the usual places.
    layer_ids: Option<[usize; N_STATES]>,
}

/// Reads `config.json` of a folder.
///
/// # Errors
///
/// As [`parse`], or if the file cannot be read or is no JSON.
pub fn read_folder(dir: &Path) -> Result<EagleConfig, ConfigError> {
    parse(&read_json(&dir.join("config.json"))?)
}

/// Converts the parsed file to a validated configuration.
///
/// # Errors
///
/// [`ConfigError`] with the key: it is no EAGLE-3 head, has a part that is not computed, or a size is
/// missing or out of its range.
pub fn parse(config: &Value) -> Result<EagleConfig, ConfigError> {
    let fields = Fields::of(config, "")?;
    check_architecture(&config["architectures"])?;
    if let Some(activation) = fields.text("hidden_act")?
        && !matches!(activation, "silu" | "swish")
    {
        return Err(unsupported("hidden_act", activation, "silu"));
    }
    for key in [
        "attention_bias",
        "mlp_bias",
        "norm_before_residual",
        "norm_before_fc",
        "norm_output",
        "fc_norm",
    ] {
        if fields.flag(key)?.unwrap_or(false) {
            return Err(unsupported(key, "true", "false"));
        }
    }
    let n_layers = fields.size("num_hidden_layers")?.unwrap_or(1);
    if n_layers != 1 {
        return Err(unsupported("num_hidden_layers", &n_layers.to_string(), "1"));
    }
    let hidden = fields.required_size("hidden_size")?;
    let n_q_heads = fields.required_size("num_attention_heads")?;
    let head_dim = head_dim(&fields, hidden, n_q_heads)?;
    let layers = LayerTypes::read(&fields, n_layers)?;
    let max_positions = fields.required_size("max_position_embeddings")?;
    let (rope, context_length) = rope_json::read(&fields, max_positions, &layers)?;
    let vocab = fields.required_size("vocab_size")?;
    let layer = ModelConfig {
        family: Family::Llama,
        n_layers,
        hidden,
        intermediate: fields.required_size("intermediate_size")?,
        n_q_heads,
        n_kv_heads: fields.size("num_key_value_heads")?.unwrap_or(n_q_heads),
        head_dim,
        vocab,
        context_length,
        rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope,
        tied_embeddings: false,
        qkv_bias: false,
        o_bias: false,
        qk_norm: false,
        eos_token_ids: Vec::new(),
        bos_token_id: None,
        experts: None,
    };
    let draft_vocab = fields.size("draft_vocab_size")?.unwrap_or(vocab);
    if draft_vocab == 0 || draft_vocab > vocab {
        let limit = format!("from 1 to vocab_size, which is {vocab}");
        return Err(ConfigError::invalid("draft_vocab_size", draft_vocab, limit));
    }
    Ok(EagleConfig {
        layer: layer.validated()?,
        target_hidden: fields.size("target_hidden_size")?.unwrap_or(hidden),
        draft_vocab,
        layer_ids: layer_ids(&fields)?,
    })
}

fn check_architecture(names: &Value) -> Result<(), ConfigError> {
    let name = names.get(0).and_then(Value::as_str).unwrap_or_default();
    if ARCHITECTURES.contains(&name) {
        return Ok(());
    }
    Err(unsupported(
        "architectures",
        name,
        "LlamaForCausalLMEagle3, Eagle3LlamaForCausalLM",
    ))
}

/// In `eagle_config` or beside it.
fn layer_ids(fields: &Fields) -> Result<Option<[usize; N_STATES]>, ConfigError> {
    const KEY: &str = "eagle_aux_hidden_state_layer_ids";
    let nested = fields.object("eagle_config")?;
    let nested = nested.as_ref().map(|eagle| eagle.ids(KEY)).transpose()?;
    let ids = match nested.filter(|ids| !ids.is_empty()) {
        Some(ids) => ids,
        None => fields.ids(KEY)?,
    };
    if ids.is_empty() {
        return Ok(None);
    }
    let shown = format!("{ids:?}");
    let found: Result<[u32; N_STATES], _> = ids.try_into();
    match found {
        Ok(ids) if ids.is_sorted_by(|a, b| a < b) => Ok(Some(ids.map(|id| id as usize))),
        _ => Err(ConfigError::invalid(KEY, shown, "three layers, rising")),
    }
}

impl EagleConfig {
    /// The layers of the target (0, 1, …; `n_layers` is after the last) whose inputs the head reads.
    ///
    /// Without ids in the file these are 2, half of the layers, and 3 before the end. With ids, SpecForge
    /// names the layers whose *outputs* are read and begins with 1; others name inputs.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] if the target has too few layers.
    pub fn boundaries(&self, n_layers: usize) -> Result<[usize; N_STATES], ConfigError> {
        let found = match self.layer_ids {
            None => [2, n_layers / 2, n_layers.saturating_sub(3)],
            Some(ids) if ids[0] == 1 => ids.map(|id| id + 1),
            Some(ids) => ids,
        };
        if found.is_sorted_by(|a, b| a < b) && found[N_STATES - 1] <= n_layers {
            return Ok(found);
        }
        Err(ConfigError::invalid(
            "number of layers",
            n_layers,
            format!("enough for states before the layers {found:?}, which the head reads"),
        ))
    }
}

fn unsupported(key: &str, value: &str, supported: &'static str) -> ConfigError {
    ConfigError::Unsupported {
        key: key.to_owned(),
        value: value.to_owned(),
        supported,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(changes: Value) -> Value {
        let mut config = json!({
            "architectures": ["LlamaForCausalLMEagle3"],
            "hidden_size": 64, "intermediate_size": 112, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 1,
            "vocab_size": 320, "draft_vocab_size": 128, "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6, "rope_theta": 1_000_000, "hidden_act": "silu"
        });
        let Value::Object(changes) = changes else {
            panic!("an object");
        };
        for (key, value) in changes {
            config[key] = value;
        }
        config
    }

    #[test]
    fn a_published_head_is_read() {
        let head = parse(&config(json!({}))).unwrap();
        assert_eq!((head.target_hidden, head.draft_vocab), (64, 128));
        assert_eq!((head.layer.vocab, head.layer.head_dim), (320, 32));
        assert_eq!(head.boundaries(64).unwrap(), [2, 32, 61]);
        assert_eq!(head.boundaries(8).unwrap(), [2, 4, 5]);
        let narrow = json!({"target_hidden_size": 96, "draft_vocab_size": null});
        let head = parse(&config(narrow)).unwrap();
        assert_eq!((head.target_hidden, head.draft_vocab), (96, 320));
    }

    #[test]
    fn ids_name_outputs_if_the_first_is_1_and_inputs_otherwise() {
        for (ids, expected) in [([1, 3, 5], [2, 4, 6]), ([2, 4, 6], [2, 4, 6])] {
            for changes in [
                json!({"eagle_aux_hidden_state_layer_ids": ids}),
                json!({"eagle_config": {"eagle_aux_hidden_state_layer_ids": ids}}),
            ] {
                let head = parse(&config(changes)).unwrap();
                assert_eq!(head.boundaries(8).unwrap(), expected);
            }
        }
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (changes, key) in [
            (
                json!({"architectures": ["LlamaForCausalLM"]}),
                "architectures",
            ),
            (json!({"num_hidden_layers": 2}), "num_hidden_layers"),
            (
                json!({"norm_before_residual": true}),
                "norm_before_residual",
            ),
            (json!({"attention_bias": true}), "attention_bias"),
            (json!({"draft_vocab_size": 321}), "draft_vocab_size"),
            (
                json!({"eagle_aux_hidden_state_layer_ids": [1, 2]}),
                "eagle_aux",
            ),
            (
                json!({"eagle_aux_hidden_state_layer_ids": [3, 2, 5]}),
                "eagle_aux",
            ),
        ] {
            let error = parse(&config(changes)).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        let error = parse(&config(json!({})))
            .unwrap()
            .boundaries(4)
            .unwrap_err();
        assert!(
            error.to_string().contains("number of layers is 4"),
            "{error}"
        );
    }
}
