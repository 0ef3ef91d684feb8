//! One projection, or several that read the same input, as one parallel region.
//!
//! The 16-row tiles of all parts form one list, which is divided by bytes: threads finish together,
//! and each reads the same tiles in every step.

use host::pool::{DisjointMut, WorkerPool};

use crate::KernelError;
use crate::dense_linear::{self, DenseMatrix};
use crate::error::check_shape;
use crate::isa::Isa;
use crate::quant_linear::{self, Activations, OutputView, QuantActivations, QuantMatrix};

const OP: &str = "linear";

/// A weight matrix of either kind.
#[derive(Debug)]
pub enum LinearWeights {
    Quant(QuantMatrix),
    Dense(DenseMatrix),
}

impl LinearWeights {
    pub fn n_out(&self) -> usize {
        match self {
            Self::Quant(w) => w.n_out(),
            Self::Dense(w) => w.n_out(),
        }
    }

    pub fn n_in(&self) -> usize {
        match self {
            Self::Quant(w) => w.n_in(),
            Self::Dense(w) => w.n_in(),
        }
    }

    /// Bytes that one pass over the matrix reads.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Quant(w) => w.bytes(),
            Self::Dense(w) => w.bytes(),
        }
    }

    fn n_tiles(&self) -> usize {
        match self {
            Self::Quant(w) => w.n_tiles(),
            Self::Dense(w) => w.n_tiles(),
        }
    }

    /// One row as f32, into `out: [n_in]`.
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] if `out` is not `n_in` long or there is no such row.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<(), KernelError> {
        match self {
            Self::Quant(w) => w.dequantize_row(row, out),
            Self::Dense(w) => w.dequantize_row(row, out),
        }
    }
}

/// The input `[n_tokens, n_in]`, as f32 and, for quantised weights, optionally also as integers.
#[derive(Clone, Copy)]
pub struct LinearInput<'a> {
    pub x: &'a [f32],
    pub int8: Option<&'a QuantActivations>,
}

/// One projection: `y: [n_tokens, n_out]`.
pub struct LinearPart<'a> {
    pub weights: &'a LinearWeights,
    pub y: &'a mut [f32],
    /// Add to `y` instead of overwriting it.
    pub accumulate: bool,
    /// `[n_out]`
    pub bias: Option<&'a [f32]>,
}

/// Computes every part from the same input.
///
/// # Errors
///
/// [`KernelError::Shape`] if the input, a part's output or its bias has another length than
/// `n_tokens` and the matrix say; [`KernelError::Host`] if a worker thread panicked.
pub fn forward(
    pool: &mut WorkerPool,
    isa: Isa,
    n_tokens: usize,
    input: LinearInput<'_>,
    parts: &mut [LinearPart<'_>],
) -> Result<(), KernelError> {
    for part in parts.iter() {
        check_shape(
            OP,
            "length of x",
            input.x.len(),
            n_tokens * part.weights.n_in(),
        )?;
        check_shape(
            OP,
            "length of y",
            part.y.len(),
            n_tokens * part.weights.n_out(),
        )?;
        if let Some(bias) = part.bias {
            check_shape(OP, "length of the bias", bias.len(), part.weights.n_out())?;
        }
        if let Some(int8) = input.int8 {
            check_shape(
                OP,
                "n_tokens of the integer input",
                int8.n_tokens(),
                n_tokens,
            )?;
            check_shape(
                OP,
                "n_in of the integer input",
                int8.n_in(),
                part.weights.n_in(),
            )?;
        }
    }
    if n_tokens == 0 {
        return Ok(());
    }
    let total_bytes: usize = parts.iter().map(|part| part.weights.bytes()).sum();
    let parts: Vec<_> = parts
        .iter_mut()
        .map(|part| {
            (
                part.weights,
                part.accumulate,
                part.bias,
                DisjointMut::new(part.y),
            )
        })
        .collect();
    let n_threads = pool.n_threads();
    pool.run(&|thread| {
        let (from, to) = (
            total_bytes * thread / n_threads,
            total_bytes * (thread + 1) / n_threads,
        );
        let mut before = 0;
        for (weights, accumulate, bias, y) in &parts {
            let n_tiles = weights.n_tiles();
            // A tile belongs to the thread whose range contains its first byte.
            let tile_at = |byte: usize| {
                (byte.saturating_sub(before) * n_tiles)
                    .div_ceil(weights.bytes())
                    .min(n_tiles)
            };
            let tiles = tile_at(from)..tile_at(to);
            before += weights.bytes();
            if tiles.is_empty() {
                continue;
            }
            let (stride, accumulate, bias) = (weights.n_out(), *accumulate, *bias);
            let out = OutputView {
                y,
                stride,
                accumulate,
                bias,
            };
            match weights {
                LinearWeights::Quant(w) => {
                    let x = input
                        .int8
                        .map_or(Activations::F32(input.x), Activations::Int8);
                    // SAFETY: tile ranges of different threads do not overlap, since each range
                    // starts where the one before ends.
                    unsafe { quant_linear::run_tiles(isa, w, x, n_tokens, tiles, out) }
                }
                LinearWeights::Dense(w) => {
                    // SAFETY: as above.
                    unsafe { dense_linear::run_tiles(isa, w, input.x, tiles, out) }
                }
            }
        }
    })?;
    Ok(())
}
