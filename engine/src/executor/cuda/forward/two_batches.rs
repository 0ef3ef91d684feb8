//! `--enable-two-batch-overlap`: the layers of a decode batch run as two halves on two streams, so
//! that attention of one half, which waits for the KV cache, can overlap with projections of the
//! other, which wait for the weights.
//!
//! Each half has its own activations; inputs, KV pages and weights are shared. After the layers the
//! second half's residual rows are appended to the first one's, and the head and token selection
//! run once over the whole batch.
//!
//! A batch is split only if all projections of its halves use `stream_linear.cu`. The kernels for
//! more rows (`wgmma.cu`, `mma.cu`) share one set of partial results and semaphores, and their
//! blocks wait for each other: two of them running concurrently would corrupt sums or deadlock.
//! That leaves batches of up to 16 rows, or up to 32 if autotuning found `stream_linear.cu` faster
//! for halves of 9 to 16 rows.
//!
//! A weight used by both halves is read twice, at best from the L2 cache.

use gpu::{Buffer, CudaError, Event, Stream};
use kernels::attention::cuda::ContextParts;
use kernels::cuda::ElementBuffer;
use kernels::stream_linear::{LARGE_M_MIN, StreamLinear, Variant};

use super::sparse::expert_buffers;
use super::{ActivationBuffer, BatchSlice, Forward, Norms, PassShape, PassSize, Workspace};
use crate::executor::cuda::inputs::{Inputs, MAX_ROWS};

/// State of the second half.
pub(super) struct SecondHalf {
    stream: Stream,
    workspace: Workspace,
    begun: Event,
    ended: Event,
    /// Indexed by rows: whether a batch of that size is split.
    is_split: Vec<bool>,
}

impl Forward {
    /// From now on, decode batches run as two halves if possible. Call it after the projections'
    /// kernels are chosen and before graphs are captured.
    pub fn overlap_two_batches(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let device = stream.device();
        let is_split: Vec<bool> = (0..=MAX_ROWS).map(|n| self.can_split(n)).collect();
        let n_rows = is_split.iter().rposition(|is_split| *is_split).unwrap_or(0) / 2;
        self.second_half = Some(SecondHalf {
            stream: Stream::new(device)?,
            workspace: self.half_workspace(stream, n_rows.max(1))?,
            begun: Event::new(device)?,
            ended: Event::new(device)?,
            is_split,
        });
        stream.synchronize()
    }

    /// Whether the halves of a batch of `n` rows may run concurrently.
    fn can_split(&self, n: usize) -> bool {
        let halves = [n - n / 2, n / 2];
        let is_plain = |linear: &StreamLinear, m: usize| {
            m > 0 && m < LARGE_M_MIN && matches!(linear.variant(m), Ok(Variant::Stream(_)))
        };
        let layers = self.weights.layers.iter();
        let mut linears = layers.flat_map(|layer| {
            let [qkv, o, gate_up, down] = layer.linears();
            // Experts' kernels share nothing between halves, and no block waits for another.
            let mlp = (!layer.is_sparse()).then_some([gate_up, down]);
            [qkv, o].into_iter().chain(mlp.into_iter().flatten())
        });
        linears.all(|linear| halves.iter().all(|m| is_plain(linear, *m)))
    }

    /// Without logits: the head runs over the whole batch.
    fn half_workspace(&self, stream: &Stream, n_rows: usize) -> Result<Workspace, CudaError> {
        let (config, element) = (&self.config, self.weights.element());
        let pass = PassShape {
            max_tokens: n_rows,
            is_tiled: false,
        };
        let heads = config.n_q_heads * config.head_dim;
        let qkv = (config.n_q_heads + 2 * config.n_kv_heads) * config.head_dim;
        Ok(Workspace {
            residual: Buffer::zeroed(stream, n_rows * config.hidden)?,
            normed: ActivationBuffer::new(stream, element, config.hidden, pass)?,
            qkv: ElementBuffer::zeroed(stream, element, n_rows * qkv)?,
            attn_out: ActivationBuffer::new(stream, element, heads, pass)?,
            context_parts: ContextParts::new(stream, config.head_dim)?,
            ffn_act: ActivationBuffer::new(stream, element, config.intermediate, pass)?,
            logits: Buffer::zeroed(stream, 1)?,
            norms: Norms::new(stream)?,
            experts: expert_buffers(stream, element, config, pass)?,
        })
    }

    /// The state of the second half, if a pass is split.
    pub(super) fn splits(&self, size: PassSize) -> Option<&SecondHalf> {
        let second = self.second_half.as_ref()?;
        let is_decode = size.n_tokens == size.n_sequences;
        let is_split = second.is_split.get(size.n_tokens).copied();
        (is_decode && is_split == Some(true)).then_some(second)
    }

    /// Runs the layers of a decode batch as two halves. Afterwards `stream` has waited for both.
    pub(super) fn layers_of_two(
        &self,
        stream: &Stream,
        second: &SecondHalf,
        inputs: &Inputs,
        size: PassSize,
    ) -> Result<(), CudaError> {
        let n_second = size.n_tokens / 2;
        let n_first = size.n_tokens - n_second;
        let of = |n: usize| PassSize {
            n_tokens: n,
            n_sequences: n,
        };
        let beside = BatchSlice {
            workspace: &second.workspace,
            first_row: n_first,
        };
        second.stream.follow(stream, &second.begun)?;
        self.layers_of(&second.stream, inputs, beside, of(n_second))?;
        self.layers_of(stream, inputs, self.whole(), of(n_first))?;
        stream.follow(&second.stream, &second.ended)?;
        let hidden = self.config.hidden;
        let to = n_first * hidden..size.n_tokens * hidden;
        let from = second.workspace.residual.view(0..n_second * hidden)?;
        self.workspace.residual.view(to)?.copy_from(stream, from)
    }

    /// For the log: which batches are split, and why others are not.
    pub fn describe_two_batches(&self) -> String {
        let Some(second) = &self.second_half else {
            return "off".to_owned();
        };
        let split: Vec<usize> = (0..=MAX_ROWS).filter(|n| second.is_split[*n]).collect();
        match (split.first(), split.last()) {
            (Some(first), Some(last)) => format!(
                "batches of {first} to {last} rows; not used for other sizes: \
                 a half would be empty or would use a cooperative kernel"
            ),
            _ => "no batch: all sizes use cooperative kernels".to_owned(),
        }
    }
}
