//! Products of an input with matrices that share it: put in their order of columns, rounded to 8 bits if the
//! settings say so, multiplied.

use std::ops::Range;

use host::pool::WorkerPool;
use kernels::KernelError;
use kernels::linear::{self, LinearInput, LinearPart};
use kernels::quant_linear::{QuantActivations, Terms};

use super::options::{ActivationType, Settings};
use super::weights::Projection;

/// Buffers of a projection's input.
#[derive(Default)]
pub(super) struct Inputs {
    /// In the matrices' orders of columns.
    reordered: Vec<f32>,
    int8: QuantActivations,
}

/// As [`LinearPart`], with the order of the matrix's columns.
pub(super) struct Part<'a> {
    pub projection: &'a Projection,
    /// The input's tokens that it is a projection of.
    pub tokens: Range<usize>,
    pub y: &'a mut [f32],
    pub accumulate: bool,
    pub bias: Option<&'a [f32]>,
}

impl<'a> Part<'a> {
    /// Overwrites `y`, without a bias.
    pub fn new(projection: &'a Projection, tokens: Range<usize>, y: &'a mut [f32]) -> Self {
        Self {
            projection,
            tokens,
            y,
            accumulate: false,
            bias: None,
        }
    }
}

/// Projections of `x: [n_tokens, n_in]` or of some of its tokens, which are rounded to 8 bits in
/// `terms` terms if the settings say so.
pub(super) fn project(
    pool: &mut WorkerPool,
    settings: Settings,
    terms: Terms,
    inputs: &mut Inputs,
    x: &[f32],
    parts: &mut [Part<'_>],
) -> Result<(), KernelError> {
    let Some(width) = parts.first().map(|part| part.projection.weights.n_in()) else {
        return Ok(());
    };
    let Inputs { reordered, int8 } = inputs;
    let x = if parts.iter().all(|part| part.projection.order.is_none()) {
        x
    } else {
        reorder(pool, x, width, parts, reordered)?;
        reordered
    };
    let input = quantized(pool, settings, terms, int8, x, width)?;
    let mut linears: Vec<LinearPart<'_>> = parts
        .iter_mut()
        .map(|part| LinearPart {
            weights: &part.projection.weights,
            tokens: part.tokens.clone(),
            y: part.y,
            accumulate: part.accumulate,
            bias: part.bias,
        })
        .collect();
    linear::forward(pool, settings.isa, x.len() / width, input, &mut linears)
}

/// Copies the parts' tokens to `out`, in the order of their columns, and has the parts name them
/// there. Neighbours that take the same tokens in the same order share a copy.
fn reorder(
    pool: &mut WorkerPool,
    x: &[f32],
    width: usize,
    parts: &mut [Part<'_>],
    out: &mut Vec<f32>,
) -> Result<(), KernelError> {
    let mut copies: Vec<(usize, Option<&[u32]>)> = Vec::new();
    let is_shared = |a: &Part<'_>, b: &Part<'_>| {
        a.tokens == b.tokens && a.projection.order == b.projection.order
    };
    for parts in parts.chunk_by_mut(is_shared) {
        let first = copies.len();
        if let Some(Part {
            projection, tokens, ..
        }) = parts.first()
        {
            let order = projection.order.as_deref();
            copies.extend(tokens.clone().map(|token| (token, order)));
        }
        for part in parts {
            part.tokens = first..first + part.tokens.len();
        }
    }
    out.resize(copies.len() * width, 0.0);
    let mut rows: Vec<&mut [f32]> = out.chunks_exact_mut(width).collect();
    pool.for_each_mut(&mut rows, &|row, out| {
        let (token, order) = copies[row];
        let x = &x[token * width..][..width];
        match order {
            None => out.copy_from_slice(x),
            Some(order) => {
                for (out, &from) in out.iter_mut().zip(order) {
                    *out = x[from as usize];
                }
            }
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
