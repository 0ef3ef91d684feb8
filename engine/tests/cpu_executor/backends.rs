//! Attention and sampling backends: other code, the same tokens.

use std::sync::Arc;

use engine::executor::Executor;
use engine::executor::cpu::{
    ActivationType, Attention, CpuExecutor, CpuOptions, KvFormat, Sampling,
};
use engine::model::config::Family;
use engine::request::SamplingParams;
use engine::sampler::SampleSpec;
use engine::step::StepPlan;
use engine::weights::ElementFormat;
use engine::weights::fixture::wide_config;
use engine::weights::synthetic::{SyntheticCheckpoint, SyntheticFormat};
use kernels::Isa;

use super::{executor, options, relative_difference, row, tokens};

fn with(attention: Attention, sampling: Sampling, kv_format: KvFormat) -> CpuExecutor {
    let format = SyntheticFormat::Rows(ElementFormat::Q4_0);
    let checkpoint = SyntheticCheckpoint::new(wide_config(Family::Qwen3), format, 3);
    let options = CpuOptions {
        attention,
        sampling,
        kv_format,
        ..options(ActivationType::F32, Isa::detect())
    };
    executor(&checkpoint, options)
}

/// Prompts of several lengths, then a burst of decode steps; every row's tokens.
fn generate(executor: &mut CpuExecutor, params: &SamplingParams) -> Vec<Vec<u32>> {
    let vocab = wide_config(Family::Qwen3).vocab;
    let spec = |output_index| SampleSpec {
        params: Arc::new(params.clone()),
        output_index,
        history: Vec::new(),
        n_prompt: 0,
    };
    let prompts: Vec<Vec<u32>> = [5, 40, 17]
        .into_iter()
        .zip(0..)
        .map(|(n, seed)| tokens(n, seed, vocab))
        .collect();
    let of = |i: usize, tokens: &[u32], start: usize, output_index: usize| {
        let mut row = row(tokens, start, 16 * i as u32);
        row.pages = (0..8)
            .map(|page| engine::kv::PageIdx(16 * i as u32 + page))
            .collect();
        row.sample = Some(spec(output_index));
        row
    };
    let plan = StepPlan {
        rows: prompts
            .iter()
            .enumerate()
            .map(|(i, p)| of(i, p, 0, 0))
            .collect(),
        n_steps: 1,
        ..StepPlan::default()
    };
    let first = executor.execute(&plan).expect("a step").rows;
    let decode = |i: usize| of(i, &[first[i].tokens[0].token], prompts[i].len(), 1);
    let plan = StepPlan {
        rows: (0..prompts.len()).map(decode).collect(),
        n_steps: 12,
        ..StepPlan::default()
    };
    let rest = executor.execute(&plan).expect("a step").rows;
    let made = first.iter().zip(&rest).map(|(first, rest)| {
        let made = first.tokens.iter().chain(&rest.tokens);
        made.map(|token| token.token).collect()
    });
    made.collect()
}

#[test]
fn every_backend_makes_the_same_greedy_tokens() {
    for kv_format in [KvFormat::F16, KvFormat::Fp8E4m3] {
        let tokens_of = |attention, sampling| {
            let mut executor = with(attention, sampling, kv_format);
            generate(&mut executor, &SamplingParams::default())
        };
        let expected = tokens_of(Attention::Vectorised, Sampling::Selecting);
        assert!(expected.iter().all(|made| made.len() == 13));
        let plain = tokens_of(Attention::Reference, Sampling::Plain);
        assert_eq!(plain, expected, "{kv_format:?}");
    }
}

#[test]
fn both_samplers_draw_the_same_tokens() {
    let params = SamplingParams {
        temperature: 0.9,
        top_k: 40,
        top_p: 0.95,
        seed: 11,
        ..SamplingParams::default()
    };
    let tokens_of = |sampling| {
        let mut executor = with(Attention::Vectorised, sampling, KvFormat::F16);
        generate(&mut executor, &params)
    };
    assert_eq!(tokens_of(Sampling::Plain), tokens_of(Sampling::Selecting));
}

/// f32 against f64: a hundred thousandth of the largest logit.
#[test]
fn logits_of_the_plain_attention_are_the_vectorised_ones() {
    let vocab = wide_config(Family::Qwen3).vocab;
    let rows = [
        row(&tokens(70, 1, vocab), 0, 0),
        row(&tokens(9, 2, vocab), 0, 8),
    ];
    let wanted: Vec<(usize, usize)> = (0..70).map(|t| (0, t)).chain([(1, 8)]).collect();
    let logits = |attention| {
        let mut executor = with(attention, Sampling::default(), KvFormat::F16);
        executor.forward_logits(&rows, &wanted).expect("logits")
    };
    let found = logits(Attention::Reference);
    let difference = relative_difference(&found, &logits(Attention::Vectorised));
    assert!(difference < 1e-5, "{difference}");
}
