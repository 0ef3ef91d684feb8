//! Quantised weights against f32 activations: what is lost is the checkpoint's own rounding only.

use super::super::{Offset, QuantMatrix, TILE_ROWS};
use super::TOKENS;
use crate::isa::Isa;
use crate::lanes::{Lanes, at, for_isa};

/// `x: [n_tokens, n_in]`; tokens `token .. token + T`.
pub(super) fn tile_block<const T: usize>(
    isa: Isa,
    w: &QuantMatrix,
    tile: usize,
    x: &[f32],
    token: usize,
    out: &mut [[f32; TILE_ROWS]; TOKENS],
) {
    let x: [&[f32]; T] = std::array::from_fn(|t| &x[(token + t) * w.n_in..][..w.n_in]);
    let x: &[&[f32]] = &x;
    if T == 4 {
        for_isa!(isa, four(
            w: &QuantMatrix,
            tile: usize,
            x: &[&[f32]],
            out: &mut [[f32; TILE_ROWS]; TOKENS],
        ));
    } else {
        for_isa!(isa, one(
            w: &QuantMatrix,
            tile: usize,
            x: &[&[f32]],
            out: &mut [[f32; TILE_ROWS]; TOKENS],
        ));
    }
}

#[inline(always)]
fn four<L: Lanes>(
    w: &QuantMatrix,
    tile: usize,
    x: &[&[f32]],
    out: &mut [[f32; TILE_ROWS]; TOKENS],
) {
    compute::<L, 4>(w, tile, x, out);
}

#[inline(always)]
fn one<L: Lanes>(w: &QuantMatrix, tile: usize, x: &[&[f32]], out: &mut [[f32; TILE_ROWS]; TOKENS]) {
    compute::<L, 1>(w, tile, x, out);
}

#[inline(always)]
fn compute<L: Lanes, const T: usize>(
    w: &QuantMatrix,
    tile: usize,
    x: &[&[f32]],
    out: &mut [[f32; TILE_ROWS]; TOKENS],
) {
    let layout = w.layout;
    let tile = w.tile(tile);
    let words: &[u32] = bytemuck::cast_slice(tile.codes);
    let group_words = layout.code_bytes() / 4;
    let n_scales = layout.scale_bytes() / 2;
    let mask = (1 << layout.code_bits) - 1;
    let mut sums = [L::splat(0.0); T];
    for g in 0..w.n_groups() {
        let scale = L::load_f16(at(tile.scales, g * n_scales));
        let min = match layout.offset {
            Offset::Zero(zero) => scale.mul(L::splat(-f32::from(zero))),
            Offset::Min => L::load_f16(at(tile.scales, g * n_scales + TILE_ROWS)),
            Offset::GroupZero => {
                let zero = L::load_f16(at(tile.scales, g * n_scales + TILE_ROWS));
                L::splat(0.0).sub(zero.mul(scale))
            }
        };
        for i in 0..group_words / TILE_ROWS {
            let word = at(words, g * group_words + i * TILE_ROWS);
            for nibble in 0..8 / layout.code_bits {
                for b in 0..4 {
                    let shift = (8 * b + 4 * nibble) as u32;
                    let weight = L::load_field(word, shift, mask).mul_add(scale, min);
                    let k = g * layout.group + 16 * nibble + 4 * i + b;
                    for t in 0..T {
                        sums[t] = weight.mul_add(L::splat(x[t][k]), sums[t]);
                    }
                }
            }
        }
    }
    for t in 0..T {
        sums[t].store(&mut out[t]);
    }
}
