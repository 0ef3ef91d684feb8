//! Timing with events, the GPU's roofline, the table and the JSON lines.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use gpu::{Buffer, CudaError, Device, Event, Stream, embedded_kernels};
use kernels::cuda::{Element, ElementBuffer};
use kernels::roofline::cuda::{Multiply, ReadMemory};
use kernels::stream_linear::fill_normal;
use serde_json::json;

use crate::shape::Shape;

/// Names the file for JSON lines.
const JSON_VARIABLE: &str = "ENGINE_BENCH_JSON";
/// Launches between two waits of the host.
const IN_FLIGHT: usize = 64;
/// Read to find the memory's rate: far more than a cache holds.
const ROOFLINE_BYTES: usize = 2 << 30;
/// Some milliseconds of products.
const ROOFLINE_ROUNDS: usize = 20_000;
const ROOFLINE_REPEATS: usize = 10;
/// Samples of a case in its JSON line, at most.
const MAX_SAMPLES: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Cuda(#[from] CudaError),
    #[error("ENGINE_BENCH_JSON: {}: {source}", .path.display())]
    Json {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// What a launch moves and computes at least: every operand once.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub bytes: f64,
    pub flops: f64,
}

impl Work {
    pub const fn bytes(bytes: usize) -> Self {
        Self {
            bytes: bytes as f64,
            flops: 0.0,
        }
    }
}

/// What the GPU was measured to do.
struct Roofline {
    bytes_per_s: f64,
    flops_per_s: f64,
    instruction: &'static str,
    /// Between two events with nothing in between.
    empty_us: f64,
}

struct CaseResult {
    kernel: String,
    case: String,
    work: Work,
    /// Ascending.
    us: Vec<f64>,
}

pub struct Bench {
    pub device: Device,
    pub stream: Stream,
    pub shape: Shape,
    criterion: Criterion,
    read: ReadMemory,
    /// Twice the L2 cache.
    flush: Buffer<u8>,
    sink: Buffer<u32>,
    events: Vec<(Event, Event)>,
    roofline: Roofline,
    results: Vec<CaseResult>,
}

impl Bench {
    pub fn new(device: &Device, criterion: Criterion, shape: Shape) -> Result<Self, CudaError> {
        let stream = Stream::new(device)?;
        let read = ReadMemory::new(device)?;
        let sink = Buffer::zeroed(&stream, 1)?;
        let events = (0..IN_FLIGHT)
            .map(|_| Ok((Event::new(device)?, Event::new(device)?)))
            .collect::<Result<Vec<_>, CudaError>>()?;
        let roofline = Roofline::measure(device, &stream, &read, &sink, &events[0])?;
        let l2_bytes = device.properties().l2_bytes;
        println!(
            "{}: {:.0} GB/s (read of {} GiB), {:.0} TFLOP/s ({}, fp16 with fp32 sums), {:.1} us \
             between two events; {} MiB read before every launch",
            device.properties().name,
            roofline.bytes_per_s / 1e9,
            ROOFLINE_BYTES >> 30,
            roofline.flops_per_s / 1e12,
            roofline.instruction,
            roofline.empty_us,
            (2 * l2_bytes) >> 20,
        );
        Ok(Self {
            device: device.clone(),
            flush: Buffer::zeroed(&stream, (2 * l2_bytes).next_multiple_of(16).max(1 << 20))?,
            stream,
            shape,
            criterion,
            read,
            sink,
            events,
            roofline,
            results: Vec::new(),
        })
    }

    /// About normal, mean 0 and deviation 1.
    pub fn normal(&self, n: usize, seed: u64) -> Result<ElementBuffer, CudaError> {
        let buffer = ElementBuffer::new(&self.device, Element::F16, n)?;
        fill_normal(&self.stream, buffer.all(), 0.0, 1.0, seed)?;
        Ok(buffer)
    }

    /// Measures `launch`, which gives one launch to the stream.
    pub fn case(
        &mut self,
        kernel: &str,
        case: &str,
        work: Work,
        mut launch: impl FnMut(&Stream) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let (stream, read) = (&self.stream, &self.read);
        let (flush, sink, events) = (&self.flush, &self.sink, &self.events);
        let mut us = Vec::new();
        let mut failure: Option<CudaError> = None;
        let mut group = self.criterion.benchmark_group(kernel);
        group.throughput(Throughput::Bytes(work.bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(case), |b| {
            b.iter_custom(|n_launches| {
                let mut total_us = 0.0;
                let mut left = n_launches as usize;
                while left > 0 && failure.is_none() {
                    let n = left.min(events.len());
                    left -= n;
                    let mut timed = || -> Result<(), CudaError> {
                        for (start, end) in &events[..n] {
                            read.launch(stream, flush.all(), sink.all())?;
                            start.record(stream)?;
                            launch(stream)?;
                            end.record(stream)?;
                        }
                        for (start, end) in &events[..n] {
                            let elapsed_us = f64::from(end.elapsed_ms(start)?) * 1e3;
                            us.push(elapsed_us);
                            total_us += elapsed_us;
                        }
                        Ok(())
                    };
                    failure = timed().err();
                }
                Duration::from_secs_f64((total_us * 1e-6).max(1e-9))
            });
        });
        group.finish();
        if let Some(error) = failure {
            return Err(error);
        }
        // Not called at all where the command line's filter leaves the case out.
        if !us.is_empty() {
            us.sort_by(f64::total_cmp);
            self.results.push(CaseResult {
                kernel: kernel.to_owned(),
                case: case.to_owned(),
                work,
                us,
            });
        }
        Ok(())
    }

    /// The table, and the JSON lines where they are asked for.
    pub fn finish(self) -> Result<(), BenchError> {
        self.criterion.final_summary();
        println!(
            "\n{:<18} {:<26} {:>10} {:>10} {:>15} {:>11}",
            "kernel", "case", "median us", "p10 us", "rate", "of roofline"
        );
        for result in &self.results {
            let (rate, bound) = self.roofline.rate(result);
            println!(
                "{:<18} {:<26} {:>10.2} {:>10.2} {:>15} {:>9.1} % {bound}",
                result.kernel,
                result.case,
                result.percentile_us(0.5),
                result.percentile_us(0.1),
                rate,
                100.0 * self.roofline.share(result),
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
        let properties = self.device.properties();
        let roofline = &self.roofline;
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        for result in &self.results {
            let median_us = result.percentile_us(0.5);
            let every = result.us.len().div_ceil(MAX_SAMPLES);
            let samples: Vec<f64> = result.us.iter().copied().step_by(every).collect();
            let line = json!({
                "device": properties.name,
                "architecture": properties.architecture(),
                "driver_version": properties.driver_version,
                "kernels_sha256": embedded_kernels().sha256,
                "kernel": result.kernel,
                "case": result.case,
                "n_launches": result.us.len(),
                "min_us": result.us.first(),
                "p10_us": result.percentile_us(0.1),
                "median_us": median_us,
                "p90_us": result.percentile_us(0.9),
                "sorted_samples_us": samples,
                "bytes": result.work.bytes,
                "flops": result.work.flops,
                "gb_per_s": result.work.bytes / median_us / 1e3,
                "tflops": result.work.flops / median_us / 1e6,
                "roofline_gb_per_s": roofline.bytes_per_s / 1e9,
                "roofline_tflops": roofline.flops_per_s / 1e12,
                "roofline_instruction": roofline.instruction,
                "empty_us": roofline.empty_us,
                "bound": roofline.rate(result).1,
                "share_of_roofline": roofline.share(result),
            });
            writeln!(file, "{line}")?;
        }
        file.flush()
    }
}

impl CaseResult {
    /// The nearest order statistic; 0 where nothing was measured.
    fn percentile_us(&self, share: f64) -> f64 {
        let last = self.us.len().saturating_sub(1);
        let at = (share * last as f64).round() as usize;
        self.us.get(at).copied().unwrap_or(0.0)
    }
}

impl Roofline {
    fn measure(
        device: &Device,
        stream: &Stream,
        read: &ReadMemory,
        sink: &Buffer<u32>,
        (start, end): &(Event, Event),
    ) -> Result<Self, CudaError> {
        let fastest_us = |launch: &dyn Fn() -> Result<(), CudaError>| {
            let mut least_us = f64::INFINITY;
            for _ in 0..ROOFLINE_REPEATS {
                start.record(stream)?;
                launch()?;
                end.record(stream)?;
                least_us = least_us.min(f64::from(end.elapsed_ms(start)?) * 1e3);
            }
            Ok::<_, CudaError>(least_us)
        };
        let data = Buffer::<u8>::zeroed(stream, ROOFLINE_BYTES)?;
        let read_us = fastest_us(&|| read.launch(stream, data.all(), sink.all()))?;
        let out = Buffer::<f32>::zeroed(stream, 1)?;
        let multipliers = [Some(Multiply::mma_sync(device)?), Multiply::wgmma(device)?];
        let (mut flops_per_s, mut instruction) = (0.0, "");
        for multiply in multipliers.iter().flatten() {
            let flops = multiply.launch(stream, ROOFLINE_ROUNDS, out.all())?;
            let us = fastest_us(&|| {
                multiply
                    .launch(stream, ROOFLINE_ROUNDS, out.all())
                    .map(|_| ())
            })?;
            let found = flops / us * 1e6;
            println!("{}: {:.0} TFLOP/s", multiply.instruction(), found / 1e12);
            if found > flops_per_s {
                (flops_per_s, instruction) = (found, multiply.instruction());
            }
        }
        Ok(Self {
            bytes_per_s: ROOFLINE_BYTES as f64 / read_us * 1e6,
            flops_per_s,
            instruction,
            empty_us: fastest_us(&|| Ok(()))?,
        })
    }

    /// The least seconds for memory and for products.
    fn floors_s(&self, work: Work) -> (f64, f64) {
        (work.bytes / self.bytes_per_s, work.flops / self.flops_per_s)
    }

    /// The median in the unit of what bounds the case, and what that is.
    fn rate(&self, result: &CaseResult) -> (String, &'static str) {
        let (memory_s, products_s) = self.floors_s(result.work);
        let median_us = result.percentile_us(0.5);
        if products_s > memory_s {
            let tflops = result.work.flops / median_us / 1e6;
            (format!("{tflops:.1} TFLOP/s"), "products")
        } else {
            let gb_per_s = result.work.bytes / median_us / 1e3;
            (format!("{gb_per_s:.0} GB/s"), "memory")
        }
    }

    /// The floor over the median.
    fn share(&self, result: &CaseResult) -> f64 {
        let (memory_s, products_s) = self.floors_s(result.work);
        memory_s.max(products_s) / (result.percentile_us(0.5) * 1e-6)
    }
}
