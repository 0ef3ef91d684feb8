//! Rates of memory and of products, and the speed of a 32B model's projections.

use std::sync::Arc;

use ::gpu::{Buffer, CudaError, Event, HostBuffer, Stream};
use kernels::cuda::{Activation, Element, ElementBuffer, TILE_ROWS};
use kernels::roofline::cuda::{Multiply, ReadMemory};
use kernels::stream_linear::{
    Arrangement, Epilogue, Format, Int8Room, LargeM, Layout, Output, StreamLinear,
    StreamLinearKernels, fill_normal,
};

use super::linear::{SERVED, Served};
use super::report::{GpuReport, ProductRate, ProjectionRate, Rates};

/// Read and copied: far more than an L2 holds, and a quarter of the free memory at most.
const MOST_BYTES: usize = 2 << 30;
const LINK_BYTES: usize = 256 << 20;
const N_TIMES: usize = 5;
/// Some milliseconds of products.
const ROUNDS: usize = 20_000;
const ROWS: [usize; 9] = [1, 8, 16, 20, 32, 64, 128, 512, 1024];
/// Rows from which activations in 8 bits have a kernel of their own.
const INT8_MIN: usize = 17;
const N_SAMPLES: usize = 7;

pub fn measure(stream: &Stream, report: &mut GpuReport) -> Result<(), CudaError> {
    let device = stream.device();
    let (free, _) = device.memory_bytes()?;
    let n_bytes = (free / 4).min(MOST_BYTES) & !0xfff;
    let from = Buffer::<u8>::zeroed(stream, n_bytes)?;
    let sink = Buffer::<u32>::zeroed(stream, 1)?;
    let read = ReadMemory::new(device)?;
    let read_s = least_s(stream, || read.launch(stream, from.all(), sink.all()))?;
    let to = Buffer::<u8>::zeroed(stream, n_bytes)?;
    let copy_s = least_s(stream, || to.all().copy_from(stream, from.all()))?;
    let link_bytes = LINK_BYTES.min(n_bytes);
    let mut pinned = HostBuffer::<u8>::zeroed(device, link_bytes)?;
    let part = from.view(0..link_bytes)?;
    let to_device_s = least_s(stream, || pinned.copy_to(stream, part))?;
    let to_host_s = least_s(stream, || pinned.copy_from(stream, part))?;
    let out = Buffer::<f32>::zeroed(stream, 1)?;
    let mut products = Vec::new();
    let all = [
        Some(Multiply::mma_sync(device)?),
        Multiply::wgmma(device)?,
        Some(Multiply::mma_sync_int8(device)?),
    ];
    for multiply in all.into_iter().flatten() {
        let ops = multiply.launch(stream, ROUNDS, out.all())?;
        let seconds = least_s(stream, || {
            multiply.launch(stream, ROUNDS, out.all()).map(|_| ())
        })?;
        products.push(ProductRate {
            instruction: multiply.instruction().to_owned(),
            tera_ops_per_s: ops / seconds / 1e12,
        });
    }
    let gb_per_s = |n_bytes: usize, seconds: f64| n_bytes as f64 / seconds / 1e9;
    report.rates = Some(Rates {
        read_gb_per_s: gb_per_s(n_bytes, read_s),
        copy_gb_per_s: gb_per_s(2 * n_bytes, copy_s),
        to_device_gb_per_s: gb_per_s(link_bytes, to_device_s),
        to_host_gb_per_s: gb_per_s(link_bytes, to_host_s),
        products,
    });
    Ok(())
}

/// The least time of a few; the first one is a warm-up.
fn least_s(
    stream: &Stream,
    mut run: impl FnMut() -> Result<(), CudaError>,
) -> Result<f64, CudaError> {
    let device = stream.device();
    let (start, end) = (Event::new(device)?, Event::new(device)?);
    run()?;
    let mut least_ms = f32::INFINITY;
    for _ in 0..N_TIMES {
        start.record(stream)?;
        run()?;
        end.record(stream)?;
        least_ms = least_ms.min(end.elapsed_ms(&start)?);
    }
    Ok(f64::from(least_ms) / 1e3)
}

pub fn projections(stream: &Stream, report: &mut GpuReport) -> Result<(), CudaError> {
    let device = stream.device();
    let large_m = LargeM::best(device, !device.is_shared());
    let room = Int8Room {
        rows: 1024,
        k: 25_600,
    };
    for int8 in [None, Some(room)] {
        let kernels = StreamLinearKernels::load_with_int8(stream, Element::F16, large_m, int8)?;
        for served in &SERVED {
            let timed = timed(stream, &kernels, served, int8.is_some())?;
            report.projections.extend(timed);
        }
    }
    Ok(())
}

/// Every launch alone, after a read that empties the L2.
fn timed(
    stream: &Stream,
    kernels: &Arc<StreamLinearKernels>,
    served: &Served,
    is_int8: bool,
) -> Result<Vec<ProjectionRate>, CudaError> {
    let device = stream.device();
    let element = kernels.element();
    let layout = Layout::new(
        Format::AwqG128,
        served.arrangement,
        served.parts_n,
        served.k,
    )?;
    let (n, k) = (layout.n(), layout.k);
    let n_columns = if served.arrangement == Arrangement::GateUp {
        2 * n
    } else {
        n
    };
    let mut linear = StreamLinear::new(kernels, layout)?;
    linear.fill_random(stream, 51)?;
    let most = ROWS[ROWS.len() - 1].next_multiple_of(TILE_ROWS);
    let x = ElementBuffer::new(device, element, most * k)?;
    fill_normal(stream, x.all(), 0.0, 1.0, 52)?;
    let out = ElementBuffer::zeroed(stream, element, most * n)?;
    let residual = Buffer::<f32>::zeroed(stream, most * n)?;
    let flush_bytes = (2 * device.properties().l2_bytes)
        .next_multiple_of(16)
        .max(1 << 20);
    let flush = Buffer::<u8>::zeroed(stream, flush_bytes)?;
    let sink = Buffer::<u32>::zeroed(stream, 1)?;
    let read = ReadMemory::new(device)?;
    let mut rates = Vec::new();
    for m in ROWS.into_iter().filter(|m| !is_int8 || *m >= INT8_MIN) {
        let x = if linear.wants_tiled(m) {
            Activation::tiled(x.all(), m.next_multiple_of(TILE_ROWS))
        } else {
            Activation::plain(x.all(), k)
        };
        let output = match served.epilogue {
            Epilogue::AddResidual | Epilogue::StoreF32 => Output::AddResidual(residual.all()),
            Epilogue::SiluMul => Output::SiluMul(Activation::plain(out.all(), n)),
            Epilogue::Store => Output::Store(out.all()),
        };
        let (start, end) = (Event::new(device)?, Event::new(device)?);
        let mut samples_us = Vec::new();
        for _ in 0..=N_SAMPLES {
            read.launch(stream, flush.all(), sink.all())?;
            start.record(stream)?;
            linear.launch(stream, m, x, None, output, false)?;
            end.record(stream)?;
            samples_us.push(f64::from(end.elapsed_ms(&start)?) * 1e3);
        }
        // The first one loads code.
        let us = median(&mut samples_us[1..]);
        rates.push(ProjectionRate {
            matrix: served.name.to_owned(),
            rows: m,
            n: n_columns,
            k,
            activations: if is_int8 { "int8" } else { "f16" }.to_owned(),
            kernel: linear.variant(m)?.to_string(),
            us,
            weight_gb_per_s: linear.n_bytes() as f64 / us / 1e3,
            tera_ops_per_s: 2.0 * (m * n_columns * k) as f64 / us / 1e6,
        });
    }
    Ok(rates)
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}
