//! With drafts, every request gets the tokens, log-probabilities and end that it gets without, bit
//! for bit: greedy or sampled, with penalties and exclusions, whatever the batch, the pages, the
//! cache and the drafts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engine::executor::Executor;
use engine::executor::cpu::{ActivationType, CpuExecutor, CpuOptions, KvFormat, Sampling};
use engine::kv::PageIdx;
use engine::model::config::Family;
use engine::request::exclusions::Exclusions;
use engine::request::{
    FinishReason, Request, RequestId, SampledToken, SamplingParams, TokenEvent, Usage,
};
use engine::sampler::SampleSpec;
use engine::scheduler::{Scheduler, SchedulerConfig};
use engine::speculation::scripted::Script;
use engine::speculation::{Algorithm, NgramConfig, SpeculationConfig, StepTimes, SuffixConfig};
use engine::step::{PlanRow, StepPlan};
use engine::weights::ElementFormat;
use engine::weights::fixture::wide_config;
use engine::weights::synthetic::{SyntheticCheckpoint, SyntheticFormat};
use kernels::Isa;

use super::{executor, options, row, tokens};

const N_REQUESTS: u64 = 120;

fn load(options: CpuOptions) -> CpuExecutor {
    let format = SyntheticFormat::Rows(ElementFormat::Q4_1);
    let checkpoint = SyntheticCheckpoint::new(wide_config(Family::Qwen3), format, 3);
    executor(&checkpoint, options)
}

fn cpu_options() -> CpuOptions {
    CpuOptions {
        kv_pool_tokens: 4096,
        ..options(ActivationType::Int8, Isa::detect())
    }
}

fn params(id: u64) -> SamplingParams {
    let mut params = SamplingParams {
        seed: id * 7919,
        ..SamplingParams::default()
    };
    // Half are greedy; the rest differ in everything.
    if id % 2 == 1 {
        params.temperature = 0.3 + (id % 5) as f32 / 3.0;
        params.top_k = [0, 3, 40][(id % 3) as usize];
        params.top_p = [1.0, 0.9, 0.6][(id / 3 % 3) as usize];
    }
    match id % 7 {
        1 => params.presence_penalty = 1.5,
        2 => params.frequency_penalty = 0.7,
        3 => params.repetition_penalty = 1.3,
        4 => params.logit_bias = vec![(5, 4.0), (9, -100.0)],
        5 => {
            params.exclusions = Exclusions {
                min_tokens: 9,
                ends: Arc::from([3, 4]),
                bad_words: Arc::from([vec![5], vec![6, 7]]),
                ..Exclusions::default()
            }
        }
        _ => {}
    }
    if id.is_multiple_of(3) {
        params.n_logprobs = Some((id % 4) as usize);
    }
    params
}

fn requests() -> Vec<Request> {
    let vocab = wide_config(Family::Qwen3).vocab;
    let one = |id: u64| {
        // Some repeat themselves, some share a prefix, and as with `n`, some the whole prompt.
        let prompt = match id % 4 {
            0 => tokens(7, id as u32, vocab).repeat(5),
            1 => [
                tokens(32, 1, vocab),
                tokens(1 + id as usize % 9, id as u32, vocab),
            ]
            .concat(),
            2 => tokens(33, 2, vocab),
            _ => tokens(1 + id as usize % 40, id as u32, vocab),
        };
        Request {
            id: RequestId(id),
            prompt: prompt.into(),
            sampling: Arc::new(params(id)),
            max_new_tokens: 1 + (id as usize * 5) % 37,
            stop_token_ids: if id.is_multiple_of(5) {
                (0..vocab as u32).step_by(17).collect()
            } else {
                Arc::from([])
            },
            priority: 0,
            prefix_root: 0,
        }
    };
    (0..N_REQUESTS).map(one).collect()
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Told {
    tokens: Vec<SampledToken>,
    reason: Option<FinishReason>,
}

struct Served {
    told: HashMap<u64, Told>,
    usage: HashMap<u64, Usage>,
    scheduler: Scheduler,
    n_steps: usize,
}

fn serve(executor: &mut CpuExecutor, mut scheduler: Scheduler, requests: &[Request]) -> Served {
    let (mut told, mut usages) = (HashMap::<u64, Told>::new(), HashMap::new());
    let mut n_steps = 0;
    let mut waiting = requests.iter();
    loop {
        // They arrive while others run.
        for request in waiting.by_ref().take(3) {
            let added = scheduler.add(request.clone(), Duration::ZERO);
            added.expect("it fits");
        }
        if scheduler.is_idle() {
            break;
        }
        let plan = scheduler.plan(Duration::ZERO);
        let output = executor.execute(&plan).expect("a step");
        for (id, event) in scheduler.commit(&plan, output) {
            let told = told.entry(id.0).or_default();
            match event {
                TokenEvent::Token(token) => told.tokens.push(token),
                TokenEvent::Finished { reason, usage } => {
                    told.reason = Some(reason);
                    usages.insert(id.0, usage);
                }
                other => panic!("request {id}: {other:?}"),
            }
        }
        scheduler.check_integrity().expect("pages add up");
        scheduler.reuse(plan);
        n_steps += 1;
    }
    assert_eq!(scheduler.stats().n_pages_used, 0);
    Served {
        told,
        usage: usages,
        scheduler,
        n_steps,
    }
}

fn config() -> SchedulerConfig {
    SchedulerConfig {
        max_total_tokens: 4096,
        max_running_requests: 16,
        chunked_prefill_size: Some(24),
        ..SchedulerConfig::default()
    }
}

const NGRAM: Algorithm = Algorithm::Ngram(NgramConfig {
    min_match: 1,
    max_match: 4,
});

fn looked_up(
    config: &SchedulerConfig,
    algorithm: Algorithm,
    n_draft_tokens: usize,
) -> SchedulerConfig {
    SchedulerConfig {
        speculation: Some(SpeculationConfig {
            algorithm,
            n_draft_tokens,
        }),
        ..config.clone()
    }
}

/// Rows that cost nothing, so that there are as many drafts as may be.
fn free() -> StepTimes {
    StepTimes::line(1.0, 0.0)
}

/// A scheduler whose drafts are right `n_in_four` times in four.
fn scripted(
    config: &SchedulerConfig,
    n_draft_tokens: usize,
    texts: &HashMap<u64, Told>,
    n_in_four: usize,
) -> Scheduler {
    let output = |told: &Told| told.tokens.iter().map(|t| t.token).collect();
    let outputs = texts
        .iter()
        .map(|(id, told)| (RequestId(*id), output(told)));
    let mut scheduler = Scheduler::new(looked_up(config, NGRAM, n_draft_tokens));
    scheduler.set_drafters(Box::new(Script {
        outputs: Arc::new(outputs.collect()),
        is_right: Arc::new(move |id, n_tokens, i| {
            let hash = (id.0 as usize * 31 + n_tokens * 17 + i * 7) >> 1;
            hash % 4 < n_in_four
        }),
        vocab: wide_config(Family::Qwen3).vocab as u32,
    }));
    scheduler.set_step_times(free());
    scheduler
}

fn assert_same(found: &Served, expected: &HashMap<u64, Told>, what: &str) {
    assert_eq!(found.told.len(), expected.len());
    for (id, told) in expected {
        assert_eq!(&found.told[id], told, "{what}: request {id}");
    }
    let counts = found.scheduler.speculation_counts().expect("speculating");
    let sum = |of: fn(&Usage) -> usize| found.usage.values().map(of).sum::<usize>() as u64;
    assert_eq!(sum(|u| u.accepted_drafts), counts.n_accepted, "{what}");
    let n_rejected = counts.n_draft_tokens - counts.n_accepted;
    assert_eq!(sum(|u| u.rejected_drafts), n_rejected, "{what}");
    assert_eq!(counts.accepted_at.iter().sum::<u64>(), counts.n_accepted);
}

#[test]
fn texts_are_those_without_drafts_whatever_is_drafted() {
    let mut executor = load(cpu_options());
    let requests = requests();
    let plain = serve(&mut executor, Scheduler::new(config()), &requests);
    for n_draft_tokens in [1, 4, 15] {
        for n_in_four in [0, 2, 4] {
            let scheduler = scripted(&config(), n_draft_tokens, &plain.told, n_in_four);
            let served = serve(&mut executor, scheduler, &requests);
            let what = format!("{n_draft_tokens} drafts, right {n_in_four} in 4");
            assert_same(&served, &plain.told, &what);
            let counts = served.scheduler.speculation_counts().expect("speculating");
            match n_in_four {
                0 => assert_eq!(counts.n_accepted, 0),
                4 => assert_eq!(counts.accepted_at[0], counts.n_drafted_rows, "{what}"),
                _ => assert!(counts.n_accepted > 0 && counts.n_accepted < counts.n_draft_tokens),
            }
            // Where all are wrong, they end.
            let least = if n_in_four == 0 { 20 } else { 100 };
            assert!(counts.n_drafted_rows > least, "{what}: {counts:?}");
        }
        for algorithm in [NGRAM, Algorithm::Suffix(SuffixConfig::default())] {
            let config = looked_up(&config(), algorithm, n_draft_tokens);
            let mut scheduler = Scheduler::new(config);
            scheduler.set_step_times(free());
            let served = serve(&mut executor, scheduler, &requests);
            assert_same(&served, &plain.told, "looked up");
            let counts = served.scheduler.speculation_counts().expect("speculating");
            assert!(counts.n_accepted > 0, "{counts:?}");
        }
    }
}

#[test]
fn answers_that_come_again_are_drafted_and_change_no_text() {
    let mut executor = load(cpu_options());
    let requests = requests();
    let plain = serve(&mut executor, Scheduler::new(config()), &requests);
    for max_cached_requests in [10_000, 7] {
        let suffix = SuffixConfig {
            max_cached_requests,
            ..SuffixConfig::default()
        };
        let config = looked_up(&config(), Algorithm::Suffix(suffix), 7);
        let mut scheduler = Scheduler::new(config);
        scheduler.set_step_times(free());
        let first = serve(&mut executor, scheduler, &requests);
        assert_same(&first, &plain.told, "the first time");
        let before = first.scheduler.speculation_counts().cloned();
        let n_accepted = before.expect("speculating").n_accepted;
        let answers = first.scheduler.answers().expect("kept");
        let n_tokens = answers.n_tokens();
        // Ends of prompts of at most 24 tokens and their outputs, of 16 that run together as well.
        assert!(
            n_tokens <= (max_cached_requests + 16) * (24 + 37),
            "{n_tokens}"
        );
        // The same questions again: seeded, so the same answers.
        let second = serve(&mut executor, first.scheduler, &requests);
        for (id, told) in &plain.told {
            assert_eq!(&second.told[id], told, "the second time: request {id}");
        }
        let again = second.scheduler.speculation_counts().expect("speculating");
        let again = again.n_accepted - n_accepted;
        if max_cached_requests == 10_000 {
            assert!(again > 2 * n_accepted, "{n_accepted}, then {again}");
            let saved =
                again as f64 / plain.told.values().map(|t| t.tokens.len()).sum::<usize>() as f64;
            assert!(saved > 0.6, "{saved} of all tokens were drafted");
        }
    }
}

#[test]
fn every_way_of_scheduling_gives_the_same_texts() {
    let mut executor = load(cpu_options());
    let requests = requests();
    let plain = serve(&mut executor, Scheduler::new(config()), &requests);
    for (what, config) in [
        (
            "mixed chunks",
            SchedulerConfig {
                mixed_chunk: true,
                ..config()
            },
        ),
        (
            "a small pool",
            SchedulerConfig {
                max_total_tokens: 160,
                ..config()
            },
        ),
        (
            "a small pool, mixed chunks, no cache",
            SchedulerConfig {
                max_total_tokens: 160,
                mixed_chunk: true,
                radix_cache: false,
                ..config()
            },
        ),
        (
            "bursts and announced steps",
            SchedulerConfig {
                n_continuous_decode_steps: 3,
                run_ahead: true,
                ..config()
            },
        ),
        (
            "a row at a time",
            SchedulerConfig {
                max_running_requests: 1,
                ..config()
            },
        ),
        (
            "more rows than a pass has",
            SchedulerConfig {
                max_running_requests: 70,
                ..config()
            },
        ),
    ] {
        for n_in_four in [2, 4] {
            let scheduler = scripted(&config, 5, &plain.told, n_in_four);
            let served = serve(&mut executor, scheduler, &requests);
            assert_same(&served, &plain.told, what);
            if config.max_total_tokens == 160 {
                assert!(served.scheduler.stats().n_preemptions > 0, "{what}");
            }
            if config.max_running_requests == 1 && n_in_four == 4 {
                let without = serve(&mut executor, Scheduler::new(config.clone()), &requests);
                assert!(
                    2 * served.n_steps < without.n_steps,
                    "right drafts save steps"
                );
            }
        }
    }
}

#[test]
fn fp8_pages_and_the_plain_sampler_give_the_texts_that_they_give_without() {
    let requests = requests();
    for options in [
        CpuOptions {
            kv_format: KvFormat::Fp8E4m3,
            ..cpu_options()
        },
        CpuOptions {
            sampling: Sampling::Plain,
            ..cpu_options()
        },
        // Passes that end between a row's drafts.
        CpuOptions {
            max_pass_tokens: 5,
            ..cpu_options()
        },
    ] {
        let what = format!("{options:?}");
        let mut executor = load(options);
        let plain = serve(&mut executor, Scheduler::new(config()), &requests);
        for n_in_four in [2, 4] {
            let scheduler = scripted(&config(), 6, &plain.told, n_in_four);
            let served = serve(&mut executor, scheduler, &requests);
            assert_same(&served, &plain.told, &what);
        }
    }
}

#[test]
fn a_plan_with_drafts_that_breaks_the_contract_is_refused() {
    let mut executor = load(cpu_options());
    let spec = || {
        Some(SampleSpec {
            params: Arc::default(),
            output_index: 0,
            history: Vec::new(),
            n_prompt: 1,
        })
    };
    let good = PlanRow {
        n_drafts: 2,
        pages: vec![PageIdx(0)],
        sample: spec(),
        ..row(&[1, 2, 3], 0, 0)
    };
    let mut run = |row: PlanRow, n_steps: usize| {
        let plan = StepPlan {
            rows: vec![row],
            n_steps,
            ..StepPlan::default()
        };
        executor.execute(&plan).map(|output| output.rows)
    };
    let rows = run(good.clone(), 1).expect("a plan that keeps it");
    assert!((1..=3).contains(&rows[0].tokens.len()));
    let of_chunk = PlanRow {
        n_drafts: 1,
        ..good.clone()
    };
    let without_sample = PlanRow {
        sample: None,
        ..good.clone()
    };
    let too_many = PlanRow {
        n_drafts: 3,
        ..good.clone()
    };
    for (row, n_steps) in [(good, 2), (of_chunk, 1), (without_sample, 1), (too_many, 1)] {
        let error = run(row, n_steps).expect_err("refused").to_string();
        assert!(error.contains("drafts"), "{error}");
    }
}
