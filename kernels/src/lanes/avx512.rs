//! [`Lanes`] in one AVX-512 register.

#[allow(
    clippy::wildcard_imports,
    reason = "intrinsics are named by their prefix"
)]
use std::arch::x86_64::*;

use super::{LANES, Lanes};

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
