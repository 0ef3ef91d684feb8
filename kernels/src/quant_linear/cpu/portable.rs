//! Integer dot products in plain Rust, in the order of the vector versions.

use super::super::{Tile, f16_bits_to_f32};
use super::{TILE_ROWS, TOKENS, TokenActivations};

pub(super) fn tile_block<const BITS: usize, const GROUP: usize, const MINS: bool, const T: usize>(
    tile: Tile<'_>,
    zero: i32,
    x: &[TokenActivations<'_>; T],
    out: &mut [[f32; TILE_ROWS]; TOKENS],
) {
    let code_bytes = TILE_ROWS * GROUP * BITS / 8;
    let n_scales = TILE_ROWS * if MINS { 2 } else { 1 };
    out[..T].fill([0.0; TILE_ROWS]);
    for (g, codes) in tile.codes.chunks_exact(code_bytes).enumerate() {
        let scales: [f32; TILE_ROWS] =
            std::array::from_fn(|r| f16_bits_to_f32(tile.scales[g * n_scales + r]));
        for (x, out) in x.iter().zip(out.iter_mut()) {
            let values = &x.codes[g * GROUP..][..GROUP];
            let sum: i32 = x.sums[g * GROUP / 16..][..GROUP / 16].iter().sum();
            let mut dots = [-zero * sum; TILE_ROWS];
            for (i, word) in codes.chunks_exact(4 * TILE_ROWS).enumerate() {
                for (r, dot) in dots.iter_mut().enumerate() {
                    for b in 0..4 {
                        let code = word[4 * r + b];
                        if BITS == 8 {
                            *dot += i32::from(code) * i32::from(values[4 * i + b]);
                        } else {
                            *dot += i32::from(code & 15) * i32::from(values[4 * i + b])
                                + i32::from(code >> 4) * i32::from(values[16 + 4 * i + b]);
                        }
                    }
                }
            }
            let scale = x.scales[g * GROUP / 32];
            for r in 0..TILE_ROWS {
                out[r] += dots[r] as f32 * (scales[r] * scale);
                if MINS {
                    let min = f16_bits_to_f32(tile.scales[g * n_scales + TILE_ROWS + r]);
                    out[r] += min * x.scaled_sums[g];
                }
            }
        }
    }
}
