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
            let x: Vec<f32> = (0..11 * n_in)
                .map(|_| rng.random_range(-1.0..1.0))
                .collect();
            let expected = reference::forward(&w, &x);
            let weights = LinearWeights::Dense(w);
            for isa in Isa::available() {
                for n_tokens in [1, 4, 11] {
                    let x = &x[..n_tokens * n_in];
                    let mut y = vec![f32::NAN; n_tokens * n_out];
                    let part = LinearPart {
                        weights: &weights,
                        y: &mut y,
                        accumulate: false,
                        bias: None,
                    };
                    let input = LinearInput { x, int8: None };
                    linear::forward(&mut pool, isa, n_tokens, input, &mut [part]).expect("run");
                    for (i, (f, e)) in y.iter().zip(&expected).enumerate() {
                        assert!(
                            (f - e).abs() <= 1e-5,
                            "{format:?} {n_out}x{n_in} {isa:?} tokens {n_tokens} at {i}: {f} {e}"
                        );
                    }
                }
                // A single token gives the same bits as in a batch.
                let mut together = vec![0.0; 11 * n_out];
                let mut alone = vec![0.0; n_out];
                for (n, x, y) in [
                    (11, &x[..], &mut together),
                    (1, &x[4 * n_in..][..n_in], &mut alone),
                ] {
                    let part = LinearPart {
                        weights: &weights,
                        y,
                        accumulate: false,
                        bias: None,
                    };
                    let input = LinearInput { x, int8: None };
                    linear::forward(&mut pool, isa, n, input, &mut [part]).expect("run");
                }
                assert_eq!(alone, together[4 * n_out..][..n_out]);
            }
        }
    }
}

#[test]
fn wrong_lengths_are_refused() {
    assert!(
        DenseMatrix::copy_from(&mut Arena::default(), 4, 4, DenseFormat::F16, &[0; 31]).is_err()
    );
    assert!(DenseMatrix::copy_from(&mut Arena::default(), 0, 4, DenseFormat::F16, &[]).is_err());
    let w = DenseMatrix::copy_from(&mut Arena::default(), 2, 2, DenseFormat::F32, &[0; 16])
        .expect("matrix");
    assert!(w.dequantize_row(2, &mut [0.0; 2]).is_err());
    assert!(w.dequantize_row(1, &mut [0.0; 3]).is_err());
}
