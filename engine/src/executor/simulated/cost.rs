//! The time of a pass through the model on a GPU.
//!
//! ```text
//! pass(m rows) = weight bytes / (bandwidth · share)
//!              + excess(m) · elements / (SM cycles a second)
//!              + attention + launch
//! ```
//!
//! but at least 2 · m · elements / peak FLOP/s. One row is assumed to be limited by bandwidth
//! alone, which gives the share; `excess` is what m rows cost beyond that, in SM cycles for each
//! weight, interpolated linearly between measured numbers of rows. So both transfer to another
//! model (by bytes and elements) and to another GPU (by bandwidth, and by its multiprocessors and
//! clock). [`attention`](super::attention) has its own costs.
//! Deliberately absent: kernels that another GPU would choose.

use super::attention::{AttentionCost, KvTokens, SequenceTokens};
use super::card::{Card, DecodePoint, MeasuredModel, PrefillPoint, Steps};
use crate::model::config::ModelConfig;
use crate::weights::{Checkpoint, MatrixId, WeightError};

/// The properties of a model that the cost of a pass depends on.
pub type ModelSizes = MeasuredModel;

/// Sizes of a checkpoint's matrices as stored; KV in elements of `kv_element_bytes`.
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
        n_layers: config.n_layers,
        n_q_heads: config.n_q_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
    })
}

/// Device memory of a model's weights in bytes, including the embedding.
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
    attention: AttentionCost,
    /// Share of the bandwidth with which weights are read.
    weight_share: f64,
    /// (rows, SM cycles for each weight), ascending by rows; starts with (1, 0).
    excess: Vec<(f64, f64)>,
}

impl CostModel {
    pub fn new(card: Card, sizes: ModelSizes) -> Self {
        let steps = &card.steps;
        let measured = Measured {
            steps,
            attention: AttentionCost::new(steps, &card.measured_on, &card.measured_on, steps.model),
        };
        let bytes_per_s = card.measured_on.bandwidth_gb_per_s * 1e9;
        let bytes = (steps.model.layer_bytes + steps.model.head_bytes) as f64;
        let single: Vec<f64> = steps
            .decode
            .iter()
            .filter(|point| point.rows == 1)
            .map(|point| measured.decode_weights_s(point))
            .collect();
        let single_s = mean(&single);
        let weight_share = bytes / bytes_per_s / single_s;
        let cycles = |excess_s: f64, elements: u64| {
            excess_s.max(0.0) * card.measured_on.sm_cycles_per_s() / elements as f64
        };
        // Rows → all figures for them.
        let mut figures: std::collections::BTreeMap<usize, Vec<f64>> = [(1, vec![0.0])].into();
        for point in steps.decode.iter().filter(|point| point.rows > 1) {
            let s = measured.decode_weights_s(point);
            let elements = steps.model.layer_elements + steps.model.head_elements;
            figures
                .entry(point.rows)
                .or_default()
                .push(cycles(s - single_s, elements));
        }
        for point in &steps.prefill {
            // More than one pass tells nothing about a single one.
            if point.tokens < 2 || point.tokens > steps.max_pass_rows {
                continue;
            }
            let s = measured.prefill_weights_s(point);
            figures
                .entry(point.tokens)
                .or_default()
                .push(cycles(s - single_s, steps.model.layer_elements));
        }
        let excess = figures
            .into_iter()
            .map(|(rows, figures)| (rows as f64, mean(&figures)))
            .collect();
        let attention = AttentionCost::new(steps, &card.measured_on, &card.rates, sizes);
        Self {
            card,
            sizes,
            attention,
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
        layers + head + launch_s
    }

    fn bytes_per_s(&self) -> f64 {
        self.card.rates.bandwidth_gb_per_s * 1e9
    }

    /// Time for products of matrices of `n_bytes` bytes and `n_elements` elements with `n_rows`
    /// rows.
    fn product_s(&self, n_rows: usize, n_bytes: u64, n_elements: u64) -> f64 {
        let read_s = n_bytes as f64 / (self.bytes_per_s() * self.weight_share);
        let excess_s =
            self.excess_at(n_rows) * n_elements as f64 / self.card.rates.sm_cycles_per_s();
        let flops = 2.0 * n_rows as f64 * n_elements as f64;
        (read_s + excess_s).max(flops / (self.card.rates.fp16_tflops * 1e12))
    }

    /// Linear between measured numbers of rows; proportional beyond the last.
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

    /// Assumes that lm_head takes as long for its one row as in a step of one row; the rest beyond
    /// the step of one row is then the layers' excess.
    fn prefill_weights_s(&self, point: &PrefillPoint) -> f64 {
        let outside_ms = if point.step_alone {
            0.0
        } else {
            self.steps.request_ms + point.tokens as f64 * self.steps.tokenize_us / 1e3
        };
        let attention_s = self.attention.packed_s([SequenceTokens {
            start: 0,
            n_tokens: point.tokens,
        }]);
        (point.ms - outside_ms - self.steps.launch_ms) / 1e3 - attention_s
    }
}

fn mean(figures: &[f64]) -> f64 {
    figures.iter().sum::<f64>() / figures.len().max(1) as f64
}
