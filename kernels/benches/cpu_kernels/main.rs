//! Speed of the CPU kernels on all threads, in GB/s or in multiply-adds a second, and in per cent
//! of what this machine reads or multiplies at best, which is measured right before each case.
//!
//! "stream" matrices are larger than any cache, "resident" ones fit the second level. The best read
//! is one of as many bytes, out of wherever they then lie. `ENGINE_BENCH_JSON` names a file that
//! gets one JSON line a case.

mod attention;
mod measure;
mod projections;

use std::time::Duration;

use criterion::Criterion;
use measure::{Bench, BenchError};

fn main() -> std::process::ExitCode {
    // Ten short samples: what else runs on the machine matters more than their number.
    let criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .nresamples(1000)
        .without_plots()
        .configure_from_args();
    match run(criterion) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benchmark stopped: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(criterion: Criterion) -> Result<(), BenchError> {
    let mut bench = Bench::new(criterion)?;
    projections::all(&mut bench)?;
    attention::all(&mut bench)?;
    bench.finish()
}
