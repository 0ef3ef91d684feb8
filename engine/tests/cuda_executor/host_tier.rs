//! KV that was copied to the host and back is unchanged, whatever ran in between.

use engine::executor::cuda::{CudaExecutor, CudaOptions, Element, GraphSizes, KvFormat};
use engine::executor::{Executor, HostTierOptions, HostTierSize};
use engine::kv::{PageCopies, PageCopy, PageIdx};
use engine::model::config::Family;
use engine::request::SamplingParams;
use engine::scheduler::{HostTierConfig, SchedulerConfig};
use engine::step::{PlanRow, StepPlan};
use engine::weights::Checkpoint;

use super::service::{Arrival, scheduler, serve};
use super::{awq, generate, greedy, load, options, row, tokens};

fn executor(checkpoint: &dyn Checkpoint, kv_format: KvFormat, element: Element) -> CudaExecutor {
    let options = CudaOptions {
        element,
        kv_format,
        graphs: GraphSizes::Exactly(vec![1, 2, 4, 8]),
        host_tier: Some(HostTierOptions {
            size: HostTierSize::Ratio(0.5),
            free_bytes: u64::MAX,
        }),
        ..options()
    };
    load(checkpoint, &options)
}

/// A row on these pages.
fn on_pages(tokens: &[u32], start: usize, pages: &[u32]) -> PlanRow {
    PlanRow {
        pages: pages.iter().map(|page| PageIdx(*page)).collect(),
        ..row(0, tokens, start, start + tokens.len())
    }
}

fn copies(device: &[u32], host: &[u32]) -> Vec<PageCopy> {
    let pairs = device.iter().zip(host);
    let copy = |(device, host): (&u32, &u32)| PageCopy {
        device: PageIdx(*device),
        host: PageIdx(*host),
    };
    pairs.map(copy).collect()
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn a_prefix_from_the_host_changes_no_logit() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    for (element, kv_format) in [
        (Element::F16, KvFormat::F16),
        (Element::Bf16, KvFormat::Fp8E4m3),
    ] {
        let mut executor = executor(checkpoint.as_ref(), kv_format, element);
        let tier = executor.info().host_tier.expect("a host tier");
        // The pool has 8,192 tokens.
        assert_eq!(tier.n_pages, 256);
        assert_eq!(tier.page_bytes * 512, executor.info().kv_pool_bytes);
        let (prefix, rest) = (tokens(96, 1), tokens(20, 2));
        // The last page of the pool and of the tier are among them.
        let first = [400, 3, 511, 77, 12, 201];
        let host = [255, 0, 9, 100, 8, 31];
        let second = [5, 499, 40, 3, 222, 400];
        let suffix = [300, 301];
        let wanted: Vec<(usize, usize)> = (0..rest.len()).map(|t| (0, t)).collect();
        let logits = |executor: &mut CudaExecutor, pages: &[u32; 6]| {
            let row = on_pages(&rest, prefix.len(), &[&pages[..], &suffix].concat());
            executor.forward_logits(&[row], &wanted).expect("logits")
        };
        let all = on_pages(&prefix, 0, &first);
        executor.forward_logits(&[all], &[]).expect("the prefix");
        let expected = logits(&mut executor, &first);

        // Copied out while another sequence is computed, over the pages afterwards, and restored
        // elsewhere while a third one is.
        let beside = |pages: &[u32], copies: PageCopies, token: u32| StepPlan {
            rows: vec![PlanRow {
                sample: Some(greedy(0)),
                ..on_pages(&tokens(30, token), 0, pages)
            }],
            n_steps: 1,
            copies,
            ..StepPlan::default()
        };
        let out = PageCopies {
            offloads: copies(&first, &host),
            ..PageCopies::default()
        };
        executor.execute(&beside(&[350, 351], out, 5)).expect("out");
        let over = on_pages(&tokens(96, 9), 0, &first);
        let overwrites = StepPlan {
            rows: vec![over],
            n_steps: 1,
            ..StepPlan::default()
        };
        executor.execute(&overwrites).expect("written over");
        let back = PageCopies {
            restores: copies(&second, &host),
            ..PageCopies::default()
        };
        executor
            .execute(&beside(&[360, 361], back, 6))
            .expect("back");
        // A plan without rows only copies, and orders the next plan after its copies.
        executor
            .execute(&StepPlan {
                n_steps: 1,
                ..StepPlan::default()
            })
            .expect("nothing");
        assert_eq!(logits(&mut executor, &second), expected, "{kv_format:?}");
        let counts = executor.counts();
        assert!(counts.copied_pages > 0 && counts.copy_ns > 0, "{counts:?}");

        let outside = PageCopies {
            restores: copies(&[0], &[256]),
            ..PageCopies::default()
        };
        let plan = StepPlan {
            n_steps: 1,
            copies: outside,
            ..StepPlan::default()
        };
        assert!(executor.execute(&plan).is_err(), "there is no such page");
        assert_eq!(logits(&mut executor, &second), expected, "it still works");
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn copies_without_a_tier_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    let mut executor = load(checkpoint.as_ref(), &options());
    assert_eq!(executor.info().host_tier, None);
    let plan = StepPlan {
        n_steps: 1,
        copies: PageCopies {
            restores: copies(&[0], &[0]),
            ..PageCopies::default()
        },
        ..StepPlan::default()
    };
    let refused = executor.execute(&plan).expect_err("no tier").to_string();
    assert!(refused.contains("no host tier"), "{refused}");
    assert_eq!(generate(&mut executor, 2, 5, 1).len(), 2);
}

/// Requests that share a prefix, others that take its pages, and one that decodes all the time.
/// The first token after a restored prefix is as likely as after one that was never evicted.
#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn served_requests_get_their_prefix_back_beside_decode_steps() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    let mut executor = executor(checkpoint.as_ref(), KvFormat::F16, Element::F16);
    let n_host_pages = executor.info().host_tier.expect("a host tier").n_pages;
    let arrival = |at_step: usize, prompt: Vec<u32>, max_new_tokens: usize| Arrival {
        at_step,
        prompt,
        max_new_tokens,
        stop_token_ids: Vec::new(),
        params: SamplingParams {
            n_logprobs: Some(1),
            ..SamplingParams::default()
        },
        cancelled_at: None,
    };
    let shared = tokens(200, 1);
    let mut arrivals = vec![arrival(0, tokens(10, 3), 400)];
    for i in 0..6 {
        let own = tokens(20, 10 + i as u32);
        arrivals.push(arrival(60 * i, [&shared[..], &own].concat(), 8));
        arrivals.push(arrival(60 * i + 25, tokens(400, 20 + i as u32), 8));
    }
    let config = |n_pages: usize, host_tier| SchedulerConfig {
        max_total_tokens: n_pages * 16,
        host_tier,
        ..scheduler(1)
    };
    let expected = serve(&mut executor, config(512, None), &arrivals);
    let before = executor.counts();
    let tier = HostTierConfig {
        n_pages: n_host_pages,
        n_copies: 4,
    };
    // 26 pages decode, 26 more hold one of the long prompts.
    let found = serve(&mut executor, config(56, Some(tier)), &arrivals);
    let after = executor.counts();
    assert!(after.copied_pages > before.copied_pages, "{after:?}");
    assert!(after.run_ahead_used > before.run_ahead_used, "{after:?}");
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found.len(), expected.len(), "request {i}");
        let (found, expected) = (found[0].logprob, expected[0].logprob);
        let difference = found.zip(expected).map(|(f, e)| (f - e).abs());
        assert!(
            difference.is_some_and(|d| d < 0.05),
            "request {i}: {difference:?}"
        );
    }
}
