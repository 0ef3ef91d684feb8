//! A sequence whose values are NaN fails alone on the GPU, too: greedy, sampled by the GPU, and
//! sampled by the host, with graphs, bursts, run-ahead and mixed steps.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engine::executor::Executor;
use engine::executor::cuda::{CudaExecutor, CudaOptions, GraphSizes, Sampler};
use engine::model::config::{Family, ModelConfig};
use engine::request::{Failure, Request, RequestId, SamplingParams, TokenEvent};
use engine::scheduler::{Scheduler, SchedulerConfig};
use engine::step::StepPlan;
use engine::weights::format::CheckpointFormat;
use engine::weights::{Checkpoint, Matrix, MatrixId, VectorId, WeightError};

use super::{awq, load, options, tokens};

/// The token whose embedding is NaN.
const POISON: u32 = 77;
const N_TOKENS: usize = 21;

struct Poisoned(Box<dyn Checkpoint>);

impl Checkpoint for Poisoned {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }

    fn matrix(&self, id: MatrixId) -> Result<Matrix<'_>, WeightError> {
        let mut matrix = self.0.matrix(id)?;
        if id == MatrixId::Embedding
            && let Matrix::Rows { n_out, bytes, .. } = &mut matrix
        {
            let n_bytes = bytes.len() / *n_out;
            let row = POISON as usize * n_bytes..(POISON as usize + 1) * n_bytes;
            for half in bytes.to_mut()[row].chunks_exact_mut(2) {
                half.copy_from_slice(&[0x00, 0x7e]);
            }
        }
        Ok(matrix)
    }

    fn vector(&self, id: VectorId) -> Result<Vec<f32>, WeightError> {
        self.0.vector(id)
    }

    fn format(&self) -> CheckpointFormat {
        self.0.format()
    }
}

/// Every third is broken. `params` by id.
fn requests(params: &dyn Fn(u64) -> SamplingParams) -> Vec<Request> {
    let request = |id: u64| {
        let mut prompt: Vec<u32> = tokens(9 + 7 * id as usize % 40, id as u32);
        prompt
            .iter_mut()
            .filter(|t| **t == POISON)
            .for_each(|t| *t += 1);
        if id % 3 == 1 {
            *prompt.last_mut().expect("a prompt") = POISON;
        }
        Request {
            id: RequestId(id),
            prompt: prompt.into(),
            sampling: Arc::new(params(id)),
            max_new_tokens: N_TOKENS,
            stop_token_ids: Arc::from([]),
            priority: 0,
            prefix_root: 0,
        }
    };
    (0..12).map(request).collect()
}

/// Tokens and failure of each request.
type Told = HashMap<u64, (Vec<u32>, Option<Failure>)>;

/// A request arrives in every step, so that broken prompts are computed next to decoding rows.
fn serve(executor: &mut CudaExecutor, config: SchedulerConfig, requests: &[Request]) -> Told {
    let mut scheduler = Scheduler::new(config);
    let mut told = Told::new();
    let mut coming = requests.iter();
    loop {
        if let Some(request) = coming.next() {
            scheduler
                .add(request.clone(), Duration::ZERO)
                .expect("fits");
        } else if scheduler.is_idle() {
            return told;
        }
        let plan = scheduler.plan(Duration::ZERO);
        let output = executor.execute(&plan).expect("no step fails");
        for (id, event) in scheduler.commit(&plan, output) {
            let (tokens, end) = told.entry(id.0).or_default();
            match event {
                TokenEvent::Token(token) => tokens.push(token.token),
                TokenEvent::Finished { .. } | TokenEvent::PromptLogprobs(_) => {}
                TokenEvent::Failed(failure) => *end = Some(failure),
            }
        }
        scheduler.check_integrity().expect("pages add up");
    }
}

fn only_broken_ones_fail(sampler: Sampler, params: &dyn Fn(u64) -> SamplingParams) {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = Poisoned(awq(dir.path(), Family::Qwen3, 128));
    let all = requests(params);
    let sound: Vec<Request> = all.iter().filter(|r| r.id.0 % 3 != 1).cloned().collect();
    for (graphs, mixed_chunk, n_steps) in [
        (GraphSizes::Off, false, 1),
        (GraphSizes::Exactly(vec![1, 8, 16]), false, 1),
        (GraphSizes::Off, true, 1),
        (GraphSizes::Exactly(vec![16]), false, 20),
    ] {
        let what = format!("{graphs:?}, mixed {mixed_chunk}, {n_steps} steps");
        let options = CudaOptions {
            graphs,
            sampler,
            ..options()
        };
        let mut executor = load(&checkpoint, &options);
        let config = SchedulerConfig {
            max_total_tokens: 8192,
            chunked_prefill_size: Some(16),
            mixed_chunk,
            n_continuous_decode_steps: n_steps,
            run_ahead: true,
            ..SchedulerConfig::default()
        };
        let told = serve(&mut executor, config.clone(), &all);
        for request in &all {
            let (made, end) = &told[&request.id.0];
            if request.id.0 % 3 == 1 {
                assert!(
                    matches!(end, Some(Failure::Logits { .. })),
                    "{what}, request {}: {end:?} after {made:?}",
                    request.id
                );
            } else if made.last() == Some(&POISON) {
                // It chose the broken token itself.
                assert!(end.is_some() || made.len() == N_TOKENS, "{what}");
            } else {
                assert_eq!((made.len(), end.as_ref()), (N_TOKENS, None), "{what}");
            }
        }
        // The first is alone in its first steps, whichever other requests come.
        let without = serve(&mut executor, config, &sound);
        assert_eq!(told[&0].0[0], without[&0].0[0], "{what}");
    }
}

fn drawn(id: u64) -> SamplingParams {
    SamplingParams {
        temperature: 0.8,
        top_p: 0.9,
        seed: id,
        presence_penalty: if id.is_multiple_of(3) { 0.4 } else { 0.0 },
        ..SamplingParams::default()
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn a_sampled_row_that_is_no_number_fails_alone() {
    only_broken_ones_fail(Sampler::Device, &drawn);
    only_broken_ones_fail(Sampler::Host, &drawn);
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn a_greedy_row_that_is_no_number_fails_alone() {
    only_broken_ones_fail(Sampler::Device, &|_| SamplingParams::default());
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn a_refused_row_ends_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen2, 64);
    let mut card = load(checkpoint.as_ref(), &options());
    // A step with prompts, and a burst of decode rows.
    for (lengths, n_steps) in [([3, 7, 5], 1), ([1, 1, 1], 3)] {
        refused_ends_alone(&mut card, lengths, n_steps);
    }
}

fn refused_ends_alone(card: &mut CudaExecutor, lengths: [usize; 3], n_steps: usize) {
    let plan = |middle: Option<SamplingParams>| {
        let row = |sequence: u32, params: SamplingParams| {
            let length = lengths[sequence as usize];
            let mut row = super::row(sequence, &tokens(length, sequence), 0, 16);
            let mut spec = super::greedy(0);
            spec.params = params.into();
            row.sample = Some(spec);
            row
        };
        let mut rows = vec![row(0, drawn(2)), row(2, SamplingParams::default())];
        if let Some(params) = middle {
            rows.insert(1, row(1, params));
        }
        StepPlan {
            rows,
            n_steps,
            lookahead_steps: 1,
            ..StepPlan::default()
        }
    };
    let expected = card.execute(&plan(None)).expect("a step").rows;
    for (wrong, value) in [
        (
            SamplingParams {
                top_p: 1.5,
                ..drawn(3)
            },
            "1.5",
        ),
        (
            SamplingParams {
                logit_bias: vec![(5000, 1.0)],
                ..SamplingParams::default()
            },
            "5000",
        ),
    ] {
        let found = card.execute(&plan(Some(wrong))).expect("a step").rows;
        assert_eq!([&found[0], &found[2]], [&expected[0], &expected[1]]);
        assert!(found[1].tokens.is_empty());
        let error = found[1].error.clone().expect("an error").to_string();
        assert!(error.contains(value), "{error}");
    }
}
