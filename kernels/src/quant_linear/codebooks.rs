//! 4-bit codes that name a number of a table: ggml's IQ4_NL, IQ4_XS and MXFP4 blocks, and FP4.
//!
//! The numbers are kept as 8-bit codes, 128 above them.

use super::blocks::{f16_at, split_nibbles};

/// Of IQ4_NL and IQ4_XS.
pub(super) const IQ4: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];
/// Twice the FP4 numbers (E2M1): 0, 0.5, 1, 1.5, 2, 3, 4, 6, and the same with their sign.
pub(super) const TWICE_E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The 8-bit code of a 4-bit one.
pub(super) fn code(table: &[i8; 16], nibble: u8) -> u8 {
    table[usize::from(nibble)].cast_unsigned() ^ 0x80
}

/// 16 bytes: the first half of 32 codes in the low nibbles, the second in the high ones.
pub(super) fn unpack(packed: &[u8], table: &[i8; 16], codes: &mut [u8]) {
    split_nibbles(packed, codes);
    for c in codes {
        *c = code(table, *c);
    }
}

/// `d: f16, scales_h: u16, scales_l: [u8; 4], qs: [u8; 128]`: eight groups, each with a scale of 6 bits
/// of which 32 is taken, four of them in `scales_l`.
pub(super) fn unpack_iq4_xs(block: &[u8], codes: &mut [u8], scales: &mut [f32]) {
    let d = f16_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    let groups = codes.chunks_exact_mut(32).zip(block[8..].chunks_exact(16));
    for (i, ((codes, packed), scale)) in groups.zip(scales).enumerate() {
        let low = block[4 + i / 2] >> (4 * (i % 2)) & 15;
        let six = low | ((high >> (2 * i) & 3) as u8) << 4;
        *scale = d * f32::from(six as i8 - 32);
        unpack(packed, &IQ4, codes);
    }
}

/// Of the MXFP4 blocks of a row.
pub(super) fn largest_exponent(row: &[u8]) -> u8 {
    let exponents = row.chunks_exact(17).map(|block| block[0]);
    exponents.max().unwrap_or_default()
}

/// What the doubled numbers of a whole MXFP4 row are multiplied with: `2^(largest - 128)`.
pub(super) fn row_scale(largest: u8) -> f32 {
    2f64.powi(i32::from(largest) - 128) as f32
}

/// The scale of a block of such a row. f16 holds it unless the row's largest is 2^25 times as large or
/// more: then the block counts as 0.
pub(super) fn relative_scale(exponent: u8, largest: u8) -> f32 {
    2f32.powi(i32::from(exponent) - i32::from(largest))
}
