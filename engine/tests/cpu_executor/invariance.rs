//! A sequence's logits are the same bits however the batch, the chunks, the pages, the passes
//! and the threads were cut, and a token sampled in a call of several steps is the same token.

use std::sync::Arc;

use engine::executor::Executor;
use engine::executor::cpu::{ActivationType, CpuExecutor, CpuOptions, KvFormat};
use engine::kv::PageIdx;
use engine::model::config::Family;
use engine::request::SamplingParams;
use engine::sampler::SampleSpec;
use engine::step::{PlanRow, StepPlan};
use engine::weights::fixture::moe::write_case;
use engine::weights::fixture::wide_config;
use engine::weights::safetensors::SafetensorsCheckpoint;
use engine::weights::synthetic::{SyntheticCheckpoint, SyntheticFormat};
use engine::weights::{Checkpoint, ElementFormat};
use kernels::Isa;

use super::{executor, options, row, tokens};

const LENGTH: usize = 75;

fn checkpoint(family: Family, format: ElementFormat) -> SyntheticCheckpoint {
    SyntheticCheckpoint::new(wide_config(family), SyntheticFormat::Rows(format), 3)
}

/// Logits of every token of the sequence, computed alone in one step.
fn alone(executor: &mut CpuExecutor, sequence: &[u32]) -> Vec<f32> {
    let wanted: Vec<(usize, usize)> = (0..sequence.len()).map(|i| (0, i)).collect();
    executor
        .forward_logits(&[row(sequence, 0, 0)], &wanted)
        .expect("logits")
}

fn check(format: ElementFormat, activations: ActivationType, kv_format: KvFormat, isa: Isa) {
    let checkpoint = checkpoint(Family::Qwen3, format);
    check_on(&checkpoint, activations, kv_format, isa);
}

fn check_on(
    checkpoint: &dyn Checkpoint,
    activations: ActivationType,
    kv_format: KvFormat,
    isa: Isa,
) {
    let vocab = checkpoint.config().vocab;
    let options = CpuOptions {
        kv_format,
        ..options(activations, isa)
    };
    let mut executor = executor(checkpoint, options.clone());
    let sequence = tokens(LENGTH, 1, vocab);
    let expected = alone(&mut executor, &sequence);
    let last = &expected[(LENGTH - 1) * vocab..];

    // Chunks of odd sizes, on scattered pages, next to other sequences that come and go.
    let pages: Vec<PageIdx> = [90, 7, 55, 21, 100].map(PageIdx).to_vec();
    let mut start = 0;
    for (i, n) in [1, 30, 2, 41, 1].into_iter().enumerate() {
        let other = tokens(20 + 3 * i, 9, vocab);
        let own = PlanRow {
            pages: pages.clone(),
            ..row(&sequence[start..start + n], start, 0)
        };
        let rows = [row(&other, 0, 60), own, row(&other[..1], 0, 70)];
        let wanted: Vec<(usize, usize)> = (0..n).map(|t| (1, t)).collect();
        let found = executor.forward_logits(&rows, &wanted).expect("logits");
        assert_eq!(
            found,
            expected[start * vocab..(start + n) * vocab],
            "chunk {i}"
        );
        start += n;
    }
    assert_eq!(start, LENGTH);

    // Passes that cut a chunk, and other numbers of threads.
    for (max_pass_tokens, n_threads) in [(1, 1), (7, 3), (64, 5)] {
        let options = CpuOptions {
            max_pass_tokens,
            n_threads,
            ..options.clone()
        };
        let mut other = super::executor(checkpoint, options);
        let found = other.forward_logits(&[row(&sequence, 0, 2)], &[(0, LENGTH - 1)]);
        assert_eq!(found.expect("logits"), last, "passes of {max_pass_tokens}");
    }
}

#[test]
fn quantised_weights() {
    for isa in Isa::available() {
        check(
            ElementFormat::Q4_1,
            ActivationType::Int8,
            KvFormat::F16,
            isa,
        );
        check(ElementFormat::Q6K, ActivationType::Int8, KvFormat::F16, isa);
        check(ElementFormat::Q4_1, ActivationType::F32, KvFormat::F16, isa);
    }
}

#[test]
fn fp8_kv() {
    for isa in Isa::available() {
        check(
            ElementFormat::Q4_1,
            ActivationType::Int8,
            KvFormat::Fp8E4m3,
            isa,
        );
    }
}

#[test]
fn half_precision_weights() {
    for isa in Isa::available() {
        check(
            ElementFormat::BF16,
            ActivationType::Int8,
            KvFormat::F16,
            isa,
        );
    }
}

/// Experts in 16 bits, and in 4 with columns in an order of their own; each in every number of tokens
/// that an expert may get.
#[test]
fn experts() {
    let dir = tempfile::tempdir().expect("a folder");
    write_case(dir.path(), "gptq-g32-act-order", 5).expect("written");
    let packed = SafetensorsCheckpoint::open(dir.path()).expect("opened");
    let plain = checkpoint(Family::Qwen3Moe, ElementFormat::BF16);
    for isa in Isa::available() {
        for activations in [ActivationType::Int8, ActivationType::F32] {
            check_on(&plain, activations, KvFormat::F16, isa);
            check_on(&packed, activations, KvFormat::F16, isa);
        }
    }
}

fn decode(executor: &mut CpuExecutor, prompts: &[Vec<u32>], n_steps: usize) -> Vec<Vec<u32>> {
    let spec = |output_index| {
        Some(SampleSpec {
            params: Arc::new(SamplingParams {
                temperature: 0.8,
                seed: 4,
                ..Default::default()
            }),
            output_index,
            history: Vec::new(),
            n_prompt: 0,
        })
    };
    let mut made: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
    while made[0].len() < 13 {
        let n_made = made[0].len();
        let rows = prompts
            .iter()
            .zip(&made)
            .enumerate()
            .map(|(i, (prompt, made))| {
                let (tokens, start) = match made.last() {
                    None => (prompt.clone(), 0),
                    Some(last) => (vec![*last], prompt.len() + n_made - 1),
                };
                let pages = (0..4).map(|p| PageIdx(i as u32 * 4 + p)).collect();
                PlanRow {
                    pages,
                    sample: spec(n_made),
                    ..row(&tokens, start, 0)
                }
            });
        let n_steps = if n_made == 0 { 1 } else { n_steps };
        let plan = StepPlan {
            rows: rows.collect(),
            n_steps,
            ..StepPlan::default()
        };
        for (made, new) in made
            .iter_mut()
            .zip(executor.execute(&plan).expect("step").rows)
        {
            assert_eq!((new.tokens.len(), new.error), (n_steps, None));
            made.extend(new.tokens.iter().map(|token| token.token));
        }
    }
    made
}

#[test]
fn several_steps_a_call() {
    for family in [Family::Qwen3, Family::Qwen3Moe] {
        check_steps(family);
    }
}

fn check_steps(family: Family) {
    let checkpoint = checkpoint(family, ElementFormat::Q8_0);
    let vocab = wide_config(Family::Qwen3).vocab;
    let mut executor = executor(&checkpoint, options(ActivationType::Int8, Isa::detect()));
    let prompts: Vec<Vec<u32>> = (0..3).map(|i| tokens(5 + 9 * i, i as u32, vocab)).collect();
    let one_by_one = decode(&mut executor, &prompts, 1);
    for n_steps in [2, 3, 4] {
        assert_eq!(
            decode(&mut executor, &prompts, n_steps),
            one_by_one,
            "{n_steps} steps"
        );
    }
    let first_alone = decode(&mut executor, &prompts[..1], 1);
    assert_eq!(first_alone[0], one_by_one[0]);
}
