//! [`Lanes`] in one AVX-512 register.

#[allow(
    clippy::wildcard_imports,
    reason = "intrinsics are named by their prefix"
)]
use std::arch::x86_64::*;

use super::{LANES, Lanes, e4m3};

#[derive(Debug, Clone, Copy)]
pub struct Avx512(__m512);

// One argument holds for every `unsafe` below: a kernel over `Avx512` is only entered through
// `for_isa!` after the processor was found to have AVX-512, and each load or store is given an
// array of exactly the size that it touches.
impl Lanes for Avx512 {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: AVX-512 is present.
        Self(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        // SAFETY: AVX-512 is present; 16 f32 are readable.
        Self(unsafe { _mm512_loadu_ps(x.as_ptr()) })
    }
    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        // SAFETY: AVX-512 is present; 16 f32 are writable.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn load_f16(bits: &[u16; LANES]) -> Self {
        // SAFETY: AVX-512 is present; 32 bytes are readable.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bits.as_ptr().cast())) })
    }
    #[inline(always)]
    fn store_f16(self, out: &mut [u16; LANES]) {
        // SAFETY: AVX-512 is present; 32 bytes are writable.
        unsafe {
            let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), half);
        }
    }
    #[inline(always)]
    fn load_bf16(bits: &[u16; LANES]) -> Self {
        // SAFETY: AVX-512 is present; 32 bytes are readable.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bits.as_ptr().cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)))
        }
    }
    #[inline(always)]
    fn load_e4m3(codes: &[u8; LANES]) -> Self {
        // SAFETY: AVX-512 is present; 16 bytes are readable.
        unsafe {
            let codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(codes.as_ptr().cast()));
            // The sign goes to bit 15, the rest to bits 7 to 13; bit 14 is a copy of the sign.
            let shifted = _mm256_srai_epi16::<1>(_mm256_slli_epi16::<8>(codes));
            let half = _mm256_and_si256(shifted, _mm256_set1_epi16(0xbf80_u16 as i16));
            Self(_mm512_cvtph_ps(half))
        }
    }
    #[inline(always)]
    fn store_e4m3(self, out: &mut [u8; LANES]) {
        // SAFETY: AVX-512 is present; 16 bytes are writable.
        unsafe {
            let size = _mm512_abs_ps(self.0);
            let size = _mm512_min_ps(size, _mm512_set1_ps(e4m3::LARGEST));
            let bits = _mm512_castps_si512(size);
            let is_odd = _mm512_and_si512(_mm512_srli_epi32::<20>(bits), _mm512_set1_epi32(1));
            let half = _mm512_set1_epi32(e4m3::ALMOST_HALF as i32);
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, half), is_odd);
            let rebias = _mm512_set1_epi32(e4m3::REBIAS as i32);
            let normal = _mm512_sub_epi32(_mm512_srli_epi32::<20>(rounded), rebias);
            let rounder = _mm512_set1_ps(e4m3::SUBNORMAL_ROUNDER);
            let small = _mm512_castps_si512(_mm512_add_ps(size, rounder));
            let small = _mm512_sub_epi32(small, _mm512_castps_si512(rounder));
            let is_small =
                _mm512_cmp_ps_mask::<_CMP_LT_OQ>(size, _mm512_set1_ps(e4m3::SMALLEST_NORMAL));
            let codes = _mm512_mask_blend_epi32(is_small, normal, small);
            let signs = _mm512_srli_epi32::<24>(_mm512_castps_si512(self.0));
            let signs = _mm512_and_si512(signs, _mm512_set1_epi32(0x80));
            let codes = _mm512_cvtepi32_epi8(_mm512_or_si512(codes, signs));
            _mm_storeu_si128(out.as_mut_ptr().cast(), codes);
        }
    }
    #[inline(always)]
    fn load_field(words: &[u32; LANES], shift: u32, mask: u32) -> Self {
        // SAFETY: AVX-512 is present; 64 bytes are readable.
        unsafe {
            let w = _mm512_loadu_si512(words.as_ptr().cast());
            let w = _mm512_srl_epi32(w, _mm_cvtsi32_si128(shift as i32));
            Self(_mm512_cvtepi32_ps(_mm512_and_si512(
                w,
                _mm512_set1_epi32(mask as i32),
            )))
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: AVX-512 is present.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: AVX-512 is present.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: AVX-512 is present.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: AVX-512 is present.
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: AVX-512 is present.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: AVX-512 is present.
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: AVX-512 is present.
        Self(unsafe { _mm512_abs_ps(self.0) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: AVX-512 is present.
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: AVX-512 is present.
        Self(unsafe {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)
        })
    }
    #[inline(always)]
    fn scale_by_power(self, exponent: Self) -> Self {
        // SAFETY: AVX-512 is present.
        Self(unsafe { _mm512_scalef_ps(self.0, exponent.0) })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: AVX-512 is present.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: AVX-512 is present.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
    #[inline(always)]
    fn store_i8(self, out: &mut [i8; LANES]) -> i32 {
        // SAFETY: AVX-512 is present; 16 bytes are writable.
        unsafe {
            let q = _mm512_cvtps_epi32(self.0);
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(q));
            _mm512_reduce_add_epi32(q)
        }
    }
}
