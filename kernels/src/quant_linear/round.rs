//! Rows of 16 or 32 bits, rounded to 8 bits with an f16 scale for each group.
//!
//! The largest value of a group becomes ±127, so a weight is off by at most 1/254 of it, and half
//! a unit of the scale's last place.

use half::f16;

use crate::dense_linear::DenseFormat;
use crate::isa::Isa;
use crate::lanes::{LANES, Lanes, at_mut, for_isa};

/// Number of inputs for each scale: the first of these that divides the row, otherwise 32. A wider
/// group costs less memory traffic and hardly any accuracy: the largest of 128 normal values is a
/// quarter above the largest of 32.
pub(super) const ROWS_GROUPS: [usize; 2] = [128, 64];

/// `bytes`: one row, little-endian; its codes are 128 above the rounded values. A scale is not
/// finite if a weight of its group is not.
pub(super) fn round_row(format: DenseFormat, bytes: &[u8], codes: &mut [u8], scales: &mut [f32]) {
    // Every instruction set rounds identically here.
    for_isa!(Isa::detect(), round(
        format: DenseFormat,
        bytes: &[u8],
        codes: &mut [u8],
        scales: &mut [f32],
    ));
}

#[inline(always)]
fn round<L: Lanes>(format: DenseFormat, bytes: &[u8], codes: &mut [u8], scales: &mut [f32]) {
    let group = codes.len() / scales.len();
    let groups = bytes
        .chunks_exact(group * format.bytes())
        .zip(codes.chunks_exact_mut(group));
    for ((bytes, codes), scale) in groups.zip(scales) {
        let (mut largest, mut poison) = (L::splat(0.0), L::splat(0.0));
        for k in (0..group).step_by(LANES) {
            let w = load::<L>(format, bytes, k);
            largest = largest.max(w.abs());
            // A NaN would not survive the maximum.
            poison = w.mul_add(L::splat(0.0), poison);
        }
        *scale = f16::from_f32(largest.largest() / 127.0).to_f32() + poison.sum();
        let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
        for k in (0..group).step_by(LANES) {
            let w = load::<L>(format, bytes, k).mul(L::splat(inverse));
            let mut rounded = [0i8; LANES];
            // The scale was rounded, maybe down.
            w.max(L::splat(-127.0))
                .min(L::splat(127.0))
                .store_i8(&mut rounded);
            *at_mut(codes, k) = rounded.map(|code| code as u8 ^ 0x80);
        }
    }
}

/// Sixteen weights from number `k` on.
#[inline(always)]
fn load<L: Lanes>(format: DenseFormat, bytes: &[u8], k: usize) -> L {
    let bytes = &bytes[k * format.bytes()..][..LANES * format.bytes()];
    match format {
        DenseFormat::F32 => L::load(&words(bytes, f32::from_le_bytes)),
        DenseFormat::F16 => L::load_f16(&words(bytes, u16::from_le_bytes)),
        DenseFormat::BF16 => L::load_bf16(&words(bytes, u16::from_le_bytes)),
    }
}

#[inline(always)]
fn words<T, const N: usize>(bytes: &[u8], read: fn([u8; N]) -> T) -> [T; LANES] {
    std::array::from_fn(|i| {
        let mut word = [0; N];
        word.copy_from_slice(&bytes[N * i..][..N]);
        read(word)
    })
}
