//! Integer dot products in plain Rust, in the order of the vector versions.

use super::super::Tile;
use super::{BLOCK_ROWS, FIXED_ZERO, GROUP_ZERO, MIN, RowActivations, TILE_ROWS};

pub(super) fn tile_block<
    const BITS: usize,
    const CHUNK: usize,
    const OFFSET: u8,
    const T: usize,
>(
    tile: Tile<'_>,
    x: &[RowActivations<'_>; T],
    out: &mut [[f32; TILE_ROWS]; BLOCK_ROWS],
) {
    let chunk_bytes = TILE_ROWS * CHUNK * BITS / 8;
    let n_chunks = tile.n_chunks;
    out[..T].fill([0.0; TILE_ROWS]);
    for (g, group) in tile.groups().enumerate() {
        let (codes, scales) = group.split_at(n_chunks * chunk_bytes);
        let scale_of = |r: usize| Tile::scale(scales, r);
        for (x, out) in x.iter().zip(out.iter_mut()) {
            let mut totals = [0.0; TILE_ROWS];
            for (c, codes) in codes.chunks_exact(chunk_bytes).enumerate() {
                for half in 0..CHUNK / 16 {
                    let h = (g * n_chunks + c) * (CHUNK / 16) + half;
                    let values = &x.codes[16 * h..][..16];
                    let mut dots = [tile.zero * x.negative_sums[h]; TILE_ROWS];
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
            }
            let x_sum = if OFFSET == FIXED_ZERO {
                0.0
            } else {
                x.scaled_sum::<CHUNK>(g, n_chunks)
            };
            for r in 0..TILE_ROWS {
                if OFFSET == GROUP_ZERO {
                    totals[r] -= scale_of(TILE_ROWS + r) * x_sum;
                }
                out[r] += totals[r] * scale_of(r);
                if OFFSET == MIN {
                    out[r] += scale_of(TILE_ROWS + r) * x_sum;
                }
            }
        }
    }
}
