//! Products of an input with matrices that share it: put in their order of columns, rounded to 8 bits if the
//! settings say so, multiplied.

use host::pool::WorkerPool;
use kernels::KernelError;
use kernels::linear::{self, LinearInput, LinearPart};
use kernels::quant_linear::{QuantActivations, Terms};

use super::options::{ActivationType, Settings};
use super::weights::Projection;

/// Buffers of a projection's input.
#[derive(Default)]
pub(super) struct Inputs {
    /// In a matrix's order of columns.
    reordered: Vec<f32>,
    int8: QuantActivations,
}

/// As [`LinearPart`], with the order of the matrix's columns.
pub(super) struct Part<'a> {
    pub projection: &'a Projection,
    pub y: &'a mut [f32],
    pub accumulate: bool,
    pub bias: Option<&'a [f32]>,
}

/// Projections of the same `x: [n_tokens, n_in]`, which is rounded to 8 bits in `terms` terms if the
/// settings say so. Neighbours that take it in the same order share its copy in that order.
pub(super) fn project(
    pool: &mut WorkerPool,
    settings: Settings,
    terms: Terms,
    inputs: &mut Inputs,
    x: &[f32],
    n_tokens: usize,
    parts: &mut [Part<'_>],
) -> Result<(), KernelError> {
    for parts in parts.chunk_by_mut(|a, b| a.projection.order == b.projection.order) {
        let Some(Projection { weights, order }) = parts.first().map(|part| part.projection) else {
            continue;
        };
        let width = weights.n_in();
        let Inputs { reordered, int8 } = inputs;
        let x = match order {
            None => x,
            Some(order) => {
                reorder(pool, x, order, reordered)?;
                reordered
            }
        };
        let input = quantized(pool, settings, terms, int8, x, width)?;
        let mut linears: Vec<LinearPart<'_>> = parts
            .iter_mut()
            .map(|part| LinearPart {
                weights: &part.projection.weights,
                y: part.y,
                accumulate: part.accumulate,
                bias: part.bias,
            })
            .collect();
        linear::forward(pool, settings.isa, n_tokens, input, &mut linears)?;
    }
    Ok(())
}

/// Every token's values in `order`.
fn reorder(
    pool: &mut WorkerPool,
    x: &[f32],
    order: &[u32],
    out: &mut Vec<f32>,
) -> Result<(), KernelError> {
    out.resize(x.len(), 0.0);
    let mut tokens: Vec<&mut [f32]> = out.chunks_exact_mut(order.len()).collect();
    pool.for_each_mut(&mut tokens, &|token, out| {
        let x = &x[token * order.len()..][..order.len()];
        for (out, &from) in out.iter_mut().zip(order) {
            *out = x[from as usize];
        }
    })?;
    Ok(())
}

/// `x: [n_tokens, width]` in the format that the projections read; 8-bit integers in `terms` terms.
fn quantized<'a>(
    pool: &mut WorkerPool,
    settings: Settings,
    terms: Terms,
    int8: &'a mut QuantActivations,
    x: &'a [f32],
    width: usize,
) -> Result<LinearInput<'a>, KernelError> {
    // Widths that are not a multiple of the 8-bit group occur only with dense weights.
    if settings.activations == ActivationType::F32 || !width.is_multiple_of(32) {
        return Ok(LinearInput { x, int8: None });
    }
    int8.quantize(pool, settings.isa, x, width, terms)?;
    Ok(LinearInput {
        x,
        int8: Some(int8),
    })
}
