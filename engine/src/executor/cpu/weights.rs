//! The decoder's weights, repacked for the CPU kernels one matrix at a time. The checkpoint's pages
//! are released soon after they have been copied, and the largest matrices come first, so that
//! loading needs little more memory than the result.
//!
//! lm_head is read completely for every token. If it is stored in 16 or 32 bits and products use 8
//! bits anyway ([`ActivationType::Int8`]), it is rounded to 8 bits: half the bytes, for an error
//! below that of the activations. An embedding that is also lm_head is stored once.

use std::borrow::Cow;

use host::memory::Arena;
use host::pool::WorkerPool;
use kernels::dense_linear::{DenseFormat, DenseMatrix};
use kernels::experts::Choice;
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
    pub mlp: Mlp,
}

pub(super) enum Mlp {
    Dense(Box<GatedMlp>),
    Sparse(SparseMlp),
}

/// The MLP of a layer, or an expert.
pub(super) struct GatedMlp {
    pub gate: Projection,
    pub up: Projection,
    pub down: Projection,
}

pub(super) struct SparseMlp {
    pub router: Projection,
    pub experts: Vec<GatedMlp>,
    pub choice: Choice,
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
        let mut loader = Loader {
            checkpoint,
            pool,
            arena: Arena::default(),
            n_unreleased: 0,
        };
        let mut load = |id, rows| loader.matrix(id, rows);
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
                q: loader.as_stored(MatrixId::Q(i))?,
                k: loader.as_stored(MatrixId::K(i))?,
                v: loader.as_stored(MatrixId::V(i))?,
                o: loader.as_stored(MatrixId::O(i))?,
                mlp: loader.mlp(i)?,
            });
        }
        checkpoint.release();
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
        let layers: usize = self.layers.iter().map(LayerWeights::bytes).sum();
        let head = self.lm_head.as_ref().map_or(0, |head| head.weights.bytes());
        (layers + head + self.embedding.weights.bytes()) as u64
    }
}

impl LayerWeights {
    fn bytes(&self) -> usize {
        let attention = [&self.q, &self.k, &self.v, &self.o];
        let attention: usize = attention.iter().map(|p| p.weights.bytes()).sum();
        attention + self.mlp.bytes()
    }
}

impl Mlp {
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(mlp) => mlp.bytes(),
            Self::Sparse(sparse) => {
                let experts: usize = sparse.experts.iter().map(GatedMlp::bytes).sum();
                sparse.router.weights.bytes() + experts
            }
        }
    }
}

impl GatedMlp {
    fn bytes(&self) -> usize {
        let parts = [&self.gate, &self.up, &self.down];
        parts.iter().map(|part| part.weights.bytes()).sum()
    }
}

/// How rows stored in 16 or 32 bits are converted.
#[derive(Clone, Copy)]
pub(super) enum Rows {
    AsStored,
    RoundedTo8Bits,
}

/// The checkpoint's pages are released when this much of them has been read: it takes a while in a
/// large file, and there are thousands of experts.
const RELEASED_TOGETHER: u64 = 64 << 20;

/// Repacks matrices one after the other.
struct Loader<'a> {
    checkpoint: &'a dyn Checkpoint,
    pool: &'a mut WorkerPool,
    arena: Arena,
    /// Bytes read since pages were released.
    n_unreleased: u64,
}

impl Loader<'_> {
    fn as_stored(&mut self, id: MatrixId) -> Result<Projection, CpuLoadError> {
        self.matrix(id, Rows::AsStored)
    }

    fn matrix(&mut self, id: MatrixId, rows: Rows) -> Result<Projection, CpuLoadError> {
        let matrix = self.checkpoint.matrix(id)?;
        let n_bytes = matrix.storage().n_bytes;
        let what = format!("{id:?}");
        let projection = pack(self.pool, &mut self.arena, &what, matrix, rows)?;
        self.n_unreleased += n_bytes;
        if self.n_unreleased >= RELEASED_TOGETHER {
            self.checkpoint.release();
            self.n_unreleased = 0;
        }
        Ok(projection)
    }

    fn gated(&mut self, [gate, up, down]: [MatrixId; 3]) -> Result<GatedMlp, CpuLoadError> {
        Ok(GatedMlp {
            gate: self.as_stored(gate)?,
            up: self.as_stored(up)?,
            down: self.as_stored(down)?,
        })
    }

    fn mlp(&mut self, i: usize) -> Result<Mlp, CpuLoadError> {
        let Some(experts) = self.checkpoint.config().experts_of(i).cloned() else {
            let ids = [MatrixId::Gate(i), MatrixId::Up(i), MatrixId::Down(i)];
            return Ok(Mlp::Dense(Box::new(self.gated(ids)?)));
        };
        let n_experts = experts.n_experts;
        Ok(Mlp::Sparse(SparseMlp {
            router: self.as_stored(MatrixId::Router(i))?,
            experts: (0..n_experts)
                .map(|e| self.gated(MatrixId::of_expert(i, e)))
                .collect::<Result<_, _>>()?,
            choice: Choice {
                n_experts,
                n_active: experts.n_active,
                normalise: experts.norm_topk_prob,
            },
        }))
    }
}

/// `what`: the matrix, for errors.
pub(super) fn pack(
    pool: &mut WorkerPool,
    arena: &mut Arena,
    what: &str,
    matrix: Matrix<'_>,
    rows: Rows,
) -> Result<Projection, CpuLoadError> {
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
    let weights = packed.map_err(|source| CpuLoadError::Kernel {
        what: what.to_owned(),
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
