//! Speed of `argmax.cu` and `sample.cu`.

use gpu::{Buffer, CudaError};
use kernels::sampling::cuda::{
    ArgmaxAdvance, ArgmaxAdvanceArgs, PenalizedToken, Sample, SampleArgs, SamplingRow,
};

use crate::measure::{Bench, Work};
use crate::model::{ROWS, VOCAB};

/// Rows that get logits at a time, at most.
const MAX_SAMPLED: usize = 64;

pub fn all(bench: &mut Bench) -> Result<(), CudaError> {
    let argmax = ArgmaxAdvance::new(&bench.device)?;
    let sample = Sample::new(&bench.device)?;
    let vocab = bench.shape.n.unwrap_or(VOCAB);
    // Each row is different, none has equal neighbours.
    let logits: Vec<f32> = (0..MAX_SAMPLED * vocab)
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
    for n_rows in bench.shape.rows(&ROWS) {
        if n_rows > MAX_SAMPLED {
            continue;
        }
        let case = format!("{n_rows} rows of {vocab}");
        let work = Work::bytes(4 * n_rows * vocab);
        bench.case("argmax", &case, work, |stream| {
            argmax.launch(
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
            )
        })?;
        bench.case("sample", &case, work, |stream| {
            sample.launch(
                stream,
                &SampleArgs {
                    logits: logits.all(),
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
            )
        })?;
    }
    Ok(())
}
