//! The time of a pass's attention on a GPU, over all layers.
//!
//! ```text
//! decode rows     KV bytes read first / (bandwidth · KV share) + KV bytes read again / cache rate
//! packed chunks   max(longest block's tiles · tile time, all blocks' tiles · full tile time / SMs)
//! ```
//!
//! A tile's time is its products at the peak rate of a multiprocessor, and a rest in clocks (softmax,
//! loads), so that it transfers to another GPU by its peak rate, clock and multiprocessors, and to
//! another model by its head dimension.

use super::card::{MeasuredModel, PackedAttention, Rates, Steps};

/// Tokens of KV that a step of decode rows reads.
#[derive(Debug, Clone, Copy, Default)]
pub struct KvTokens {
    /// Tokens read for the first time in the step.
    pub first: f64,
    pub again: f64,
}

/// Tokens of one sequence in a pass: `n_tokens` of them, starting at `start`.
#[derive(Debug, Clone, Copy)]
pub struct SequenceTokens {
    pub start: usize,
    pub n_tokens: usize,
}

#[derive(Debug, Clone)]
pub struct AttentionCost {
    sizes: MeasuredModel,
    packed: PackedAttention,
    first_bytes_per_s: f64,
    again_bytes_per_s: f64,
    /// Seconds for a tile in a block that has its multiprocessor to itself.
    tile_s: f64,
    /// Seconds of the whole GPU for a tile when it is full of blocks.
    full_tile_s: f64,
}

impl AttentionCost {
    /// For a model of these sizes on a GPU of these rates, from steps on the GPU `measured_on`.
    pub fn new(steps: &Steps, measured_on: &Rates, rates: &Rates, sizes: MeasuredModel) -> Self {
        let packed = steps.packed_attention;
        let head_dim = sizes.head_dim as f64 / steps.model.head_dim as f64;
        // Q K^T and P V of a tile, on one multiprocessor.
        let flops = (4 * packed.block_rows * packed.tile_tokens * steps.model.head_dim) as f64;
        let products_s = |of: &Rates| flops / (of.fp16_tflops * 1e12 / f64::from(of.n_sms));
        let tile_s = |us: f64| {
            let measured_s = us / 1e6;
            let of_products_s = products_s(measured_on).min(measured_s);
            let rest_s = (measured_s - of_products_s) * measured_on.clock_ghz / rates.clock_ghz;
            let products_s = of_products_s / products_s(measured_on) * products_s(rates);
            (rest_s + products_s) * head_dim
        };
        Self {
            sizes,
            packed,
            first_bytes_per_s: rates.bandwidth_gb_per_s * 1e9 * steps.kv_bandwidth_share,
            again_bytes_per_s: steps.shared_kv_gb_per_s * 1e9 * rates.sm_cycles_per_s()
                / measured_on.sm_cycles_per_s(),
            tile_s: tile_s(packed.tile_us),
            full_tile_s: tile_s(packed.full_tile_us) / f64::from(rates.n_sms),
        }
    }

    /// Time for rows of one token each.
    pub fn decode_s(&self, tokens: KvTokens) -> f64 {
        let bytes = self.sizes.kv_bytes_per_token as f64;
        tokens.first * bytes / self.first_bytes_per_s
            + tokens.again * bytes / self.again_bytes_per_s
    }

    /// Time for prompt chunks, possibly mixed with decode rows.
    pub fn packed_s(&self, sequences: impl IntoIterator<Item = SequenceTokens>) -> f64 {
        let (mut longest, mut of_a_kv_head) = (0, 0);
        for sequence in sequences {
            for n_tiles in self.block_tiles(sequence) {
                longest = longest.max(n_tiles);
                of_a_kv_head += n_tiles;
            }
        }
        let n_tiles = (of_a_kv_head * self.sizes.n_kv_heads) as f64;
        let layer_s = (longest as f64 * self.tile_s).max(n_tiles * self.full_tile_s);
        layer_s * self.sizes.n_layers as f64
    }

    /// Number of tiles that each of a sequence's blocks of a KV head processes: up to the token of
    /// its last row.
    fn block_tiles(&self, sequence: SequenceTokens) -> impl Iterator<Item = usize> {
        let PackedAttention {
            block_rows,
            tile_tokens,
            ..
        } = self.packed;
        let group = (self.sizes.n_q_heads / self.sizes.n_kv_heads.max(1)).max(1);
        let n_rows = sequence.n_tokens * group;
        (0..n_rows).step_by(block_rows).map(move |first| {
            let last = (first + block_rows).min(n_rows) - 1;
            (sequence.start + last / group + 1).div_ceil(tile_tokens)
        })
    }
}
