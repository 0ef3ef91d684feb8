//! Projections: weights of the formats that checkpoints have, one token to many.

use host::memory::Arena;
use kernels::KernelError;
use kernels::dense_linear::DenseFormat;
use kernels::linear::{LinearInput, LinearPart, LinearWeights, forward};
use kernels::quant_linear::{BlockFormat, QuantActivations, QuantMatrix, QuantSource, Terms};

use crate::measure::{Bench, BenchError, Products, Work};

/// What is packed: the name, and arbitrary bytes in the source's format with sane scales.
enum Stored {
    Blocks(BlockFormat),
    Awq,
    /// Rounded to 8 bits, as lm_head is.
    F16,
}

fn pack(
    bench: &mut Bench,
    stored: &Stored,
    n_out: usize,
    n_in: usize,
) -> Result<LinearWeights, KernelError> {
    const AWQ_GROUP: usize = 128;
    let arbitrary = |n: usize| -> Vec<u8> { (0..n).map(|i| (i * 37 % 59) as u8).collect() };
    let n = n_out * n_in;
    let (bytes, zeros, scales);
    let source = match stored {
        Stored::Blocks(format) => {
            bytes = arbitrary(n / format.block_len() * format.block_bytes());
            QuantSource::Blocks {
                format: *format,
                bytes: &bytes,
            }
        }
        Stored::F16 => {
            bytes = arbitrary(2 * n);
            QuantSource::Rows {
                format: DenseFormat::F16,
                bytes: &bytes,
            }
        }
        Stored::Awq => {
            bytes = arbitrary(n / 2);
            zeros = arbitrary(n / AWQ_GROUP / 2);
            scales = arbitrary(n / AWQ_GROUP * 2);
            QuantSource::Awq {
                group_size: AWQ_GROUP,
                qweight: &bytes,
                qzeros: &zeros,
                scales: &scales,
            }
        }
    };
    QuantMatrix::pack(&mut bench.pool, &mut Arena::default(), n_out, n_in, source)
        .map(LinearWeights::Quant)
}

pub fn all(bench: &mut Bench) -> Result<(), BenchError> {
    for (place, n_weights) in [("resident", 1 << 20), ("stream", 1 << 27)] {
        for (name, stored, n_in) in [
            ("Q4_0", Stored::Blocks(BlockFormat::Q4_0), 576),
            ("Q4_1", Stored::Blocks(BlockFormat::Q4_1), 576),
            ("AWQ", Stored::Awq, 1024),
            ("Q6_K", Stored::Blocks(BlockFormat::Q6K), 512),
            ("Q8_0", Stored::Blocks(BlockFormat::Q8_0), 576),
            ("f16", Stored::F16, 1024),
        ] {
            let n_out = n_weights / n_in / 16 * 16;
            let weights = pack(bench, &stored, n_out, n_in)?;
            for n_tokens in [1, 4, 20, 256] {
                if n_tokens == 256 && place == "stream" {
                    continue;
                }
                let x: Vec<f32> = (0..n_tokens * n_in)
                    .map(|i| (i % 17) as f32 - 8.0)
                    .collect();
                let mut y = vec![0.0; n_tokens * n_out];
                let mut int8 = QuantActivations::default();
                int8.quantize(&mut bench.pool, bench.isa, &x, n_in, Terms::One)?;
                let work = Work {
                    bytes: weights.bytes(),
                    products: n_tokens * n_out * n_in,
                    kind: Products::Int8,
                };
                let kernel = format!("quant_linear {place} {name}");
                let case = format!("{n_tokens} tokens");
                bench.case(&kernel, &case, work, |pool, isa| {
                    let part = LinearPart {
                        weights: &weights,
                        tokens: 0..n_tokens,
                        y: &mut y,
                        accumulate: false,
                        bias: None,
                    };
                    let input = LinearInput {
                        x: &x,
                        int8: Some(&int8),
                    };
                    forward(pool, isa, n_tokens, input, &mut [part])
                })?;
            }
        }
    }
    Ok(())
}
