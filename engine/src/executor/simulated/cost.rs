//! The time of a pass through the model on a GPU.
//!
//! ```text
//! pass(m rows) = max(weight bytes / read rate, 2 · m · elements / peak FLOP/s)
//!              + rest(m) · elements / (SM cycles a second)
//!              + borders + attention + launch
//! ```
//!
//! Reading and products overlap. `borders` is what a step of one row takes beyond reading its
//! weights: the ends of launches, where the memory idles; it is kept in clocks a layer. `rest` is
//! what m rows take beyond all that, in SM cycles for each weight (unpacking, activations, partial
//! sums), interpolated linearly between measured numbers of rows. So measured steps come out again
//! on their own GPU, and carry over to another model (by bytes, elements and layers) and to another
//! GPU (by bandwidth, peak rate, multiprocessors and clock).
//! [`attention`](super::attention) has its own costs.
//!
//! The steps must be of kernels that the other GPU would run: those of a card profile for a GPU
//! without `wgmma`. Deliberately absent: what its caches would do.

use kernels::cuda::Element;
use kernels::stream_linear::Format;

use super::attention::{AttentionCost, KvTokens, SequenceTokens};
use super::card::{Card, DecodePoint, MeasuredModel, PrefillPoint, Rates, Steps};
use crate::model::config::ModelConfig;
use crate::weights::gpu_format::{gpu_bytes, gpu_format};
use crate::weights::{Checkpoint, MatrixId, WeightError};

/// The properties of a model that the cost of a pass depends on.
pub type ModelSizes = MeasuredModel;

/// Sizes of a checkpoint's matrices as a GPU stores them ([`gpu_format`]); KV in elements of `kv_element_bytes`.
///
/// # Errors
///
/// If a matrix is missing in the checkpoint or has another shape.
pub fn sizes_of(
    checkpoint: &dyn Checkpoint,
    kv_element_bytes: usize,
) -> Result<ModelSizes, WeightError> {
    let config = checkpoint.config();
    let (mut layer_bytes, mut layer_elements) = (0, 0);
    for i in 0..config.n_layers {
        for ids in [
            &[MatrixId::Q(i), MatrixId::K(i), MatrixId::V(i)][..],
            &[MatrixId::O(i)],
            &[MatrixId::Gate(i), MatrixId::Up(i)],
            &[MatrixId::Down(i)],
        ] {
            let (n_bytes, n_elements) = stored_on_gpu(checkpoint, ids)?;
            layer_bytes += n_bytes;
            layer_elements += n_elements;
        }
    }
    let (head_bytes, head_elements) = stored_on_gpu(checkpoint, &[MatrixId::LmHead])?;
    Ok(ModelSizes {
        layer_bytes,
        head_bytes,
        layer_elements,
        head_elements,
        kv_bytes_per_token: (config.kv_elements_per_token() * kv_element_bytes) as u64,
        n_layers: config.n_layers,
        n_q_heads: config.n_q_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
    })
}

/// Bytes and elements of the parts of one matrix.
fn stored_on_gpu(checkpoint: &dyn Checkpoint, ids: &[MatrixId]) -> Result<(u64, u64), WeightError> {
    let parts = ids
        .iter()
        .map(|id| checkpoint.storage(*id))
        .collect::<Result<Vec<_>, _>>()?;
    // The GPU refuses other groups itself, by name.
    let format = gpu_format(&parts, Element::F16).unwrap_or(Format::Half);
    let n_bytes = parts.iter().map(|part| gpu_bytes(part, format)).sum();
    Ok((n_bytes, parts.iter().map(|part| part.n_elements).sum()))
}

/// Device memory of a model's weights in bytes, including the embedding.
pub fn device_bytes(sizes: &ModelSizes, config: &ModelConfig) -> u64 {
    let embedding = if config.tied_embeddings {
        0
    } else {
        // In 16 bits, whatever the head has.
        2 * sizes.head_elements
    };
    sizes.layer_bytes + sizes.head_bytes + embedding
}

#[derive(Debug, Clone)]
pub struct CostModel {
    card: Card,
    sizes: ModelSizes,
    attention: AttentionCost,
    /// Clocks of a layer's borders.
    border_clocks: f64,
    /// (rows, SM cycles for each weight), ascending by rows; starts with (1, 0).
    rest: Vec<(f64, f64)>,
}

impl CostModel {
    pub fn new(card: Card, sizes: ModelSizes) -> Self {
        let steps = &card.steps;
        let measured = Measured {
            steps,
            attention: AttentionCost::new(steps, &card.measured_on, &card.measured_on, steps.model),
        };
        let there = &card.measured_on;
        let floor_s = |rows: usize, n_bytes: u64, n_elements: u64| {
            least_s(there, steps.read_share, rows, n_bytes, n_elements)
        };
        let MeasuredModel {
            layer_bytes,
            head_bytes,
            layer_elements,
            head_elements,
            ..
        } = steps.model;
        let whole_bytes = layer_bytes + head_bytes;
        let whole_elements = layer_elements + head_elements;
        let single: Vec<f64> = steps
            .decode
            .iter()
            .filter(|point| point.rows == 1)
            .map(|point| measured.decode_weights_s(point))
            .collect();
        let single_s = mean(&single);
        let borders_s = (single_s - floor_s(1, whole_bytes, whole_elements)).max(0.0);
        let border_clocks = borders_s * there.clock_ghz * 1e9 / steps.model.n_layers as f64;
        let cycles = |rest_s: f64, elements: u64| {
            rest_s.max(0.0) * there.sm_cycles_per_s() / elements as f64
        };
        // Rows → all figures for them.
        let mut figures: std::collections::BTreeMap<usize, Vec<f64>> = [(1, vec![0.0])].into();
        for point in steps.decode.iter().filter(|point| point.rows > 1) {
            let floor_s = floor_s(point.rows, whole_bytes, whole_elements);
            let rest_s = measured.decode_weights_s(point) - floor_s - borders_s;
            figures
                .entry(point.rows)
                .or_default()
                .push(cycles(rest_s, whole_elements));
        }
        // lm_head takes as long for a prompt's one row as in a step of one row.
        let head_s = floor_s(1, head_bytes, head_elements);
        for point in &steps.prefill {
            // More than one pass tells nothing about a single one.
            if point.tokens < 2 || point.tokens > steps.max_pass_rows {
                continue;
            }
            let floor_s = floor_s(point.tokens, layer_bytes, layer_elements);
            let rest_s = measured.prefill_weights_s(point) - head_s - floor_s - borders_s;
            figures
                .entry(point.tokens)
                .or_default()
                .push(cycles(rest_s, layer_elements));
        }
        let rest = figures
            .into_iter()
            .map(|(rows, figures)| (rows as f64, mean(&figures)))
            .collect();
        let attention = AttentionCost::new(steps, &card.measured_on, &card.rates, sizes);
        Self {
            card,
            sizes,
            attention,
            border_clocks,
            rest,
        }
    }

    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Seconds that the borders between a pass's kernels take.
    pub fn borders_s(&self) -> f64 {
        self.border_clocks * self.sizes.n_layers as f64 / (self.card.rates.clock_ghz * 1e9)
    }

    pub fn attention(&self) -> &AttentionCost {
        &self.attention
    }

    /// Seconds of one pass without attention; `n_logits` rows go through lm_head.
    pub fn pass_s(&self, n_rows: usize, n_logits: usize, graph: bool) -> f64 {
        let launch_s = if graph {
            0.0
        } else {
            self.card.steps.launch_ms / 1e3
        };
        let layers = self.product_s(n_rows, self.sizes.layer_bytes, self.sizes.layer_elements);
        let head = if n_logits == 0 {
            0.0
        } else {
            self.product_s(n_logits, self.sizes.head_bytes, self.sizes.head_elements)
        };
        layers + head + self.borders_s() + launch_s
    }

    /// Time for products of matrices of `n_bytes` bytes and `n_elements` elements with `n_rows`
    /// rows.
    fn product_s(&self, n_rows: usize, n_bytes: u64, n_elements: u64) -> f64 {
        let rates = &self.card.rates;
        let rest_s = self.rest_at(n_rows) * n_elements as f64 / rates.sm_cycles_per_s();
        least_s(
            rates,
            self.card.steps.read_share,
            n_rows,
            n_bytes,
            n_elements,
        ) + rest_s
    }

    /// Linear between measured numbers of rows; proportional beyond the last.
    fn rest_at(&self, n_rows: usize) -> f64 {
        let rows = n_rows as f64;
        let above = self.rest.partition_point(|(at, _)| *at < rows);
        match (self.rest.get(above.wrapping_sub(1)), self.rest.get(above)) {
            (_, Some((at, cycles))) if (at - rows).abs() < f64::EPSILON => *cycles,
            (Some((x0, y0)), Some((x1, y1))) => y0 + (y1 - y0) * (rows - x0) / (x1 - x0),
            (Some((at, cycles)), None) => cycles * rows / at,
            (None, Some((_, cycles))) => *cycles,
            (None, None) => 0.0,
        }
    }
}

/// Reading and products overlap: the longer of the two.
fn least_s(rates: &Rates, read_share: f64, n_rows: usize, n_bytes: u64, n_elements: u64) -> f64 {
    let read_s = n_bytes as f64 / (rates.bandwidth_gb_per_s * 1e9 * read_share);
    let flops = 2.0 * n_rows as f64 * n_elements as f64;
    read_s.max(flops / (rates.fp16_tflops * 1e12))
}

/// The part of a measured time that belongs to the weights.
struct Measured<'a> {
    steps: &'a Steps,
    attention: AttentionCost,
}

impl Measured<'_> {
    fn decode_weights_s(&self, point: &DecodePoint) -> f64 {
        let launch_ms = if point.graph {
            0.0
        } else {
            self.steps.launch_ms
        };
        let attention_s = self.attention.decode_s(KvTokens {
            first: point.rows as f64 * point.context_tokens,
            again: 0.0,
        });
        (point.ms - launch_ms) / 1e3 - attention_s
    }

    fn prefill_weights_s(&self, point: &PrefillPoint) -> f64 {
        let outside_ms = if point.step_alone {
            0.0
        } else {
            self.steps.request_ms + point.tokens as f64 * self.steps.tokenize_us / 1e3
        };
        let sequence = SequenceTokens {
            start: 0,
            n_tokens: point.tokens / point.prompts,
        };
        let attention_s = self
            .attention
            .packed_s(std::iter::repeat_n(sequence, point.prompts));
        (point.ms - outside_ms - self.steps.launch_ms) / 1e3 - attention_s
    }
}

fn mean(figures: &[f64]) -> f64 {
    figures.iter().sum::<f64>() / figures.len().max(1) as f64
}
