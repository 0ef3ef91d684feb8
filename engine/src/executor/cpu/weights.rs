//! The decoder's weights, repacked for the CPU kernels one matrix at a time: beside the packed
//! copy there is only the checkpoint's own mapping, whose pages the system may drop.

use kernels::dense_linear::{DenseFormat, DenseMatrix};
use kernels::linear::LinearWeights;
use kernels::pool::WorkerPool;
use kernels::quant_linear::{BlockFormat, QuantMatrix, QuantSource};

use super::CpuLoadError;
use crate::weights::{Checkpoint, ElementFormat, Matrix, MatrixId, VectorId};

pub(super) struct LayerWeights {
    /// `[hidden]`
    pub attn_norm: Vec<f32>,
    /// `[hidden]`
    pub mlp_norm: Vec<f32>,
    /// `[head_dim]`, where the family normalises q and k.
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub q_bias: Option<Vec<f32>>,
    pub k_bias: Option<Vec<f32>>,
    pub v_bias: Option<Vec<f32>>,
    pub o_bias: Option<Vec<f32>>,
    pub q: LinearWeights,
    pub k: LinearWeights,
    pub v: LinearWeights,
    pub o: LinearWeights,
    pub gate: LinearWeights,
    pub up: LinearWeights,
    pub down: LinearWeights,
}

pub(super) struct DecoderWeights {
    pub embedding: LinearWeights,
    /// `None` where the embedding serves as lm_head.
    pub lm_head: Option<LinearWeights>,
    /// `[hidden]`
    pub final_norm: Vec<f32>,
    pub layers: Vec<LayerWeights>,
}

impl DecoderWeights {
    pub fn load(checkpoint: &dyn Checkpoint, pool: &mut WorkerPool) -> Result<Self, CpuLoadError> {
        let config = checkpoint.config();
        let mut matrix = |id| load_matrix(checkpoint, pool, id);
        let optional = |wanted: bool, id| {
            wanted
                .then(|| checkpoint.vector(id))
                .transpose()
                .map_err(CpuLoadError::from)
        };
        let mut layers = Vec::with_capacity(config.n_layers);
        for i in 0..config.n_layers {
            layers.push(LayerWeights {
                attn_norm: checkpoint.vector(VectorId::AttnNorm(i))?,
                mlp_norm: checkpoint.vector(VectorId::MlpNorm(i))?,
                q_norm: optional(config.qk_norm, VectorId::QNorm(i))?,
                k_norm: optional(config.qk_norm, VectorId::KNorm(i))?,
                q_bias: optional(config.qkv_bias, VectorId::QBias(i))?,
                k_bias: optional(config.qkv_bias, VectorId::KBias(i))?,
                v_bias: optional(config.qkv_bias, VectorId::VBias(i))?,
                o_bias: optional(config.o_bias, VectorId::OBias(i))?,
                q: matrix(MatrixId::Q(i))?,
                k: matrix(MatrixId::K(i))?,
                v: matrix(MatrixId::V(i))?,
                o: matrix(MatrixId::O(i))?,
                gate: matrix(MatrixId::Gate(i))?,
                up: matrix(MatrixId::Up(i))?,
                down: matrix(MatrixId::Down(i))?,
            });
        }
        Ok(Self {
            embedding: matrix(MatrixId::Embedding)?,
            lm_head: if config.tied_embeddings {
                None
            } else {
                Some(matrix(MatrixId::LmHead)?)
            },
            final_norm: checkpoint.vector(VectorId::FinalNorm)?,
            layers,
        })
    }

    pub fn lm_head(&self) -> &LinearWeights {
        self.lm_head.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes of all matrices.
    pub fn bytes(&self) -> u64 {
        let layers = self.layers.iter().map(|l| {
            [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down]
                .map(LinearWeights::bytes)
                .iter()
                .sum()
        });
        let layers: usize = layers.map(|bytes: usize| bytes).sum();
        let head = self.lm_head.as_ref().map_or(0, LinearWeights::bytes);
        (layers + head + self.embedding.bytes()) as u64
    }
}

fn load_matrix(
    checkpoint: &dyn Checkpoint,
    pool: &mut WorkerPool,
    id: MatrixId,
) -> Result<LinearWeights, CpuLoadError> {
    let packed = match checkpoint.matrix(id)? {
        Matrix::Awq(awq) => {
            let source = QuantSource::Awq {
                group_size: awq.group_size,
                qweight: &awq.qweight,
                qzeros: &awq.qzeros,
                scales: &awq.scales,
            };
            QuantMatrix::pack(pool, awq.n_out, awq.n_in, source).map(LinearWeights::Quant)
        }
        Matrix::Rows {
            format,
            n_out,
            n_in,
            bytes,
        } => match storage_of(format) {
            Storage::Dense(format) => {
                DenseMatrix::copy_from(n_out, n_in, format, &bytes).map(LinearWeights::Dense)
            }
            Storage::Blocks(format) => {
                let source = QuantSource::Blocks {
                    format,
                    bytes: &bytes,
                };
                QuantMatrix::pack(pool, n_out, n_in, source).map(LinearWeights::Quant)
            }
        },
    };
    packed.map_err(|source| CpuLoadError::Kernel {
        what: format!("{id:?}"),
        source,
    })
}

enum Storage {
    Dense(DenseFormat),
    Blocks(BlockFormat),
}

fn storage_of(format: ElementFormat) -> Storage {
    match format {
        ElementFormat::F32 => Storage::Dense(DenseFormat::F32),
        ElementFormat::F16 => Storage::Dense(DenseFormat::F16),
        ElementFormat::BF16 => Storage::Dense(DenseFormat::BF16),
        ElementFormat::Q4_0 => Storage::Blocks(BlockFormat::Q4_0),
        ElementFormat::Q4_1 => Storage::Blocks(BlockFormat::Q4_1),
        ElementFormat::Q5_0 => Storage::Blocks(BlockFormat::Q5_0),
        ElementFormat::Q5_1 => Storage::Blocks(BlockFormat::Q5_1),
        ElementFormat::Q8_0 => Storage::Blocks(BlockFormat::Q8_0),
        ElementFormat::Q4K => Storage::Blocks(BlockFormat::Q4K),
        ElementFormat::Q5K => Storage::Blocks(BlockFormat::Q5K),
        ElementFormat::Q6K => Storage::Blocks(BlockFormat::Q6K),
    }
}
