//! [`Lanes`] in two AVX2 registers.

#[allow(
    clippy::wildcard_imports,
    reason = "intrinsics are named by their prefix"
)]
use std::arch::x86_64::*;

use super::{LANES, Lanes, e4m3};

#[derive(Debug, Clone, Copy)]
pub struct Avx2(__m256, __m256);

#[inline(always)]
fn sum8(x: __m256) -> f32 {
    // SAFETY: AVX2 is present (see below).
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
    }
}

/// FP8 codes of 8 values, one in each 32-bit lane.
#[inline(always)]
fn e4m3_codes(x: __m256) -> __m256i {
    // SAFETY: AVX2 is present (see below).
    unsafe {
        let size = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
        let size = _mm256_min_ps(size, _mm256_set1_ps(e4m3::LARGEST));
        let bits = _mm256_castps_si256(size);
        let is_odd = _mm256_and_si256(_mm256_srli_epi32::<20>(bits), _mm256_set1_epi32(1));
        let half = _mm256_set1_epi32(e4m3::ALMOST_HALF as i32);
        let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, half), is_odd);
        let rebias = _mm256_set1_epi32(e4m3::REBIAS as i32);
        let normal = _mm256_sub_epi32(_mm256_srli_epi32::<20>(rounded), rebias);
        let rounder = _mm256_set1_ps(e4m3::SUBNORMAL_ROUNDER);
        let small = _mm256_castps_si256(_mm256_add_ps(size, rounder));
        let small = _mm256_sub_epi32(small, _mm256_castps_si256(rounder));
        let is_small = _mm256_cmp_ps::<_CMP_LT_OQ>(size, _mm256_set1_ps(e4m3::SMALLEST_NORMAL));
        let codes = _mm256_blendv_epi8(normal, small, _mm256_castps_si256(is_small));
        let signs = _mm256_srli_epi32::<24>(_mm256_castps_si256(x));
        _mm256_or_si256(codes, _mm256_and_si256(signs, _mm256_set1_epi32(0x80)))
    }
}

// One argument holds for every `unsafe` below: a kernel over `Avx2` is only entered through
// `for_isa!` after the processor was found to have AVX2, FMA and F16C, and each load or store is
// given an array of exactly the size that it touches.
impl Lanes for Avx2 {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: AVX2 is present.
        let x = unsafe { _mm256_set1_ps(x) };
        Self(x, x)
    }
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        // SAFETY: AVX2 is present; 16 f32 are readable.
        unsafe {
            Self(
                _mm256_loadu_ps(x.as_ptr()),
                _mm256_loadu_ps(x.as_ptr().add(8)),
            )
        }
    }
    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        // SAFETY: AVX2 is present; 16 f32 are writable.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), self.0);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), self.1);
        }
    }
    #[inline(always)]
    fn load_f16(bits: &[u16; LANES]) -> Self {
        let p = bits.as_ptr();
        // SAFETY: F16C is present; 32 bytes are readable.
        unsafe {
            Self(
                _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())),
            )
        }
    }
    #[inline(always)]
    fn store_f16(self, out: &mut [u16; LANES]) {
        let p = out.as_mut_ptr();
        // SAFETY: F16C is present; 32 bytes are writable.
        unsafe {
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1);
            _mm_storeu_si128(p.cast(), low);
            _mm_storeu_si128(p.add(8).cast(), high);
        }
    }
    #[inline(always)]
    fn load_bf16(bits: &[u16; LANES]) -> Self {
        let p = bits.as_ptr();
        // SAFETY: AVX2 is present; 32 bytes are readable.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast()));
            Self(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }
    #[inline(always)]
    fn load_e4m3(codes: &[u8; LANES]) -> Self {
        // SAFETY: AVX2 and F16C are present; 16 bytes are readable.
        unsafe {
            let codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(codes.as_ptr().cast()));
            // The sign goes to bit 15, the rest to bits 7 to 13; bit 14 is a copy of the sign.
            let shifted = _mm256_srai_epi16::<1>(_mm256_slli_epi16::<8>(codes));
            let half = _mm256_and_si256(shifted, _mm256_set1_epi16(0xbf80_u16 as i16));
            Self(
                _mm256_cvtph_ps(_mm256_castsi256_si128(half)),
                _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(half)),
            )
        }
    }
    #[inline(always)]
    fn store_e4m3(self, out: &mut [u8; LANES]) {
        // SAFETY: AVX2 is present; 16 bytes are writable.
        unsafe {
            let (low, high) = (e4m3_codes(self.0), e4m3_codes(self.1));
            // Packing works within 128-bit halves; the permutation puts the order right.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
            let bytes = _mm_packus_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
    }
    #[inline(always)]
    fn load_field(words: &[u32; LANES], shift: u32, mask: u32) -> Self {
        let p = words.as_ptr();
        // SAFETY: AVX2 is present; 64 bytes are readable.
        unsafe {
            let mask = _mm256_set1_epi32(mask as i32);
            let shift = _mm_cvtsi32_si128(shift as i32);
            let low = _mm256_srl_epi32(_mm256_loadu_si256(p.cast()), shift);
            let high = _mm256_srl_epi32(_mm256_loadu_si256(p.add(8).cast()), shift);
            Self(
                _mm256_cvtepi32_ps(_mm256_and_si256(low, mask)),
                _mm256_cvtepi32_ps(_mm256_and_si256(high, mask)),
            )
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: AVX2 is present.
        unsafe {
            Self(
                _mm256_add_ps(self.0, other.0),
                _mm256_add_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: AVX2 is present.
        unsafe {
            Self(
                _mm256_sub_ps(self.0, other.0),
                _mm256_sub_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: AVX2 is present.
        unsafe {
            Self(
                _mm256_mul_ps(self.0, other.0),
                _mm256_mul_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: AVX2 is present.
        unsafe {
            Self(
                _mm256_div_ps(self.0, other.0),
                _mm256_div_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: AVX2 is present.
        unsafe {
            Self(
                _mm256_max_ps(self.0, other.0),
                _mm256_max_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: AVX2 is present.
        unsafe {
            Self(
                _mm256_min_ps(self.0, other.0),
                _mm256_min_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: AVX2 is present.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            Self(
                _mm256_andnot_ps(sign, self.0),
                _mm256_andnot_ps(sign, self.1),
            )
        }
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: FMA is present.
        unsafe {
            Self(
                _mm256_fmadd_ps(self.0, factor.0, addend.0),
                _mm256_fmadd_ps(self.1, factor.1, addend.1),
            )
        }
    }
    #[inline(always)]
    fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: AVX2 is present.
        unsafe {
            Self(
                _mm256_round_ps::<NEAREST>(self.0),
                _mm256_round_ps::<NEAREST>(self.1),
            )
        }
    }
    #[inline(always)]
    fn scale_by_power(self, exponent: Self) -> Self {
        // SAFETY: AVX2 is present.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_cvtps_epi32(exponent.0), bias);
            let high = _mm256_add_epi32(_mm256_cvtps_epi32(exponent.1), bias);
            Self(
                _mm256_mul_ps(self.0, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(low))),
                _mm256_mul_ps(self.1, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high))),
            )
        }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: AVX2 is present.
        sum8(unsafe { _mm256_add_ps(self.0, self.1) })
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: AVX2 is present.
        unsafe {
            let x = _mm256_max_ps(self.0, self.1);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }
    #[inline(always)]
    fn store_i8(self, out: &mut [i8; LANES]) -> i32 {
        // SAFETY: AVX2 is present; 16 bytes are writable.
        unsafe {
            let low = _mm256_cvtps_epi32(self.0);
            let high = _mm256_cvtps_epi32(self.1);
            // Packing works within 128-bit halves; the permutation puts the order right.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
            let bytes = _mm_packs_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
            let sums = _mm256_add_epi32(low, high);
            let sums = _mm_add_epi32(
                _mm256_castsi256_si128(sums),
                _mm256_extracti128_si256::<1>(sums),
            );
            let sums = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b01_00_11_10>(sums));
            let sums = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b10_11_00_01>(sums));
            _mm_cvtsi128_si32(sums)
        }
    }
}
