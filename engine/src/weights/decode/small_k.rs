//! Blocks of 256 elements in 2 and 3 bits, with a scale for 16.
//!
//! Element `i` is in half `i / 128` and run `i % 128 / 32`: its two bits are number `run` of byte
//! `i % 32` of the half's 32 bytes.

use super::f16_at;

fn two_bits(qs: &[u8], i: usize) -> u8 {
    qs[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32)) & 3
}

/// `scales: [u8; 16], qs: [u8; 64], d: f16, dmin: f16`; scale and minimum are the low and the high
/// nibble. `x = d scale q - dmin min`.
pub(super) fn q2k(block: &[u8], y: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for (i, y) in y.iter_mut().enumerate() {
        let packed = block[i / 16];
        let (scale, min) = (f32::from(packed & 15), f32::from(packed >> 4));
        *y = d * scale * f32::from(two_bits(&block[16..80], i)) - dmin * min;
    }
}

/// `hmask: [u8; 32], qs: [u8; 64], scales: [u8; 12], d: f16`; where the mask's bit is not set, 4 is
/// subtracted. Scales have 6 bits, minus 32. `x = d scale q`.
pub(super) fn q3k(block: &[u8], y: &mut [f32]) {
    let d = f16_at(block, 108);
    for (i, y) in y.iter_mut().enumerate() {
        let is_set = block[i % 32] >> (i / 32) & 1 == 1;
        let q = two_bits(&block[32..96], i) as i8 - if is_set { 0 } else { 4 };
        *y = d * q3k_scale(&block[96..108], i / 16) * f32::from(q);
    }
}

/// Low nibbles of the first eight bytes, their high nibbles, and two bits more in the last four.
fn q3k_scale(packed: &[u8], j: usize) -> f32 {
    let byte = packed[j % 8];
    let low = if j < 8 { byte & 15 } else { byte >> 4 };
    let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
    f32::from((low | high << 4) as i8 - 32)
}
