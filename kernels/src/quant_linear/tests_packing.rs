//! What is packed, from every source: codes and scales in their places.

use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::tests::{TERMS, check_batches, pool, random_vector};
use super::*;
use crate::dense_linear::DenseMatrix;
use crate::linear::{self, LinearInput, LinearPart, LinearWeights};

#[test]
fn awq_weights_come_out_in_their_places() {
    for (n_in, group_size) in [(128, 32), (128, 64), (384, 128), (96, 96)] {
        check_awq(n_in, group_size);
    }
}

fn check_awq(n_in: usize, group_size: usize) {
    let mut rng = StdRng::seed_from_u64(4);
    let mut pool = pool();
    let n_out = 24;
    let code = |k: usize, n: usize| (k * 7 + n * 3 + k * n) % 16;
    let zero = |g: usize, n: usize| (g * 5 + n) % 16;
    let scales: Vec<f16> = (0..n_in / group_size * n_out)
        .map(|_| f16::from_f32(rng.random_range(0.01..0.1)))
        .collect();
    let pack = |rows: usize, value: &dyn Fn(usize, usize) -> usize| -> Vec<u8> {
        let order = [0, 2, 4, 6, 1, 3, 5, 7];
        (0..rows * n_out / 8)
            .flat_map(|i| {
                let (row, column) = (i / (n_out / 8), i % (n_out / 8));
                let word = order.iter().enumerate().fold(0u32, |word, (nibble, lane)| {
                    word | (value(row, column * 8 + lane) as u32) << (4 * nibble)
                });
                word.to_le_bytes()
            })
            .collect()
    };
    let qweight = pack(n_in, &code);
    let qzeros = pack(n_in / group_size, &zero);
    let scale_bytes: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
    let source = QuantSource::Awq {
        group_size,
        qweight: &qweight,
        qzeros: &qzeros,
        scales: &scale_bytes,
    };
    let w = QuantMatrix::pack(&mut pool, &mut Arena::default(), n_out, n_in, source).expect("pack");
    let mut row = vec![0.0; n_in];
    for n in 0..n_out {
        w.dequantize_row(n, &mut row).expect("row");
        for (k, found) in row.iter().enumerate() {
            let g = k / group_size;
            let scale = scales[g * n_out + n].to_f32();
            let expected = (code(k, n) as f32 - zero(g, n) as f32) * scale;
            assert!((found - expected).abs() <= 1e-6 * scale, "{n} {k}");
        }
    }
    check_batches(&mut pool, w, &[1, 3, 8], &mut rng, "awq");
}

/// Every code in rows of several lengths; a scale that fp16 does not hold stays as it is.
#[test]
fn int8_rows_keep_their_codes_and_scales() {
    let mut rng = StdRng::seed_from_u64(8);
    let mut pool = pool();
    for (n_out, n_in) in [(1, 32), (37, 96), (40, 256), (16, 1056)] {
        let codes: Vec<u8> = (0..n_out * n_in).map(|i| (i * 37) as u8).collect();
        let scales: Vec<f32> = (0..n_out).map(|_| rng.random_range(1e-5..1e-3)).collect();
        let source = QuantSource::Int8 {
            codes: &codes,
            scales: &scales,
        };
        let arena = &mut Arena::default();
        let w = QuantMatrix::pack(&mut pool, arena, n_out, n_in, source).expect("pack");
        let mut row = vec![0.0; n_in];
        for n in 0..n_out {
            w.dequantize_row(n, &mut row).expect("row");
            for (k, found) in row.iter().enumerate() {
                let expected = f32::from(codes[n * n_in + k] as i8) * scales[n];
                assert_eq!(found.to_bits(), expected.to_bits(), "{n} {k}");
            }
        }
        check_batches(
            &mut pool,
            w,
            &[1, 3, 8],
            &mut rng,
            &format!("int8 {n_out}x{n_in}"),
        );
    }
}

/// Exponents of MXFP4 go beyond those of f16: rows keep the largest apart.
#[test]
fn mxfp4_rows_keep_their_exponents() {
    let mut pool = pool();
    let block = |exponent: u8| -> Vec<u8> { [&[exponent][..], &[0x52; 16]].concat() };
    for exponents in [
        [0, 0],
        [1, 20],
        [100, 124],
        [127, 127],
        [230, 252],
        [253, 240],
    ] {
        let bytes = exponents.map(|exponent| block(exponent as u8)).concat();
        let source = QuantSource::Blocks {
            format: BlockFormat::Mxfp4,
            bytes: &bytes,
        };
        let w = QuantMatrix::pack(&mut pool, &mut Arena::default(), 1, 64, source).expect("pack");
        let mut row = vec![0.0; 64];
        w.dequantize_row(0, &mut row).expect("row");
        for (k, found) in row.iter().enumerate() {
            // 2 and 5 name 1 and 3.
            let number = if k % 32 < 16 { 1.0 } else { 3.0 };
            let expected = number * 2f64.powi(exponents[k / 32] - 127);
            assert!(
                f64::from(*found).to_bits() == expected.to_bits(),
                "{exponents:?} {k}: {found} for {expected}"
            );
        }
    }
    // A block that is 2^25 times smaller than another of its row adds nothing to it.
    let bytes = [127, 102].map(block).concat();
    let source = QuantSource::Blocks {
        format: BlockFormat::Mxfp4,
        bytes: &bytes,
    };
    let w = QuantMatrix::pack(&mut pool, &mut Arena::default(), 1, 64, source).expect("pack");
    let mut row = vec![1.0; 64];
    w.dequantize_row(0, &mut row).expect("row");
    assert_eq!((row[0], row[32]), (1.0, 0.0));
}

/// Every pair of codes, with the scales that E4M3 has.
#[test]
fn fp4_groups_keep_their_codes_and_scales() {
    const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let mut rng = StdRng::seed_from_u64(9);
    let mut pool = pool();
    for (n_out, n_in) in [(1, 32), (37, 96), (40, 256)] {
        let codes: Vec<u8> = (0..n_out * n_in / 2).map(|i| (i * 37) as u8).collect();
        let scales: Vec<f32> = (0..n_out * n_in / 16)
            .map(|_| crate::lanes::e4m3::to_f32(rng.random_range(0..0x7f)))
            .collect();
        let factor = 1.0 / 90_001.0;
        let source = QuantSource::Fp4 {
            codes: &codes,
            scales: &scales,
            factor,
        };
        let arena = &mut Arena::default();
        let w = QuantMatrix::pack(&mut pool, arena, n_out, n_in, source).expect("pack");
        let mut row = vec![0.0; n_in];
        for n in 0..n_out {
            w.dequantize_row(n, &mut row).expect("row");
            for (k, found) in row.iter().enumerate() {
                let at = n * n_in + k;
                let code = codes[at / 2] >> (4 * (k % 2)) & 15;
                let size = E2M1[usize::from(code & 7)] * scales[at / 16] * factor;
                let expected = if code < 8 { size } else { -size };
                let is_equal = (found - expected).abs() <= 0.0;
                assert!(is_equal, "{n} {k}: {found} for {expected}");
            }
        }
        check_batches(
            &mut pool,
            w,
            &[1, 3, 8],
            &mut rng,
            &format!("FP4 {n_out}x{n_in}"),
        );
    }
}

fn bytes_of(values: &[f32], format: DenseFormat) -> Vec<u8> {
    let bytes = |v: &f32| match format {
        DenseFormat::F32 => v.to_le_bytes().to_vec(),
        DenseFormat::F16 => f16::from_f32(*v).to_le_bytes().to_vec(),
        DenseFormat::BF16 => bf16::from_f32(*v).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}

#[test]
fn rows_are_rounded_to_8_bits_and_agree_with_the_reference_on_every_instruction_set() {
    let mut rng = StdRng::seed_from_u64(5);
    let mut pool = pool();
    for format in [DenseFormat::F32, DenseFormat::F16, DenseFormat::BF16] {
        for (n_out, n_in, group) in [(1, 32, 32), (37, 96, 32), (16, 192, 64), (50, 384, 128)] {
            let mut values = random_vector(n_out * n_in, &mut rng);
            // Groups of zeros and of one large weight have scales as well.
            values[..32].fill(0.0);
            values[n_in - 1] = 300.0;
            let bytes = bytes_of(&values, format);
            let exact = DenseMatrix::copy_from(&mut Arena::default(), n_out, n_in, format, &bytes)
                .expect("matrix");
            let source = QuantSource::Rows {
                format,
                bytes: &bytes,
            };
            let w = QuantMatrix::pack(&mut pool, &mut Arena::default(), n_out, n_in, source)
                .expect("pack");
            assert_eq!(w.layout().group, group);
            let (mut stored, mut rounded) = (vec![0.0; n_in], vec![0.0; n_in]);
            for row in 0..n_out {
                exact.dequantize_row(row, &mut stored).expect("row");
                w.dequantize_row(row, &mut rounded).expect("row");
                for (stored, rounded) in stored.chunks(group).zip(rounded.chunks(group)) {
                    let largest = stored.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    // Half a step, and the effect on 127 steps of rounding the scale to f16.
                    let limit = largest * (0.5 / 127.0 + 1.0 / 2048.0);
                    for (s, r) in stored.iter().zip(rounded) {
                        assert!(
                            (s - r).abs() <= limit,
                            "{format:?} row {row}: {s} became {r}"
                        );
                    }
                }
            }
            check_batches(
                &mut pool,
                w,
                &[1, 3, 8, 13],
                &mut rng,
                &format!("{format:?} {n_out}x{n_in}"),
            );
        }
    }
}

#[test]
fn rows_that_cannot_be_rounded_are_refused() {
    let mut pool = pool();
    let mut pack = |values: &[f32], n_in| {
        let bytes = bytes_of(values, DenseFormat::F32);
        let source = QuantSource::Rows {
            format: DenseFormat::F32,
            bytes: &bytes,
        };
        QuantMatrix::pack(&mut pool, &mut Arena::default(), 1, n_in, source)
    };
    assert!(pack(&[1.0; 32], 32).is_ok());
    assert!(pack(&[1.0; 32], 64).is_err());
    assert!(pack(&[1.0; 48], 48).is_err());
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e9] {
        let mut values = [1.0; 64];
        values[3] = broken;
        let error = pack(&values, 64).expect_err("must be refused").to_string();
        assert!(error.contains("65504"), "{broken}: {error}");
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let mut pool = pool();
    let format = BlockFormat::Q4_0;
    for (n_out, n_in, n_bytes) in [
        (16, 32, 16 * 18 - 1),
        (16, 33, 16 * 18),
        (0, 32, 0),
        (1, 0, 0),
    ] {
        let bytes = vec![0; n_bytes];
        let source = QuantSource::Blocks {
            format,
            bytes: &bytes,
        };
        assert!(
            QuantMatrix::pack(&mut pool, &mut Arena::default(), n_out, n_in, source).is_err(),
            "{n_out} {n_in}"
        );
    }
    for (n_in, n_codes, n_scales) in [(48, 96, 2), (32, 63, 2), (32, 64, 3)] {
        let source = QuantSource::Int8 {
            codes: &vec![0; n_codes],
            scales: &vec![1.0; n_scales],
        };
        let packed = QuantMatrix::pack(&mut pool, &mut Arena::default(), 2, n_in, source);
        assert!(packed.is_err(), "{n_codes} codes, {n_scales} scales");
    }
    let bytes = vec![0; 16 * 18];
    let source = QuantSource::Blocks {
        format,
        bytes: &bytes,
    };
    let w = QuantMatrix::pack(&mut pool, &mut Arena::default(), 16, 32, source).expect("pack");
    assert!(w.dequantize_row(16, &mut [0.0; 32]).is_err());
    let mut int8 = QuantActivations::default();
    for terms in TERMS {
        let refused = int8.quantize(&mut pool, Isa::Portable, &[0.0; 48], 48, terms);
        assert!(refused.is_err(), "{terms:?}");
    }
    let weights = LinearWeights::Quant(w);
    let part = LinearPart {
        weights: &weights,
        tokens: 0..1,
        y: &mut [0.0; 15],
        accumulate: false,
        bias: None,
    };
    let input = LinearInput {
        x: &[0.0; 32],
        int8: None,
    };
    assert!(linear::forward(&mut pool, Isa::Portable, 1, input, &mut [part]).is_err());
}

#[test]
fn scales_beyond_f16_are_refused() {
    let mut pool = pool();
    let mut bytes = vec![0xff; 144];
    bytes[..2].copy_from_slice(&f16::MAX.to_le_bytes());
    bytes[2..4].copy_from_slice(&f16::MAX.to_le_bytes());
    let source = QuantSource::Blocks {
        format: BlockFormat::Q4K,
        bytes: &bytes,
    };
    let error = QuantMatrix::pack(&mut pool, &mut Arena::default(), 1, 256, source)
        .expect_err("must not fit");
    assert!(error.to_string().contains("65504"), "{error}");
}
