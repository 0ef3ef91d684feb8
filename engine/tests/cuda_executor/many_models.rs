//! Several models of a process on one GPU, and models that sleep.
//!
//! Batches of 20 go through the projection of many rows, whose blocks wait for each other: two such
//! launches side by side would hang, and the threads here do their best to get there.

use std::sync::Barrier;

use engine::executor::cuda::{CudaExecutor, CudaOptions, GraphSizes};
use engine::executor::{Executor, SuspendedExecutor};
use engine::model::config::Family;
use engine::weights::Checkpoint;
use engine::weights::fixture::FolderFormat;

use super::service::{Arrival, scheduler, serve};
use super::{awq, folder, generate, load, options, tokens};
use engine::request::SamplingParams;

fn executor(checkpoint: &dyn Checkpoint, graphs: GraphSizes) -> CudaExecutor {
    let options = CudaOptions {
        // Three of them fit.
        mem_fraction_static: 0.25,
        graphs,
        ..options()
    };
    load(checkpoint, &options)
}

/// 24 requests that come at once, and a prompt of 300 tokens now and then among them.
fn traffic(seed: u32) -> Vec<Arrival> {
    (0..24)
        .map(|id| Arrival {
            at_step: if id < 20 { 0 } else { 10 * (id - 19) },
            prompt: tokens(if id < 20 { 5 + 7 * id } else { 300 }, seed + id as u32),
            max_new_tokens: 60,
            stop_token_ids: Vec::new(),
            params: SamplingParams::default(),
            cancelled_at: None,
        })
        .collect()
}

fn texts(executor: &mut dyn Executor, seed: u32) -> Vec<Vec<u32>> {
    let made = serve(executor, scheduler(1), &traffic(seed));
    let ids = |tokens: &Vec<engine::request::SampledToken>| {
        tokens.iter().map(|token| token.token).collect()
    };
    made.iter().map(ids).collect()
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn models_side_by_side_answer_as_they_do_alone() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    let checkpoints = [
        awq(dirs[0].path(), Family::Qwen3, 128),
        folder(dirs[1].path(), Family::Llama, FolderFormat::F16),
        awq(dirs[2].path(), Family::Qwen2, 64),
    ];
    let graphs = |i: usize| match i {
        0 => GraphSizes::Exactly(vec![1, 8, 20, 24]),
        _ => GraphSizes::Off,
    };
    let alone: Vec<_> = checkpoints
        .iter()
        .enumerate()
        .map(|(i, c)| texts(&mut executor(c.as_ref(), graphs(i)), 100 * i as u32))
        .collect();
    // One after the other, as the server loads them: while graphs are captured, no memory may be freed.
    let executors: Vec<_> = checkpoints
        .iter()
        .enumerate()
        .map(|(i, c)| executor(c.as_ref(), graphs(i)))
        .collect();
    let together = Barrier::new(executors.len());
    let (together, alone) = (&together, &alone);
    std::thread::scope(|scope| {
        for (i, mut executor) in executors.into_iter().enumerate() {
            scope.spawn(move || {
                together.wait();
                for round in 0..3 {
                    let found = texts(&mut executor, 100 * i as u32);
                    assert_eq!(found, alone[i], "model {i}, round {round}");
                }
            });
        }
    });
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn a_model_is_loaded_while_another_runs() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let running = awq(dirs[0].path(), Family::Qwen3, 128);
    let coming = folder(dirs[1].path(), Family::Llama, FolderFormat::F16);
    let mut first = executor(running.as_ref(), GraphSizes::UpTo(8));
    let expected = texts(&mut first, 1);
    let expected_of_second = texts(&mut executor(coming.as_ref(), GraphSizes::UpTo(8)), 2);
    std::thread::scope(|scope| {
        let loads = scope.spawn(|| {
            for _ in 0..4 {
                let mut second = executor(coming.as_ref(), GraphSizes::UpTo(8));
                assert_eq!(texts(&mut second, 2), expected_of_second);
            }
        });
        while !loads.is_finished() {
            assert_eq!(texts(&mut first, 1), expected);
        }
    });
}

/// Asleep and awake again.
fn slept(executor: Box<CudaExecutor>) -> (u64, Box<dyn Executor>) {
    let before = free_bytes();
    let executor: Box<dyn Executor> = executor;
    let mut asleep: Box<dyn SuspendedExecutor> = executor
        .sleep()
        .map_err(|(_, error)| error)
        .expect("it is suspended");
    let given_back = free_bytes().saturating_sub(before);
    (given_back, asleep.wake().expect("it wakes"))
}

/// Properties of the GPU, for any caller.
fn free_bytes() -> u64 {
    let device = gpu::Device::open(0).expect("a GPU");
    device.memory_bytes().expect("memory").0 as u64
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn sleeping_gives_memory_back_and_changes_no_token() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    for (checkpoint, graphs) in [
        (
            awq(dirs[0].path(), Family::Qwen3, 128),
            GraphSizes::Exactly(vec![1, 4, 8]),
        ),
        (
            folder(dirs[1].path(), Family::Qwen2, FolderFormat::BF16),
            GraphSizes::Off,
        ),
        (
            folder(dirs[2].path(), Family::Llama, FolderFormat::F16),
            GraphSizes::UpTo(4),
        ),
    ] {
        let mut awake = Box::new(executor(checkpoint.as_ref(), graphs));
        let expected = generate(&mut awake, 4, 40, 1);
        let expected_of_traffic = texts(awake.as_mut(), 3);
        let info = awake.info().clone();
        let (given_back, mut again) = slept(awake);
        assert!(
            given_back >= info.weight_bytes + info.kv_pool_bytes,
            "{given_back} bytes of {} and {}",
            info.weight_bytes,
            info.kv_pool_bytes
        );
        assert_eq!(again.info().kv_pool_tokens, info.kv_pool_tokens);
        assert_eq!(again.info().weight_bytes, info.weight_bytes);
        assert_eq!(texts(again.as_mut(), 3), expected_of_traffic);
        // A second night, from what the first one left.
        let mut asleep = again.sleep().map_err(|(_, error)| error).expect("asleep");
        let mut again = asleep.wake().expect("awake");
        assert_eq!(texts(again.as_mut(), 3), expected_of_traffic);
        let fresh = generate(
            &mut executor(checkpoint.as_ref(), GraphSizes::Off),
            4,
            40,
            1,
        );
        assert_eq!(fresh, expected);
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn a_model_without_free_memory_stays_suspended_until_there_is_some() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let checkpoint = awq(dirs[0].path(), Family::Qwen3, 128);
    let limited = |fraction: f64, max_total_tokens: Option<usize>| {
        let used = {
            let device = gpu::Device::open(0).expect("a GPU");
            let (free, total) = device.memory_bytes().expect("memory");
            (total - free) as u64
        };
        CudaOptions {
            // What is in use now, and 2 GiB.
            memory_limit_bytes: Some(used + (2 << 30)),
            mem_fraction_static: fraction,
            max_total_tokens,
            ..options()
        }
    };
    let first = limited(0.9, Some(8192));
    let sleeper: Box<dyn Executor> = Box::new(load(checkpoint.as_ref(), &first));
    let mut asleep = sleeper.sleep().map_err(|(_, error)| error).expect("asleep");
    // Takes all that the limit leaves.
    let other = load(
        checkpoint.as_ref(),
        &CudaOptions {
            max_total_tokens: None,
            ..first
        },
    );
    let refused = asleep.wake().err().expect("no room").to_string();
    assert!(refused.contains("does not fit"), "{refused}");
    drop(other);
    let awake = asleep.wake().expect("there is room again");
    assert_eq!(awake.info().kv_pool_tokens, 8192);
}
