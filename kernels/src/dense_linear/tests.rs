use super::*;
use crate::linear::{self, LinearInput, LinearPart, LinearWeights};
use half::{bf16, f16};
use host::pool::WorkerPool;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn bytes_of(values: &[f32], format: DenseFormat) -> Vec<u8> {
    match format {
        DenseFormat::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DenseFormat::F16 => values
            .iter()
            .flat_map(|v| f16::from_f32(*v).to_le_bytes())
            .collect(),
        DenseFormat::BF16 => values
            .iter()
            .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
            .collect(),
    }
}

#[test]
fn every_format_agrees_with_the_reference_on_every_instruction_set() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut pool = WorkerPool::new(3).expect("pool");
    for format in [DenseFormat::F32, DenseFormat::F16, DenseFormat::BF16] {
        for (n_out, n_in) in [(1, 1), (5, 16), (37, 83), (64, 96), (130, 7)] {
            let values: Vec<f32> = (0..n_out * n_in)
                .map(|_| rng.random_range(-1.0..1.0))
                .collect();
            let w = DenseMatrix::copy_from(
                &mut Arena::default(),
                n_out,
                n_in,
                format,
                &bytes_of(&values, format),
            )
            .expect("matrix");
            let what = format!("{format:?} {n_out}x{n_in}");
            check_products(&mut pool, w, &what, &mut rng);
        }
    }
}

/// Products of 1, 4 and 11 tokens against the reference, and a single token against its batch.
fn check_products(pool: &mut WorkerPool, w: DenseMatrix, what: &str, rng: &mut StdRng) {
    let (n_out, n_in) = (w.n_out(), w.n_in());
    let x: Vec<f32> = (0..11 * n_in)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    let expected = reference::forward(&w, &x);
    let weights = LinearWeights::Dense(w);
    let mut run = |isa, n_tokens, x: &[f32]| {
        let mut y = vec![f32::NAN; n_tokens * n_out];
        let part = LinearPart {
            weights: &weights,
            tokens: 0..n_tokens,
            y: &mut y,
            accumulate: false,
            bias: None,
        };
        let input = LinearInput { x, int8: None };
        linear::forward(pool, isa, n_tokens, input, &mut [part]).expect("run");
        y
    };
    for isa in Isa::available() {
        for n_tokens in [1, 4, 11] {
            let y = run(isa, n_tokens, &x[..n_tokens * n_in]);
            for (i, (f, e)) in y.iter().zip(&expected).enumerate() {
                assert!(
                    (f - e).abs() <= 1e-5,
                    "{what} {isa:?} tokens {n_tokens} at {i}: {f} {e}"
                );
            }
        }
        // A single token gives the same bits as in a batch.
        let together = run(isa, 11, &x);
        let alone = run(isa, 1, &x[4 * n_in..][..n_in]);
        assert_eq!(alone, together[4 * n_out..][..n_out], "{what} {isa:?}");
    }
}

/// Every code, in rows with a scale each, in groups, and in groups of which the last is partial.
#[test]
fn fp8_rows_agree_with_the_reference_on_every_instruction_set() {
    let mut rng = StdRng::seed_from_u64(2);
    let mut pool = WorkerPool::new(3).expect("pool");
    let cases: [(usize, usize, usize); 7] = [
        (1, 1, 1),
        (5, 16, 16),
        (37, 83, 83),
        (64, 192, 128),
        (130, 90, 32),
        (20, 256, 256),
        (4, 48, usize::MAX),
    ];
    for (n_out, n_in, group) in cases {
        // Codes of values below 2, all of them in every matrix that is large enough.
        let codes: Vec<u8> = (0..n_out * n_in)
            .map(|i| (i * 7 % 64) as u8 | if rng.random() { 0x80 } else { 0 })
            .collect();
        let n_groups = n_in.div_ceil(group);
        let scales: Vec<f32> = (0..n_out * n_groups)
            .map(|_| rng.random_range(0.01..0.1))
            .collect();
        let arena = &mut Arena::default();
        let w = DenseMatrix::copy_e4m3(arena, (n_out, n_in), &codes, group, &scales);
        let w = w.expect("matrix");
        assert_eq!(w.bytes(), codes.len() + 4 * scales.len());
        let mut row = vec![0.0; n_in];
        for r in 0..n_out {
            w.dequantize_row(r, &mut row).expect("a row");
            for k in 0..n_in {
                let scale = scales[r * n_groups + k / group];
                let expected = value_of(codes[r * n_in + k]) * f64::from(scale);
                assert_eq!(row[k].to_bits(), (expected as f32).to_bits(), "{r} {k}");
            }
        }
        check_products(&mut pool, w, &format!("FP8 {n_out}x{n_in}"), &mut rng);
    }
}

/// The definition: sign, 4 bits of exponent, 3 of mantissa, bias 7.
fn value_of(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let size = match exponent {
        0 => mantissa * 2f64.powi(-9),
        _ => (8.0 + mantissa) * 2f64.powi(exponent - 10),
    };
    if code & 0x80 == 0 { size } else { -size }
}

#[test]
fn wrong_lengths_are_refused() {
    assert!(
        DenseMatrix::copy_from(&mut Arena::default(), 4, 4, DenseFormat::F16, &[0; 31]).is_err()
    );
    assert!(DenseMatrix::copy_from(&mut Arena::default(), 0, 4, DenseFormat::F16, &[]).is_err());
    for (n_codes, group, n_scales) in [(63, 16, 4), (64, 16, 3), (64, 8, 8), (64, 0, 4)] {
        let (codes, scales) = (vec![0; n_codes], vec![1.0; n_scales]);
        let w = DenseMatrix::copy_e4m3(&mut Arena::default(), (2, 32), &codes, group, &scales);
        assert!(w.is_err(), "{n_codes} codes, {n_scales} scales of {group}");
    }
    let w = DenseMatrix::copy_from(&mut Arena::default(), 2, 2, DenseFormat::F32, &[0; 16])
        .expect("matrix");
    assert!(w.dequantize_row(2, &mut [0.0; 2]).is_err());
    assert!(w.dequantize_row(1, &mut [0.0; 3]).is_err());
}
