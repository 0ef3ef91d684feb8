//! Speed of every CUDA kernel, alone and with nothing of its data in the L2 cache, in GB/s or
//! TFLOP/s and in per cent of what the card's memory and matrix instructions were measured to do
//! a moment before. Shapes are those of Qwen3-32B in 4 bits unless `ENGINE_BENCH_SHAPE` says
//! otherwise. An op's cases are in `src/<op>/bench_cuda.rs`.
//!
//! A launch is timed by itself, from one event to another, so its start and end count: in a decode
//! step, where the next kernel begins early, it costs some microseconds less. `ENGINE_BENCH_JSON`
//! names a file that gets one JSON line a case. Without a GPU there is nothing to do here.

mod compiled;
mod measure;
mod shape;

#[path = "../../src/attention/bench_cuda.rs"]
mod attention;
#[path = "../../src/embedding/bench_cuda.rs"]
mod embedding;
#[path = "../../src/experts/bench_cuda.rs"]
mod experts;
#[path = "../../src/stream_linear/bench_cuda.rs"]
mod projections;
#[path = "../../src/qkv_prepare/bench_cuda.rs"]
mod qkv_prepare;
#[path = "../../src/rms_norm/bench_cuda.rs"]
mod rms_norm;
#[path = "../../src/sampling/bench_cuda.rs"]
mod sampling;
#[path = "../../src/silu_mul/bench_cuda.rs"]
mod silu_mul;

use std::process::ExitCode;
use std::time::Duration;

use criterion::Criterion;
use gpu::{CudaError, Device};
use measure::Bench;
use shape::Shape;

/// The model whose shapes are measured.
mod model {
    use kernels::cuda::HeadShape;

    pub const HIDDEN: usize = 5120;
    pub const INTERMEDIATE: usize = 25_600;
    pub const VOCAB: usize = 151_936;
    pub const HEADS: HeadShape = HeadShape {
        n_q: 64,
        n_kv: 8,
        head_dim: 128,
    };
    /// Of what works row by row.
    pub const ROWS: [usize; 4] = [1, 20, 64, 1024];
}

fn main() -> ExitCode {
    if Device::count() == 0 {
        println!(
            "no CUDA kernel was measured: this machine has no NVIDIA GPU or no driver for it. CPU \
             kernels are measured by the bench `cpu_kernels`."
        );
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("no complete benchmark: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let shape = Shape::of_environment()?;
    println!("kernels: {}", compiled::choose()?);
    let device = Device::open(0)?;
    // Ten short samples: a launch on an idle card varies by a per cent or two.
    let criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .nresamples(1000)
        .without_plots()
        .configure_from_args();
    let mut bench = Bench::new(&device, criterion, shape)?;
    each_op(&mut bench)?;
    Ok(bench.finish()?)
}

type Cases = fn(&mut Bench) -> Result<(), CudaError>;

const OPS: [(&str, Cases); 8] = [
    ("stream_linear", projections::all),
    ("attention", attention::all),
    ("embedding", embedding::all),
    ("rms_norm", rms_norm::all),
    ("qkv_prepare", qkv_prepare::all),
    ("silu_mul", silu_mul::all),
    ("experts", experts::all),
    ("sampling", sampling::all),
];

/// Names one op, so that no other op's kernels need be there.
const OP_VARIABLE: &str = "ENGINE_BENCH_OP";

fn each_op(bench: &mut Bench) -> Result<(), Box<dyn std::error::Error>> {
    let only = std::env::var(OP_VARIABLE)
        .ok()
        .filter(|name| !name.is_empty());
    let chosen: Vec<Cases> = OPS
        .iter()
        .filter(|(name, _)| only.as_ref().is_none_or(|only| only == name))
        .map(|(_, cases)| *cases)
        .collect();
    // The roofline itself is measured before any op.
    if chosen.is_empty() && only.as_deref() != Some("roofline") {
        let names: Vec<_> = OPS.iter().map(|(name, _)| *name).collect();
        return Err(format!("{OP_VARIABLE}: known are {} and roofline", names.join(", ")).into());
    }
    for cases in chosen {
        cases(bench)?;
    }
    Ok(())
}
