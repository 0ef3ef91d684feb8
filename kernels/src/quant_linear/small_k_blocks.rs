//! ggml's K blocks of 2 and 3 bits: 256 weights in groups of 16.
//!
//! Both have two halves of 128 weights, in four runs of 32 with bits `2 r` and `2 r + 1` of the
//! half's 32 bytes.

use super::blocks::f16_at;

/// `scales: [u8; 16], qs: [u8; 64], d: f16, dmin: f16`: a group's scale in the low nibble of its byte,
/// its minimum in the high one.
pub(super) fn unpack_q2k(block: &[u8], codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
    let (d, d_min) = (f16_at(block, 80), f16_at(block, 82));
    for ((scale, min), byte) in scales.iter_mut().zip(mins).zip(&block[..16]) {
        *scale = d * f32::from(byte & 15);
        *min = -d_min * f32::from(byte >> 4);
    }
    two_bits(&block[16..80], codes);
}

/// `hmask: [u8; 32], qs: [u8; 64], scales: [u8; 12], d: f16`: bit `4 half + run` of a mask's byte is
/// the third bit, from which 4 is taken by the layout's zero.
pub(super) fn unpack_q3k(block: &[u8], codes: &mut [u8], scales: &mut [f32]) {
    two_bits(&block[32..96], codes);
    for (run, codes) in codes.chunks_exact_mut(32).enumerate() {
        for (code, mask) in codes.iter_mut().zip(&block[..32]) {
            *code |= (mask >> run & 1) << 2;
        }
    }
    let (d, packed) = (f16_at(block, 108), &block[96..108]);
    for (i, scale) in scales.iter_mut().enumerate() {
        *scale = d * f32::from(six_bits(packed, i) as i8 - 32);
    }
}

fn two_bits(packed: &[u8], codes: &mut [u8]) {
    for (run, codes) in codes.chunks_exact_mut(32).enumerate() {
        let bytes = &packed[32 * (run / 4)..][..32];
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code = byte >> (2 * (run % 4)) & 3;
        }
    }
}

/// Number `i` of sixteen in 12 bytes: nibbles of the first eight, low ones first, under pairs of bits
/// of the last four.
fn six_bits(packed: &[u8], i: usize) -> u8 {
    let low = packed[i % 8] >> (4 * (i / 8)) & 15;
    let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
    low | high << 4
}
