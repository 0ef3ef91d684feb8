//! The weights of an EAGLE-3 head: a folder of safetensors with one layer, `fc`, `lm_head` and the
//! table from the head's vocabulary to the target's.

use std::borrow::Cow;
use std::path::Path;

use safetensors::Dtype;

use super::safetensors::TensorFiles;
use super::{Matrix, WeightError, decode};
use crate::model::config::ConfigError;
use crate::model::eagle_json::{self, EagleConfig, N_STATES};

/// Tensors outside the layer. `t2d` says which tokens have a row, which `d2t` says, too.
const OUTER: [&str; 6] = [
    "fc.weight",
    "norm.weight",
    "lm_head.weight",
    "embed_tokens.weight",
    "d2t",
    "t2d",
];
/// Names of the one layer: the authors', and SGLang's.
const LAYERS: [&str; 2] = ["midlayer.", "layers.0."];

/// A matrix of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadMatrix {
    /// From the target's three states to the head's width.
    Fc,
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
    LmHead,
    /// The head's own; without one, it reads the target's.
    Embedding,
}

/// A norm of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadNorm {
    /// Of the token's embedding.
    Input,
    /// Of the state.
    Hidden,
    PostAttention,
    Final,
}

/// An opened head.
pub struct EagleHead {
    pub config: EagleConfig,
    files: TensorFiles,
    layer: &'static str,
}

impl EagleHead {
    /// Opens a head's folder.
    ///
    /// # Errors
    ///
    /// [`WeightError`] with the file, key or tensor: the configuration is not one of a head that can
    /// be computed, a file cannot be read, or it holds a tensor that no head has.
    pub fn open(dir: &Path) -> Result<Self, WeightError> {
        let config = eagle_json::read_folder(dir)?;
        let files = TensorFiles::open(dir)?;
        let layer = LAYERS
            .into_iter()
            .find(|layer| files.has(&format!("{layer}hidden_norm.weight")))
            .unwrap_or(LAYERS[0]);
        let head = Self {
            config,
            files,
            layer,
        };
        let known = |name: &str| OUTER.contains(&name) || head.is_of_layer(name);
        if let Some(name) = head.files.names().find(|name| !known(name)) {
            return Err(WeightError::Config(ConfigError::Unsupported {
                key: format!("tensor {name}"),
                value: "in the head's file".to_owned(),
                supported: "the tensors of an EAGLE-3 head with one layer",
            }));
        }
        Ok(head)
    }

    fn is_of_layer(&self, name: &str) -> bool {
        use HeadMatrix::{Down, Gate, K, O, Q, Up, V};
        use HeadNorm::{Hidden, Input, PostAttention};
        let matrices = [Q, K, V, O, Gate, Up, Down].map(|id| self.name(id));
        let norms = [Input, Hidden, PostAttention].map(|id| self.norm_name(id));
        matrices.iter().chain(&norms).any(|known| known == name)
    }

    pub fn has_embedding(&self) -> bool {
        self.files.has("embed_tokens.weight")
    }

    fn name(&self, id: HeadMatrix) -> String {
        let part = match id {
            HeadMatrix::Fc => return "fc.weight".to_owned(),
            HeadMatrix::LmHead => return "lm_head.weight".to_owned(),
            HeadMatrix::Embedding => return "embed_tokens.weight".to_owned(),
            HeadMatrix::Q => "self_attn.q_proj",
            HeadMatrix::K => "self_attn.k_proj",
            HeadMatrix::V => "self_attn.v_proj",
            HeadMatrix::O => "self_attn.o_proj",
            HeadMatrix::Gate => "mlp.gate_proj",
            HeadMatrix::Up => "mlp.up_proj",
            HeadMatrix::Down => "mlp.down_proj",
        };
        format!("{}{part}.weight", self.layer)
    }

    fn norm_name(&self, id: HeadNorm) -> String {
        let part = match id {
            HeadNorm::Final => return "norm.weight".to_owned(),
            HeadNorm::Input => "input_layernorm",
            HeadNorm::Hidden => "hidden_norm",
            HeadNorm::PostAttention => "post_attention_layernorm",
        };
        format!("{}{part}.weight", self.layer)
    }

    /// `[n_out, n_in]`. q, k and v read the embedding and the state side by side.
    fn shape(&self, id: HeadMatrix) -> (usize, usize) {
        let c = &self.config.layer;
        match id {
            HeadMatrix::Fc => (c.hidden, N_STATES * self.config.target_hidden),
            HeadMatrix::Q => (c.q_width(), 2 * c.hidden),
            HeadMatrix::K | HeadMatrix::V => (c.kv_width(), 2 * c.hidden),
            HeadMatrix::O => (c.hidden, c.q_width()),
            HeadMatrix::Gate | HeadMatrix::Up => (c.intermediate, c.hidden),
            HeadMatrix::Down => (c.hidden, c.intermediate),
            HeadMatrix::LmHead => (self.config.draft_vocab, c.hidden),
            HeadMatrix::Embedding => (c.vocab, c.hidden),
        }
    }

    /// A matrix, shape-checked against the configuration.
    ///
    /// # Errors
    ///
    /// If the tensor is missing, has another shape or is no float.
    pub fn matrix(&self, id: HeadMatrix) -> Result<Matrix<'_>, WeightError> {
        let (n_out, n_in) = self.shape(id);
        let (format, bytes) = self.files.float_tensor(&self.name(id), &[n_out, n_in])?;
        Ok(Matrix::Rows {
            format,
            n_out,
            n_in,
            bytes: Cow::Borrowed(bytes),
        })
    }

    /// A norm's weights, `[hidden]`.
    ///
    /// # Errors
    ///
    /// As [`Self::matrix`].
    pub fn norm(&self, id: HeadNorm) -> Result<Vec<f32>, WeightError> {
        let hidden = self.config.layer.hidden;
        let name = self.norm_name(id);
        let (format, bytes) = self.files.float_tensor(&name, &[hidden])?;
        decode::to_f32(format, bytes, hidden)
    }

    /// The target's token of each row of lm_head.
    ///
    /// # Errors
    ///
    /// [`WeightError`] if `d2t` is missing though the vocabularies differ, is no list of whole numbers
    /// of the right length, or leads beyond the target's vocabulary.
    pub fn tokens(&self) -> Result<Vec<u32>, WeightError> {
        const NAME: &str = "d2t";
        let EagleConfig {
            draft_vocab, layer, ..
        } = &self.config;
        if !self.files.has(NAME) && *draft_vocab == layer.vocab {
            return Ok((0..*draft_vocab as u32).collect());
        }
        let tensor = self.files.tensor(NAME)?;
        let offsets: Vec<i64> = match tensor.dtype {
            Dtype::I64 => tensor
                .bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| i64::from_le_bytes(*b))
                .collect(),
            Dtype::I32 => {
                let words = tensor.bytes.as_chunks().0.iter();
                words.map(|b| i64::from(i32::from_le_bytes(*b))).collect()
            }
            other => {
                return Err(WeightError::Format {
                    name: NAME.to_owned(),
                    format: format!("{other:?}"),
                    supported: "I64 I32",
                });
            }
        };
        if tensor.shape != [*draft_vocab] {
            return Err(WeightError::Shape {
                name: NAME.to_owned(),
                found: tensor.shape.to_vec(),
                expected: vec![*draft_vocab],
            });
        }
        let token = |(row, offset): (usize, &i64)| {
            let token = (row as i64).checked_add(*offset);
            let token = token.and_then(|token| u32::try_from(token).ok());
            let token = token.filter(|token| (*token as usize) < layer.vocab);
            token.ok_or_else(|| {
                WeightError::Config(ConfigError::invalid(
                    format!("{NAME} of row {row}"),
                    offset,
                    format!("an offset to a token below {}", layer.vocab),
                ))
            })
        };
        offsets.iter().enumerate().map(token).collect()
    }
}
