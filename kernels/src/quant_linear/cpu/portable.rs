//! Integer dot products in plain Rust, in the order of the vector versions.

use super::super::{Tile, f16_bits_to_f32};
use super::{FIXED_ZERO, GROUP_ZERO, MIN, TILE_ROWS, TOKENS, TokenActivations};

pub(super) fn tile_block<
    const BITS: usize,
    const GROUP: usize,
    const OFFSET: u8,
    const T: usize,
>(
    tile: Tile<'_>,
    zero: i32,
    x: &[TokenActivations<'_>; T],
    out: &mut [[f32; TILE_ROWS]; TOKENS],
) {
    let code_bytes = TILE_ROWS * GROUP * BITS / 8;
    let n_scales = TILE_ROWS * if OFFSET == FIXED_ZERO { 1 } else { 2 };
    out[..T].fill([0.0; TILE_ROWS]);
    for (g, codes) in tile.codes.chunks_exact(code_bytes).enumerate() {
        let scales: [f32; TILE_ROWS] =
            std::array::from_fn(|r| f16_bits_to_f32(tile.scales[g * n_scales + r]));
        for (x, out) in x.iter().zip(out.iter_mut()) {
            let mut totals = [0.0; TILE_ROWS];
            for half in 0..GROUP / 16 {
                let h = g * (GROUP / 16) + half;
                let values = &x.codes[16 * h..][..16];
                let mut dots = [zero * x.negative_sums[h]; TILE_ROWS];
                for i in 0..4 {
                    // The high nibbles of a word hold the second half's codes.
                    let word = if BITS == 8 { 4 * half + i } else { i };
                    let word = &codes[4 * TILE_ROWS * word..][..4 * TILE_ROWS];
                    for (r, dot) in dots.iter_mut().enumerate() {
                        for b in 0..4 {
                            let code = match (BITS, half) {
                                (8, _) => word[4 * r + b],
                                (_, 0) => word[4 * r + b] & 15,
                                _ => word[4 * r + b] >> 4,
                            };
                            *dot += i32::from(code) * i32::from(values[4 * i + b]);
                        }
                    }
                }
                for (total, dot) in totals.iter_mut().zip(dots) {
                    *total += dot as f32 * x.scales[h];
                }
            }
            for r in 0..TILE_ROWS {
                let stored = || f16_bits_to_f32(tile.scales[g * n_scales + TILE_ROWS + r]);
                if OFFSET == GROUP_ZERO {
                    totals[r] -= stored() * x.scaled_sums[g];
                }
                out[r] += totals[r] * scales[r];
                if OFFSET == MIN {
                    out[r] += stored() * x.scaled_sums[g];
                }
            }
        }
    }
}
