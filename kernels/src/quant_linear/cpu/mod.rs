//! One tile of 16 rows times a block of tokens, by instruction set and activation type. For the
//! integer kernels a token of two terms is two input rows, whose results are added afterwards.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod f32_activations;
mod portable;

use super::activations::RowActivations;
use super::{Activations, Offset, QuantActivations, QuantMatrix, TILE_ROWS};
use crate::isa::Isa;

/// Maximum number of input rows in one block: limited by AVX-512's registers for accumulators.
pub(super) const BLOCK_ROWS: usize = 8;

/// Computes a tile for as many tokens from `token` on as fit (at most `n_left`), into the first
/// rows of `out`, and returns their number.
pub(super) fn tile_block(
    isa: Isa,
    w: &QuantMatrix,
    tile: usize,
    x: Activations<'_>,
    token: usize,
    n_left: usize,
    out: &mut [[f32; TILE_ROWS]; BLOCK_ROWS],
) -> usize {
    match x {
        Activations::F32(x) => {
            if n_left >= 4 {
                f32_activations::tile_block::<4>(isa, w, tile, x, token, out);
                4
            } else {
                f32_activations::tile_block::<1>(isa, w, tile, x, token, out);
                1
            }
        }
        Activations::Int8(x) => {
            let n_terms = x.n_terms();
            let row = token * n_terms;
            let n_rows = match n_left * n_terms {
                8.. => int8_block::<8>(isa, w, tile, x, row, out),
                4.. => int8_block::<4>(isa, w, tile, x, row, out),
                2.. => int8_block::<2>(isa, w, tile, x, row, out),
                _ => int8_block::<1>(isa, w, tile, x, row, out),
            };
            if n_terms == 2 {
                add_pairs(&mut out[..n_rows]);
            }
            n_rows / n_terms
        }
    }
}

/// Puts the sums of rows `2 i` and `2 i + 1` into row `i`.
fn add_pairs(rows: &mut [[f32; TILE_ROWS]]) {
    for i in 0..rows.len() / 2 {
        rows[i] = std::array::from_fn(|r| rows[2 * i][r] + rows[2 * i + 1][r]);
    }
}

/// [`Offset`] as a constant parameter.
const FIXED_ZERO: u8 = 0;
const MIN: u8 = 1;
const GROUP_ZERO: u8 = 2;

fn offset_kind(offset: Offset) -> u8 {
    match offset {
        Offset::Zero(_) => FIXED_ZERO,
        Offset::Min => MIN,
        Offset::GroupZero => GROUP_ZERO,
    }
}

/// Selects the kernel for the layout; `T` input rows starting at `row`.
fn int8_block<const T: usize>(
    isa: Isa,
    w: &QuantMatrix,
    tile: usize,
    x: &QuantActivations,
    row: usize,
    out: &mut [[f32; TILE_ROWS]; BLOCK_ROWS],
) -> usize {
    let x: [RowActivations<'_>; T] = std::array::from_fn(|t| x.row(row + t));
    let layout = w.layout;
    match (layout.code_bits, layout.chunk(), offset_kind(layout.offset)) {
        (4, 32, FIXED_ZERO) => int8_on::<4, 32, FIXED_ZERO, T>(isa, w, tile, &x, out),
        (4, 32, GROUP_ZERO) => int8_on::<4, 32, GROUP_ZERO, T>(isa, w, tile, &x, out),
        (4, 32, MIN) => int8_on::<4, 32, MIN, T>(isa, w, tile, &x, out),
        (8, 32, FIXED_ZERO) => int8_on::<8, 32, FIXED_ZERO, T>(isa, w, tile, &x, out),
        (8, 32, MIN) => int8_on::<8, 32, MIN, T>(isa, w, tile, &x, out),
        (8, 16, MIN) => int8_on::<8, 16, MIN, T>(isa, w, tile, &x, out),
        (8, 16, FIXED_ZERO) => int8_on::<8, 16, FIXED_ZERO, T>(isa, w, tile, &x, out),
        (bits, chunk, _) => unreachable!("no packed layout of {bits} bits in chunks of {chunk}"),
    }
    T
}

fn int8_on<const BITS: usize, const CHUNK: usize, const OFFSET: u8, const T: usize>(
    isa: Isa,
    w: &QuantMatrix,
    tile: usize,
    x: &[RowActivations<'_>; T],
    out: &mut [[f32; TILE_ROWS]; BLOCK_ROWS],
) {
    let tile = w.tile(tile);
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => {
            // SAFETY: `Isa::Avx512` is only made on a processor that has these instructions;
            // `QuantMatrix::tile` and `QuantActivations::row` cut slices of the exact lengths.
            unsafe { avx512::tile_block::<BITS, CHUNK, OFFSET, T>(tile, x, out) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            // SAFETY: as above, for AVX2.
            unsafe { avx2::tile_block::<BITS, CHUNK, OFFSET, T>(tile, x, out) }
        }
        _ => portable::tile_block::<BITS, CHUNK, OFFSET, T>(tile, x, out),
    }
}
