//! Blocks of 4-bit codes that name a number. Byte i of 16 holds elements i (low nibble) and i + 16.

use super::f16_at;

const IQ4: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];
/// Twice the FP4 numbers (E2M1). Zero has no sign, as in ggml.
const TWICE_E2M1: [f32; 16] = [
    0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0,
];

fn named(table: &[f32; 16], scale: f32, qs: &[u8], y: &mut [f32]) {
    for (i, &q) in qs.iter().enumerate() {
        y[i] = scale * table[usize::from(q & 15)];
        y[i + 16] = scale * table[usize::from(q >> 4)];
    }
}

/// `d: f16, qs: [u8; 16]`. `x = d IQ4[q]`.
pub(super) fn iq4_nl(block: &[u8], y: &mut [f32]) {
    named(&IQ4, f16_at(block, 0), &block[2..18], y);
}

/// `d: f16, scales_h: u16, scales_l: [u8; 4], qs: [u8; 128]`; eight scales of 6 bits, minus 32.
/// `x = d scale IQ4[q]`.
pub(super) fn iq4_xs(block: &[u8], y: &mut [f32]) {
    let d = f16_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (j, y) in y.chunks_exact_mut(32).enumerate() {
        let low = block[4 + j / 2] >> (4 * (j % 2)) & 15;
        let scale = (low | ((high >> (2 * j) & 3) as u8) << 4) as i8 - 32;
        named(&IQ4, d * f32::from(scale), &block[8 + 16 * j..][..16], y);
    }
}

/// `e: u8, qs: [u8; 16]`. `x = 2^(e - 128) (2 E2M1[q])`, since 2^128 is none of f32.
pub(super) fn mxfp4(block: &[u8], y: &mut [f32]) {
    let scale = 2f64.powi(i32::from(block[0]) - 128) as f32;
    named(&TWICE_E2M1, scale, &block[1..17], y);
}
