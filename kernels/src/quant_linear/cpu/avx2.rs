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
use super::{BLOCK_ROWS, FIXED_ZERO, GROUP_ZERO, MIN, RowActivations, TILE_ROWS};

/// # Safety
/// Needs AVX2, FMA and F16C. `tile` holds whole groups of `n_chunks` chunks, and each token's
/// slices as many.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile_block<
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
    let nibble = _mm256_set1_epi8(15);
    let ones = _mm256_set1_epi16(1);
    // Signed codes are 128 lower than stored ones.
    let correction = if BITS == 8 {
        tile.zero - 128
    } else {
        tile.zero
    };
    for half in 0..2 {
        let mut sums = [_mm256_setzero_ps(); T];
        for g in 0..tile.n_groups {
            let mut totals = [_mm256_setzero_ps(); T];
            let group = tile.bytes.as_ptr().wrapping_add(g * tile.group_bytes);
            for c in g * n_chunks..(g + 1) * n_chunks {
                // SAFETY: the group holds `n_chunks` chunks of words of 64 bytes, of which this
                // half of the rows has 32.
                let codes = unsafe { group.add((c - g * n_chunks) * chunk_bytes + 32 * half) };
                for t in 0..T {
                    let x = &x[t];
                    // SAFETY: as above, and the token has `CHUNK` codes in this chunk.
                    unsafe {
                        let quads = x.codes.as_ptr().add(c * CHUNK).cast::<[u8; 4]>();
                        for part in 0..CHUNK / 16 {
                            let h = c * (CHUNK / 16) + part;
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
                            totals[t] =
                                _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), x_scale, totals[t]);
                        }
                    }
                }
            }
            // SAFETY: one or two rows of 16 scales follow the codes, 8 of them for this half.
            let (scale, min) = unsafe {
                let scales = group.add(n_chunks * chunk_bytes + 16 * half);
                let scale = _mm256_cvtph_ps(_mm_loadu_si128(scales.cast()));
                let min = if OFFSET == FIXED_ZERO {
                    scale
                } else {
                    _mm256_cvtph_ps(_mm_loadu_si128(scales.add(2 * TILE_ROWS).cast()))
                };
                (scale, min)
            };
            for t in 0..T {
                if OFFSET == FIXED_ZERO {
                    sums[t] = _mm256_fmadd_ps(totals[t], scale, sums[t]);
                    continue;
                }
                let x_sum = _mm256_set1_ps(x[t].scaled_sum::<CHUNK>(g, n_chunks));
                if OFFSET == GROUP_ZERO {
                    totals[t] = _mm256_fnmadd_ps(min, x_sum, totals[t]);
                }
                sums[t] = _mm256_fmadd_ps(totals[t], scale, sums[t]);
                if OFFSET == MIN {
                    sums[t] = _mm256_fmadd_ps(min, x_sum, sums[t]);
                }
            }
        }
        for t in 0..T {
            // SAFETY: 8 of the 16 f32 are this half's.
            unsafe { _mm256_storeu_ps(out[t].as_mut_ptr().add(8 * half), sums[t]) }
        }
    }
}
