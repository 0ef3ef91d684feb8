//! Integer dot products with VNNI: a register holds four inputs of each of 16 rows, and one
//! `vpdpbusd` multiplies them with four activations that every lane shares.

#[allow(
    clippy::wildcard_imports,
    reason = "intrinsics are named by their prefix"
)]
use std::arch::x86_64::*;

use super::super::Tile;
use super::{FIXED_ZERO, GROUP_ZERO, MIN, TILE_ROWS, TOKENS, TokenActivations};

/// How far ahead of the arithmetic the codes are asked for. The stream runs on into the next
/// tile, which the same thread takes next.
const PREFETCH_BYTES: usize = 4096;

/// # Safety
/// Needs AVX-512 F, BW, VL and VNNI. `tile.codes` holds whole groups, `tile.scales` and each
/// token's slices hold as many.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn tile_block<
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
    let n_words = GROUP * BITS / 32;
    let n_halves = GROUP / 16;
    let n_groups = tile.codes.len() / code_bytes;
    let nibble = _mm512_set1_epi8(15);
    // Zeros are powers of two.
    let zero_shift = _mm512_set1_epi32(zero.trailing_zeros() as i32);
    let mut sums = [_mm512_setzero_ps(); T];
    for g in 0..n_groups {
        let mut w = [_mm512_setzero_si512(); 8];
        // SAFETY: group `g` of the tile has `n_words` registers of codes and one or two rows of
        // scales; a prefetch may point anywhere.
        let scales = unsafe {
            let codes = tile.codes.as_ptr().add(g * code_bytes);
            for i in 0..n_words {
                _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(64 * i + PREFETCH_BYTES).cast());
                let word = _mm512_loadu_si512(codes.add(64 * i).cast());
                if BITS == 8 {
                    w[i] = word;
                } else {
                    w[i] = _mm512_and_si512(word, nibble);
                    w[i + n_words] = _mm512_and_si512(_mm512_srli_epi16::<4>(word), nibble);
                }
            }
            tile.scales.as_ptr().add(g * n_scales)
        };
        // SAFETY: as above.
        let (scale, min) = unsafe {
            let scale = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
            let min = if OFFSET == FIXED_ZERO {
                scale
            } else {
                _mm512_cvtph_ps(_mm256_loadu_si256(scales.add(TILE_ROWS).cast()))
            };
            (scale, min)
        };
        for t in 0..T {
            let x = &x[t];
            // SAFETY: the token has `GROUP` codes in this group, and the sums and scales for it.
            unsafe {
                let quads = x.codes.as_ptr().add(g * GROUP).cast::<[u8; 4]>();
                let mut total = _mm512_setzero_ps();
                for half in 0..n_halves {
                    let h = g * n_halves + half;
                    let mut dot = if OFFSET == FIXED_ZERO {
                        let sum = _mm512_set1_epi32(*x.negative_sums.get_unchecked(h));
                        _mm512_sllv_epi32(sum, zero_shift)
                    } else {
                        _mm512_setzero_si512()
                    };
                    for i in 4 * half..4 * half + 4 {
                        let quad = _mm512_set1_epi32(i32::from_ne_bytes(quads.add(i).read()));
                        dot = _mm512_dpbusd_epi32(dot, w[i], quad);
                    }
                    let x_scale = _mm512_set1_ps(*x.scales.get_unchecked(h));
                    total = if half == 0 {
                        _mm512_mul_ps(_mm512_cvtepi32_ps(dot), x_scale)
                    } else {
                        _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), x_scale, total)
                    };
                }
                if OFFSET == GROUP_ZERO {
                    let x_sum = _mm512_set1_ps(*x.scaled_sums.get_unchecked(g));
                    total = _mm512_fnmadd_ps(min, x_sum, total);
                }
                sums[t] = _mm512_fmadd_ps(total, scale, sums[t]);
                if OFFSET == MIN {
                    let x_sum = _mm512_set1_ps(*x.scaled_sums.get_unchecked(g));
                    sums[t] = _mm512_fmadd_ps(min, x_sum, sums[t]);
                }
            }
        }
    }
    for t in 0..T {
        // SAFETY: 16 f32 are writable.
        unsafe { _mm512_storeu_ps(out[t].as_mut_ptr(), sums[t]) }
    }
}
