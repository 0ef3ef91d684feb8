//! Integer dot products with AVX2, eight rows at a time.
//!
//! `vpmaddubsw` adds two products into 16 bits and saturates. 4-bit codes stay far below that
//! (15 * 127 * 2 * 4 = 15,240 for half a group). 8-bit codes are recentred to signed and
//! multiplied as |w| times x with w's sign, at most 128 * 127 * 2 = 32,512, and widened at once.

#[allow(
    clippy::wildcard_imports,
    reason = "intrinsics are named by their prefix"
)]
use std::arch::x86_64::*;

use super::super::Tile;
use super::{FIXED_ZERO, GROUP_ZERO, MIN, TILE_ROWS, TOKENS, TokenActivations};

/// # Safety
/// Needs AVX2, FMA and F16C. `tile.codes` holds whole groups, `tile.scales` and each token's
/// slices hold as many.
#[target_feature(enable = "avx2,fma,f16c")]
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
    let n_groups = tile.codes.len() / code_bytes;
    let nibble = _mm256_set1_epi8(15);
    let ones = _mm256_set1_epi16(1);
    // Signed codes are 128 lower than stored ones.
    let correction = if BITS == 8 { zero - 128 } else { zero };
    for half in 0..2 {
        let mut sums = [_mm256_setzero_ps(); T];
        for g in 0..n_groups {
            // SAFETY: group `g` holds words of 64 bytes, of which this half of the rows has 32,
            // and 16 scales (and mins), of which it has 8.
            let (codes, scale, min) = unsafe {
                let codes = tile.codes.as_ptr().add(g * code_bytes + 32 * half);
                let scales = tile.scales.as_ptr().add(g * n_scales + 8 * half);
                let scale = _mm256_cvtph_ps(_mm_loadu_si128(scales.cast()));
                let min = if OFFSET == FIXED_ZERO {
                    scale
                } else {
                    _mm256_cvtph_ps(_mm_loadu_si128(scales.add(TILE_ROWS).cast()))
                };
                (codes, scale, min)
            };
            for t in 0..T {
                let x = &x[t];
                // SAFETY: as above, and the token has `GROUP` codes in this group.
                unsafe {
                    let quads = x.codes.as_ptr().add(g * GROUP).cast::<[u8; 4]>();
                    let mut total = _mm256_setzero_ps();
                    for part in 0..GROUP / 16 {
                        let h = g * (GROUP / 16) + part;
                        let mut dot =
                            _mm256_set1_epi32(correction * *x.negative_sums.get_unchecked(h));
                        let mut pairs = _mm256_setzero_si256();
                        for i in 0..4 {
                            let quad = i32::from_ne_bytes(quads.add(4 * part + i).read());
                            let quad = _mm256_set1_epi32(quad);
                            if BITS == 8 {
                                let w = codes.add(64 * (4 * part + i));
                                let w = _mm256_xor_si256(
                                    _mm256_loadu_si256(w.cast()),
                                    _mm256_set1_epi8(-128),
                                );
                                let pairs = _mm256_maddubs_epi16(
                                    _mm256_abs_epi8(w),
                                    _mm256_sign_epi8(quad, w),
                                );
                                dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, ones));
                            } else {
                                // The high nibbles of a word hold the second half's codes.
                                let w = _mm256_loadu_si256(codes.add(64 * i).cast());
                                let w = if part == 0 {
                                    w
                                } else {
                                    _mm256_srli_epi16::<4>(w)
                                };
                                let w = _mm256_and_si256(w, nibble);
                                pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w, quad));
                            }
                        }
                        if BITS == 4 {
                            dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, ones));
                        }
                        let x_scale = _mm256_set1_ps(*x.scales.get_unchecked(h));
                        total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), x_scale, total);
                    }
                    if OFFSET == GROUP_ZERO {
                        let x_sum = _mm256_set1_ps(*x.scaled_sums.get_unchecked(g));
                        total = _mm256_fnmadd_ps(min, x_sum, total);
                    }
                    sums[t] = _mm256_fmadd_ps(total, scale, sums[t]);
                    if OFFSET == MIN {
                        let x_sum = _mm256_set1_ps(*x.scaled_sums.get_unchecked(g));
                        sums[t] = _mm256_fmadd_ps(min, x_sum, sums[t]);
                    }
                }
            }
        }
        for t in 0..T {
            // SAFETY: 8 of the 16 f32 are this half's.
            unsafe { _mm256_storeu_ps(out[t].as_mut_ptr().add(8 * half), sums[t]) }
        }
    }
}
