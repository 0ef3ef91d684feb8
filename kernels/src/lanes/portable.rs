//! [`Lanes`] in plain Rust; the compiler vectorises it for whatever it targets.

use half::{bf16, f16};

use super::{LANES, Lanes, e4m3};

#[derive(Debug, Clone, Copy)]
pub struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn map(mut self, f: impl Fn(f32) -> f32) -> Self {
        for x in &mut self.0 {
            *x = f(*x);
        }
        self
    }

    #[inline(always)]
    fn zip(mut self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        for (x, y) in self.0.iter_mut().zip(other.0) {
            *x = f(*x, y);
        }
        self
    }

    #[inline(always)]
    fn fold(self, f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut x = self.0;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                x[i] = f(x[i], x[i + width]);
            }
        }
        x[0]
    }
}

impl Lanes for Portable {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        Self(*x)
    }
    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        *out = self.0;
    }
    #[inline(always)]
    fn load_f16(bits: &[u16; LANES]) -> Self {
        Self(bits.map(|b| f16::from_bits(b).to_f32()))
    }
    #[inline(always)]
    fn store_f16(self, out: &mut [u16; LANES]) {
        *out = self.0.map(|x| f16::from_f32(x).to_bits());
    }
    #[inline(always)]
    fn load_bf16(bits: &[u16; LANES]) -> Self {
        Self(bits.map(|b| bf16::from_bits(b).to_f32()))
    }
    #[inline(always)]
    fn load_e4m3(codes: &[u8; LANES]) -> Self {
        Self::load_f16(&codes.map(e4m3::to_f16_bits))
    }
    #[inline(always)]
    fn store_e4m3(self, out: &mut [u8; LANES]) {
        *out = self.0.map(e4m3::from_f32);
    }
    #[inline(always)]
    fn load_field(words: &[u32; LANES], shift: u32, mask: u32) -> Self {
        Self(words.map(|w| ((w >> shift) & mask) as f32))
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |x, y| x + y)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |x, y| x - y)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |x, y| x * y)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |x, y| x / y)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        self.map(f32::abs)
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        self.mul(factor).add(addend)
    }
    #[inline(always)]
    fn round(self) -> Self {
        self.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn scale_by_power(self, exponent: Self) -> Self {
        self.zip(exponent, |x, e| {
            x * f32::from_bits(((e as i32 + 127) as u32) << 23)
        })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        self.fold(|x, y| x + y)
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        self.fold(|x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn store_i8(self, out: &mut [i8; LANES]) -> i32 {
        *out = self.0.map(|x| x.round_ties_even() as i8);
        out.iter().map(|&q| i32::from(q)).sum()
    }
}
