//! Which layers of a model have full attention and which have a sliding window.

use serde_json::Value;

use super::config::ConfigError;
use super::json_fields::Fields;

/// transformers' default for a Qwen file with a window that does not name its first layer.
const DEFAULT_MAX_WINDOW_LAYERS: usize = 28;

/// transformers' default for a Mistral file without the key. Models without a window say `null`.
const DEFAULT_MISTRAL_WINDOW: usize = 4096;

/// The layers' attention, as far as it matters here: whether any layer has a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LayerTypes {
    pub has_window: bool,
    /// Tokens that a windowed layer sees; `None` if no layer has a window.
    window: Option<usize>,
}

impl LayerTypes {
    /// Reads `layer_types`, or without it `use_sliding_window` with `max_window_layers`, the number
    /// of leading layers with full attention.
    pub fn read(fields: &Fields, n_layers: usize) -> Result<Self, ConfigError> {
        let uses_window = fields.flag("use_sliding_window")?.unwrap_or(false);
        let window = fields.size("sliding_window")?.filter(|_| uses_window);
        let has_windowed_layer = match fields.map.get("layer_types") {
            None | Some(Value::Null) => {
                let first_windowed = fields.size("max_window_layers")?;
                first_windowed.unwrap_or(DEFAULT_MAX_WINDOW_LAYERS) < n_layers
            }
            Some(Value::Array(kinds)) => {
                if kinds.len() != n_layers {
                    let limit = format!("{n_layers}, one a layer");
                    return Err(ConfigError::invalid(
                        "the length of layer_types",
                        kinds.len(),
                        limit,
                    ));
                }
                let mut has_windowed_layer = false;
                for kind in kinds {
                    match kind.as_str() {
                        Some("full_attention") => {}
                        Some("sliding_attention") => has_windowed_layer = true,
                        _ => {
                            return Err(ConfigError::Unsupported {
                                key: "layer_types".into(),
                                value: kind.to_string().chars().take(80).collect(),
                                supported: "full_attention, sliding_attention",
                            });
                        }
                    }
                }
                has_windowed_layer
            }
            Some(_) => {
                let limit = "a list of full_attention and sliding_attention";
                return Err(ConfigError::invalid("layer_types", "no list", limit));
            }
        };
        let window = window.filter(|_| has_windowed_layer);
        Ok(Self {
            has_window: window.is_some(),
            window,
        })
    }

    /// Mistral's layers all have the window that `sliding_window` names.
    pub fn of_mistral(fields: &Fields) -> Result<Self, ConfigError> {
        let window = if fields.map.contains_key("sliding_window") {
            fields.size("sliding_window")?
        } else {
            Some(DEFAULT_MISTRAL_WINDOW)
        };
        Ok(Self {
            has_window: window.is_some(),
            window,
        })
    }

    /// Qwen3-MoE's layers all have the window of `sliding_window` if `use_sliding_window` says so.
    pub fn of_qwen3_moe(fields: &Fields) -> Result<Self, ConfigError> {
        let uses_window = fields.flag("use_sliding_window")?.unwrap_or(false);
        let window = fields.size("sliding_window")?.filter(|_| uses_window);
        Ok(Self {
            has_window: window.is_some(),
            window,
        })
    }

    /// Attention here is always full. Up to the window's size it equals windowed attention, so a
    /// model with a windowed layer is limited to that length.
    pub fn context(&self, context: usize) -> usize {
        match self.window {
            Some(window) if window < context => {
                tracing::warn!(
                    window,
                    context,
                    "context length limited to the sliding window of some layers"
                );
                window
            }
            _ => context,
        }
    }
}
