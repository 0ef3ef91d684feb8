//! Log-probabilities of a prompt's tokens on the GPU equal those of its own logits, however the
//! prompt is cut, next to rows that decode.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engine::executor::Executor;
use engine::executor::cuda::CudaExecutor;
use engine::model::config::Family;
use engine::request::{Request, RequestId, SamplingParams, ScoredToken, TokenEvent};
use engine::sampler;
use engine::scheduler::{Scheduler, SchedulerConfig};

use super::{awq, cpu, load, options, row, tokens};

const N_TOP: usize = 3;
const LENGTH: usize = 150;

type Told = HashMap<u64, (Vec<ScoredToken>, Vec<u32>)>;

fn serve(executor: &mut dyn Executor, config: SchedulerConfig) -> Told {
    let mut scheduler = Scheduler::new(config);
    for id in 0..4 {
        let is_scored = id % 2 == 1;
        let request = Request {
            id: RequestId(id),
            prompt: tokens(if is_scored { LENGTH } else { 20 }, id as u32).into(),
            sampling: Arc::new(SamplingParams {
                n_prompt_logprobs: is_scored.then_some(N_TOP),
                ..SamplingParams::default()
            }),
            max_new_tokens: if id == 3 { 0 } else { 12 },
            stop_token_ids: Arc::from([]),
            priority: 0,
            prefix_root: 0,
        };
        scheduler.add(request, Duration::ZERO).expect("fits");
    }
    let mut told = Told::new();
    while !scheduler.is_idle() {
        let plan = scheduler.plan(Duration::ZERO);
        let output = executor.execute(&plan).expect("a step");
        for (id, event) in scheduler.commit(&plan, output) {
            let (scores, made) = told.entry(id.0).or_default();
            match event {
                TokenEvent::PromptLogprobs(found) => *scores = found,
                TokenEvent::Token(token) => made.push(token.token),
                TokenEvent::Finished { .. } => {}
                TokenEvent::Failed(failure) => panic!("request {id}: {failure}"),
            }
        }
    }
    told
}

/// From all logits of a prompt at once.
fn expected(logits: &[f32], prompt: &[u32]) -> Vec<ScoredToken> {
    let vocab = logits.len() / prompt.len();
    let rows = logits.chunks_exact(vocab).zip(&prompt[1..]);
    rows.map(|(row, token)| sampler::score(row, *token, N_TOP).expect("a score"))
        .collect()
}

fn assert_close(found: &[ScoredToken], expected: &[ScoredToken], limit: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.token, expected.token, "{what}");
        let difference = (found.logprob - expected.logprob).abs();
        assert!(
            difference < limit,
            "{what}, token {i}: {found:?} for {expected:?}"
        );
        let best = (found.top_logprobs[0].1 - expected.top_logprobs[0].1).abs();
        assert!(
            best < limit,
            "{what}, token {i}: {found:?} for {expected:?}"
        );
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn scores_are_those_of_the_cards_own_logits() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    let mut card: CudaExecutor = load(checkpoint.as_ref(), &options());
    let wanted: Vec<(usize, usize)> = (0..LENGTH).map(|i| (0, i)).collect();
    let prompts = [1, 3].map(|id| tokens(LENGTH, id));
    let own = prompts.each_ref().map(|prompt| {
        let logits = card.forward_logits(&[row(0, prompt, 0, LENGTH)], &wanted);
        expected(&logits.expect("logits"), prompt)
    });
    let mut host = cpu(checkpoint.as_ref());
    let hosts = prompts.each_ref().map(|prompt| {
        let logits = host.forward_logits(&[row(0, prompt, 0, LENGTH)], &wanted);
        expected(&logits.expect("logits"), prompt)
    });
    let mut without = None;
    for (chunk, mixed_chunk, n_steps) in [(2048, false, 1), (40, true, 1), (64, false, 4)] {
        let config = SchedulerConfig {
            max_total_tokens: 8192,
            chunked_prefill_size: Some(chunk),
            mixed_chunk,
            n_continuous_decode_steps: n_steps,
            run_ahead: true,
            ..SchedulerConfig::default()
        };
        let told = serve(&mut card, config);
        let what = format!("chunks of {chunk}, mixed {mixed_chunk}, {n_steps} steps");
        for (i, id) in [1, 3].into_iter().enumerate() {
            assert_close(&told[&id].0, &own[i], 0.05, &what);
            assert_close(&told[&id].0, &hosts[i], 0.1, &what);
        }
        assert_eq!(
            [told[&0].1.len(), told[&1].1.len(), told[&3].1.len()],
            [12, 12, 0]
        );
        // The first token of each is that of a prompt computed alone.
        let firsts: Vec<u32> = (0..3).map(|id| told[&id].1[0]).collect();
        assert_eq!(*without.get_or_insert(firsts.clone()), firsts, "{what}");
    }
}
