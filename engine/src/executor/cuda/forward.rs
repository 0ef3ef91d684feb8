//! The launches of one pass: embedding, the layers, and the head for the rows that need logits.
//!
//! A dense layer is eight launches: norm, q/k/v, rotate and store, attention, o added to the residual,
//! norm, gate and up with SiLU, down added to the residual. For small batches it is six: all norms
//! except the first are fused into the projections. A layer with experts has five launches in place of the last three
//! (`kernels::experts::cuda`), and norms of its own. Each launch may start while the one before it
//! runs and waits for it on the GPU (programmatic dependent launch), so the host only queues.

mod host_tier;
mod layer;
mod packed;
mod sparse;
mod timed;
mod two_batches;

use gpu::{Buffer, BufferView, CudaError, HostCounter, Stream};
use kernels::attention::cuda::{ContextParts, DecodeAttention};
use kernels::cuda::{Activation, Element, ElementBuffer, TILE_ROWS};
use kernels::embedding::cuda::Embedding;
use kernels::experts::cuda::{ExpertBuffers, Experts};
use kernels::qkv_prepare::cuda::{HeadShape, KvFormat, PagedKv, QkvPrepare};
use kernels::rms_norm::cuda::RmsNorm;
use kernels::rope::Rope;
use kernels::sampling::cuda::{AdvanceState, ArgmaxAdvance, ArgmaxAdvanceArgs};
use kernels::stream_linear::{LARGE_M_MIN, Output, StreamLinear};

pub(super) use self::host_tier::HostTier;
use self::layer::{LayerPass, Norms};
pub use self::packed::AttentionBackend;
use self::packed::PackedAttention;
pub(super) use self::sparse::experts_shape;
use self::sparse::{expert_buffers, experts_of};
pub(super) use self::timed::Projection;
use self::two_batches::SecondHalf;
use super::inputs::{Inputs, MAX_ROWS};
use super::weights::DeviceWeights;
use crate::kv::PAGE_TOKENS;
use crate::model::config::ModelConfig;

/// Activation matrices are padded to a multiple of this many columns, the largest K chunk of a
/// projection.
const STRIDE_COLUMNS: usize = 256;

/// Attention settings, from the flags.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionOptions {
    pub format: KvFormat,
    pub max_splits: usize,
    pub reduce_in_fp32: bool,
    pub backend: AttentionBackend,
    /// Maximum number of tokens of one sequence that a step writes in decode rows.
    pub n_fresh: usize,
}

struct Ops {
    embedding: Embedding,
    rms_norm: RmsNorm,
    qkv_prepare: QkvPrepare,
    decode_attention: DecodeAttention,
    packed_attention: PackedAttention,
    argmax: ArgmaxAdvance,
    /// Set if layers have experts.
    experts: Option<Experts>,
}

/// Activations of a pass of at most `n` tokens.
struct Workspace {
    /// `[n, hidden]`: the residual stream
    residual: Buffer<f32>,
    /// `[n, hidden]`: the output of a norm
    normed: ActivationBuffer,
    /// `[n, (n_q + 2 n_kv) * head_dim]`
    qkv: ElementBuffer,
    /// `[n, n_q * head_dim]`: the output of attention
    attn_out: ActivationBuffer,
    context_parts: ContextParts,
    /// `[n, intermediate]`: silu(gate) * up
    ffn_act: ActivationBuffer,
    /// `[MAX_ROWS, vocab]`
    logits: Buffer<f32>,
    norms: Norms,
    /// Set if layers have experts.
    experts: Option<ExpertBuffers>,
}

/// The input of a projection, as plain rows or as tiles, whichever its kernel for that batch size
/// reads. Two buffers, because the padding columns of each are zero and stay zero.
struct ActivationBuffer {
    plain: ElementBuffer,
    stride: usize,
    /// Empty if no projection reads tiles.
    tiled: ElementBuffer,
    n_tiled: usize,
}

/// The size of a pass, and how many of its tokens are stored in tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PassShape {
    pub max_tokens: usize,
    /// Whether passes of at least [`LARGE_M_MIN`] rows are stored in tiles; shorter ones may be
    /// too.
    pub is_tiled: bool,
}

/// The tokens and sequences of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PassSize {
    pub n_tokens: usize,
    pub n_sequences: usize,
}

/// The rows of a pass, or of one half of it.
#[derive(Clone, Copy)]
struct BatchSlice<'a> {
    workspace: &'a Workspace,
    /// First row in the inputs.
    first_row: usize,
}

/// The KV pool: one allocation with K and V of layer 0, then of layer 1, and so on.
pub(super) struct KvPool {
    buffer: Buffer<u8>,
    layer_bytes: usize,
    n_pages: usize,
}

pub(super) struct Forward {
    config: ModelConfig,
    heads: HeadShape,
    max_splits: usize,
    /// As [`AttentionOptions::n_fresh`].
    n_fresh: usize,
    /// Indexed by rows; set if autotuning has chosen a number of splits.
    tuned_splits: Vec<Option<usize>>,
    ops: Ops,
    /// Set if decode batches run as two halves.
    second_half: Option<SecondHalf>,
    weights: DeviceWeights,
    /// `[n_positions, head_dim]`: cosines, then sines
    cos_sin: Buffer<f32>,
    workspace: Workspace,
    kv: KvPool,
    /// Counts keys and values that could not be stored exactly.
    kv_saturated: HostCounter,
    /// `[max_burst, MAX_ROWS]`: the chosen tokens, step by step
    pub history: Buffer<i32>,
    /// The row of `history` that the next argmax writes.
    pub step: Buffer<i32>,
}

pub(super) fn stride(columns: usize) -> usize {
    columns.next_multiple_of(STRIDE_COLUMNS)
}

impl PassShape {
    /// Maximum number of tokens stored as plain rows.
    fn plain_rows(self) -> usize {
        if self.is_tiled {
            LARGE_M_MIN - 1
        } else {
            self.max_tokens
        }
    }

    fn tile_rows(self) -> usize {
        if self.is_tiled {
            self.max_tokens.next_multiple_of(TILE_ROWS)
        } else {
            0
        }
    }
}

/// Length of the longest row that a projection reads.
pub(super) fn longest_row(config: &ModelConfig) -> usize {
    let heads = config.n_q_heads * config.head_dim;
    config.hidden.max(heads).max(config.intermediate)
}

/// Size of the workspace for this model, in bytes.
pub(super) fn workspace_bytes(config: &ModelConfig, pass: PassShape) -> u64 {
    let heads = config.n_q_heads * config.head_dim;
    let rows = pass.plain_rows() + pass.tile_rows();
    let projected = stride(config.hidden) + stride(heads) + stride(config.intermediate);
    let qkv = (config.n_q_heads + 2 * config.n_kv_heads) * config.head_dim;
    let of_tokens = pass.max_tokens * (4 * config.hidden + 2 * qkv);
    let logits = 4 * MAX_ROWS * config.vocab;
    let experts =
        experts_shape(config).map_or(0, |shape| ExpertBuffers::bytes_of(&shape, pass.max_tokens));
    (of_tokens + 2 * rows * projected + logits + Norms::n_bytes() + experts) as u64
}

/// Bytes of KV of one page over all layers.
pub(super) fn page_bytes(config: &ModelConfig, format: KvFormat) -> u64 {
    let value_bytes = format.bytes_per_value();
    (2 * config.n_layers * config.n_kv_heads * config.head_dim * PAGE_TOKENS * value_bytes) as u64
}

/// The cosine and sine of every position, `[n, head_dim]`.
pub(super) fn cos_sin(
    stream: &Stream,
    config: &ModelConfig,
    n: usize,
) -> Result<Buffer<f32>, CudaError> {
    let rope = Rope::new(config.head_dim, config.rope.theta, config.rope.scaling)?;
    let mut angles = vec![0.0; n * config.head_dim];
    for (position, out) in angles.chunks_exact_mut(config.head_dim).enumerate() {
        rope.angles(position, out)?;
    }
    Buffer::from_slice(stream, &angles)
}

impl KvPool {
    /// Zeroed, so that results do not depend on the previous contents of the memory.
    pub fn new(
        stream: &Stream,
        config: &ModelConfig,
        format: KvFormat,
        n_pages: usize,
    ) -> Result<Self, CudaError> {
        let layer_bytes = page_bytes(config, format) as usize / config.n_layers * n_pages;
        let buffer = Buffer::zeroed(stream, layer_bytes * config.n_layers)?;
        Ok(Self {
            buffer,
            layer_bytes,
            n_pages,
        })
    }

    pub fn n_bytes(&self) -> u64 {
        self.buffer.n_bytes() as u64
    }

    fn layer(&self, layer: usize) -> Result<PagedKv<'_>, CudaError> {
        let start = layer * self.layer_bytes;
        let middle = start + self.layer_bytes / 2;
        Ok(PagedKv {
            k: self.buffer.view(start..middle)?,
            v: self.buffer.view(middle..start + self.layer_bytes)?,
            k_scale: 1.0,
            v_scale: 1.0,
            n_pages: self.n_pages,
        })
    }
}

impl Forward {
    pub fn new(
        stream: &Stream,
        config: ModelConfig,
        weights: DeviceWeights,
        kv: KvPool,
        cos_sin: Buffer<f32>,
        attention: AttentionOptions,
        pass: PassShape,
        max_burst: usize,
    ) -> Result<Self, CudaError> {
        let (device, element) = (stream.device(), weights.element());
        let heads = HeadShape {
            n_q: config.n_q_heads,
            n_kv: config.n_kv_heads,
            head_dim: config.head_dim,
        };
        let ops = Ops {
            embedding: Embedding::new(device, element)?,
            rms_norm: RmsNorm::new(device, element)?,
            qkv_prepare: QkvPrepare::new(device, element, heads, attention.format)?,
            decode_attention: DecodeAttention::new(
                device,
                element,
                heads,
                attention.format,
                attention.max_splits,
                attention.reduce_in_fp32,
            )?,
            packed_attention: PackedAttention::new(
                stream,
                element,
                heads,
                attention.format,
                attention.backend,
            )?,
            argmax: ArgmaxAdvance::new(device)?,
            experts: experts_of(&config, device, &weights)?,
        };
        let workspace = Workspace::new(stream, element, &config, pass)?;
        let history = Buffer::zeroed(stream, max_burst * MAX_ROWS)?;
        let step = Buffer::zeroed(stream, 1)?;
        let (max_splits, n_fresh) = (attention.max_splits, attention.n_fresh);
        Ok(Self {
            config,
            heads,
            max_splits,
            n_fresh,
            tuned_splits: vec![None; MAX_ROWS + 1],
            second_half: None,
            ops,
            weights,
            cos_sin,
            workspace,
            kv,
            kv_saturated: HostCounter::new(device)?,
            history,
            step,
        })
    }

    pub fn kv_bytes(&self) -> u64 {
        self.kv.n_bytes()
    }

    /// Number of keys and values so far that were too large for the KV format, or NaN.
    pub fn n_kv_saturated(&self) -> u64 {
        self.kv_saturated.value()
    }

    /// The element type of activations.
    pub fn element(&self) -> Element {
        self.weights.element()
    }

    /// Whether activations of large batches may be rounded to 8 bits.
    pub fn has_int8_activations(&self) -> bool {
        self.weights.lm_head.loaded_kernels().int8
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn weights(&self) -> &DeviceWeights {
        &self.weights
    }

    pub fn weight_bytes(&self) -> u64 {
        self.weights.n_bytes()
    }

    /// `[MAX_ROWS, vocab]`, of the last [`Self::head`].
    pub fn logits(&self) -> &Buffer<f32> {
        &self.workspace.logits
    }

    /// Runs the first `size.n_tokens` tokens of `inputs` through all layers.
    pub fn layers(
        &self,
        stream: &Stream,
        inputs: &Inputs,
        size: PassSize,
    ) -> Result<(), CudaError> {
        match self.splits(size) {
            Some(second) => self.layers_of_two(stream, second, inputs, size),
            None => self.layers_of(stream, inputs, self.whole(), size),
        }
    }

    fn whole(&self) -> BatchSlice<'_> {
        BatchSlice {
            workspace: &self.workspace,
            first_row: 0,
        }
    }

    fn layers_of(
        &self,
        stream: &Stream,
        inputs: &Inputs,
        slice: BatchSlice<'_>,
        size: PassSize,
    ) -> Result<(), CudaError> {
        let (hidden, n) = (self.config.hidden, size.n_tokens);
        let h = slice.workspace.residual.all();
        let table = self.weights.embedding.all();
        let ids = from_row(inputs.ids()?, slice.first_row)?;
        self.ops
            .embedding
            .launch(stream, ids, table, h, n, hidden)?;
        let pass = LayerPass {
            stream,
            inputs,
            slice,
            size,
            fuses_norms: self.fuses_norms(n)?,
        };
        (0..self.weights.layers.len()).try_for_each(|i| self.layer(&pass, i))
    }

    /// Normalises the residual rows, or the selected ones, into `x`.
    fn norm(
        &self,
        stream: &Stream,
        ws: &Workspace,
        weight: &ElementBuffer,
        rows: Option<BufferView<'_, i32>>,
        x: Activation<'_>,
        n_rows: usize,
    ) -> Result<(), CudaError> {
        let (hidden, eps) = (self.config.hidden, self.config.rms_norm_eps);
        let h = ws.residual.all();
        self.ops
            .rms_norm
            .launch(stream, h, weight.all(), rows, x, n_rows, hidden, eps)
    }

    /// Logits of the rows selected by `inputs.out_rows`, at most [`MAX_ROWS`].
    pub fn head(&self, stream: &Stream, inputs: &Inputs, n_out: usize) -> Result<(), CudaError> {
        let (ws, lm_head) = (&self.workspace, &self.weights.lm_head);
        let (x, rows) = (ws.normed.view_for(lm_head, n_out), inputs.out_rows()?);
        self.norm(stream, ws, &self.weights.final_norm, Some(rows), x, n_out)?;
        let out = Output::StoreF32(ws.logits.all());
        lm_head.launch(stream, n_out, x, None, out, true)
    }

    /// Writes the most likely token of each row to `history`; with `advance` also to the inputs of
    /// the next step, moving the rows on by one token.
    pub fn argmax(
        &self,
        stream: &Stream,
        inputs: &Inputs,
        n_out: usize,
        advance: bool,
    ) -> Result<(), CudaError> {
        let state = AdvanceState {
            positions: inputs.positions()?,
            context_len: inputs.context_len()?,
            slots: inputs.slots()?,
            page_table: inputs.page_table()?,
            max_pages: inputs.max_pages(),
        };
        self.ops.argmax.launch(
            stream,
            &ArgmaxAdvanceArgs {
                logits: self.workspace.logits.all(),
                vocab: self.config.vocab,
                stride: self.config.vocab,
                next_ids: inputs.ids()?,
                history: self.history.all(),
                step: Some(self.step.all()),
                n_rows: n_out,
                advance: advance.then_some(state),
            },
        )
    }

    /// Small batches use more splits, because otherwise they do not fill the GPU.
    pub fn n_splits(&self, n_rows: usize) -> usize {
        if let Some(Some(tuned)) = self.tuned_splits.get(n_rows) {
            return *tuned;
        }
        let wanted = match n_rows {
            0..=4 => 8,
            5..=8 => 4,
            9..=32 => 2,
            _ => 1,
        };
        wanted.min(self.max_splits)
    }

    /// The projections of a layer and the head, for the log.
    pub fn linears(&self) -> impl Iterator<Item = (&'static str, &StreamLinear)> {
        let layer = self.weights.layers.first();
        let of_layer = layer.into_iter().flat_map(|l| {
            [
                Some(("qkv", &l.qkv)),
                Some(("o", &l.o)),
                (!l.is_sparse()).then_some(("gate_up", &l.gate_up)),
                (!l.is_sparse()).then_some(("down", &l.down)),
            ]
        });
        let of_layer = of_layer.flatten();
        of_layer.chain([("lm_head", &self.weights.lm_head)])
    }
}

/// An input array starting at entry `first`.
fn from_row(array: BufferView<'_, i32>, first: usize) -> Result<BufferView<'_, i32>, CudaError> {
    array.view(first..array.len())
}

impl Workspace {
    fn new(
        stream: &Stream,
        element: Element,
        config: &ModelConfig,
        pass: PassShape,
    ) -> Result<Self, CudaError> {
        let heads = config.n_q_heads * config.head_dim;
        let qkv = (config.n_q_heads + 2 * config.n_kv_heads) * config.head_dim;
        Ok(Self {
            residual: Buffer::zeroed(stream, pass.max_tokens * config.hidden)?,
            normed: ActivationBuffer::new(stream, element, config.hidden, pass)?,
            qkv: ElementBuffer::zeroed(stream, element, pass.max_tokens * qkv)?,
            attn_out: ActivationBuffer::new(stream, element, heads, pass)?,
            context_parts: ContextParts::new(stream, config.head_dim)?,
            ffn_act: ActivationBuffer::new(stream, element, config.intermediate, pass)?,
            logits: Buffer::zeroed(stream, MAX_ROWS * config.vocab)?,
            norms: Norms::new(stream)?,
            experts: expert_buffers(stream, element, config, pass)?,
        })
    }
}

impl ActivationBuffer {
    fn new(
        stream: &Stream,
        element: Element,
        columns: usize,
        pass: PassShape,
    ) -> Result<Self, CudaError> {
        let (stride, tile_rows) = (stride(columns), pass.tile_rows());
        Ok(Self {
            plain: ElementBuffer::zeroed(stream, element, pass.plain_rows() * stride)?,
            stride,
            tiled: ElementBuffer::zeroed(stream, element, tile_rows * stride)?,
            n_tiled: tile_rows,
        })
    }

    /// The view that `linear` reads for `n` rows.
    fn view_for(&self, linear: &StreamLinear, n: usize) -> Activation<'_> {
        self.laid_out(linear.wants_tiled(n))
    }
}
