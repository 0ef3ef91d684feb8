//! Integer dot products with VNNI: a register holds four inputs of each of 16 rows, and one
//! `vpdpbusd` multiplies them with four activations that every lane shares.

#[allow(
    clippy::wildcard_imports,
    reason = "intrinsics are named by their prefix"
)]
use std::arch::x86_64::*;

use super::super::Tile;
use super::{BLOCK_ROWS, FIXED_ZERO, GROUP_ZERO, MIN, RowActivations, TILE_ROWS};

/// Prefetch distance for the codes. The stream continues into the next tile, which the same thread
/// processes next.
const PREFETCH_BYTES: usize = 4096;

/// # Safety
/// Needs AVX-512 F, BW, VL and VNNI. `tile` holds whole groups of `n_chunks` chunks, and each
/// token's slices as many.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
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
    let n_words = CHUNK * BITS / 32;
    let n_halves = CHUNK / 16;
    let n_chunks = tile.n_chunks;
    let nibble = _mm512_set1_epi8(15);
    // Zeros are powers of two.
    let zero_shift = _mm512_set1_epi32(tile.zero.trailing_zeros() as i32);
    let mut sums = [_mm512_setzero_ps(); T];
    for g in 0..tile.n_groups {
        let mut totals = [_mm512_setzero_ps(); T];
        let group = tile.bytes.as_ptr().wrapping_add(g * tile.group_bytes);
        for c in g * n_chunks..(g + 1) * n_chunks {
            let mut w = [_mm512_setzero_si512(); 8];
            // SAFETY: each chunk of the group has `n_words` registers of codes; a prefetch may
            // point anywhere.
            unsafe {
                let codes = group.add((c - g * n_chunks) * 64 * n_words);
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
            }
            for t in 0..T {
                let x = &x[t];
                // SAFETY: the token has `CHUNK` codes in this chunk, and the sums and scales for
                // it.
                unsafe {
                    let quads = x.codes.as_ptr().add(c * CHUNK).cast::<[u8; 4]>();
                    for half in 0..n_halves {
                        let h = c * n_halves + half;
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
                        totals[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), x_scale, totals[t]);
                    }
                }
            }
        }
        // SAFETY: one or two rows of 16 scales follow the group's codes.
        let (scale, min) = unsafe {
            let scales = group.add(n_chunks * 64 * n_words);
            _mm_prefetch::<_MM_HINT_T0>(scales.wrapping_add(PREFETCH_BYTES).cast());
            let scale = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
            let min = if OFFSET == FIXED_ZERO {
                scale
            } else {
                _mm512_cvtph_ps(_mm256_loadu_si256(scales.add(2 * TILE_ROWS).cast()))
            };
            (scale, min)
        };
        for t in 0..T {
            if OFFSET == FIXED_ZERO {
                sums[t] = _mm512_fmadd_ps(totals[t], scale, sums[t]);
                continue;
            }
            let x_sum = _mm512_set1_ps(x[t].scaled_sum::<CHUNK>(g, n_chunks));
            if OFFSET == GROUP_ZERO {
                totals[t] = _mm512_fnmadd_ps(min, x_sum, totals[t]);
            }
            sums[t] = _mm512_fmadd_ps(totals[t], scale, sums[t]);
            if OFFSET == MIN {
                sums[t] = _mm512_fmadd_ps(min, x_sum, sums[t]);
            }
        }
    }
    for t in 0..T {
        // SAFETY: 16 f32 are writable.
        unsafe { _mm512_storeu_ps(out[t].as_mut_ptr(), sums[t]) }
    }
}
