//! Sixteen f32 at a time, with one interface over AVX-512, AVX2 and plain Rust.
//!
//! An elementwise or dot-product kernel is written once, generic over [`Lanes`], and compiled three
//! times by [`for_isa!`]. Kernels built on special instructions (the integer dot products of
//! `quant_linear`) do not use it.
//!
//! All three round alike except for fused multiply-add, which the portable version does in two
//! roundings.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod e4m3;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use portable::Portable;

/// Number of f32 in a [`Lanes`].
pub const LANES: usize = 16;

/// Sixteen f32. A value exists only on a CPU that supports its instructions.
pub trait Lanes: Copy {
    fn splat(x: f32) -> Self;
    fn load(x: &[f32; LANES]) -> Self;
    fn store(self, out: &mut [f32; LANES]);
    /// IEEE half precision bits.
    fn load_f16(bits: &[u16; LANES]) -> Self;
    /// Rounds to nearest even.
    fn store_f16(self, out: &mut [u16; LANES]);
    fn load_bf16(bits: &[u16; LANES]) -> Self;
    /// FP8 values as stored, divided by [`e4m3::UNIT`]: the factor goes into their scale. The
    /// codes of NaN are read as ±480.
    fn load_e4m3(codes: &[u8; LANES]) -> Self;
    /// Rounds to nearest even; values beyond ±[`e4m3::LARGEST`] are clamped.
    fn store_e4m3(self, out: &mut [u8; LANES]);
    /// `(words >> shift) & mask` as f32; the masked value is below 2^24.
    fn load_field(words: &[u32; LANES], shift: u32, mask: u32) -> Self;
    #[must_use]
    fn add(self, other: Self) -> Self;
    #[must_use]
    fn sub(self, other: Self) -> Self;
    #[must_use]
    fn mul(self, other: Self) -> Self;
    #[must_use]
    fn div(self, other: Self) -> Self;
    #[must_use]
    fn max(self, other: Self) -> Self;
    #[must_use]
    fn min(self, other: Self) -> Self;
    #[must_use]
    fn abs(self) -> Self;
    /// `self * factor + addend`
    #[must_use]
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    #[must_use]
    fn round(self) -> Self;
    /// `self * 2^exponent` for whole exponents in -126 ..= 127.
    #[must_use]
    fn scale_by_power(self, exponent: Self) -> Self;
    fn sum(self) -> f32;
    fn largest(self) -> f32;
    /// Rounds to nearest even into i8 (values lie within ±127) and returns their sum.
    fn store_i8(self, out: &mut [i8; LANES]) -> i32;
}

/// `e^x` to about 2 units in the last place; underflows to a number below 1e-37.
///
/// Range reduction by ln 2 in two parts, then a degree-6 polynomial (Cephes' scheme).
#[inline(always)]
pub fn exp<L: Lanes>(x: L) -> L {
    let x = x.max(L::splat(-87.0)).min(L::splat(88.0));
    let n = x.mul(L::splat(std::f32::consts::LOG2_E)).round();
    let r = n.mul_add(L::splat(-0.693_359_4), x);
    let r = n.mul_add(L::splat(2.121_944_4e-4), r);
    let mut p = L::splat(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p.mul_add(r, L::splat(c));
    }
    let p = p.mul_add(r.mul(r), r).add(L::splat(1.0));
    p.scale_by_power(n)
}

/// The first 16 elements at `start`, which the caller knows to exist.
#[inline(always)]
pub fn at<T>(x: &[T], start: usize) -> &[T; LANES] {
    match x[start..].first_chunk() {
        Some(chunk) => chunk,
        None => out_of_range(start, x.len()),
    }
}

#[inline(always)]
pub fn at_mut<T>(x: &mut [T], start: usize) -> &mut [T; LANES] {
    let len = x.len();
    match x[start..].first_chunk_mut() {
        Some(chunk) => chunk,
        None => out_of_range(start, len),
    }
}

#[cold]
fn out_of_range(start: usize, len: usize) -> ! {
    // Same contract as slice indexing: a bug in a kernel, never bad input.
    unreachable!("16 elements at {start} of {len}")
}

/// The last, short piece of a slice, padded with `fill`.
#[inline(always)]
pub fn padded<T: Copy>(x: &[T], start: usize, fill: T) -> [T; LANES] {
    let mut out = [fill; LANES];
    let tail = &x[start..];
    out[..tail.len()].copy_from_slice(tail);
    out
}

/// Compiles a generic kernel once for each instruction set and calls the one that `isa` names.
///
/// `for_isa!(isa, kernel(arg: Type, …) -> Ret)`; the kernel is `fn kernel<L: Lanes>(…)` and marked
/// `#[inline(always)]`, so that its body is compiled with the caller's instructions.
macro_rules! for_isa {
    ($isa:expr, $kernel:ident ( $($arg:ident : $type:ty),* $(,)? ) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn run_avx512($($arg: $type),*) $(-> $ret)? {
            $kernel::<$crate::lanes::Avx512>($($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn run_avx2($($arg: $type),*) $(-> $ret)? {
            $kernel::<$crate::lanes::Avx2>($($arg),*)
        }
        match $isa {
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx512 => {
                // SAFETY: `Isa::Avx512` comes from `Isa::detect` or `Isa::checked`.
                unsafe { run_avx512($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx2 => {
                // SAFETY: `Isa::Avx2` comes from `Isa::detect` or `Isa::checked`.
                unsafe { run_avx2($($arg),*) }
            }
            _ => $kernel::<$crate::lanes::Portable>($($arg),*),
        }
    }};
}
pub(crate) use for_isa;

#[cfg(test)]
mod tests;
