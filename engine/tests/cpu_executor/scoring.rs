//! The log-probabilities of a prompt's tokens are those that generating the same tokens one by one
//! reports, bit for bit, however the prompt is cut, whatever is cached and whichever other requests run.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engine::executor::Executor;
use engine::executor::cpu::{ActivationType, CpuExecutor};
use engine::model::config::Family;
use engine::request::{Request, RequestId, SamplingParams, ScoredToken, TokenEvent, Usage};
use engine::scheduler::{Scheduler, SchedulerConfig};
use engine::step::StepPlan;
use engine::weights::ElementFormat;
use engine::weights::fixture::wide_config;
use engine::weights::synthetic::{SyntheticCheckpoint, SyntheticFormat};
use kernels::Isa;

use super::{executor, options, row, tokens};

const N_TOP: usize = 4;

fn load() -> CpuExecutor {
    let format = SyntheticFormat::Rows(ElementFormat::Q4_0);
    let checkpoint = SyntheticCheckpoint::new(wide_config(Family::Qwen3), format, 3);
    executor(&checkpoint, options(ActivationType::Int8, Isa::detect()))
}

fn request(id: u64, prompt: Vec<u32>, max_new_tokens: usize, scored: bool) -> Request {
    Request {
        id: RequestId(id),
        prompt: prompt.into(),
        sampling: Arc::new(SamplingParams {
            n_logprobs: Some(N_TOP),
            n_prompt_logprobs: scored.then_some(N_TOP),
            ..SamplingParams::default()
        }),
        max_new_tokens,
        stop_token_ids: Arc::from([]),
        priority: 0,
        prefix_root: 0,
    }
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Told {
    scores: Option<Vec<ScoredToken>>,
    tokens: Vec<(u32, Option<f32>)>,
    usage: Usage,
}

fn serve(
    executor: &mut CpuExecutor,
    scheduler: &mut Scheduler,
    requests: Vec<Request>,
) -> HashMap<u64, Told> {
    for request in requests {
        scheduler.add(request, Duration::ZERO).expect("fits");
    }
    let mut all: HashMap<u64, Told> = HashMap::new();
    while !scheduler.is_idle() {
        let plan = scheduler.plan(Duration::ZERO);
        let output = executor.execute(&plan).expect("a step");
        for (id, event) in scheduler.commit(&plan, output) {
            let told = all.entry(id.0).or_default();
            match event {
                TokenEvent::PromptLogprobs(scores) => {
                    assert!(
                        told.scores.is_none() && told.tokens.is_empty(),
                        "once, and first"
                    );
                    told.scores = Some(scores);
                }
                TokenEvent::Token(token) => told.tokens.push((token.token, token.logprob)),
                TokenEvent::Finished { usage, .. } => told.usage = usage,
                TokenEvent::Failed(failure) => panic!("request {id}: {failure}"),
            }
        }
        scheduler.check_integrity().expect("pages add up");
    }
    all
}

/// The log-probability that sampling reports for `prompt[i]` after the tokens before it, for every i except 0.
fn one_by_one(executor: &mut CpuExecutor, prompt: &[u32]) -> Vec<(f32, Vec<(u32, f32)>)> {
    (1..prompt.len())
        .map(|i| {
            let mut row = row(&prompt[..i], 0, 0);
            let params = SamplingParams {
                n_logprobs: Some(N_TOP),
                logit_bias: vec![(prompt[i], 100.0)],
                ..SamplingParams::default()
            };
            row.sample = Some(engine::sampler::SampleSpec {
                params: Arc::new(params),
                output_index: 0,
                history: Vec::new(),
                n_prompt: i,
            });
            let plan = StepPlan {
                rows: vec![row],
                n_steps: 1,
                ..StepPlan::default()
            };
            let mut output = executor.execute(&plan).expect("a step");
            let sampled = output.rows[0].tokens.remove(0);
            assert_eq!(sampled.token, prompt[i], "it was forced");
            (sampled.logprob.expect("asked for"), sampled.top_logprobs)
        })
        .collect()
}

fn assert_scores(scores: &[ScoredToken], prompt: &[u32], expected: &[(f32, Vec<(u32, f32)>)]) {
    assert_eq!(scores.len(), prompt.len() - 1);
    for ((score, token), (logprob, top)) in scores.iter().zip(&prompt[1..]).zip(expected) {
        assert_eq!(score.token, *token);
        assert_eq!(score.logprob.to_bits(), logprob.to_bits());
        assert_eq!(score.top_logprobs, *top);
        let n_better = top.iter().filter(|(_, other)| other > logprob).count();
        if n_better < N_TOP {
            assert_eq!(score.rank as usize, n_better + 1);
        }
    }
}

#[test]
fn scores_are_those_of_generating_the_prompt_token_by_token() {
    let mut executor = load();
    let vocab = wide_config(Family::Qwen3).vocab;
    // Longer than a portion of logits and than several pages.
    let prompt = tokens(75, 3, vocab);
    let expected = one_by_one(&mut executor, &prompt);
    let alone = serve(
        &mut executor,
        &mut Scheduler::new(SchedulerConfig::default()),
        vec![request(1, prompt.clone(), 6, false)],
    );
    for chunked_prefill_size in [None, Some(1), Some(7), Some(33), Some(2048)] {
        for (mixed_chunk, n_continuous_decode_steps) in [(false, 1), (true, 1), (false, 4)] {
            let config = SchedulerConfig {
                max_total_tokens: 2048,
                chunked_prefill_size,
                mixed_chunk,
                n_continuous_decode_steps,
                ..SchedulerConfig::default()
            };
            let mut scheduler = Scheduler::new(config);
            let others = (10..13).map(|id| request(id, tokens(20, id as u32, vocab), 8, false));
            let requests = others
                .chain([
                    request(1, prompt.clone(), 6, true),
                    request(2, prompt.clone(), 0, true),
                ])
                .collect();
            let told = serve(&mut executor, &mut scheduler, requests);
            for id in [1, 2] {
                let scores = told[&id].scores.as_deref().expect("scores");
                assert_scores(scores, &prompt, &expected);
            }
            assert_eq!(told[&1].tokens, alone[&1].tokens, "the output is the same");
            assert!(told[&2].tokens.is_empty());
            assert_eq!(told[&2].usage.completion_tokens, 0);
            assert_eq!(told[&10].tokens.len(), 8);
        }
    }
}

/// Cached tokens are recomputed; otherwise they would have no scores.
#[test]
fn a_cached_prompt_is_scored_again() {
    let mut executor = load();
    let vocab = wide_config(Family::Qwen3).vocab;
    let prompt = tokens(70, 9, vocab);
    let expected = one_by_one(&mut executor, &prompt);
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_total_tokens: 2048,
        chunked_prefill_size: Some(32),
        ..SchedulerConfig::default()
    });
    serve(
        &mut executor,
        &mut scheduler,
        vec![request(1, prompt.clone(), 3, false)],
    );
    let told = serve(
        &mut executor,
        &mut scheduler,
        vec![request(2, prompt.clone(), 3, true)],
    );
    assert_eq!(told[&2].usage.cached_tokens, 0);
    assert_scores(
        told[&2].scores.as_deref().expect("scores"),
        &prompt,
        &expected,
    );
    // Other requests may reuse what the scored one computed.
    let told = serve(
        &mut executor,
        &mut scheduler,
        vec![request(3, prompt, 3, false)],
    );
    assert!(told[&3].usage.cached_tokens >= 64 && told[&3].scores.is_none());
}

/// A pool that holds little more than one of them: they are preempted and restart.
#[test]
fn a_preempted_prompt_is_scored_once() {
    let mut executor = load();
    let vocab = wide_config(Family::Qwen3).vocab;
    let prompts: Vec<Vec<u32>> = (0..4).map(|i| tokens(60, 20 + i, vocab)).collect();
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_total_tokens: 160,
        chunked_prefill_size: Some(16),
        ..SchedulerConfig::default()
    });
    let requests = (0..4).map(|i| request(i, prompts[i as usize].clone(), 40, true));
    let told = serve(&mut executor, &mut scheduler, requests.collect());
    assert!(
        scheduler.stats().n_preemptions > 0,
        "the pool is too large for this test"
    );
    for (i, prompt) in prompts.iter().enumerate() {
        let expected = one_by_one(&mut executor, prompt);
        let told = &told[&(i as u64)];
        assert_scores(told.scores.as_deref().expect("scores"), prompt, &expected);
        assert_eq!(told.tokens.len(), 40);
    }
}
