//! The CPU executor against f64, and what the processor's memory and products give.

use std::time::Instant;

use host::pool::WorkerPool;
use kernels::{Isa, KernelError};

use super::checks::{Checks, relative_error};
use super::model::{checkpoint, row, tokens};
use super::report::CpuReport;
use super::twin;
use crate::executor::cpu::{ActivationType, CpuExecutor, CpuOptions};
use crate::weights::synthetic::SyntheticCheckpoint;

/// f32 activations: KV pages are fp16, sums f32.
const LIMIT_F32: f64 = 2e-3;
/// Activations in 8 bits for 16 values each.
const LIMIT_INT8: f64 = 3e-2;
const N_TOKENS: usize = 40;
/// Far more than a cache of a desktop holds.
const READ_BYTES: usize = 512 << 20;
const N_TIMES: usize = 3;
const PRODUCTS_MS: u128 = 60;

pub fn run(n_threads: usize, checks: &mut Checks) -> CpuReport {
    let model = checkpoint(256, 512, 64, 320);
    let tokens = tokens(N_TOKENS, 2, 320);
    let expected = twin::logits(&model, &tokens);
    for isa in Isa::available() {
        for (activations, limit) in [
            (ActivationType::F32, LIMIT_F32),
            (ActivationType::Int8, LIMIT_INT8),
        ] {
            let case = format!(
                "logits, {} with {} activations",
                isa.name(),
                activations.name()
            );
            checks.run("CPU executor", case, limit, || {
                let expected = expected.as_ref().map_err(ToString::to_string)?;
                let found = logits(&model, &tokens, isa, activations)?;
                Ok::<_, String>(relative_error(found, expected.iter().copied()))
            });
        }
    }
    rates(n_threads).unwrap_or_else(|error| {
        checks.fail("CPU", "rates", error.to_string());
        CpuReport::default()
    })
}

fn logits(
    model: &SyntheticCheckpoint,
    tokens: &[u32],
    isa: Isa,
    activations: ActivationType,
) -> Result<Vec<f32>, String> {
    let options = CpuOptions {
        kv_pool_tokens: 1024,
        isa: Some(isa),
        activations,
        ..CpuOptions::default()
    };
    let mut executor = CpuExecutor::load(model, options).map_err(|error| error.to_string())?;
    let wanted: Vec<(usize, usize)> = (0..tokens.len()).map(|i| (0, i)).collect();
    executor
        .forward_logits(&[row(0, tokens, 0)], &wanted)
        .map_err(|error| error.to_string())
}

/// The best of a few times each: other programs only take away.
fn rates(n_threads: usize) -> Result<CpuReport, KernelError> {
    let mut pool = WorkerPool::new(n_threads)?;
    let isa = Isa::detect();
    let memory = vec![1.0_f32; READ_BYTES / size_of::<f32>()];
    let mut read_gb_per_s: f64 = 0.0;
    for _ in 0..N_TIMES {
        let started = Instant::now();
        kernels::roofline::cpu::read(&mut pool, isa, &memory)?;
        read_gb_per_s =
            read_gb_per_s.max(READ_BYTES as f64 / started.elapsed().as_secs_f64() / 1e9);
    }
    let f32 = products(|rounds| kernels::roofline::cpu::multiply_f32(&mut pool, isa, rounds))?;
    let int8 = products(|rounds| kernels::roofline::cpu::multiply_int8(&mut pool, isa, rounds))?;
    Ok(CpuReport {
        read_gb_per_s: Some(read_gb_per_s),
        f32_tera_ops_per_s: Some(f32),
        int8_tera_ops_per_s: Some(int8),
    })
}

/// Multiplications and additions, in 10^12 a second. The rounds grow until they take long enough.
fn products(mut run: impl FnMut(usize) -> Result<u64, KernelError>) -> Result<f64, KernelError> {
    let mut rounds = 1000;
    loop {
        let started = Instant::now();
        let n_products = run(rounds)?;
        let elapsed = started.elapsed();
        if elapsed.as_millis() >= PRODUCTS_MS || rounds >= 1 << 30 {
            return Ok(2.0 * n_products as f64 / elapsed.as_secs_f64() / 1e12);
        }
        rounds *= 4;
    }
}
