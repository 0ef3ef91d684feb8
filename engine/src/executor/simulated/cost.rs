//! How long a pass through the model takes on a card.
//!
//! ```text
//! pass(m rows) = weight bytes / (bandwidth · share)
//!              + excess(m) · elements / (SM cycles a second)
//!              + KV bytes read / (bandwidth · KV share) + launch
//! ```
//!
//! but no less than 2 · m · elements / peak FLOP/s. One row is taken to be limited by bandwidth
//! alone, which gives the share; `excess` is what m rows cost beyond that, in SM cycles per weight,
//! between measured numbers of rows a straight line. So both carry over to another model (by bytes
//! and elements) and to another card (by bandwidth, and by its multiprocessors and clock).
//! Deliberately absent: kernels that another card would choose.

use super::card::{Card, MeasuredModel, Steps};
use crate::model::config::ModelConfig;
use crate::weights::{Checkpoint, MatrixId, WeightError};

/// What the cost of a pass depends on in a model.
pub type ModelSizes = MeasuredModel;

/// Sizes of a checkpoint's matrices as they are stored; KV in elements of `kv_element_bytes`.
pub fn sizes_of(
    checkpoint: &dyn Checkpoint,
    kv_element_bytes: usize,
) -> Result<ModelSizes, WeightError> {
    let config = checkpoint.config();
    let (mut layer_bytes, mut layer_elements) = (0, 0);
    for i in 0..config.n_layers {
        for id in [
            MatrixId::Q(i),
            MatrixId::K(i),
            MatrixId::V(i),
            MatrixId::O(i),
            MatrixId::Gate(i),
            MatrixId::Up(i),
            MatrixId::Down(i),
        ] {
            let storage = checkpoint.storage(id)?;
            layer_bytes += storage.n_bytes;
            layer_elements += storage.n_elements;
        }
    }
    let head = checkpoint.storage(MatrixId::LmHead)?;
    Ok(ModelSizes {
        layer_bytes,
        head_bytes: head.n_bytes,
        layer_elements,
        head_elements: head.n_elements,
        kv_bytes_per_token: (config.kv_elements_per_token() * kv_element_bytes) as u64,
    })
}

/// Bytes that a model's weights take on the device, the embedding included.
pub fn device_bytes(sizes: &ModelSizes, config: &ModelConfig) -> u64 {
    let embedding = if config.tied_embeddings {
        0
    } else {
        sizes.head_bytes
    };
    sizes.layer_bytes + sizes.head_bytes + embedding
}

#[derive(Debug, Clone)]
pub struct CostModel {
    card: Card,
    sizes: ModelSizes,
    /// Share of the bandwidth that weights are read with.
    weight_share: f64,
    /// (rows, SM cycles per weight), rows rising; begins with (1, 0).
    excess: Vec<(f64, f64)>,
}

impl CostModel {
    pub fn new(card: Card, sizes: ModelSizes) -> Self {
        let steps = &card.steps;
        let measured = Measured {
            steps,
            bytes_per_s: card.measured_on.bandwidth_gb_per_s * 1e9,
        };
        let bytes = (steps.model.layer_bytes + steps.model.head_bytes) as f64;
        let single: Vec<f64> = steps
            .decode
            .iter()
            .filter(|point| point.rows == 1)
            .map(|point| measured.decode_weights_s(point.rows, point.context_tokens, point.ms))
            .collect();
        let single_s = mean(&single);
        let weight_share = bytes / measured.bytes_per_s / single_s;
        let cycles = |excess_s: f64, elements: u64| {
            excess_s.max(0.0) * card.measured_on.sm_cycles_per_s() / elements as f64
        };
        // Rows → every figure for them.
        let mut figures: std::collections::BTreeMap<usize, Vec<f64>> = [(1, vec![0.0])].into();
        for point in steps.decode.iter().filter(|point| point.rows > 1) {
            let s = measured.decode_weights_s(point.rows, point.context_tokens, point.ms);
            let elements = steps.model.layer_elements + steps.model.head_elements;
            figures
                .entry(point.rows)
                .or_default()
                .push(cycles(s - single_s, elements));
        }
        for point in &steps.prefill {
            // More than one pass says nothing of a single one.
            if point.tokens < 2 || point.tokens > steps.max_pass_rows {
                continue;
            }
            let s = measured.prefill_weights_s(point.tokens, point.ms);
            figures
                .entry(point.tokens)
                .or_default()
                .push(cycles(s - single_s, steps.model.layer_elements));
        }
        let excess = figures
            .into_iter()
            .map(|(rows, figures)| (rows as f64, mean(&figures)))
            .collect();
        Self {
            card,
            sizes,
            weight_share,
            excess,
        }
    }

    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Share of the bandwidth that reading weights for one row reaches.
    pub fn weight_share(&self) -> f64 {
        self.weight_share
    }

    /// Seconds of one pass. `reads` has, for each reading of KV, the tokens that are read;
    /// `n_logits` rows go through lm_head.
    pub fn pass_s(&self, n_rows: usize, n_logits: usize, kv_tokens_read: f64, graph: bool) -> f64 {
        let launch_s = if graph {
            0.0
        } else {
            self.card.steps.launch_ms / 1e3
        };
        let kv_bytes = kv_tokens_read * self.sizes.kv_bytes_per_token as f64;
        let kv_s = kv_bytes / (self.bytes_per_s() * self.card.steps.kv_bandwidth_share);
        let layers = self.product_s(n_rows, self.sizes.layer_bytes, self.sizes.layer_elements);
        let head = if n_logits == 0 {
            0.0
        } else {
            self.product_s(n_logits, self.sizes.head_bytes, self.sizes.head_elements)
        };
        layers + head + kv_s + launch_s
    }

    fn bytes_per_s(&self) -> f64 {
        self.card.rates.bandwidth_gb_per_s * 1e9
    }

    /// Products of matrices of so many bytes and elements with `n_rows` rows.
    fn product_s(&self, n_rows: usize, n_bytes: u64, n_elements: u64) -> f64 {
        let read_s = n_bytes as f64 / (self.bytes_per_s() * self.weight_share);
        let excess_s =
            self.excess_at(n_rows) * n_elements as f64 / self.card.rates.sm_cycles_per_s();
        let flops = 2.0 * n_rows as f64 * n_elements as f64;
        (read_s + excess_s).max(flops / (self.card.rates.fp16_tflops * 1e12))
    }

    /// Between measured numbers of rows a straight line; beyond the last in proportion.
    fn excess_at(&self, n_rows: usize) -> f64 {
        let rows = n_rows as f64;
        let above = self.excess.partition_point(|(at, _)| *at < rows);
        match (
            self.excess.get(above.wrapping_sub(1)),
            self.excess.get(above),
        ) {
            (_, Some((at, cycles))) if (at - rows).abs() < f64::EPSILON => *cycles,
            (Some((x0, y0)), Some((x1, y1))) => y0 + (y1 - y0) * (rows - x0) / (x1 - x0),
            (Some((at, cycles)), None) => cycles * rows / at,
            (None, Some((_, cycles))) => *cycles,
            (None, None) => 0.0,
        }
    }
}

/// What is left of a measured time for the weights.
struct Measured<'a> {
    steps: &'a Steps,
    bytes_per_s: f64,
}

impl Measured<'_> {
    fn kv_s(&self, tokens_read: f64) -> f64 {
        let bytes = tokens_read * self.steps.model.kv_bytes_per_token as f64;
        bytes / (self.bytes_per_s * self.steps.kv_bandwidth_share)
    }

    fn decode_weights_s(&self, n_rows: usize, context_tokens: f64, ms: f64) -> f64 {
        (ms - self.steps.launch_ms) / 1e3 - self.kv_s(n_rows as f64 * context_tokens)
    }

    /// As if lm_head took as long for the one row that needs it as in a step of one row: then the
    /// rest, over the step of one row, is the layers' excess.
    fn prefill_weights_s(&self, n_tokens: usize, ms: f64) -> f64 {
        let read = kv_tokens_read(0, n_tokens, self.steps.rows_per_kv_read);
        (ms - self.steps.request_ms - self.steps.launch_ms) / 1e3 - self.kv_s(read)
    }
}

/// Tokens of KV that attention reads for `n_tokens` rows of a sequence from position `start` on.
pub fn kv_tokens_read(start: usize, n_tokens: usize, rows_per_kv_read: usize) -> f64 {
    (0..n_tokens)
        .step_by(rows_per_kv_read.max(1))
        .map(|first| (start + (first + rows_per_kv_read).min(n_tokens)) as f64)
        .sum()
}

fn mean(figures: &[f64]) -> f64 {
    figures.iter().sum::<f64>() / figures.len().max(1) as f64
}
