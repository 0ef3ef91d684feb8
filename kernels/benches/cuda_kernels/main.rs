//! Speed of every CUDA kernel, alone and with nothing of its data in the L2 cache, in GB/s or
//! TFLOP/s and in per cent of what the GPU's memory and matrix instructions were measured to do
//! a moment before. Shapes are those of Qwen3-32B in 4 bits.
//!
//! A launch is timed by itself, from one event to another, so its start and end count: in a decode
//! step, where the next kernel begins early, it costs some microseconds less. `ENGINE_BENCH_JSON`
//! names a file that gets one JSON line a case. Without a GPU there is nothing to do here.

mod attention;
mod measure;
mod projections;
mod rows;

use std::time::Duration;

use criterion::Criterion;
use kernels::cuda::Device;
use measure::Bench;

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
}

fn main() -> std::process::ExitCode {
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => {
            println!(
                "no CUDA kernel was measured: {error}. CPU kernels are measured by the bench \
                 `cpu_kernels`."
            );
            return std::process::ExitCode::SUCCESS;
        }
    };
    // Ten short samples: a launch on an idle GPU varies by a per cent or two.
    let criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .nresamples(1000)
        .without_plots()
        .configure_from_args();
    match run(&device, criterion) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benchmark stopped: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(device: &Device, criterion: Criterion) -> Result<(), measure::BenchError> {
    let mut bench = Bench::new(device, criterion)?;
    projections::all(&mut bench)?;
    attention::all(&mut bench)?;
    rows::all(&mut bench)?;
    bench.finish()
}
