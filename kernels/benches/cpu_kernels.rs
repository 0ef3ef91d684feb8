//! Speed of the CPU kernels: projections in bytes of weights a second (few tokens) or multiply-adds
//! a second (many), attention in bytes of KV or multiply-adds.
//!
//! "stream" matrices are larger than the second-level cache, "resident" ones fit it.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels::attention::{
    AttentionPlan, AttentionShape, KvFormat, KvPages, Sequence, forward as attend,
};
use kernels::linear::{LinearInput, LinearPart, LinearWeights, forward};
use kernels::pool::WorkerPool;
use kernels::quant_linear::{BlockFormat, QuantActivations, QuantMatrix, QuantSource};
use kernels::{Isa, KernelError};

fn matrix(
    pool: &mut WorkerPool,
    format: BlockFormat,
    n_out: usize,
    n_in: usize,
) -> Result<LinearWeights, KernelError> {
    // Small positive scales, arbitrary codes.
    let n_bytes = n_out * n_in / format.block_len() * format.block_bytes();
    let bytes: Vec<u8> = (0..n_bytes).map(|i| (i * 37 % 59) as u8).collect();
    let source = QuantSource::Blocks {
        format,
        bytes: &bytes,
    };
    QuantMatrix::pack(pool, n_out, n_in, source).map(LinearWeights::Quant)
}

fn projections(c: &mut Criterion) -> Result<(), KernelError> {
    let n_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut pool = WorkerPool::new(n_threads)?;
    let isa = Isa::detect();
    for (place, n_out) in [("resident", 1536), ("stream", 131_072)] {
        for format in [
            BlockFormat::Q4_0,
            BlockFormat::Q4_1,
            BlockFormat::Q6K,
            BlockFormat::Q8_0,
        ] {
            let n_in = if format == BlockFormat::Q6K { 512 } else { 576 };
            let weights = matrix(&mut pool, format, n_out, n_in)?;
            for n_tokens in [1usize, 4, 20, 256] {
                if n_tokens == 256 && place == "stream" {
                    continue;
                }
                let x: Vec<f32> = (0..n_tokens * n_in)
                    .map(|i| (i % 17) as f32 - 8.0)
                    .collect();
                let mut y = vec![0.0; n_tokens * n_out];
                let mut int8 = QuantActivations::default();
                int8.quantize(&mut pool, isa, &x, n_in)?;
                let mut group = c.benchmark_group(format!("quant_linear/{place}/{format:?}"));
                group.throughput(if n_tokens <= 4 {
                    Throughput::Bytes(weights.bytes() as u64)
                } else {
                    Throughput::Elements((n_tokens * n_out * n_in) as u64)
                });
                let mut failure = None;
                group.bench_function(BenchmarkId::from_parameter(n_tokens), |b| {
                    b.iter(|| {
                        let part = LinearPart {
                            weights: &weights,
                            y: &mut y,
                            accumulate: false,
                            bias: None,
                        };
                        let input = LinearInput {
                            x: &x,
                            int8: Some(&int8),
                        };
                        let done = forward(&mut pool, isa, n_tokens, input, &mut [part]);
                        failure = done.err().or(failure.take());
                    });
                });
                group.finish();
                failure.map_or(Ok(()), Err)?;
            }
        }
    }
    Ok(())
}

fn attention(c: &mut Criterion) -> Result<(), KernelError> {
    let n_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut pool = WorkerPool::new(n_threads)?;
    let isa = Isa::detect();
    let shape = AttentionShape {
        n_q_heads: 9,
        n_kv_heads: 3,
        head_dim: 64,
    };
    for (name, start, n_tokens, format) in [
        ("decode", 511, 1usize, KvFormat::F16),
        ("decode_fp8", 511, 1, KvFormat::Fp8E4m3),
        ("prefill", 256, 256, KvFormat::F16),
        ("prefill_fp8", 256, 256, KvFormat::Fp8E4m3),
    ] {
        let n_pages = (start + n_tokens).div_ceil(16);
        let kv = KvPages::new(shape, n_pages, format)?;
        let pages: Vec<u32> = (0..n_pages as u32).collect();
        let sequences = [Sequence {
            first: 0,
            n_tokens,
            start,
            pages: &pages,
        }];
        let mut plan = AttentionPlan::default();
        plan.prepare(shape, &sequences, n_threads)?;
        let q = vec![0.1; n_tokens * 9 * 64];
        let mut out = vec![0.0; q.len()];
        let mut group = c.benchmark_group("attention");
        let n_seen: usize = (0..n_tokens).map(|t| start + t + 1).sum();
        group.throughput(Throughput::Elements((2 * n_seen * 9 * 64) as u64));
        let mut failure = None;
        group.bench_function(name, |b| {
            b.iter(|| {
                let done = attend(&mut pool, isa, &kv, &plan, &sequences, &q, &mut out);
                failure = done.err().or(failure.take());
            });
        });
        group.finish();
        failure.map_or(Ok(()), Err)?;
    }
    Ok(())
}

fn run(c: &mut Criterion) {
    if let Err(error) = projections(c).and_then(|()| attention(c)) {
        eprintln!("benchmark stopped: {error}");
        std::process::exit(1);
    }
}

criterion_group!(benches, run);
criterion_main!(benches);
