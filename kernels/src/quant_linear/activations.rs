//! Activations as 8-bit integers: one f32 scale for 16 of them, and the sums that take a
//! weight's offset out of the dot product.
//!
//! A second 8-bit term can represent the remainder of the first. Each term of a token is a separate
//! row for the integer kernels, so both use a weight while it is in registers.

use host::pool::{DisjointMut, WorkerPool};

use super::{ACTIVATION_GROUP, WEIGHT_GROUP};
use crate::KernelError;
use crate::error::check_shape;
use crate::isa::Isa;
use crate::lanes::{LANES, Lanes, at, at_mut, for_isa};

/// Below this many tokens a thread, quantising is not worth a parallel region.
const MIN_TOKENS_PER_THREAD: usize = 4;

/// 8-bit numbers that represent one activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Terms {
    /// The error is at most 1/254 of the largest of 16 values.
    #[default]
    One,
    /// The second term represents the remainder of the first, with its own scale: the error is at
    /// most 1/254 of that bound, for twice the products.
    Two,
}

impl Terms {
    fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// `x[token, k] ≈ sum over terms of scales[row, k / 16] * codes[row, k]`, where a token's rows are
/// adjacent: `row = token * n_terms + term`. Buffers grow and are reused.
#[derive(Debug, Default)]
pub struct QuantActivations {
    n_tokens: usize,
    n_in: usize,
    terms: Terms,
    /// `[n_rows, n_in]`, within ±127
    codes: Vec<i8>,
    /// `[n_rows, n_in / 16]`
    scales: Vec<f32>,
    /// `[n_rows, n_in / 32]`: sum of 32 values, codes times scales
    scaled_sums: Vec<f32>,
    /// `[n_rows, n_in / 16]`: minus the sum of 16 codes
    negative_sums: Vec<i32>,
}

/// One term of one token's activations.
#[derive(Clone, Copy)]
pub(super) struct RowActivations<'a> {
    pub codes: &'a [i8],
    pub scales: &'a [f32],
    pub scaled_sums: &'a [f32],
    pub negative_sums: &'a [i32],
}

impl RowActivations<'_> {
    /// Sum of the values that correspond to group `group` of `n_chunks` times `CHUNK` inputs, which
    /// are 32, or a single 16.
    #[inline(always)]
    pub fn scaled_sum<const CHUNK: usize>(&self, group: usize, n_chunks: usize) -> f32 {
        if CHUNK == ACTIVATION_GROUP {
            return -(self.negative_sums[group] as f32) * self.scales[group];
        }
        // By far the most frequent case, without a loop.
        if n_chunks == 1 {
            return self.scaled_sums[group];
        }
        self.scaled_sums[group * n_chunks..][..n_chunks]
            .iter()
            .sum()
    }
}

impl QuantActivations {
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Number of rows for each token.
    pub(super) fn n_terms(&self) -> usize {
        self.terms.count()
    }

    /// Replaces the contents by `x: [n_tokens, n_in]`; `n_in` must be a multiple of 32.
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] if `n_in` is no multiple of 32 or `x` no whole number of rows;
    /// [`KernelError::Host`] if a worker thread panicked.
    pub fn quantize(
        &mut self,
        pool: &mut WorkerPool,
        isa: Isa,
        x: &[f32],
        n_in: usize,
        terms: Terms,
    ) -> Result<(), KernelError> {
        if n_in == 0 || !n_in.is_multiple_of(WEIGHT_GROUP) {
            return Err(KernelError::Shape {
                op: "quantize activations",
                what: "n_in",
                found: n_in,
                expected: format!("a multiple of {WEIGHT_GROUP}"),
            });
        }
        let n_tokens = x.len() / n_in;
        check_shape(
            "quantize activations",
            "length of x",
            x.len(),
            n_tokens * n_in,
        )?;
        (self.n_tokens, self.n_in, self.terms) = (n_tokens, n_in, terms);
        let n_terms = terms.count();
        let n_rows = n_tokens * n_terms;
        let n_groups = n_in / ACTIVATION_GROUP;
        let n_pairs = n_in / WEIGHT_GROUP;
        self.codes.resize(n_rows * n_in, 0);
        self.scales.resize(n_rows * n_groups, 0.0);
        self.scaled_sums.resize(n_rows * n_pairs, 0.0);
        self.negative_sums.resize(n_rows * n_groups, 0);
        let codes = DisjointMut::new(&mut self.codes);
        let scales = DisjointMut::new(&mut self.scales);
        let scaled_sums = DisjointMut::new(&mut self.scaled_sums);
        let negative_sums = DisjointMut::new(&mut self.negative_sums);
        pool.for_ranges(n_tokens, MIN_TOKENS_PER_THREAD, &|tokens| {
            for token in tokens {
                let x = &x[token * n_in..][..n_in];
                let row = |term| {
                    let row = token * n_terms + term;
                    // SAFETY: each row is asked for once, by the one thread that has its token.
                    unsafe {
                        RowMut {
                            codes: codes.slice(row * n_in, n_in),
                            scales: scales.slice(row * n_groups, n_groups),
                            scaled_sums: scaled_sums.slice(row * n_pairs, n_pairs),
                            negative_sums: negative_sums.slice(row * n_groups, n_groups),
                        }
                    }
                };
                match terms {
                    Terms::One => {
                        let rows = [row(0)];
                        for_isa!(isa, quantize_in_one(x: &[f32], rows: [RowMut<'_>; 1]));
                    }
                    Terms::Two => {
                        let rows = [row(0), row(1)];
                        for_isa!(isa, quantize_in_two(x: &[f32], rows: [RowMut<'_>; 2]));
                    }
                }
            }
        })?;
        Ok(())
    }

    /// Row `token * n_terms + term`.
    pub(super) fn row(&self, row: usize) -> RowActivations<'_> {
        let n_groups = self.n_in / ACTIVATION_GROUP;
        let n_pairs = self.n_in / WEIGHT_GROUP;
        RowActivations {
            codes: &self.codes[row * self.n_in..][..self.n_in],
            scales: &self.scales[row * n_groups..][..n_groups],
            scaled_sums: &self.scaled_sums[row * n_pairs..][..n_pairs],
            negative_sums: &self.negative_sums[row * n_groups..][..n_groups],
        }
    }

    /// The values that the integers stand for, `[n_tokens, n_in]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let n_terms = self.n_terms();
        let mut x = Vec::with_capacity(self.n_tokens * self.n_in);
        for token in 0..self.n_tokens {
            for k in 0..self.n_in {
                let of_term = |term| {
                    let row = self.row(token * n_terms + term);
                    f64::from(row.codes[k]) * f64::from(row.scales[k / ACTIVATION_GROUP])
                };
                x.push((0..n_terms).map(of_term).sum::<f64>() as f32);
            }
        }
        x
    }
}

/// Destination of one term of one token.
struct RowMut<'a> {
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    scaled_sums: &'a mut [f32],
    negative_sums: &'a mut [i32],
}

#[inline(always)]
fn quantize_in_one<L: Lanes>(x: &[f32], rows: [RowMut<'_>; 1]) {
    quantize_token::<L, 1>(x, rows);
}

#[inline(always)]
fn quantize_in_two<L: Lanes>(x: &[f32], rows: [RowMut<'_>; 2]) {
    quantize_token::<L, 2>(x, rows);
}

#[inline(always)]
fn quantize_token<L: Lanes, const N_TERMS: usize>(x: &[f32], mut rows: [RowMut<'_>; N_TERMS]) {
    for pair in 0..x.len() / WEIGHT_GROUP {
        let groups = [2 * pair, 2 * pair + 1];
        let mut left = [
            L::load(at(x, groups[0] * LANES)),
            L::load(at(x, groups[1] * LANES)),
        ];
        for row in &mut rows {
            let mut scaled_sum = 0.0;
            for (left, g) in left.iter_mut().zip(groups) {
                let scale = left.abs().largest() / 127.0;
                // The limit keeps the inverse finite; smaller groups are effectively zero.
                let inverse = if scale > 1e-30 { 1.0 / scale } else { 0.0 };
                let scaled = left.mul(L::splat(inverse));
                let sum = scaled.store_i8(at_mut(row.codes, g * LANES));
                *left = scaled.round().mul_add(L::splat(-scale), *left);
                row.scales[g] = scale;
                row.negative_sums[g] = -sum;
                scaled_sum += scale * sum as f32;
            }
            row.scaled_sums[pair] = scaled_sum;
        }
    }
}

const _: () = assert!(ACTIVATION_GROUP == LANES && WEIGHT_GROUP == 2 * LANES);
