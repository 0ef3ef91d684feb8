//! What a launch costs, and which clusters of blocks the card holds.

use std::time::Instant;

use ::gpu::{Buffer, CudaError, Event, Graph, Stream};
use kernels::attention::cuda::{DecodeAttention, MAX_SPLITS};
use kernels::cuda::{Activation, Element, ElementBuffer, HeadShape, KvFormat};
use kernels::rms_norm::cuda::RmsNorm;
use kernels::roofline::cuda::Multiply;
use kernels::sampling::cuda::{ArgmaxAdvance, Sample};
use kernels::stream_linear::{LargeM, StreamLinearKernels};

use super::checks::Checks;
use super::report::{Clusters, GpuReport, LaunchTimes};

const N_LAUNCHES: usize = 500;
const N_TIMES: usize = 5;
/// A norm of this size takes about as long as an empty kernel.
const NORM_N: usize = 256;

pub fn measure(
    stream: &Stream,
    report: &mut GpuReport,
    checks: &mut Checks,
) -> Result<(), CudaError> {
    report.launches = Some(times(stream)?);
    report.clusters = clusters(stream)?;
    for launch in &report.clusters {
        let is_right = launch
            .n_active
            .iter()
            .any(|(size, n)| *size == launch.used && *n > 0);
        checks.run("clusters", &*launch.kernel, 0.0, || {
            Ok::<_, String>(if is_right { 0.0 } else { 1.0 })
        });
    }
    Ok(())
}

fn times(stream: &Stream) -> Result<LaunchTimes, CudaError> {
    let device = stream.device();
    let multiply = Multiply::mma_sync(device)?;
    let out = Buffer::<f32>::zeroed(stream, 1)?;
    let empty = || multiply.launch(stream, 1, out.all()).map(|_| ());
    let norm = RmsNorm::new(device, Element::F16)?;
    let h = Buffer::<f32>::zeroed(stream, NORM_N)?;
    let weight = ElementBuffer::zeroed(stream, Element::F16, NORM_N)?;
    let x = ElementBuffer::zeroed(stream, Element::F16, NORM_N)?;
    let small_norm = || {
        let x = Activation::plain(x.all(), NORM_N);
        norm.launch(stream, h.all(), weight.all(), None, x, 1, NORM_N, 1e-6)
    };
    empty()?;
    small_norm()?;
    stream.synchronize()?;
    let many =
        |launch: &dyn Fn() -> Result<(), CudaError>| (0..N_LAUNCHES).try_for_each(|_| launch());
    let mut host_us = f64::INFINITY;
    for _ in 0..N_TIMES {
        let started = Instant::now();
        // Few enough that the queue does not fill.
        (0..N_LAUNCHES / 5).try_for_each(|_| empty())?;
        host_us = host_us.min(started.elapsed().as_secs_f64() * 1e6 / (N_LAUNCHES / 5) as f64);
        stream.synchronize()?;
    }
    let mut round_trip_us = f64::INFINITY;
    for _ in 0..10 * N_TIMES {
        let started = Instant::now();
        empty()?;
        stream.synchronize()?;
        round_trip_us = round_trip_us.min(started.elapsed().as_secs_f64() * 1e6);
    }
    let graph = |launch: &dyn Fn() -> Result<(), CudaError>| -> Result<f64, CudaError> {
        let graph = Graph::capture(stream, || many(launch))?;
        graph.upload(stream)?;
        graph.launch(stream)?;
        each_us(stream, || graph.launch(stream))
    };
    Ok(LaunchTimes {
        host_us,
        stream_us: each_us(stream, || many(&empty))?,
        graph_us: graph(&empty)?,
        dependent_us: graph(&small_norm)?,
        round_trip_us,
    })
}

/// The least time of one of the launches that `run` queues.
fn each_us(stream: &Stream, run: impl Fn() -> Result<(), CudaError>) -> Result<f64, CudaError> {
    let device = stream.device();
    let (start, end) = (Event::new(device)?, Event::new(device)?);
    let mut least_us = f64::INFINITY;
    for _ in 0..N_TIMES {
        start.record(stream)?;
        run()?;
        end.record(stream)?;
        least_us = least_us.min(f64::from(end.elapsed_ms(&start)?) * 1e3);
    }
    Ok(least_us / N_LAUNCHES as f64)
}

/// Every launch of the engine that is in clusters, with the shapes that it uses.
fn clusters(stream: &Stream) -> Result<Vec<Clusters>, CudaError> {
    let device = stream.device();
    let large_m = LargeM::best(device, !device.is_shared());
    let projections = StreamLinearKernels::load(stream, Element::F16, large_m)?;
    let heads = HeadShape {
        n_q: 64,
        n_kv: 8,
        head_dim: 128,
    };
    let (element, format) = (Element::F16, KvFormat::F16);
    let attention = DecodeAttention::new(device, element, heads, format, MAX_SPLITS, true)?;
    let mut launches = vec![projections.cluster_launch()?];
    launches.extend(attention.cluster_launches()?);
    launches.push(ArgmaxAdvance::new(device)?.cluster_launch()?);
    launches.push(Sample::new(device)?.cluster_launch()?);
    Ok(launches.into_iter().map(Clusters::from).collect())
}
