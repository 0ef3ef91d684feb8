//! ggml's block formats, read as codes with a scale and a minimum a group.
//!
//! Layouts after ggml's `ggml-common.h`: each block starts (Q6_K: ends) with its f16 scales.

use half::f16;

use super::{Offset, PackedLayout, codebooks, small_k_blocks};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

impl BlockFormat {
    pub const ALL: [Self; 13] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Mxfp4,
    ];

    /// Weights in a block.
    pub fn block_len(self) -> usize {
        match self {
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
            _ => 32,
        }
    }

    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Xs => 136,
            Self::Mxfp4 => 17,
        }
    }

    pub fn layout(self) -> PackedLayout {
        let (code_bits, group, offset) = match self {
            Self::Q4_0 => (4, 32, Offset::Zero(8)),
            Self::Q4_1 | Self::Q4K => (4, 32, Offset::Min),
            Self::Q5_0 => (8, 32, Offset::Zero(16)),
            Self::Q5_1 | Self::Q5K => (8, 32, Offset::Min),
            Self::Q8_0 | Self::Iq4Nl | Self::Iq4Xs | Self::Mxfp4 => (8, 32, Offset::Zero(128)),
            Self::Q2K => (8, 16, Offset::Min),
            Self::Q3K => (8, 16, Offset::Zero(4)),
            Self::Q6K => (8, 16, Offset::Zero(32)),
        };
        PackedLayout {
            code_bits,
            group,
            offset,
        }
    }
}

/// One row, unpacked: a code a weight, a scale and a minimum a group. `mins` stays untouched
/// where the layout has a fixed zero.
pub(super) struct RowCodes<'a> {
    pub codes: &'a mut [u8],
    pub scales: &'a mut [f32],
    pub mins: &'a mut [f32],
}

pub(super) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Scale and minimum number `i` of the 12 bytes that Q4_K and Q5_K pack eight of each into.
fn six_bit_pair(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, min) = if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        (
            packed[i + 4] & 15 | packed[i - 4] >> 6 << 4,
            packed[i + 4] >> 4 | packed[i] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(min))
}

/// Two nibbles a byte: the first half of the codes low, the second half high.
pub(super) fn split_nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = byte & 15;
        *high = byte >> 4;
    }
}

/// Reads one row: `bytes` holds its blocks, `out` has room for exactly its weights and groups.
pub(super) fn unpack_row(format: BlockFormat, bytes: &[u8], out: RowCodes<'_>) {
    let len = format.block_len();
    let n_groups = len / format.layout().group;
    let largest = match format {
        BlockFormat::Mxfp4 => codebooks::largest_exponent(bytes),
        _ => 0,
    };
    for (i, block) in bytes.chunks_exact(format.block_bytes()).enumerate() {
        let codes = &mut out.codes[i * len..][..len];
        let scales = &mut out.scales[i * n_groups..][..n_groups];
        let mins = &mut out.mins[i * n_groups..][..n_groups];
        match format {
            BlockFormat::Q4_0 => {
                scales[0] = f16_at(block, 0);
                split_nibbles(&block[2..], codes);
            }
            BlockFormat::Q4_1 => {
                scales[0] = f16_at(block, 0);
                mins[0] = f16_at(block, 2);
                split_nibbles(&block[4..], codes);
            }
            BlockFormat::Q5_0 => {
                scales[0] = f16_at(block, 0);
                unpack_q5(&block[2..], codes);
            }
            BlockFormat::Q5_1 => {
                scales[0] = f16_at(block, 0);
                mins[0] = f16_at(block, 2);
                unpack_q5(&block[4..], codes);
            }
            BlockFormat::Q8_0 => {
                scales[0] = f16_at(block, 0);
                for (code, byte) in codes.iter_mut().zip(&block[2..]) {
                    *code = byte ^ 0x80;
                }
            }
            BlockFormat::Q4K => {
                unpack_k_scales(block, scales, mins);
                for (pair, bytes) in codes.chunks_exact_mut(64).zip(block[16..].chunks_exact(32)) {
                    split_nibbles(bytes, pair);
                }
            }
            BlockFormat::Q5K => {
                unpack_k_scales(block, scales, mins);
                let (high_bits, low) = block[16..].split_at(32);
                for (j, bytes) in low.chunks_exact(32).enumerate() {
                    let pair = &mut codes[64 * j..][..64];
                    split_nibbles(bytes, pair);
                    for (l, bits) in high_bits.iter().enumerate() {
                        pair[l] |= (bits >> (2 * j) & 1) << 4;
                        pair[l + 32] |= (bits >> (2 * j + 1) & 1) << 4;
                    }
                }
            }
            BlockFormat::Q6K => unpack_q6k(block, codes, scales),
            BlockFormat::Q2K => small_k_blocks::unpack_q2k(block, codes, scales, mins),
            BlockFormat::Q3K => small_k_blocks::unpack_q3k(block, codes, scales),
            BlockFormat::Iq4Nl => {
                scales[0] = f16_at(block, 0);
                codebooks::unpack(&block[2..], &codebooks::IQ4, codes);
            }
            BlockFormat::Iq4Xs => codebooks::unpack_iq4_xs(block, codes, scales),
            BlockFormat::Mxfp4 => {
                scales[0] = codebooks::relative_scale(block[0], largest);
                codebooks::unpack(&block[1..], &codebooks::TWICE_E2M1, codes);
            }
        }
    }
}

/// `packed`: four bytes of fifth bits, then 16 of nibbles.
fn unpack_q5(packed: &[u8], codes: &mut [u8]) {
    let fifth = u32::from_le_bytes([packed[0], packed[1], packed[2], packed[3]]);
    split_nibbles(&packed[4..20], codes);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= ((fifth >> i & 1) as u8) << 4;
    }
}

fn unpack_k_scales(block: &[u8], scales: &mut [f32], mins: &mut [f32]) {
    let (d, d_min) = (f16_at(block, 0), f16_at(block, 2));
    for (i, (scale, min)) in scales.iter_mut().zip(mins).enumerate() {
        let (s, m) = six_bit_pair(&block[4..16], i);
        *scale = d * s;
        *min = -d_min * m;
    }
}

fn unpack_q6k(block: &[u8], codes: &mut [u8], scales: &mut [f32]) {
    let d = f16_at(block, 208);
    for (scale, byte) in scales.iter_mut().zip(&block[192..208]) {
        *scale = d * f32::from(*byte as i8);
    }
    for half in 0..2 {
        let low = &block[64 * half..][..64];
        let high = &block[128 + 32 * half..][..32];
        let codes = &mut codes[128 * half..][..128];
        for l in 0..32 {
            codes[l] = low[l] & 15 | (high[l] & 3) << 4;
            codes[l + 32] = low[l + 32] & 15 | (high[l] >> 2 & 3) << 4;
            codes[l + 64] = low[l] >> 4 | (high[l] >> 4 & 3) << 4;
            codes[l + 96] = low[l + 32] >> 4 | (high[l] >> 6) << 4;
        }
    }
}
