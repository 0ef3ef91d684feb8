//! Quantised weights times f32 activations: only the checkpoint's own rounding is lost.

use super::super::{Offset, QuantMatrix, TILE_ROWS};
use super::BLOCK_ROWS;
use crate::isa::Isa;
use crate::lanes::{Lanes, at, for_isa};

/// `x: [n_tokens, n_in]`; tokens `token .. token + T`.
pub(super) fn tile_block<const T: usize>(
    isa: Isa,
    w: &QuantMatrix,
    tile: usize,
    x: &[f32],
    token: usize,
    out: &mut [[f32; TILE_ROWS]; BLOCK_ROWS],
) {
    let x: [&[f32]; T] = std::array::from_fn(|t| &x[(token + t) * w.n_in..][..w.n_in]);
    let x: &[&[f32]] = &x;
    if T == 4 {
        for_isa!(isa, four(
            w: &QuantMatrix,
            tile: usize,
            x: &[&[f32]],
            out: &mut [[f32; TILE_ROWS]; BLOCK_ROWS],
        ));
    } else {
        for_isa!(isa, one(
            w: &QuantMatrix,
            tile: usize,
            x: &[&[f32]],
            out: &mut [[f32; TILE_ROWS]; BLOCK_ROWS],
        ));
    }
}

#[inline(always)]
fn four<L: Lanes>(
    w: &QuantMatrix,
    tile: usize,
    x: &[&[f32]],
    out: &mut [[f32; TILE_ROWS]; BLOCK_ROWS],
) {
    compute::<L, 4>(w, tile, x, out);
}

#[inline(always)]
fn one<L: Lanes>(
    w: &QuantMatrix,
    tile: usize,
    x: &[&[f32]],
    out: &mut [[f32; TILE_ROWS]; BLOCK_ROWS],
) {
    compute::<L, 1>(w, tile, x, out);
}

#[inline(always)]
fn compute<L: Lanes, const T: usize>(
    w: &QuantMatrix,
    tile: usize,
    x: &[&[f32]],
    out: &mut [[f32; TILE_ROWS]; BLOCK_ROWS],
) {
    let layout = w.layout;
    let chunk_words = layout.chunk_bytes() / 4;
    let mask = (1 << layout.code_bits) - 1;
    let mut sums = [L::splat(0.0); T];
    for (g, group) in w.tile(tile).groups().enumerate() {
        let (codes, scales) = group.split_at(layout.code_bytes());
        let words: &[u32] = bytemuck::cast_slice(codes);
        let scales: &[u16] = bytemuck::cast_slice(scales);
        let scale = L::load_f16(at(scales, 0));
        let min = match layout.offset {
            Offset::Zero(zero) => scale.mul(L::splat(-f32::from(zero))),
            Offset::Min => L::load_f16(at(scales, TILE_ROWS)),
            Offset::GroupZero => {
                let zero = L::load_f16(at(scales, TILE_ROWS));
                L::splat(0.0).sub(zero.mul(scale))
            }
        };
        for (c, words) in words.chunks_exact(chunk_words).enumerate() {
            let first = g * layout.group + c * layout.chunk();
            for i in 0..chunk_words / TILE_ROWS {
                let word = at(words, i * TILE_ROWS);
                for nibble in 0..8 / layout.code_bits {
                    for b in 0..4 {
                        let shift = (8 * b + 4 * nibble) as u32;
                        let weight = L::load_field(word, shift, mask).mul_add(scale, min);
                        let k = first + 16 * nibble + 4 * i + b;
                        for t in 0..T {
                            sums[t] = weight.mul_add(L::splat(x[t][k]), sums[t]);
                        }
                    }
                }
            }
        }
    }
    for t in 0..T {
        sums[t].store(&mut out[t]);
    }
}
