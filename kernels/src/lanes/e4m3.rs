//! FP8 with 4 exponent bits (bias 7) and 3 mantissa bits: no infinities, largest value 448, smallest
//! 2^-9. Micikevicius et al., "FP8 formats for deep learning", 2022.
//!
//! Shifted by 7 bits a code's exponent and mantissa are those of a half-precision number that is
//! 2^8 times smaller, subnormal ones included: that is how codes are read.

/// What a code read as half precision must be multiplied with.
pub const UNIT: f32 = 256.0;
pub const LARGEST: f32 = 448.0;
/// Smaller ones have no exponent of their own: they are multiples of 2^-9.
pub(super) const SMALLEST_NORMAL: f32 = 0.015_625;
/// Adding this rounds to a multiple of 2^-9, to nearest even, whose number is in the lowest bits.
pub(super) const SUBNORMAL_ROUNDER: f32 = 16_384.0;
/// Difference of the exponents' biases, where a code's exponent is.
pub(super) const REBIAS: u32 = 120 << 3;
/// A little less than half a code's step, in f32 bits.
pub(super) const ALMOST_HALF: u32 = 0x7_ffff;

/// The code of `x`, rounded to nearest even and held within ±[`LARGEST`]; NaN becomes one of these.
pub fn from_f32(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) & 0x80;
    let size = if x.abs() < LARGEST { x.abs() } else { LARGEST };
    let code = if size < SMALLEST_NORMAL {
        (size + SUBNORMAL_ROUNDER).to_bits() - SUBNORMAL_ROUNDER.to_bits()
    } else {
        let bits = size.to_bits();
        ((bits + ALMOST_HALF + ((bits >> 20) & 1)) >> 20) - REBIAS
    };
    (sign | code) as u8
}

/// The value of a code; those of NaN are read as ±480.
pub fn to_f32(code: u8) -> f32 {
    half::f16::from_bits(to_f16_bits(code)).to_f32() * UNIT
}

/// The half-precision bits of a code's value divided by [`UNIT`].
pub(super) fn to_f16_bits(code: u8) -> u16 {
    let code = u16::from(code);
    ((code & 0x80) << 8) | ((code & 0x7f) << 7)
}
