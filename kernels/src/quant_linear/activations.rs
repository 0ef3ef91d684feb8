//! Activations as 8-bit integers: one f32 scale for 16 of them, and the sums that take a
//! weight's offset out of the dot product.

use super::{ACTIVATION_GROUP, WEIGHT_GROUP};
use crate::KernelError;
use crate::error::check_shape;
use crate::isa::Isa;
use crate::lanes::{LANES, Lanes, at, at_mut, for_isa};
use crate::pool::{DisjointMut, WorkerPool};

/// Below this many tokens a thread, quantising is not worth a parallel region.
const MIN_TOKENS_PER_THREAD: usize = 4;

/// `x[token, k] ≈ scales[token, k / 16] * codes[token, k]`. Buffers grow and are kept.
#[derive(Debug, Default)]
pub struct QuantActivations {
    n_tokens: usize,
    n_in: usize,
    /// `[n_tokens, n_in]`, within ±127
    codes: Vec<i8>,
    /// `[n_tokens, n_in / 16]`
    scales: Vec<f32>,
    /// `[n_tokens, n_in / 32]`: sum of 32 values, codes times scales
    scaled_sums: Vec<f32>,
    /// `[n_tokens, n_in / 16]`: minus the sum of 16 codes
    negative_sums: Vec<i32>,
}

/// One token's activations.
#[derive(Clone, Copy)]
pub(super) struct TokenActivations<'a> {
    pub codes: &'a [i8],
    pub scales: &'a [f32],
    pub scaled_sums: &'a [f32],
    pub negative_sums: &'a [i32],
}

impl TokenActivations<'_> {
    /// Sum of the values that group `group` of `n_chunks` times 32 inputs meets.
    #[inline(always)]
    pub fn scaled_sum(&self, group: usize, n_chunks: usize) -> f32 {
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

    /// Replaces the contents by `x: [n_tokens, n_in]`; `n_in` must be a multiple of 32.
    pub fn quantize(
        &mut self,
        pool: &mut WorkerPool,
        isa: Isa,
        x: &[f32],
        n_in: usize,
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
        (self.n_tokens, self.n_in) = (n_tokens, n_in);
        let n_groups = n_in / ACTIVATION_GROUP;
        let n_pairs = n_in / WEIGHT_GROUP;
        self.codes.resize(n_tokens * n_in, 0);
        self.scales.resize(n_tokens * n_groups, 0.0);
        self.scaled_sums.resize(n_tokens * n_pairs, 0.0);
        self.negative_sums.resize(n_tokens * n_groups, 0);
        let codes = DisjointMut::new(&mut self.codes);
        let scales = DisjointMut::new(&mut self.scales);
        let scaled_sums = DisjointMut::new(&mut self.scaled_sums);
        let negative_sums = DisjointMut::new(&mut self.negative_sums);
        pool.for_ranges(n_tokens, MIN_TOKENS_PER_THREAD, &|tokens| {
            let (first, n) = (tokens.start, tokens.len());
            // SAFETY: token ranges of different threads do not overlap, so neither do these.
            let (codes, scales, scaled_sums, negative_sums) = unsafe {
                (
                    codes.slice(first * n_in, n * n_in),
                    scales.slice(first * n_groups, n * n_groups),
                    scaled_sums.slice(first * n_pairs, n * n_pairs),
                    negative_sums.slice(first * n_groups, n * n_groups),
                )
            };
            let x = &x[first * n_in..][..n * n_in];
            for_isa!(isa, quantize_groups(
                x: &[f32],
                codes: &mut [i8],
                scales: &mut [f32],
                scaled_sums: &mut [f32],
                negative_sums: &mut [i32],
            ));
        })
    }

    pub(super) fn token(&self, token: usize) -> TokenActivations<'_> {
        let n_groups = self.n_in / ACTIVATION_GROUP;
        let n_pairs = self.n_in / WEIGHT_GROUP;
        TokenActivations {
            codes: &self.codes[token * self.n_in..][..self.n_in],
            scales: &self.scales[token * n_groups..][..n_groups],
            scaled_sums: &self.scaled_sums[token * n_pairs..][..n_pairs],
            negative_sums: &self.negative_sums[token * n_groups..][..n_groups],
        }
    }

    /// The values that the integers stand for, `[n_tokens, n_in]`.
    pub fn dequantize(&self) -> Vec<f32> {
        self.codes
            .iter()
            .enumerate()
            .map(|(i, &q)| f32::from(q) * self.scales[i / ACTIVATION_GROUP])
            .collect()
    }
}

#[inline(always)]
fn quantize_groups<L: Lanes>(
    x: &[f32],
    codes: &mut [i8],
    scales: &mut [f32],
    scaled_sums: &mut [f32],
    negative_sums: &mut [i32],
) {
    for (pair, scaled_sum) in scaled_sums.iter_mut().enumerate() {
        *scaled_sum = 0.0;
        for g in [2 * pair, 2 * pair + 1] {
            let x = L::load(at(x, g * LANES));
            let scale = x.abs().largest() / 127.0;
            // The limit keeps the inverse finite; smaller groups are zero for every purpose.
            let inverse = if scale > 1e-30 { 1.0 / scale } else { 0.0 };
            let sum = x.mul(L::splat(inverse)).store_i8(at_mut(codes, g * LANES));
            scales[g] = scale;
            negative_sums[g] = -sum;
            *scaled_sum += scale * sum as f32;
        }
    }
}

const _: () = assert!(ACTIVATION_GROUP == LANES && WEIGHT_GROUP == 2 * LANES);
