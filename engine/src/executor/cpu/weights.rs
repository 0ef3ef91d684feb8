//! The decoder's weights, repacked for the CPU kernels one matrix at a time. The checkpoint's pages
//! are released as soon as they have been copied, and the largest matrices come first, so that
//! loading needs little more memory than the result.
//!
//! lm_head is read completely for every token. If it is stored in 16 or 32 bits and products use 8
//! bits anyway ([`ActivationType::Int8`]), it is rounded to 8 bits: half the bytes, for an error
//! below that of the activations. An embedding that is also lm_head is stored once.

use std::borrow::Cow;

use host::memory::Arena;
use host::pool::WorkerPool;
use kernels::dense_linear::{DenseFormat, DenseMatrix};
use kernels::linear::LinearWeights;
use kernels::quant_linear::{BlockFormat, QuantMatrix, QuantSource};

use super::CpuLoadError;
use super::options::ActivationType;
use crate::weights::format::MatrixFormat;
use crate::weights::gpu_format::block_format;
use crate::weights::scaled::{ScaledElement, ScaledMatrix};
use crate::weights::{Checkpoint, ElementFormat, Matrix, MatrixId, VectorId, WeightError};

pub(super) struct LayerWeights {
    /// `[hidden]`
    pub attn_norm: Vec<f32>,
    /// `[hidden]`
    pub mlp_norm: Vec<f32>,
    /// `[head_dim]`, if the family normalises q and k.
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub q_bias: Option<Vec<f32>>,
    pub k_bias: Option<Vec<f32>>,
    pub v_bias: Option<Vec<f32>>,
    pub o_bias: Option<Vec<f32>>,
    pub q: Projection,
    pub k: Projection,
    pub v: Projection,
    pub o: Projection,
    pub gate: Projection,
    pub up: Projection,
    pub down: Projection,
}

/// A matrix, and the input that each of its columns multiplies if they are in another order
/// (act-order).
pub(super) struct Projection {
    pub weights: LinearWeights,
    pub order: Option<Vec<u32>>,
}

pub(super) struct DecoderWeights {
    pub embedding: Projection,
    /// `None` if the embedding is used as lm_head.
    pub lm_head: Option<Projection>,
    /// `[hidden]`
    pub final_norm: Vec<f32>,
    pub layers: Vec<LayerWeights>,
    /// The format of lm_head, for the log and records.
    pub lm_head_name: String,
}

impl DecoderWeights {
    pub fn load(
        checkpoint: &dyn Checkpoint,
        pool: &mut WorkerPool,
        activations: ActivationType,
    ) -> Result<Self, CpuLoadError> {
        let config = checkpoint.config();
        let head_rows = match activations {
            ActivationType::Int8 => Rows::RoundedTo8Bits,
            ActivationType::F32 => Rows::AsStored,
        };
        let mut arena = Arena::default();
        let mut load = |id, rows| load_matrix(checkpoint, pool, &mut arena, id, rows);
        let (embedding, lm_head) = if config.tied_embeddings {
            (load(MatrixId::Embedding, head_rows)?, None)
        } else {
            let lm_head = load(MatrixId::LmHead, head_rows)?;
            (load(MatrixId::Embedding, Rows::AsStored)?, Some(lm_head))
        };
        if embedding.order.is_some() {
            return Err(CpuLoadError::Weights(WeightError::Format {
                name: MatrixId::Embedding.safetensors_stem(),
                format: "4-bit with act-order".to_owned(),
                supported: "an embedding whose columns are in order",
            }));
        }
        let stored = checkpoint.storage(MatrixId::LmHead)?.format;
        let lm_head_name = match &lm_head.as_ref().unwrap_or(&embedding).weights {
            LinearWeights::Quant(_) if is_dense(stored) => {
                format!("int8_rounded_from_{}", stored.to_string().to_lowercase())
            }
            _ => stored.to_string().to_lowercase(),
        };
        let mut matrix = |id| load(id, Rows::AsStored);
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
            embedding,
            lm_head,
            final_norm: checkpoint.vector(VectorId::FinalNorm)?,
            layers,
            lm_head_name,
        })
    }

    pub fn lm_head(&self) -> &Projection {
        self.lm_head.as_ref().unwrap_or(&self.embedding)
    }

    /// Size of all matrices in bytes.
    pub fn bytes(&self) -> u64 {
        let layers = self.layers.iter().map(|l| {
            [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down]
                .map(|projection| projection.weights.bytes())
                .iter()
                .sum()
        });
        let layers: usize = layers.map(|bytes: usize| bytes).sum();
        let head = self.lm_head.as_ref().map_or(0, |head| head.weights.bytes());
        (layers + head + self.embedding.weights.bytes()) as u64
    }
}

/// How rows stored in 16 or 32 bits are converted.
#[derive(Clone, Copy)]
enum Rows {
    AsStored,
    RoundedTo8Bits,
}

fn load_matrix(
    checkpoint: &dyn Checkpoint,
    pool: &mut WorkerPool,
    arena: &mut Arena,
    id: MatrixId,
    rows: Rows,
) -> Result<Projection, CpuLoadError> {
    let matrix = checkpoint.matrix(id)?;
    let (n_out, n_in) = matrix.shape();
    let source = match &matrix {
        Matrix::Awq(awq) => Source::Quant(QuantSource::Awq {
            group_size: awq.group_size,
            qweight: &awq.qweight,
            qzeros: &awq.qzeros,
            scales: &awq.scales,
        }),
        Matrix::Scaled(scaled) => scaled_source(scaled),
        Matrix::Rows { format, bytes, .. } => match (storage_of(*format), rows) {
            (Storage::Blocks(format), _) => Source::Quant(QuantSource::Blocks { format, bytes }),
            // Rows that are not a multiple of the 8-bit group stay unchanged.
            (Storage::Dense(format), Rows::RoundedTo8Bits) if n_in.is_multiple_of(32) => {
                Source::Quant(QuantSource::Rows { format, bytes })
            }
            (Storage::Dense(format), _) => Source::Dense(format, Cow::Borrowed(bytes)),
        },
    };
    let packed = match source {
        Source::Quant(source) => {
            QuantMatrix::pack(pool, arena, n_out, n_in, source).map(LinearWeights::Quant)
        }
        Source::Dense(format, bytes) => {
            DenseMatrix::copy_from(arena, n_out, n_in, format, &bytes).map(LinearWeights::Dense)
        }
        Source::Fp8(fp8) => {
            DenseMatrix::copy_e4m3(arena, (n_out, n_in), &fp8.codes, fp8.group, &fp8.scales)
                .map(LinearWeights::Dense)
        }
    };
    checkpoint.release();
    let weights = packed.map_err(|source| CpuLoadError::Kernel {
        what: format!("{id:?}"),
        source,
    })?;
    let order = match matrix {
        Matrix::Awq(awq) => awq.order,
        Matrix::Rows { .. } | Matrix::Scaled(_) => None,
    };
    Ok(Projection { weights, order })
}

enum Source<'a> {
    Quant(QuantSource<'a>),
    Dense(DenseFormat, Cow<'a, [u8]>),
    Fp8(&'a ScaledMatrix<'a>),
}

/// FP8 is multiplied with f32; integers and FP4, which integers of 8 bits hold, with 8-bit
/// activations, if rows are whole groups of these.
fn scaled_source<'a>(scaled: &'a ScaledMatrix<'a>) -> Source<'a> {
    match scaled.element {
        ScaledElement::Fp8 => Source::Fp8(scaled),
        ScaledElement::Int8 if scaled.n_in.is_multiple_of(32) => Source::Quant(QuantSource::Int8 {
            codes: &scaled.codes,
            scales: &scaled.scales,
        }),
        ScaledElement::Nvfp4 if scaled.n_in.is_multiple_of(32) => Source::Quant(QuantSource::Fp4 {
            codes: &scaled.codes,
            scales: &scaled.scales,
            factor: scaled.factor,
        }),
        ScaledElement::Int8 | ScaledElement::Nvfp4 => {
            let values = scaled.to_f32();
            let bytes = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            Source::Dense(DenseFormat::F32, bytes)
        }
    }
}

/// True for a format without blocks.
fn is_dense(format: MatrixFormat) -> bool {
    matches!(
        format,
        MatrixFormat::Rows(ElementFormat::F32 | ElementFormat::F16 | ElementFormat::BF16)
    )
}

enum Storage {
    Dense(DenseFormat),
    Blocks(BlockFormat),
}

fn storage_of(format: ElementFormat) -> Storage {
    match (format, block_format(format)) {
        (_, Some(blocks)) => Storage::Blocks(blocks),
        (ElementFormat::F16, _) => Storage::Dense(DenseFormat::F16),
        (ElementFormat::BF16, _) => Storage::Dense(DenseFormat::BF16),
        (_, None) => Storage::Dense(DenseFormat::F32),
    }
}
