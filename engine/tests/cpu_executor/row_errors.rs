//! A sequence whose values are NaN fails alone, greedy or sampled, whatever else is in its step,
//! and its pages do not affect their next owner.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engine::executor::Executor;
use engine::executor::cpu::{ActivationType, CpuExecutor, CpuOptions, Sampling};
use engine::model::config::{Family, ModelConfig};
use engine::request::{Failure, Request, RequestId, SamplingParams, TokenEvent};
use engine::sampler::SampleSpec;
use engine::sampler::SamplerError;
use engine::scheduler::{Scheduler, SchedulerConfig};
use engine::step::{RowError, StepPlan};
use engine::weights::fixture::wide_config;
use engine::weights::format::CheckpointFormat;
use engine::weights::synthetic::{SyntheticCheckpoint, SyntheticFormat};
use engine::weights::{Checkpoint, ElementFormat, Matrix, MatrixId, VectorId, WeightError};
use kernels::Isa;

use super::{executor, options, row, tokens};

/// The token with the broken embedding.
const POISON: u32 = 77;

/// Valid weights except for one token's embedding.
struct Poisoned {
    inner: SyntheticCheckpoint,
    value: f32,
}

impl Poisoned {
    fn new(family: Family, value: f32) -> Self {
        // The head is a separate matrix, so other sequences get a finite logit for the token.
        let config = wide_config(family);
        assert!(!config.tied_embeddings);
        let format = SyntheticFormat::Rows(ElementFormat::F32);
        Self {
            inner: SyntheticCheckpoint::new(config, format, 3),
            value,
        }
    }
}

impl Checkpoint for Poisoned {
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }

    fn matrix(&self, id: MatrixId) -> Result<Matrix<'_>, WeightError> {
        let mut matrix = self.inner.matrix(id)?;
        if id == MatrixId::Embedding
            && let Matrix::Rows { n_in, bytes, .. } = &mut matrix
        {
            let n_bytes = *n_in * size_of::<f32>();
            let row = POISON as usize * n_bytes..(POISON as usize + 1) * n_bytes;
            let bytes: &mut Vec<u8> = Cow::to_mut(bytes);
            for value in bytes[row].chunks_exact_mut(size_of::<f32>()) {
                value.copy_from_slice(&self.value.to_le_bytes());
            }
        }
        Ok(matrix)
    }

    fn vector(&self, id: VectorId) -> Result<Vec<f32>, WeightError> {
        self.inner.vector(id)
    }

    fn format(&self) -> CheckpointFormat {
        self.inner.format()
    }
}

fn load(value: f32, activations: ActivationType, sampling: Sampling) -> CpuExecutor {
    load_family(Family::Qwen3, value, activations, sampling)
}

fn load_family(
    family: Family,
    value: f32,
    activations: ActivationType,
    sampling: Sampling,
) -> CpuExecutor {
    let options = CpuOptions {
        sampling,
        ..options(activations, Isa::detect())
    };
    executor(&Poisoned::new(family, value), options)
}

fn spec(params: SamplingParams) -> SampleSpec {
    SampleSpec {
        params: Arc::new(params),
        output_index: 0,
        history: Vec::new(),
        n_prompt: 8,
    }
}

fn hot() -> SamplingParams {
    SamplingParams {
        temperature: 0.8,
        seed: 5,
        n_logprobs: Some(2),
        ..SamplingParams::default()
    }
}

/// Three prompts in a step; the middle one is broken or absent.
fn plan(params: &SamplingParams, with_poison: bool) -> StepPlan {
    let prompt = |i: u32| {
        let mut tokens = tokens(8, i, 70);
        if i == 1 {
            tokens[7] = POISON;
        }
        let mut row = row(&tokens, 0, i * 4);
        row.sample = Some(spec(params.clone()));
        row
    };
    let rows = (0..3).filter(|i| with_poison || *i != 1);
    StepPlan {
        rows: rows.map(prompt).collect(),
        n_steps: 1,
        ..StepPlan::default()
    }
}

#[test]
fn a_row_that_is_no_number_fails_alone_greedy_and_sampled() {
    for family in [Family::Qwen3, Family::Qwen3Moe] {
        check_broken_row(family);
    }
}

fn check_broken_row(family: Family) {
    for value in [f32::NAN, f32::INFINITY] {
        for activations in [ActivationType::F32, ActivationType::Int8] {
            for sampling in [Sampling::Selecting, Sampling::Plain] {
                let mut executor = load_family(family, value, activations, sampling);
                for params in [SamplingParams::default(), hot()] {
                    let what =
                        format!("{family:?} {value} {activations:?} {sampling:?} {params:?}");
                    let alone = executor.execute(&plan(&params, false)).expect("a step");
                    let found = executor.execute(&plan(&params, true)).expect("a step");
                    assert_eq!(found.rows[0], alone.rows[0], "{what}");
                    assert_eq!(found.rows[2], alone.rows[1], "{what}");
                    assert!(found.rows[1].tokens.is_empty(), "{what}");
                    let error = found.rows[1].error.clone();
                    let Some(RowError::Sampler(SamplerError::NotFinite { value, .. })) = error
                    else {
                        panic!("{what}: {error:?}");
                    };
                    assert!(!value.is_finite());
                }
            }
        }
    }
}

#[test]
fn parameters_that_are_wrong_end_their_row() {
    let mut executor = load(0.0, ActivationType::F32, Sampling::Selecting);
    let good = executor.execute(&plan(&hot(), false)).expect("a step");
    let vocab = wide_config(Family::Qwen3).vocab as u32;
    for wrong in [
        SamplingParams {
            top_p: 1.5,
            ..hot()
        },
        SamplingParams {
            logit_bias: vec![(vocab, 1.0)],
            ..hot()
        },
        SamplingParams {
            logit_bias: (0..vocab).map(|token| (token, f32::NEG_INFINITY)).collect(),
            ..hot()
        },
    ] {
        let mut plan = plan(&hot(), true);
        plan.rows[1].sample = Some(spec(wrong));
        let found = executor.execute(&plan).expect("a step");
        assert!(found.rows[1].has_failed());
        assert_eq!(
            [&found.rows[0], &found.rows[2]],
            [&good.rows[0], &good.rows[1]]
        );
    }
}

/// Tokens and failure of each request.
type Told = HashMap<u64, (Vec<u32>, Option<Failure>)>;

fn serve(executor: &mut CpuExecutor, config: SchedulerConfig, requests: &[Request]) -> Told {
    let mut scheduler = Scheduler::new(config);
    for request in requests {
        scheduler
            .add(request.clone(), Duration::ZERO)
            .expect("fits");
    }
    let mut told = Told::new();
    while !scheduler.is_idle() {
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
    assert_eq!(scheduler.stats().n_pages_used, 0);
    told
}

/// Small chunks, bursts and few pages, so that pages pass from broken to intact sequences
/// repeatedly.
#[test]
fn sound_requests_keep_their_text_among_broken_ones() {
    let vocab = 70;
    let request = |id: u64| {
        let mut prompt = tokens(20 + id as usize % 13, id as u32, vocab);
        let is_broken = id % 2 == 1;
        if is_broken {
            *prompt.last_mut().expect("a prompt") = POISON;
        }
        Request {
            id: RequestId(id),
            prompt: prompt.into(),
            sampling: Arc::new(SamplingParams {
                temperature: if id.is_multiple_of(4) { 0.0 } else { 0.7 },
                seed: id,
                // An intact sequence that sampled this token would break.
                logit_bias: vec![(POISON, f32::NEG_INFINITY)],
                ..SamplingParams::default()
            }),
            max_new_tokens: 10,
            stop_token_ids: Arc::from([]),
            priority: 0,
            prefix_root: 0,
        }
    };
    let requests: Vec<Request> = (0..16).map(request).collect();
    // The same weights for those that do not hold the token.
    let mut sound = load(1.0, ActivationType::Int8, Sampling::Selecting);
    for (mixed_chunk, n_continuous_decode_steps) in [(false, 1), (true, 1), (false, 4)] {
        let config = SchedulerConfig {
            max_total_tokens: 256,
            chunked_prefill_size: Some(12),
            mixed_chunk,
            n_continuous_decode_steps,
            ..SchedulerConfig::default()
        };
        let mut executor = load(f32::NAN, ActivationType::Int8, Sampling::Selecting);
        let told = serve(&mut executor, config.clone(), &requests);
        for request in &requests {
            let (tokens, end) = &told[&request.id.0];
            if request.id.0 % 2 == 1 {
                assert!(matches!(end, Some(Failure::Logits { .. })), "{end:?}");
                continue;
            }
            assert_eq!(*end, None);
            let alone = serve(&mut sound, config.clone(), std::slice::from_ref(request));
            assert_eq!(*tokens, alone[&request.id.0].0, "request {}", request.id);
            assert_eq!(tokens.len(), 10);
        }
    }
}
