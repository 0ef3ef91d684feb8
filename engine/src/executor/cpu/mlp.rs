//! The second half of a block: x += Down(silu(Gate h) * Up h), or the weighted sum of the experts that a
//! router chose for each token.
//!
//! The router's product is in f32, whatever activations are rounded to. The tokens of a pass are sorted
//! by expert, so that an expert's weights are read once for all of its tokens, and one parallel region
//! has the products of all experts. A token's sum is taken in the order of its choice.

use std::ops::Range;

use host::pool::WorkerPool;
use kernels::experts::Routing;
use kernels::quant_linear::Terms;
use kernels::{KernelError, silu_mul};

use super::CpuOptions;
use super::options::{ActivationType, Settings};
use super::projection::{Inputs, Part, project};
use super::weights::{GatedMlp, Mlp, Projection, SparseMlp};
use crate::model::config::ModelConfig;

/// Buffers of an MLP; they grow to the largest pass and are kept.
#[derive(Default)]
pub(super) struct MlpBuffers {
    /// `[n_tokens, intermediate]`, or for experts `[n_places, intermediate]`
    gate: Vec<f32>,
    up: Vec<f32>,
    /// `[n_tokens, n_experts]`
    logits: Vec<f32>,
    pub(super) routing: Routing,
    /// `[n_places, hidden]`: what the experts get, then what they make of it.
    placed: Vec<f32>,
}

/// Adds the MLP of `h` to `x`, both `[n_tokens, hidden]`.
pub(super) fn add(
    pool: &mut WorkerPool,
    settings: Settings,
    mlp: &Mlp,
    inputs: &mut Inputs,
    buffers: &mut MlpBuffers,
    h: &[f32],
    x: &mut [f32],
) -> Result<(), KernelError> {
    let mut pass = Pass {
        pool,
        settings,
        inputs,
    };
    match mlp {
        Mlp::Dense(mlp) => pass.dense(mlp, buffers, h, x),
        Mlp::Sparse(mlp) => pass.sparse(mlp, buffers, h, x),
    }
}

struct Pass<'a> {
    pool: &'a mut WorkerPool,
    settings: Settings,
    inputs: &'a mut Inputs,
}

impl Pass<'_> {
    fn project(&mut self, x: &[f32], parts: &mut [Part<'_>]) -> Result<(), KernelError> {
        let (settings, terms) = (self.settings, Terms::One);
        project(self.pool, settings, terms, self.inputs, x, parts)
    }

    fn dense(
        &mut self,
        mlp: &GatedMlp,
        buffers: &mut MlpBuffers,
        h: &[f32],
        x: &mut [f32],
    ) -> Result<(), KernelError> {
        let n = h.len() / mlp.gate.weights.n_in();
        let MlpBuffers { gate, up, .. } = buffers;
        gate.resize(n * mlp.gate.weights.n_out(), 0.0);
        up.resize(gate.len(), 0.0);
        let mut parts = [
            Part::new(&mlp.gate, 0..n, gate),
            Part::new(&mlp.up, 0..n, up),
        ];
        self.project(h, &mut parts)?;
        silu_mul::in_place(self.pool, self.settings.isa, gate, up)?;
        let down = Part {
            accumulate: true,
            ..Part::new(&mlp.down, 0..n, x)
        };
        self.project(gate, &mut [down])
    }

    fn sparse(
        &mut self,
        mlp: &SparseMlp,
        buffers: &mut MlpBuffers,
        h: &[f32],
        x: &mut [f32],
    ) -> Result<(), KernelError> {
        let Some(first) = mlp.experts.first() else {
            return Ok(());
        };
        let (width, hidden) = (first.gate.weights.n_out(), first.gate.weights.n_in());
        self.route(mlp, buffers, h)?;
        let MlpBuffers {
            gate,
            up,
            routing,
            placed,
            ..
        } = buffers;
        let n_places = routing.n_places();
        placed.resize(n_places * hidden, 0.0);
        gate.resize(n_places * width, 0.0);
        up.resize(n_places * width, 0.0);
        routing.gather(self.pool, h, hidden, placed)?;
        let mut parts = parts_of(mlp, routing, gate, |expert| &expert.gate);
        parts.extend(parts_of(mlp, routing, up, |expert| &expert.up));
        // Neighbours with the same tokens share their order of columns.
        parts.sort_by_key(|part| part.tokens.start);
        self.project(placed, &mut parts)?;
        silu_mul::in_place(self.pool, self.settings.isa, gate, up)?;
        let mut parts = parts_of(mlp, routing, placed, |expert| &expert.down);
        self.project(gate, &mut parts)?;
        routing.add(self.pool, placed, hidden, x)
    }

    /// Chooses the experts of every token.
    fn route(
        &mut self,
        mlp: &SparseMlp,
        buffers: &mut MlpBuffers,
        h: &[f32],
    ) -> Result<(), KernelError> {
        let MlpBuffers {
            logits, routing, ..
        } = buffers;
        let n = h.len() / mlp.router.weights.n_in();
        logits.resize(n * mlp.choice.n_experts, 0.0);
        let part = Part::new(&mlp.router, 0..n, logits);
        let settings = Settings {
            activations: ActivationType::F32,
            ..self.settings
        };
        let (terms, inputs) = (Terms::One, &mut *self.inputs);
        project(self.pool, settings, terms, inputs, h, &mut [part])?;
        routing.choose(self.pool, logits, mlp.choice)
    }
}

/// A projection of every expert that has tokens; `y: [n_places, n_out]`.
fn parts_of<'a>(
    mlp: &'a SparseMlp,
    routing: &Routing,
    mut y: &'a mut [f32],
    of: impl Fn(&'a GatedMlp) -> &'a Projection,
) -> Vec<Part<'a>> {
    let part = |(expert, tokens): (usize, Range<usize>)| {
        let projection = of(&mlp.experts[expert]);
        let n = tokens.len() * projection.weights.n_out();
        let (own, rest) = std::mem::take(&mut y).split_at_mut(n);
        y = rest;
        Part::new(projection, tokens, own)
    };
    routing.groups().map(part).collect()
}

/// Bytes of the buffers that experts need beside their weights in the largest pass: their inputs,
/// what is between, and one of the two in 8 bits with its scales and sums.
pub(crate) fn expert_buffer_bytes(config: &ModelConfig) -> u64 {
    let Some(experts) = &config.experts else {
        return 0;
    };
    let f32_bytes = size_of::<f32>();
    let n_tokens = CpuOptions::default().max_pass_tokens;
    let (hidden, width) = (config.hidden, experts.intermediate);
    let int8_bytes = hidden.max(width) * 13 / 8;
    let place = (hidden + 2 * width) * f32_bytes + int8_bytes;
    (n_tokens * (experts.n_active * place + experts.n_experts * f32_bytes)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::preset;

    /// 2,048 places of 2,048 and twice 768 values in f32, and 2,048 with 5 bytes of scales and sums
    /// for 8 of them; 256 x 128 logits.
    #[test]
    fn the_buffers_of_a_pass_are_known_before_they_are_allocated() {
        let config = |name| preset::find(name).expect("a preset").config;
        let expected = 2048 * ((2048 + 1536) * 4 + 2048 + 2048 * 5 / 8) + 256 * 128 * 4;
        assert_eq!(expert_buffer_bytes(&config("qwen3-30b-a3b")), expected);
        assert_eq!(expert_buffer_bytes(&config("qwen3-0.6b")), 0);
    }
}
