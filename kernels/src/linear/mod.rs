//! One projection, or several of the same input or of some of its tokens, as one parallel region.
//!
//! The 16-row tiles of all parts form one list, which is divided by what they cost: threads finish
//! together, and each reads the same tiles in every step.

use std::ops::Range;

use host::pool::{DisjointMut, WorkerPool};

use crate::KernelError;
use crate::dense_linear::{self, DenseMatrix};
use crate::error::check_shape;
use crate::isa::Isa;
use crate::quant_linear::{self, Activations, OutputView, QuantActivations, QuantMatrix};

const OP: &str = "linear";
/// Reading a weight takes as long as its products with about this many tokens. It decides only which
/// thread has which tiles of parts with different numbers of tokens.
const TOKENS_PER_READ: usize = 8;

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

/// One projection: `y: [tokens.len(), n_out]`.
pub struct LinearPart<'a> {
    pub weights: &'a LinearWeights,
    /// The input's tokens that it is a projection of.
    pub tokens: Range<usize>,
    pub y: &'a mut [f32],
    /// Add to `y` instead of overwriting it.
    pub accumulate: bool,
    /// `[n_out]`
    pub bias: Option<&'a [f32]>,
}

impl LinearPart<'_> {
    /// In no unit: for sharing parts among threads.
    fn cost(&self) -> usize {
        self.weights.bytes() * (self.tokens.len() + TOKENS_PER_READ)
    }

    fn check(&self, n_tokens: usize, input: &LinearInput<'_>) -> Result<(), KernelError> {
        let (n_in, n_out) = (self.weights.n_in(), self.weights.n_out());
        if self.tokens.start > self.tokens.end || self.tokens.end > n_tokens {
            return Err(KernelError::Shape {
                op: OP,
                what: "end of a part's tokens",
                found: self.tokens.end,
                expected: format!("{} to {n_tokens}", self.tokens.start),
            });
        }
        check_shape(OP, "length of x", input.x.len(), n_tokens * n_in)?;
        check_shape(OP, "length of y", self.y.len(), self.tokens.len() * n_out)?;
        if let Some(bias) = self.bias {
            check_shape(OP, "length of the bias", bias.len(), n_out)?;
        }
        if let Some(int8) = input.int8 {
            let found = int8.n_tokens();
            check_shape(OP, "n_tokens of the integer input", found, n_tokens)?;
            check_shape(OP, "n_in of the integer input", int8.n_in(), n_in)?;
        }
        Ok(())
    }
}

/// Computes every part from its tokens of the input, which has `n_tokens`.
///
/// # Errors
///
/// [`KernelError::Shape`] if a part's tokens are not in the input, or the input, a part's output or
/// its bias has another length than the tokens and the matrix say; [`KernelError::Host`] if a
/// worker thread panicked.
pub fn forward(
    pool: &mut WorkerPool,
    isa: Isa,
    n_tokens: usize,
    input: LinearInput<'_>,
    parts: &mut [LinearPart<'_>],
) -> Result<(), KernelError> {
    for part in parts.iter() {
        part.check(n_tokens, &input)?;
    }
    let total_cost: usize = parts.iter().map(LinearPart::cost).sum();
    let parts: Vec<_> = parts
        .iter_mut()
        .filter(|part| !part.tokens.is_empty())
        .map(|part| (part.cost(), Work::of(part)))
        .collect();
    if parts.is_empty() {
        return Ok(());
    }
    let n_threads = pool.n_threads();
    pool.run(&|thread| {
        let (from, to) = (
            total_cost * thread / n_threads,
            total_cost * (thread + 1) / n_threads,
        );
        let mut before = 0;
        for (cost, work) in &parts {
            let n_tiles = work.weights.n_tiles();
            // A tile belongs to the thread whose range contains its beginning.
            let tile_at = |at: usize| {
                (at.saturating_sub(before) * n_tiles)
                    .div_ceil(*cost)
                    .min(n_tiles)
            };
            let tiles = tile_at(from)..tile_at(to);
            before += cost;
            if !tiles.is_empty() {
                // SAFETY: tile ranges of different threads do not overlap, since each range starts
                // where the one before ends.
                unsafe { work.run(isa, &input, tiles) }
            }
        }
    })?;
    Ok(())
}

/// A part whose output is shared by the threads.
struct Work<'a> {
    weights: &'a LinearWeights,
    tokens: Range<usize>,
    accumulate: bool,
    bias: Option<&'a [f32]>,
    y: DisjointMut<'a, f32>,
}

impl<'a> Work<'a> {
    fn of(part: &'a mut LinearPart<'_>) -> Self {
        Self {
            weights: part.weights,
            tokens: part.tokens.clone(),
            accumulate: part.accumulate,
            bias: part.bias,
            y: DisjointMut::new(part.y),
        }
    }

    /// # Safety
    /// No other thread has these tiles meanwhile.
    unsafe fn run(&self, isa: Isa, input: &LinearInput<'_>, tiles: Range<usize>) {
        let tokens = self.tokens.clone();
        let out = OutputView {
            y: &self.y,
            stride: self.weights.n_out(),
            accumulate: self.accumulate,
            bias: self.bias,
        };
        match self.weights {
            LinearWeights::Quant(w) => {
                let x = input
                    .int8
                    .map_or(Activations::F32(input.x), Activations::Int8);
                // SAFETY: the caller's promise.
                unsafe { quant_linear::run_tiles(isa, w, x, tokens, tiles, out) }
            }
            LinearWeights::Dense(w) => {
                let x = &input.x[tokens.start * w.n_in()..tokens.end * w.n_in()];
                // SAFETY: the caller's promise.
                unsafe { dense_linear::run_tiles(isa, w, x, tiles, out) }
            }
        }
    }
}
