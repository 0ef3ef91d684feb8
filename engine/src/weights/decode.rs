//! Decodes every element format to f32, one block at a time: the simple reference for tests of the
//! fast kernels. Speed does not matter here.
//!
//! The block layouts are ggml's: `d` and `m` are f16 scales and minima, `qs` are the low bits
//! of the quants, `qh` the high ones.

use half::{bf16, f16};

mod codebooks;
mod small_k;

use super::{ElementFormat, WeightError};

/// Decodes `n_elements` stored as `format`. Fails unless `bytes` contains exactly these elements.
pub(crate) fn to_f32(
    format: ElementFormat,
    bytes: &[u8],
    n_elements: usize,
) -> Result<Vec<f32>, WeightError> {
    if format.n_bytes(n_elements) != Some(bytes.len()) {
        return Err(WeightError::File {
            file: format!("{n_elements} elements of {format}"),
            message: format!(
                "take blocks of {} bytes for {} elements, but {} bytes were given",
                format.block_bytes(),
                format.block_elements(),
                bytes.len()
            ),
        });
    }
    let mut out = vec![0.0; n_elements];
    let decode_block: fn(&[u8], &mut [f32]) = match format {
        ElementFormat::F32 => |b, y| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        ElementFormat::F16 => |b, y| y[0] = f16_at(b, 0),
        ElementFormat::BF16 => |b, y| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        ElementFormat::Q4_0 => q4_0,
        ElementFormat::Q4_1 => q4_1,
        ElementFormat::Q5_0 => q5_0,
        ElementFormat::Q5_1 => q5_1,
        ElementFormat::Q8_0 => q8_0,
        ElementFormat::Q2K => small_k::q2k,
        ElementFormat::Q3K => small_k::q3k,
        ElementFormat::Q4K => q4k,
        ElementFormat::Q5K => q5k,
        ElementFormat::Q6K => q6k,
        ElementFormat::Iq4Nl => codebooks::iq4_nl,
        ElementFormat::Iq4Xs => codebooks::iq4_xs,
        ElementFormat::Mxfp4 => codebooks::mxfp4,
    };
    let blocks = bytes.chunks_exact(format.block_bytes());
    for (block, y) in blocks.zip(out.chunks_exact_mut(format.block_elements())) {
        decode_block(block, y);
    }
    Ok(out)
}

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// `d: f16, qs: [u8; 16]`; byte i holds elements i (low nibble) and i + 16. `x = d (q - 8)`.
fn q4_0(block: &[u8], y: &mut [f32]) {
    let d = f16_at(block, 0);
    for (i, &q) in block[2..18].iter().enumerate() {
        y[i] = d * f32::from((q & 15) as i8 - 8);
        y[i + 16] = d * f32::from((q >> 4) as i8 - 8);
    }
}

/// `d: f16, m: f16, qs: [u8; 16]`. `x = d q + m`.
fn q4_1(block: &[u8], y: &mut [f32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (i, &q) in block[4..20].iter().enumerate() {
        y[i] = d * f32::from(q & 15) + m;
        y[i + 16] = d * f32::from(q >> 4) + m;
    }
}

/// The fifth bit of element `i`, shifted into place.
fn fifth_bit(qh: &[u8], i: usize) -> u8 {
    ((qh[i / 8] >> (i % 8)) & 1) << 4
}

/// `d: f16, qh: [u8; 4], qs: [u8; 16]`; bit i of qh is element i's fifth bit. `x = d (q - 16)`.
fn q5_0(block: &[u8], y: &mut [f32]) {
    let (d, qh) = (f16_at(block, 0), &block[2..6]);
    for (i, &q) in block[6..22].iter().enumerate() {
        y[i] = d * f32::from((q & 15 | fifth_bit(qh, i)) as i8 - 16);
        y[i + 16] = d * f32::from((q >> 4 | fifth_bit(qh, i + 16)) as i8 - 16);
    }
}

/// `d: f16, m: f16, qh: [u8; 4], qs: [u8; 16]`. `x = d q + m`.
fn q5_1(block: &[u8], y: &mut [f32]) {
    let (d, m, qh) = (f16_at(block, 0), f16_at(block, 2), &block[4..8]);
    for (i, &q) in block[8..24].iter().enumerate() {
        y[i] = d * f32::from(q & 15 | fifth_bit(qh, i)) + m;
        y[i + 16] = d * f32::from(q >> 4 | fifth_bit(qh, i + 16)) + m;
    }
}

/// `d: f16, qs: [i8; 32]`. `x = d q`.
fn q8_0(block: &[u8], y: &mut [f32]) {
    let d = f16_at(block, 0);
    for (y, &q) in y.iter_mut().zip(&block[2..34]) {
        *y = d * f32::from(q as i8);
    }
}

/// Scale and minimum of sub-block `j` of eight: 6 bits each, packed into 12 bytes. The first
/// four are plain; the last four have their low nibbles in bytes 8..12 and their upper two
/// bits on top of the first four.
fn scale_and_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            (packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4),
            (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4),
        )
    };
    (f32::from(scale), f32::from(min))
}

/// `d: f16, dmin: f16, scales: [u8; 12], qs: [u8; 128]`; each 32 bytes of qs hold two
/// sub-blocks of 32, low nibbles first. `x = d scale q - dmin min`.
fn q4k(block: &[u8], y: &mut [f32]) {
    let (d, dmin, packed) = (f16_at(block, 0), f16_at(block, 2), &block[4..16]);
    for (j, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(packed, j);
        let qs = &block[16 + 32 * (j / 2)..][..32];
        for (y, &q) in y.iter_mut().zip(qs) {
            let q = if j % 2 == 0 { q & 15 } else { q >> 4 };
            *y = d * scale * f32::from(q) - dmin * min;
        }
    }
}

/// As Q4_K with `qh: [u8; 32]` before the nibbles: bit j of byte i is the fifth bit of element
/// i of sub-block j.
fn q5k(block: &[u8], y: &mut [f32]) {
    let (d, dmin, packed) = (f16_at(block, 0), f16_at(block, 2), &block[4..16]);
    let qh = &block[16..48];
    for (j, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(packed, j);
        let qs = &block[48 + 32 * (j / 2)..][..32];
        for (i, (y, &q)) in y.iter_mut().zip(qs).enumerate() {
            let low = if j % 2 == 0 { q & 15 } else { q >> 4 };
            let q = low | (((qh[i] >> j) & 1) << 4);
            *y = d * scale * f32::from(q) - dmin * min;
        }
    }
}

/// `ql: [u8; 128], qh: [u8; 64], scales: [i8; 16], d: f16`; two halves of 128 elements, each
/// four runs of 32: run r has its low nibbles in ql (runs 0, 1 low, runs 2, 3 high) and two
/// upper bits at 2r of qh. A scale covers 16 elements. `x = d scale (q - 32)`.
fn q6k(block: &[u8], y: &mut [f32]) {
    let d = f16_at(block, 208);
    for (i, y) in y.iter_mut().enumerate() {
        let (half, run, at) = (i / 128, i % 128 / 32, i % 32);
        let ql = block[64 * half + 32 * (run % 2) + at];
        let low = if run < 2 { ql & 15 } else { ql >> 4 };
        let high = (block[128 + 32 * half + at] >> (2 * run)) & 3;
        let scale = f32::from(block[192 + i / 16] as i8);
        *y = d * scale * f32::from((low | high << 4) as i8 - 32);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QStorage, QTensor};
    use candle_core::{Device, Shape};
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Those that candle has.
    const BLOCK_FORMATS: [(ElementFormat, GgmlDType); 10] = [
        (ElementFormat::Q4_0, GgmlDType::Q4_0),
        (ElementFormat::Q4_1, GgmlDType::Q4_1),
        (ElementFormat::Q5_0, GgmlDType::Q5_0),
        (ElementFormat::Q5_1, GgmlDType::Q5_1),
        (ElementFormat::Q8_0, GgmlDType::Q8_0),
        (ElementFormat::Q2K, GgmlDType::Q2K),
        (ElementFormat::Q3K, GgmlDType::Q3K),
        (ElementFormat::Q4K, GgmlDType::Q4K),
        (ElementFormat::Q5K, GgmlDType::Q5K),
        (ElementFormat::Q6K, GgmlDType::Q6K),
    ];

    /// Random bits in every field; the f16 scales are made finite afterwards.
    fn random_blocks(format: ElementFormat, n_blocks: usize) -> Vec<u8> {
        let mut rng = rand::rngs::StdRng::seed_from_u64(7);
        let mut bytes = vec![0u8; n_blocks * format.block_bytes()];
        rng.fill(&mut bytes[..]);
        let scales: &[usize] = match format {
            ElementFormat::Q4_0 | ElementFormat::Q5_0 | ElementFormat::Q8_0 => &[0],
            ElementFormat::Q2K => &[80, 82],
            ElementFormat::Q3K => &[108],
            ElementFormat::Q6K => &[208],
            _ => &[0, 2],
        };
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            for &at in scales {
                let scale = f16::from_f32(rng.random_range(-2.0..2.0));
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn block_formats_decode_as_candle_decodes_them() {
        for (format, dtype) in BLOCK_FORMATS {
            let n = 6 * format.block_elements();
            let bytes = random_blocks(format, 6);
            let ours = to_f32(format, &bytes, n).expect("sizes fit");
            let storage = QStorage::from_data(bytes.into(), &Device::Cpu, dtype).expect("storage");
            let tensor = QTensor::new(storage, Shape::from(n)).expect("tensor");
            let theirs = tensor
                .dequantize(&Device::Cpu)
                .and_then(|t| t.to_vec1::<f32>());
            for (i, (a, b)) in ours.iter().zip(theirs.expect("decodes")).enumerate() {
                assert!(
                    (a - b).abs() <= 1e-6 * b.abs().max(1.0),
                    "{format}[{i}]: {a} is not {b}"
                );
            }
        }
    }

    #[test]
    fn plain_formats_decode_exactly() {
        let values = [0.0f32, -1.5, 3.25, 1024.0];
        let f32_bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let f16_bytes: Vec<u8> = values
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect();
        let bf16_bytes: Vec<u8> = values
            .iter()
            .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
            .collect();
        for (format, bytes) in [
            (ElementFormat::F32, f32_bytes),
            (ElementFormat::F16, f16_bytes),
            (ElementFormat::BF16, bf16_bytes),
        ] {
            assert_eq!(
                to_f32(format, &bytes, 4).expect("sizes fit"),
                values,
                "{format}"
            );
        }
    }

    #[test]
    fn a_wrong_length_is_refused() {
        let error = to_f32(ElementFormat::Q4_0, &[0; 17], 32).expect_err("one byte short");
        assert!(error.to_string().contains("17 bytes were given"), "{error}");
        assert!(to_f32(ElementFormat::Q8_0, &[0; 34], 31).is_err());
        assert!(to_f32(ElementFormat::F32, &[], usize::MAX).is_err());
    }
}
