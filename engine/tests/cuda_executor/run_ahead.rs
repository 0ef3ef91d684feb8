//! Work launched ahead of its plan changes no token, whatever plan follows.

use engine::executor::cuda::{CudaExecutor, CudaOptions, GraphSizes};
use engine::executor::{Executor, ExecutorCounts};
use engine::model::config::Family;
use engine::request::{SampledToken, SamplingParams};
use engine::scheduler::SchedulerConfig;
use engine::weights::Checkpoint;

use super::service::{Arrival, scheduler, serve};
use super::{VOCAB, awq, generate, generate_in_bursts, load, options, tokens};

fn executor(checkpoint: &dyn Checkpoint, graphs: GraphSizes, run_ahead: bool) -> CudaExecutor {
    let options = CudaOptions {
        graphs,
        run_ahead,
        ..options()
    };
    load(checkpoint, &options)
}

fn request(id: usize, at_step: usize, max_new_tokens: usize) -> Arrival {
    Arrival {
        at_step,
        prompt: tokens(3 + 29 * id % 90, id as u32),
        max_new_tokens,
        stop_token_ids: Vec::new(),
        params: SamplingParams::default(),
        cancelled_at: None,
    }
}

/// Seeded draws, every third with penalties.
fn drawn(id: usize) -> SamplingParams {
    SamplingParams {
        temperature: 0.9,
        top_p: 0.95,
        seed: 1000 + id as u64,
        presence_penalty: if id.is_multiple_of(3) { 0.6 } else { 0.0 },
        n_logprobs: id.is_multiple_of(4).then_some(3),
        ..SamplingParams::default()
    }
}

/// Requests that join and leave: by length, by a stop id, by cancellation.
fn traffic(is_drawn: bool) -> Vec<Arrival> {
    (0..30)
        .map(|id| {
            let at_step = id * 11 + id % 4;
            Arrival {
                params: if is_drawn && id % 5 != 4 {
                    drawn(id)
                } else {
                    SamplingParams::default()
                },
                // Some 5 % of the vocabulary, for some of them.
                stop_token_ids: (0..VOCAB)
                    .filter(|token| id % 3 == 1 && token % 20 == 7)
                    .collect(),
                cancelled_at: (id % 7 == 3).then_some(at_step + 25),
                ..request(id, at_step, 20 + 17 * id % 110)
            }
        })
        .collect()
}

fn counted(
    executor: &mut CudaExecutor,
    config: SchedulerConfig,
    arrivals: &[Arrival],
) -> (Vec<Vec<SampledToken>>, ExecutorCounts) {
    let before = executor.counts();
    let made = serve(executor, config, arrivals);
    let after = executor.counts();
    let counts = ExecutorCounts {
        run_ahead_used: after.run_ahead_used - before.run_ahead_used,
        run_ahead_discarded: after.run_ahead_discarded - before.run_ahead_discarded,
        host_sampled_tokens: after.host_sampled_tokens - before.host_sampled_tokens,
        ..ExecutorCounts::default()
    };
    (made, counts)
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn joining_and_leaving_requests_get_the_same_tokens() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    for graphs in [GraphSizes::Off, GraphSizes::Exactly(vec![1, 2, 4, 8])] {
        let mut off = executor(checkpoint.as_ref(), graphs.clone(), false);
        let mut on = executor(checkpoint.as_ref(), graphs.clone(), true);
        for is_drawn in [false, true] {
            for (n_steps, n_pages) in [(1, 512), (3, 512), (1, 24)] {
                let config = SchedulerConfig {
                    max_running_requests: 8,
                    max_total_tokens: n_pages * 16,
                    ..scheduler(n_steps)
                };
                let arrivals = traffic(is_drawn);
                let what = format!(
                    "graphs {graphs:?}, drawn {is_drawn}, bursts of {n_steps}, {n_pages} pages"
                );
                let (expected, without) = counted(&mut off, config.clone(), &arrivals);
                let (found, with) = counted(&mut on, config, &arrivals);
                assert_eq!(found, expected, "{what}");
                assert!(expected.iter().map(Vec::len).sum::<usize>() > 500, "{what}");
                assert_eq!(without, ExecutorCounts::default(), "{what}");
                println!("{what}: {with:?}");
                assert!(with.run_ahead_used > 0, "{what}");
                assert!(with.run_ahead_discarded > 0, "{what}");
                assert_eq!(with.host_sampled_tokens, 0, "{what}");
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn an_undisturbed_batch_runs_ahead_over_every_page_border_and_wastes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Llama, 64);
    for params in [SamplingParams::default(), drawn(3)] {
        for graphs in [GraphSizes::Off, GraphSizes::Exactly(vec![4])] {
            // At different places of their pages.
            let arrivals: Vec<Arrival> = (0..4)
                .map(|id| Arrival {
                    params: SamplingParams {
                        seed: id as u64,
                        ..params.clone()
                    },
                    ..request(id, 0, 301)
                })
                .collect();
            let mut on = executor(checkpoint.as_ref(), graphs.clone(), true);
            let mut off = executor(checkpoint.as_ref(), graphs.clone(), false);
            let (found, counts) = counted(&mut on, scheduler(1), &arrivals);
            let (expected, _) = counted(&mut off, scheduler(1), &arrivals);
            assert_eq!(found, expected);
            // 300 decode steps: the first is no continuation, the second begins the third.
            assert_eq!(counts.run_ahead_used, 298, "graphs {graphs:?}");
            assert_eq!(counts.run_ahead_discarded, 0, "graphs {graphs:?}");
        }
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn bursts_of_other_lengths_than_announced_get_the_same_tokens() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    let mut on = executor(checkpoint.as_ref(), GraphSizes::Off, true);
    let expected = generate(&mut on, 5, 100, 1);
    assert_eq!(
        on.counts(),
        ExecutorCounts::default(),
        "no step was announced"
    );
    // Shorter than begun, longer than begun, as begun, and more than one burst holds.
    let bursts = [
        (4, 4),
        (4, 4),
        (2, 2),
        (2, 2),
        (2, 1),
        (3, 3),
        (20, 2),
        (1, 1),
    ];
    assert_eq!(generate_in_bursts(&mut on, 5, 100, &bursts), expected);
    assert!(on.counts().run_ahead_used > 0 && on.counts().run_ahead_discarded > 0);
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn executors_of_one_process_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    // Enough rows for the kernels whose blocks wait for each other.
    let arrivals: Vec<Arrival> = (0..24).map(|id| request(id, 0, 120)).collect();
    let sizes = GraphSizes::Exactly(vec![24]);
    let mut alone = executor(checkpoint.as_ref(), sizes.clone(), true);
    let expected = serve(&mut alone, scheduler(1), &arrivals);
    let mut executors: Vec<CudaExecutor> = (0..2)
        .map(|_| executor(checkpoint.as_ref(), sizes.clone(), true))
        .collect();
    std::thread::scope(|scope| {
        for executor in &mut executors {
            let (arrivals, expected) = (&arrivals, &expected);
            scope.spawn(move || {
                let found = serve(executor, scheduler(1), arrivals);
                assert_eq!(found, *expected);
                assert!(executor.counts().run_ahead_used > 100);
            });
        }
    });
}
