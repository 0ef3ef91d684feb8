//! Flags of the scheduler: the plans differ.

use std::sync::Arc;
use std::time::Duration;

use engine::config::typed::Device;
use engine::executor::Executor;
use engine::executor::mock::{MockConfig, MockExecutor};
use engine::kv::PAGE_TOKENS;
use engine::launch::engine_loop_config;
use engine::request::{Request, RequestId, SamplingParams, TokenEvent};
use engine::scheduler::{Scheduler, StepKind};
use engine::step::StepPlan;

use crate::command_line::resolve;

const POOL_TOKENS: usize = 4096;
const NOW: Duration = Duration::ZERO;

fn prompt(first: u32, n: u32) -> Vec<u32> {
    (first..first + n).collect()
}

fn request(id: u64, prompt: Vec<u32>, max_new_tokens: usize) -> Request {
    Request {
        id: RequestId(id),
        prompt: prompt.into(),
        sampling: Arc::new(SamplingParams::default()),
        max_new_tokens,
        stop_token_ids: Arc::from([]),
        priority: 0,
        prefix_root: 0,
    }
}

/// Scheduler of a launch line, with an executor.
struct Played {
    scheduler: Scheduler,
    executor: MockExecutor,
}

impl Played {
    fn new(line: &str, requests: Vec<Request>) -> Self {
        let engine = resolve(line).expect(line).engine;
        let mut scheduler =
            Scheduler::new(engine_loop_config(&engine, Device::Cpu, POOL_TOKENS).scheduler);
        for request in requests {
            scheduler.add(request, NOW).expect("it fits");
        }
        let executor = MockExecutor::new(MockConfig {
            n_pages: POOL_TOKENS / PAGE_TOKENS,
            ..MockConfig::default()
        });
        Self {
            scheduler,
            executor,
        }
    }

    fn step(&mut self) -> (StepPlan, Vec<(RequestId, TokenEvent)>) {
        let plan = self.scheduler.plan(NOW);
        let output = self.executor.execute(&plan).expect("a step");
        let events = self.scheduler.commit(&plan, output);
        (plan, events)
    }

    /// Ids in the order in which they are admitted.
    fn order(mut self) -> Vec<u64> {
        let mut order = Vec::new();
        while !self.scheduler.is_idle() {
            for row in self.step().0.rows {
                if !order.contains(&row.request.0) {
                    order.push(row.request.0);
                }
            }
        }
        order
    }
}

/// Tokens of each row of the first step.
fn first_rows(line: &str, prompts: &[u32]) -> Vec<usize> {
    let requests = prompts
        .iter()
        .enumerate()
        .map(|(i, n)| request(i as u64, prompt(1000 * i as u32, *n), 4))
        .collect();
    let (plan, _) = Played::new(line, requests).step();
    plan.rows.iter().map(|row| row.tokens.len()).collect()
}

#[test]
fn max_prefill_tokens_bounds_a_step() {
    assert_eq!(first_rows("", &[100, 100, 100]), [100, 100, 100]);
    let line = "--max-prefill-tokens 150";
    assert_eq!(first_rows(line, &[100, 100, 100]), [100, 50]);
}

/// The device says what it is by default, and a chunk that was asked for fits in.
#[test]
fn max_prefill_tokens_are_few_on_the_cpu() {
    let most = |line: &str, device| {
        let engine = resolve(line).expect(line).engine;
        let config = engine_loop_config(&engine, device, POOL_TOKENS);
        config.scheduler.max_prefill_tokens
    };
    assert_eq!(most("", Device::Cpu), 512);
    assert_eq!(most("", Device::Cuda), 16_384);
    for device in [Device::Cpu, Device::Cuda] {
        assert_eq!(most("--max-prefill-tokens 1664", device), 1664);
    }
    assert_eq!(most("--chunked-prefill-size 1152", Device::Cpu), 1152);
    assert_eq!(most("--chunked-prefill-size 64", Device::Cpu), 512);
    assert_eq!(most("--chunked-prefill-size -1", Device::Cpu), 512);
}

/// With the CPU's defaults, a stream beside long prompts gets a token after 512 of their tokens.
#[test]
fn a_stream_waits_for_one_short_step_beside_long_prompts() {
    let mut played = Played::new("", vec![request(0, prompt(0, 10), 40)]);
    played.step();
    for id in 1..=20 {
        let long = request(id, prompt(1000 * id as u32, 160), 1);
        played.scheduler.add(long, NOW).expect("it fits");
    }
    let (mut n_prompt_tokens, mut gaps) = (0, Vec::new());
    while !played.scheduler.is_idle() {
        let (plan, events) = played.step();
        let mine = |row: &&engine::step::PlanRow| row.request.0 != 0;
        let rows = plan.rows.iter().filter(mine);
        n_prompt_tokens += rows.map(|row| row.tokens.len()).sum::<usize>();
        if events.iter().any(|(id, _)| id.0 == 0) {
            gaps.push(std::mem::take(&mut n_prompt_tokens));
        }
    }
    assert!(gaps.iter().sum::<usize>() >= 20 * 160, "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= 512), "{gaps:?}");
}

#[test]
fn chunked_prefill_size_cuts_a_prompt() {
    assert_eq!(first_rows("--chunked-prefill-size 32", &[100]), [32]);
    let whole = "--max-prefill-tokens 50 --chunked-prefill-size -1";
    assert_eq!(first_rows(whole, &[100]), [100]);
    assert_eq!(first_rows("--max-prefill-tokens 50", &[100]), [50]);
}

#[test]
fn max_running_requests_bounds_the_batch() {
    assert_eq!(first_rows("", &[10, 10, 10]).len(), 3);
    let line = "--max-running-requests 2";
    assert_eq!(first_rows(line, &[10, 10, 10]).len(), 2);
}

#[test]
fn max_total_tokens_bounds_the_pool() {
    let add = |line: &str| {
        let engine = resolve(line).expect(line).engine;
        let mut scheduler =
            Scheduler::new(engine_loop_config(&engine, Device::Cpu, POOL_TOKENS).scheduler);
        scheduler.add(request(1, prompt(0, 100), 50), NOW)
    };
    assert_eq!(add(""), Ok(()));
    let error = add("--max-total-tokens 128").expect_err("too long");
    assert!(error.to_string().contains("128 tokens"), "{error}");
}

#[test]
fn enable_mixed_chunk_lets_decode_rows_ride_along() {
    let kinds = |line: &str| {
        let mut played = Played::new(line, vec![request(1, prompt(0, 10), 20)]);
        played.step();
        let added = request(2, prompt(500, 100), 20);
        played.scheduler.add(added, NOW).expect("it fits");
        (0..4)
            .map(|_| StepKind::of(&played.step().0))
            .collect::<Vec<_>>()
    };
    let line = "--chunked-prefill-size 32";
    assert!(!kinds(line).contains(&StepKind::Mixed));
    let line = "--chunked-prefill-size 32 --enable-mixed-chunk";
    assert!(kinds(line).contains(&StepKind::Mixed));
}

#[test]
fn num_continuous_decode_steps_makes_bursts() {
    let longest = |line: &str| {
        let mut played = Played::new(line, vec![request(1, prompt(0, 10), 20)]);
        (0..3).map(|_| played.step().0.n_steps).max()
    };
    assert_eq!(longest(""), Some(1));
    assert_eq!(longest("--num-continuous-decode-steps 3"), Some(3));
}

/// The numbers of drafts of a request's rows, over a text of few tokens, which repeats itself.
fn drafts(flags: &str) -> Vec<usize> {
    drafts_of(flags, &[((0..20).collect(), 60)]).remove(0)
}

/// The numbers of drafts of each request's rows, one after the other: prompts, and how many tokens
/// are generated.
fn drafts_of(flags: &str, asked: &[(Vec<u32>, usize)]) -> Vec<Vec<usize>> {
    let engine = resolve(flags).expect(flags).engine;
    let config = engine_loop_config(&engine, Device::Cpu, POOL_TOKENS).scheduler;
    let mut scheduler = Scheduler::new(config);
    let mut executor = MockExecutor::new(MockConfig {
        n_pages: POOL_TOKENS / PAGE_TOKENS,
        script: Some((0..20).collect()),
        ..MockConfig::default()
    });
    let mut drafts_of_one = |(prompt, n_output): &(Vec<u32>, usize)| {
        let asked = request(1, prompt.clone(), *n_output);
        scheduler.add(asked, NOW).expect("it fits");
        let mut drafts = Vec::new();
        while !scheduler.is_idle() {
            let plan = scheduler.plan(NOW);
            drafts.extend(plan.rows.iter().map(|row| row.n_drafts));
            let output = executor.execute(&plan).expect("a step");
            scheduler.commit(&plan, output);
        }
        drafts
    };
    asked.iter().map(&mut drafts_of_one).collect()
}

#[test]
fn speculative_algorithm_makes_drafts() {
    assert!(drafts("").iter().all(|n| *n == 0));
    let line = "--speculative-algorithm NGRAM";
    assert_eq!(drafts(line).iter().max(), Some(&7));
    // 60 tokens in far fewer steps.
    assert!(drafts(line).len() < 25);
    let error = resolve("--speculative-algorithm NEXTN").expect_err("refused");
    assert!(
        error.contains("NEXTN: is not supported yet; NGRAM, SUFFIX, STANDALONE and EAGLE3 are"),
        "{error}"
    );
}

#[test]
fn speculative_num_draft_tokens_bounds_the_drafts() {
    let line = "--speculative-algorithm NGRAM --speculative-num-draft-tokens 2";
    assert_eq!(drafts(line).iter().max(), Some(&2));
}

#[test]
fn the_match_windows_decide_what_is_found_again() {
    let first_step = |flags: &str| {
        let drafts = drafts(&format!("--speculative-algorithm NGRAM {flags}"));
        drafts.iter().position(|n| *n > 0).expect("drafts")
    };
    // The output is the prompt again: after one token of it one can be found, after five, five.
    let min = |n: usize| format!("--speculative-ngram-min-match-window-size {n}");
    assert_eq!(first_step(&min(1)), 1);
    assert_eq!(first_step(&min(5)), 5);
    let max = "--speculative-ngram-max-match-window-size 2";
    assert_eq!(first_step(max), 2, "no shorter one is sought");
}

#[test]
fn speculative_config_is_the_form_of_vllm() {
    for json in [
        r#"{"method":"ngram","num_speculative_tokens":3}"#,
        r#"{"method":"suffix","num_speculative_tokens":3}"#,
    ] {
        let line = format!("--speculative-config {json}");
        assert_eq!(drafts(&line).iter().max(), Some(&3));
    }
}

const SUFFIX: &str = "--speculative-algorithm SUFFIX";

#[test]
fn suffix_trees_are_as_deep_as_they_are_told() {
    assert_eq!(drafts(SUFFIX).iter().max(), Some(&7));
    let line = format!("{SUFFIX} --speculative-suffix-max-tree-depth 4");
    assert_eq!(drafts(&line).iter().max(), Some(&3), "three tokens match");
}

#[test]
fn suffix_takes_answers_from_as_many_requests_as_it_is_told() {
    // Nothing repeats itself within one request.
    let asked = [((500..520).collect(), 18), ((600..620).collect(), 18)];
    let second = |flags: &str| -> usize {
        let drafts = drafts_of(&format!("{SUFFIX} {flags}"), &asked);
        assert_eq!(drafts[0].iter().sum::<usize>(), 0);
        drafts[1].iter().sum()
    };
    assert!(second("") > 10);
    assert!(second("--speculative-suffix-max-cached-requests 1") > 10);
    assert_eq!(second("--speculative-suffix-max-cached-requests 0"), 0);
}

#[test]
fn suffix_drafts_as_much_as_factor_and_probability_allow() {
    let first_step = |prompt: Vec<u32>, flags: &str| {
        let drafts = drafts_of(&format!("{SUFFIX} {flags}"), &[(prompt, 12)]).remove(0);
        drafts.iter().position(|n| *n > 0).expect("drafts")
    };
    let once = || (0..20).collect();
    assert_eq!(first_step(once(), ""), 1);
    let half = "--speculative-suffix-max-spec-factor 0.5";
    assert_eq!(first_step(once(), half), 2, "two tokens match");
    // One of four tokens followed the 0; one followed the 1.
    let four = || vec![0, 5, 0, 6, 0, 7, 0, 8, 1, 2];
    assert_eq!(first_step(four(), ""), 1);
    let likely = "--speculative-suffix-min-token-prob 0.3";
    assert_eq!(first_step(four(), likely), 2);
}

#[test]
fn disable_radix_cache_computes_a_prefix_again() {
    let second_start = |line: &str| {
        let mut played = Played::new(line, vec![request(1, prompt(0, 100), 1)]);
        played.step();
        let again = request(2, prompt(0, 100), 1);
        played.scheduler.add(again, NOW).expect("it fits");
        played.step().0.rows[0].start
    };
    assert_eq!(second_start(""), 96);
    assert_eq!(second_start("--disable-radix-cache"), 0);
}

#[test]
fn each_schedule_policy_has_an_order_of_its_own() {
    // 0 and 3 begin alike, and so do 4, 5 and 6.
    let requests = || {
        let beginning = |first: u32, own: u32| [prompt(first, 32), prompt(own, 20)].concat();
        let with_priority = |priority, request: Request| Request {
            priority,
            ..request
        };
        vec![
            request(0, beginning(1000, 1), 30),
            request(1, prompt(3000, 60), 20),
            with_priority(5, request(2, prompt(4000, 10), 5)),
            request(3, beginning(1000, 50), 40),
            request(4, beginning(2000, 100), 33),
            request(5, beginning(2000, 150), 34),
            request(6, beginning(2000, 200), 35),
        ]
    };
    let order = |policy: &str| {
        let line = format!("--max-running-requests 1 --schedule-policy {policy}");
        Played::new(&line, requests()).order()
    };
    let in_order_of_arrival = Played::new("--max-running-requests 1", requests()).order();
    assert_eq!(in_order_of_arrival, [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(order("fcfs"), in_order_of_arrival);
    assert_eq!(order("lpm")[..2], [0, 3], "what is cached is shared next");
    assert_eq!(order("dfs-weight")[..3], [4, 5, 6], "the heaviest subtree");
    assert_eq!(order("lof")[..2], [2, 1], "the fewest tokens to go");
    assert_eq!(order("longest-output-first")[..2], [3, 6]);
    assert_eq!(order("priority")[0], 2);
    assert_ne!(order("random"), in_order_of_arrival);
}

#[test]
fn random_seed_shuffles_the_random_policy() {
    let order = |seed: u32| {
        let line =
            format!("--max-running-requests 1 --schedule-policy random --random-seed {seed}");
        let requests = (0..12)
            .map(|id| request(id, prompt(id as u32 * 100, 5), 1))
            .collect();
        Played::new(&line, requests).order()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
}

#[tokio::test]
async fn max_queued_requests_bounds_the_queue() {
    let accepted = |line: &str| {
        let engine = resolve(line).expect(line).engine;
        let executor = MockExecutor::new(MockConfig {
            n_pages: POOL_TOKENS / PAGE_TOKENS,
            step_delay: Duration::from_millis(50),
            ..MockConfig::default()
        });
        let engine = engine::engine_loop::start(
            Box::new(executor),
            engine_loop_config(&engine, Device::Cpu, POOL_TOKENS),
            Arc::new(engine::metrics::Metrics::new("mock")),
        )
        .expect("an engine");
        let streams: Vec<_> = (0..10)
            .map(|i| engine.submit(request(i, prompt(0, 10), 30)))
            .collect();
        streams.iter().filter(|stream| stream.is_ok()).count()
    };
    assert_eq!(accepted("--max-running-requests 2"), 10);
    let line = "--max-running-requests 2 --max-queued-requests 3";
    assert_eq!(accepted(line), 5);
}
