//! The GPU's sampler against the host's, on the same logits.

use engine::executor::Executor;
use engine::executor::cuda::{CudaExecutor, CudaOptions, GraphSizes, Sampler};
use engine::model::config::Family;
use engine::request::{SampledToken, SamplingParams};
use engine::weights::Checkpoint;

use super::service::{Arrival, scheduler, serve};
use super::{awq, load, options, tokens};

const N_TOKENS: usize = 41;

/// Each filter alone and all together, drawn and greedy, with and without log-probabilities.
fn params() -> Vec<SamplingParams> {
    let drawn = |seed, temperature| SamplingParams {
        seed,
        temperature,
        ..SamplingParams::default()
    };
    vec![
        SamplingParams {
            top_k: 40,
            ..drawn(1, 0.8)
        },
        SamplingParams {
            top_p: 0.9,
            repetition_penalty: 1.2,
            presence_penalty: 0.5,
            frequency_penalty: 0.3,
            ..drawn(2, 1.0)
        },
        SamplingParams {
            min_p: 0.05,
            logit_bias: vec![(3, 2.0), (7, f32::NEG_INFINITY), (11, -1.5)],
            n_logprobs: Some(5),
            ..drawn(u64::MAX, 1.3)
        },
        SamplingParams {
            repetition_penalty: 1.5,
            n_logprobs: Some(20),
            ..SamplingParams::default()
        },
        SamplingParams::default(),
        SamplingParams {
            top_k: 20,
            top_p: 0.95,
            min_p: 0.02,
            repetition_penalty: 0.8,
            presence_penalty: -0.4,
            frequency_penalty: 0.1,
            logit_bias: vec![(3, 2.0), (200, 3.0)],
            n_logprobs: Some(0),
            ..drawn(5 << 33, 0.7)
        },
    ]
}

fn arrivals(params: &[SamplingParams]) -> Vec<Arrival> {
    params
        .iter()
        .enumerate()
        .map(|(i, params)| Arrival {
            at_step: 0,
            prompt: tokens(5 + 13 * i % 60, i as u32),
            max_new_tokens: N_TOKENS,
            stop_token_ids: Vec::new(),
            params: params.clone(),
            cancelled_at: None,
        })
        .collect()
}

fn executor(checkpoint: &dyn Checkpoint, sampler: Sampler, graphs: GraphSizes) -> CudaExecutor {
    let options = CudaOptions {
        sampler,
        graphs,
        ..options()
    };
    load(checkpoint, &options)
}

fn assert_same(found: &[Vec<SampledToken>], expected: &[Vec<SampledToken>], what: &str) {
    let ids = |rows: &[Vec<SampledToken>]| -> Vec<Vec<u32>> {
        let row = |row: &Vec<SampledToken>| row.iter().map(|t| t.token).collect();
        rows.iter().map(row).collect()
    };
    assert_eq!(ids(found), ids(expected), "{what}");
    let close = |a: f32, b: f32| (a - b).abs() < 2e-5;
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert_eq!(found.logprob.is_some(), expected.logprob.is_some());
        if let (Some(a), Some(b)) = (found.logprob, expected.logprob) {
            assert!(close(a, b), "{what}: {a} for {b}");
        }
        assert_eq!(found.top_logprobs.len(), expected.top_logprobs.len());
        for (a, b) in found.top_logprobs.iter().zip(&expected.top_logprobs) {
            assert!(a.0 == b.0 && close(a.1, b.1), "{what}: {a:?} for {b:?}");
        }
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn the_card_draws_what_the_host_draws() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    let params = params();
    // A batch of all, and each alone.
    let mut batches = vec![params.clone()];
    batches.extend(params.iter().map(|params| vec![params.clone()]));
    let mut host = executor(checkpoint.as_ref(), Sampler::Host, GraphSizes::Off);
    let expected: Vec<_> = batches
        .iter()
        .map(|batch| serve(&mut host, scheduler(1), &arrivals(batch)))
        .collect();
    // All but the greedy one, in the batch and alone.
    let n_sampled = 2 * (params.len() - 1) * N_TOKENS;
    assert_eq!(host.counts().host_sampled_tokens, n_sampled as u64);
    assert!(expected.iter().flatten().all(|row| row.len() == N_TOKENS));
    assert_ne!(expected[0][0], expected[0][1]);
    assert_eq!(expected[0][2][0].top_logprobs.len(), 5);
    assert!(expected[0][2].iter().all(|token| token.token != 7));
    let graphs = [GraphSizes::Off, GraphSizes::Exactly(vec![1, params.len()])];
    for graphs in graphs {
        let what = format!("graphs {graphs:?}");
        let mut card = executor(checkpoint.as_ref(), Sampler::Device, graphs);
        for n_steps in [1, 4] {
            for (batch, expected) in batches.iter().zip(&expected) {
                let found = serve(&mut card, scheduler(n_steps), &arrivals(batch));
                let what = format!("{what}, bursts of {n_steps}, batch of {}", batch.len());
                assert_same(&found, expected, &what);
            }
        }
        assert_eq!(card.counts().host_sampled_tokens, 0, "{what}");
        assert!(card.counts().run_ahead_used > 0, "{what}");
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn what_the_card_has_no_room_for_is_sampled_on_the_host_and_counted() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Llama, 32);
    let mut params = params();
    params[3].n_logprobs = Some(21);
    let mut host = executor(checkpoint.as_ref(), Sampler::Host, GraphSizes::Off);
    let mut card = executor(checkpoint.as_ref(), Sampler::Device, GraphSizes::Off);
    for n_steps in [1, 3] {
        let before = card.counts().host_sampled_tokens;
        let expected = serve(&mut host, scheduler(n_steps), &arrivals(&params));
        let found = serve(&mut card, scheduler(n_steps), &arrivals(&params));
        assert_same(&found, &expected, &format!("bursts of {n_steps}"));
        assert_eq!(found[3][0].top_logprobs.len(), 21);
        let n_host = card.counts().host_sampled_tokens - before;
        assert_eq!(n_host, N_TOKENS as u64, "the one row");
    }
}
