//! What works row by row: embedding, norm, rotation and cache write, SiLU, choosing tokens.

use kernels::cuda::{Activation, Buffer, CudaError, Element, ElementBuffer, KvFormat};
use kernels::embedding::cuda::Embedding;
use kernels::qkv_prepare::cuda::{QkvPrepare, QkvPrepareArgs};
use kernels::rms_norm::cuda::RmsNorm;
use kernels::sampling::cuda::{
    ArgmaxAdvance, ArgmaxAdvanceArgs, PenalizedToken, Sample, SampleArgs, SamplingRow,
};
use kernels::silu_mul::cuda::SiluMul;
use kernels::stream_linear::fill_normal;

use crate::attention::{Cache, name};
use crate::measure::{Bench, Work};
use crate::model::{HEADS, HIDDEN, INTERMEDIATE, VOCAB};

const ROWS: [usize; 4] = [1, 20, 64, 1024];
/// Rows that get logits at a time, at most.
const MAX_SAMPLED: usize = 64;

pub fn all(bench: &mut Bench) -> Result<(), CudaError> {
    embedding(bench)?;
    rms_norm(bench)?;
    qkv_prepare(bench, KvFormat::F16)?;
    qkv_prepare(bench, KvFormat::Fp8E4m3)?;
    silu_mul(bench)?;
    choose(bench)
}

fn normal(bench: &Bench, n: usize, seed: u64) -> Result<ElementBuffer, CudaError> {
    let buffer = ElementBuffer::new(&bench.device, Element::F16, n)?;
    fill_normal(&bench.stream, buffer.all(), 0.0, 1.0, seed)?;
    Ok(buffer)
}

fn embedding(bench: &mut Bench) -> Result<(), CudaError> {
    let kernel = Embedding::new(&bench.device, Element::F16)?;
    let table = normal(bench, VOCAB * HIDDEN, 1)?;
    for n_rows in ROWS {
        let ids: Vec<i32> = (0..n_rows).map(|i| (i * 7919 % VOCAB) as i32).collect();
        let ids = Buffer::from_slice(&bench.stream, &ids)?;
        let h = Buffer::<f32>::zeroed(&bench.stream, n_rows * HIDDEN)?;
        let work = Work::bytes(6 * n_rows * HIDDEN);
        bench.case("embedding", &format!("{n_rows} rows"), work, |stream| {
            kernel.launch(stream, ids.all(), table.all(), h.all(), n_rows, HIDDEN)
        })?;
    }
    Ok(())
}

fn rms_norm(bench: &mut Bench) -> Result<(), CudaError> {
    let kernel = RmsNorm::new(&bench.device, Element::F16)?;
    let weight = normal(bench, HIDDEN, 1)?;
    for n_rows in ROWS {
        let h = Buffer::<f32>::zeroed(&bench.stream, n_rows * HIDDEN)?;
        let x = ElementBuffer::zeroed(&bench.stream, Element::F16, n_rows * HIDDEN)?;
        let to = Activation::plain(x.all(), HIDDEN);
        let work = Work::bytes(6 * n_rows * HIDDEN + 2 * HIDDEN);
        bench.case("rms_norm", &format!("{n_rows} rows"), work, |stream| {
            kernel.launch(
                stream,
                h.all(),
                weight.all(),
                None,
                to,
                n_rows,
                HIDDEN,
                1e-6,
            )
        })?;
    }
    Ok(())
}

fn qkv_prepare(bench: &mut Bench, format: KvFormat) -> Result<(), CudaError> {
    let kernel = QkvPrepare::new(&bench.device, Element::F16, HEADS, format)?;
    let row_stride = (HEADS.n_q + 2 * HEADS.n_kv) * HEADS.head_dim;
    let n_positions = 1024;
    let cos_sin = Buffer::<f32>::zeroed(&bench.stream, n_positions * HEADS.head_dim)?;
    let norm = normal(bench, HEADS.head_dim, 1)?;
    for n_rows in ROWS {
        let cache = Cache::new(&bench.stream, format, 1, n_rows)?;
        let qkv = normal(bench, n_rows * row_stride, 2)?;
        let numbers: Vec<i32> = (0..n_rows as i32).collect();
        let numbers = Buffer::from_slice(&bench.stream, &numbers)?;
        let args = QkvPrepareArgs {
            qkv: qkv.all(),
            row_stride,
            q_norm: Some(norm.all()),
            k_norm: Some(norm.all()),
            cos_sin: cos_sin.all(),
            n_positions,
            positions: numbers.all(),
            slots: numbers.all(),
            kv: cache.view(),
            saturated: None,
            eps: 1e-6,
            n_rows,
        };
        // Queries go back where they were, keys and values into the cache.
        let queries = 2 * n_rows * HEADS.n_q * HEADS.head_dim;
        let work = Work::bytes(2 * n_rows * row_stride + queries + cache.token_bytes(n_rows));
        let case = format!("{} {n_rows} rows", name(format));
        bench.case("qkv_prepare", &case, work, |stream| {
            kernel.launch(stream, &args)
        })?;
    }
    Ok(())
}

fn silu_mul(bench: &mut Bench) -> Result<(), CudaError> {
    let kernel = SiluMul::new(&bench.device, Element::F16)?;
    for n_rows in ROWS {
        let n = n_rows * INTERMEDIATE;
        let (gate, up) = (normal(bench, n, 1)?, normal(bench, n, 2)?);
        let out = ElementBuffer::zeroed(&bench.stream, Element::F16, n)?;
        let work = Work::bytes(6 * n);
        bench.case("silu_mul", &format!("{n_rows} rows"), work, |stream| {
            kernel.launch(
                stream,
                gate.all(),
                up.all(),
                INTERMEDIATE,
                out.all(),
                INTERMEDIATE,
                n_rows,
                INTERMEDIATE,
            )
        })?;
    }
    Ok(())
}

fn choose(bench: &mut Bench) -> Result<(), CudaError> {
    let argmax = ArgmaxAdvance::new(&bench.device)?;
    let sample = Sample::new(&bench.device)?;
    // Each row is different, none has equal neighbours.
    let logits: Vec<f32> = (0..MAX_SAMPLED * VOCAB)
        .map(|i| ((i * 2_654_435_761) % 1_000_003) as f32 * 2e-5 - 10.0)
        .collect();
    let logits = Buffer::from_slice(&bench.stream, &logits)?;
    let next_ids = Buffer::<i32>::zeroed(&bench.stream, MAX_SAMPLED)?;
    let history = Buffer::<i32>::zeroed(&bench.stream, MAX_SAMPLED)?;
    let row = SamplingRow {
        temperature: 0.7,
        top_k: 50,
        top_p: 0.9,
        ..SamplingRow::GREEDY
    };
    let rows = Buffer::from_slice(&bench.stream, &[row; MAX_SAMPLED])?;
    let penalized = Buffer::<PenalizedToken>::zeroed(&bench.stream, MAX_SAMPLED)?;
    for n_rows in ROWS.into_iter().filter(|n| *n <= MAX_SAMPLED) {
        let case = format!("{n_rows} rows of {VOCAB}");
        let work = Work::bytes(4 * n_rows * VOCAB);
        bench.case("argmax", &case, work, |stream| {
            argmax.launch(
                stream,
                &ArgmaxAdvanceArgs {
                    logits: logits.all(),
                    vocab: VOCAB,
                    stride: VOCAB,
                    next_ids: next_ids.all(),
                    history: history.all(),
                    step: None,
                    n_rows,
                    advance: None,
                },
            )
        })?;
        bench.case("sample", &case, work, |stream| {
            sample.launch(
                stream,
                &SampleArgs {
                    logits: logits.all(),
                    vocab: VOCAB,
                    stride: VOCAB,
                    rows: rows.all(),
                    penalized: penalized.all(),
                    max_penalized: 1,
                    next_ids: next_ids.all(),
                    history: history.all(),
                    step: None,
                    n_rows,
                    advance: None,
                    logprobs: None,
                },
            )
        })?;
    }
    Ok(())
}
