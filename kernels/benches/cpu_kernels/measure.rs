//! Timing, the machine's roofline, the table and the JSON lines.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use host::memory::{AlignedBytes, Arena};
use host::pool::WorkerPool;
use kernels::roofline::cpu::{multiply_f32, multiply_int8, read};
use kernels::{Isa, KernelError};
use serde_json::json;

/// Names the file for JSON lines.
const JSON_VARIABLE: &str = "ENGINE_BENCH_JSON";
/// Largest read for comparison: far more than a cache holds.
const LARGEST_READ_BYTES: usize = 256 << 20;
/// Some milliseconds of products.
const ROOFLINE_ROUNDS: usize = 500_000;
const ROOFLINE_REPEATS: usize = 7;

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("ENGINE_BENCH_JSON: {}: {source}", .path.display())]
    Json {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// What multiply-adds are made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Products {
    F32,
    Int8,
}

/// What a call reads and computes at least: every operand once.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub bytes: usize,
    pub products: usize,
    pub kind: Products,
}

struct CaseResult {
    kernel: String,
    case: String,
    work: Work,
    /// Best read of as many bytes, and best products, a moment before.
    read_bytes_per_s: f64,
    products_per_s: f64,
    /// Seconds a call, one entry a sample, ascending.
    samples_s: Vec<f64>,
}

pub struct Bench {
    pub pool: WorkerPool,
    pub isa: Isa,
    criterion: Criterion,
    memory: AlignedBytes,
    results: Vec<CaseResult>,
}

impl Bench {
    pub fn new(criterion: Criterion) -> Result<Self, KernelError> {
        let n_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut memory = Arena::default().zeroed(LARGEST_READ_BYTES)?;
        // A page that was never written is the same one everywhere.
        memory.as_mut_slice().fill(1);
        Ok(Self {
            pool: WorkerPool::new(n_threads)?,
            isa: Isa::detect(),
            criterion,
            memory,
            results: Vec::new(),
        })
    }

    /// Measures `call`.
    pub fn case(
        &mut self,
        kernel: &str,
        case: &str,
        work: Work,
        mut call: impl FnMut(&mut WorkerPool, Isa) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let read_bytes_per_s = self.best_read(work.bytes)?;
        let products_per_s = self.best_products(work.kind)?;
        let (pool, isa) = (&mut self.pool, self.isa);
        let mut samples_s = Vec::new();
        let mut failure = None;
        let mut group = self.criterion.benchmark_group(kernel);
        group.throughput(Throughput::Bytes(work.bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(case), |b| {
            b.iter_custom(|n_calls| {
                let started = Instant::now();
                for _ in 0..n_calls {
                    failure = call(pool, isa).err().or(failure.take());
                }
                let elapsed = started.elapsed();
                samples_s.push(elapsed.as_secs_f64() / n_calls as f64);
                elapsed
            });
        });
        group.finish();
        failure.map_or(Ok(()), Err)?;
        // Not called at all where the command line's filter leaves the case out.
        if !samples_s.is_empty() {
            samples_s.sort_by(f64::total_cmp);
            self.results.push(CaseResult {
                kernel: kernel.to_owned(),
                case: case.to_owned(),
                work,
                read_bytes_per_s,
                products_per_s,
                samples_s,
            });
        }
        Ok(())
    }

    /// Bytes a second of a plain read of as many bytes, over and over.
    fn best_read(&mut self, n_bytes: usize) -> Result<f64, KernelError> {
        let n_bytes = n_bytes.clamp(1 << 16, LARGEST_READ_BYTES) / 64 * 64;
        let words: &[f32] = bytemuck::cast_slice(&self.memory.as_slice()[..n_bytes]);
        // Enough of them that the start of a parallel region does not count.
        let n_passes = (LARGEST_READ_BYTES / 4 / n_bytes).max(1);
        let (pool, isa) = (&mut self.pool, self.isa);
        let seconds = best_of(|| (0..n_passes).try_for_each(|_| read(pool, isa, words)))?;
        Ok((n_bytes * n_passes) as f64 / seconds)
    }

    fn best_products(&mut self, kind: Products) -> Result<f64, KernelError> {
        let (pool, isa) = (&mut self.pool, self.isa);
        let mut n_products = 0;
        let seconds = best_of(|| {
            n_products = match kind {
                Products::F32 => multiply_f32(pool, isa, ROOFLINE_ROUNDS)?,
                Products::Int8 => multiply_int8(pool, isa, ROOFLINE_ROUNDS)?,
            };
            Ok(())
        })?;
        Ok(n_products as f64 / seconds)
    }

    /// The table, and the JSON lines where they are asked for.
    pub fn finish(self) -> Result<(), BenchError> {
        self.criterion.final_summary();
        println!(
            "\n{:<24} {:<12} {:>10} {:>8} {:>10} {:>9} {:>10} {:>11}",
            "kernel", "case", "median us", "GB/s", "best GB/s", "GMAC/s", "best", "of roofline"
        );
        for result in &self.results {
            let (share, bound) = result.share();
            println!(
                "{:<24} {:<12} {:>10.1} {:>8.1} {:>10.1} {:>9.0} {:>10.0} {:>9.1} % {bound}",
                result.kernel,
                result.case,
                result.median_s() * 1e6,
                result.work.bytes as f64 / result.median_s() / 1e9,
                result.read_bytes_per_s / 1e9,
                result.work.products as f64 / result.median_s() / 1e9,
                result.products_per_s / 1e9,
                100.0 * share,
            );
        }
        let Some(path) = std::env::var_os(JSON_VARIABLE).filter(|path| !path.is_empty()) else {
            return Ok(());
        };
        let path = PathBuf::from(path);
        self.write_json(&path)
            .map_err(|source| BenchError::Json { path, source })
    }

    fn write_json(&self, path: &std::path::Path) -> std::io::Result<()> {
        let mut file = std::fs::File::create(path)?;
        for result in &self.results {
            let (share, bound) = result.share();
            let line = json!({
                "isa": self.isa.name(),
                "n_threads": self.pool.n_threads(),
                "kernel": result.kernel,
                "case": result.case,
                "bytes": result.work.bytes,
                "multiply_adds": result.work.products,
                "median_s": result.median_s(),
                "samples_s": result.samples_s,
                "roofline_bytes_per_s": result.read_bytes_per_s,
                "roofline_multiply_adds_per_s": result.products_per_s,
                "roofline_products": format!("{:?}", result.work.kind).to_lowercase(),
                "bound": bound,
                "share_of_roofline": share,
            });
            writeln!(file, "{line}")?;
        }
        file.flush()
    }
}

/// Seconds of the fastest of some repeats.
fn best_of(mut call: impl FnMut() -> Result<(), KernelError>) -> Result<f64, KernelError> {
    let mut best = Duration::MAX;
    for _ in 0..ROOFLINE_REPEATS {
        let started = Instant::now();
        call()?;
        best = best.min(started.elapsed());
    }
    Ok(best.as_secs_f64())
}

impl CaseResult {
    fn median_s(&self) -> f64 {
        self.samples_s[self.samples_s.len() / 2]
    }

    /// Time at best over time taken, and what bounds it.
    fn share(&self) -> (f64, &'static str) {
        let read_s = self.work.bytes as f64 / self.read_bytes_per_s;
        let multiply_s = self.work.products as f64 / self.products_per_s;
        let bound = if read_s > multiply_s {
            "reading"
        } else {
            "multiplying"
        };
        (read_s.max(multiply_s) / self.median_s(), bound)
    }
}
