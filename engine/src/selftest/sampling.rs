//! Tokens that the GPU chooses, against the engine's sampler on the host.

use std::sync::Arc;

use ::gpu::{Buffer, CudaError, Stream};
use kernels::sampling::cuda::{
    ArgmaxAdvance, ArgmaxAdvanceArgs, PenalizedToken, Sample, SampleArgs, SamplingRow, TokenError,
};
use rand::Rng;

use super::checks::Checks;
use super::random::rng;
use crate::request::SamplingParams;
use crate::sampler::{self, SampleSpec};

/// A small vocabulary, and Qwen3's.
const VOCABULARIES: [usize; 2] = [1000, 151_936];
const ROWS: [usize; 2] = [1, 64];

pub fn check(stream: &Stream, checks: &mut Checks) {
    for vocab in VOCABULARIES {
        for n_rows in ROWS {
            let case = format!("{n_rows} rows of {vocab} logits");
            let logits = logits(n_rows, vocab);
            checks.run("argmax.cu", &*case, 0.0, || {
                greedy(stream, &logits, n_rows, vocab)
            });
            checks.run("sample.cu", &*case, 0.0, || {
                drawn(stream, &logits, n_rows, vocab)
            });
        }
    }
    checks.run(
        "argmax.cu",
        "a row with NaN has an error of its own",
        0.0,
        || broken(stream),
    );
}

/// On a grid of 1/8, so that equal ones occur and no rounding of an exponential decides.
fn logits(n_rows: usize, vocab: usize) -> Vec<f32> {
    let mut rng = rng(41);
    (0..n_rows * vocab)
        .map(|_| (rng.random_range(-10.0_f32..8.0) * 8.0).round() / 8.0)
        .collect()
}

/// The share of rows with another token than the first of the largest logits.
fn greedy(stream: &Stream, logits: &[f32], n_rows: usize, vocab: usize) -> Result<f64, CudaError> {
    let found = argmax(stream, logits, n_rows, vocab)?;
    let n_wrong = found
        .iter()
        .zip(logits.chunks_exact(vocab))
        .filter(|(token, row)| {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let first = row
                .iter()
                .position(|logit| logit.to_bits() == most.to_bits());
            first != usize::try_from(**token).ok()
        });
    Ok(n_wrong.count() as f64 / n_rows as f64)
}

fn argmax(
    stream: &Stream,
    logits: &[f32],
    n_rows: usize,
    vocab: usize,
) -> Result<Vec<i32>, CudaError> {
    let logits = Buffer::from_slice(stream, logits)?;
    let next_ids = Buffer::<i32>::zeroed(stream, n_rows)?;
    let history = Buffer::<i32>::zeroed(stream, n_rows)?;
    ArgmaxAdvance::new(stream.device())?.launch(
        stream,
        &ArgmaxAdvanceArgs {
            logits: logits.all(),
            vocab,
            stride: vocab,
            next_ids: next_ids.all(),
            history: history.all(),
            step: None,
            n_rows,
            advance: None,
        },
    )?;
    history.download(stream)
}

/// 0 if the broken row alone has an error.
fn broken(stream: &Stream) -> Result<f64, CudaError> {
    let (n_rows, vocab) = (3, 5000);
    let mut logits = logits(n_rows, vocab);
    logits[vocab + 4321] = f32::NAN;
    let found = argmax(stream, &logits, n_rows, vocab)?;
    let outcomes: Vec<_> = found
        .iter()
        .map(|entry| TokenError::token(*entry))
        .collect();
    let is_right =
        outcomes[0].is_ok() && outcomes[1] == Err(TokenError::NotFinite) && outcomes[2].is_ok();
    Ok(if is_right { 0.0 } else { 1.0 })
}

/// Every row its own way of choosing.
fn params(row: usize) -> SamplingParams {
    SamplingParams {
        temperature: [0.7, 1.0, 0.0, 1.3][row % 4],
        top_k: [0, 40, 5][row % 3],
        top_p: [1.0, 0.9, 0.95, 0.5, 0.8][row % 5],
        min_p: [0.0, 0.05][row % 2],
        seed: 1000 + row as u64,
        ..SamplingParams::default()
    }
}

/// The share of rows with another token than the host's sampler chooses.
fn drawn(stream: &Stream, logits: &[f32], n_rows: usize, vocab: usize) -> Result<f64, CudaError> {
    let rows: Vec<SamplingRow> = (0..n_rows)
        .map(|row| {
            let params = params(row);
            SamplingRow {
                seed: params.seed,
                output_index: row as u64,
                temperature: params.temperature,
                top_k: params.top_k as i32,
                top_p: params.top_p,
                min_p: params.min_p,
                ..SamplingRow::GREEDY
            }
        })
        .collect();
    let on_device = Buffer::from_slice(stream, logits)?;
    let rows = Buffer::from_slice(stream, &rows)?;
    let penalized = Buffer::<PenalizedToken>::zeroed(stream, n_rows)?;
    let next_ids = Buffer::<i32>::zeroed(stream, n_rows)?;
    let history = Buffer::<i32>::zeroed(stream, n_rows)?;
    Sample::new(stream.device())?.launch(
        stream,
        &SampleArgs {
            logits: on_device.all(),
            vocab,
            stride: vocab,
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
    )?;
    let found = history.download(stream)?;
    let mut n_wrong = 0;
    for (row, (entry, logits)) in found.iter().zip(logits.chunks_exact(vocab)).enumerate() {
        let spec = SampleSpec {
            params: Arc::new(params(row)),
            output_index: row,
            history: Vec::new(),
            n_prompt: 0,
        };
        let expected = sampler::sample(logits, &spec, 0, &[]).map(|sampled| sampled.token);
        n_wrong += usize::from(TokenError::token(*entry).ok() != expected.ok());
    }
    Ok(f64::from(n_wrong as u32) / n_rows as f64)
}
