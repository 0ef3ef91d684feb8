//! Reads a checkpoint's tensors, whatever file they are in, under one set of names.
//!
//! Nothing is converted here: a matrix comes back in the format it has on disk (memory-mapped
//! where the layout allows it), and each executor repacks it for its own kernels.

use std::borrow::Cow;

use crate::model::config::ModelConfig;

/// A matrix of the decoder by its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MatrixId {
    /// `[vocab, hidden]`
    Embedding,
    /// `[vocab, hidden]`; the embedding itself where embeddings are tied.
    LmHead,
    /// `[n_q_heads * head_dim, hidden]`
    Q(usize),
    K(usize),
    V(usize),
    O(usize),
    Gate(usize),
    Up(usize),
    Down(usize),
}

/// A vector of the decoder by its role; the index is the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VectorId {
    AttnNorm(usize),
    MlpNorm(usize),
    QNorm(usize),
    KNorm(usize),
    FinalNorm,
    QBias(usize),
    KBias(usize),
    VBias(usize),
    OBias(usize),
}

/// How the elements of a row-major `[n_out, n_in]` matrix are stored. Block formats are ggml's,
/// with blocks along `n_in`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub enum ElementFormat {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// One weight matrix, `y = W x` with `W: [n_out, n_in]`.
#[derive(Debug, Clone)]
pub enum Matrix<'a> {
    Rows { format: ElementFormat, n_out: usize, n_in: usize, bytes: Cow<'a, [u8]> },
    Awq(AwqMatrix<'a>),
}

/// AutoAWQ `gemm` layout: `W[n][k] = (q - z) * s`.
/// Nibble i of a packed word holds column {0,2,4,6,1,3,5,7}[i] of its eight.
#[derive(Debug, Clone)]
pub struct AwqMatrix<'a> {
    pub n_out: usize,
    pub n_in: usize,
    pub group_size: usize,
    /// `[n_in, n_out / 8]` little-endian u32
    pub qweight: Cow<'a, [u8]>,
    /// `[n_in / group_size, n_out / 8]` little-endian u32
    pub qzeros: Cow<'a, [u8]>,
    /// `[n_in / group_size, n_out]` f16
    pub scales: Cow<'a, [u8]>,
}

#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    #[error("{file}: {message}")]
    File { file: String, message: String },
    #[error("the checkpoint has no tensor {name}")]
    Missing { name: String },
    #[error("tensor {name} has shape {found:?}, the configuration asks for {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("tensor {name} has format {format}, which is not supported; supported: {supported}")]
    Format { name: String, format: String, supported: &'static str },
}

/// An opened checkpoint: safetensors folder, GGUF file or synthetic.
pub trait Checkpoint: Send + Sync {
    fn config(&self) -> &ModelConfig;
    /// Shape-checked against the configuration.
    fn matrix(&self, id: MatrixId) -> Result<Matrix<'_>, WeightError>;
    /// Converted to f32, length-checked.
    fn vector(&self, id: VectorId) -> Result<Vec<f32>, WeightError>;
    /// One line for logs and records: `awq 4-bit, group 128`, `gguf Q4_1`, `dummy awq seed 0`.
    fn format_name(&self) -> String;
}
