//! The order of admission under each policy, and the absence of starvation.

use super::*;

/// Ids in the order in which they are admitted, one at a time.
fn admission_order(policy: PolicyName, requests: Vec<(Request, Duration)>) -> Vec<u64> {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_running_requests: 1,
        policy,
        policy_seed: 7,
        ..config(256)
    });
    let mut executor = mock(256);
    for (request, arrival) in requests {
        scheduler.add(request, arrival).unwrap();
    }
    let mut order = Vec::new();
    while !scheduler.is_idle() {
        let (plan, _) = step(&mut scheduler, &mut executor);
        for row in plan.rows {
            if order.last() != Some(&row.request.0) {
                order.push(row.request.0);
            }
        }
    }
    order
}

#[test]
fn each_policy_has_its_order() {
    let at_once = |requests: Vec<Request>| requests.into_iter().map(|r| (r, T0)).collect();
    let mixed = || {
        at_once(vec![
            request(1, 50, 30),
            request(2, 10, 40),
            request(3, 20, 5),
        ])
    };
    assert_eq!(admission_order(PolicyName::Fcfs, mixed()), [1, 2, 3]);
    assert_eq!(admission_order(PolicyName::Lof, mixed()), [3, 2, 1]);
    assert_eq!(
        admission_order(PolicyName::LongestOutputFirst, mixed()),
        [2, 1, 3]
    );
    assert_eq!(admission_order(PolicyName::Lpm, mixed()), [1, 2, 3]);
    assert_eq!(admission_order(PolicyName::DfsWeight, mixed()), [1, 2, 3]);

    let with_priority = |id, priority| Request {
        priority,
        ..request(id, 5, 2)
    };
    let order = admission_order(
        PolicyName::Priority,
        at_once(vec![
            with_priority(1, 0),
            with_priority(2, -1),
            with_priority(3, 2),
        ]),
    );
    assert_eq!(order, [3, 1, 2]);

    let many = || at_once((0..20).map(|id| request(id, 5, 2)).collect());
    let random = admission_order(PolicyName::Random, many());
    assert_ne!(random, (0..20).collect::<Vec<_>>());
    assert_eq!(
        random,
        admission_order(PolicyName::Random, many()),
        "seeded"
    );
}

fn with_prompt(id: u64, prompt: Vec<u32>) -> Request {
    Request {
        prompt: prompt.into(),
        ..request(id, 1, 2)
    }
}

#[test]
fn lpm_prefers_what_shares_a_prefix_with_the_running() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_running_requests: 2,
        policy: PolicyName::Lpm,
        ..config(64)
    });
    let mut executor = mock(64);
    let system: Vec<u32> = (500..540).collect();
    let long = Request {
        max_new_tokens: 50,
        ..with_prompt(1, system.clone())
    };
    scheduler.add(long, T0).unwrap();
    step(&mut scheduler, &mut executor);
    scheduler.add(request(2, 40, 2), T0).unwrap();
    scheduler
        .add(with_prompt(3, [&system[..], &[1, 2, 3]].concat()), T0)
        .unwrap();
    step(&mut scheduler, &mut executor);
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!(shape(&plan), [(3, 32, 11, true)]);
}

#[test]
fn dfs_weight_walks_the_heaviest_subtree_first() {
    let prefix = |first: u32, tail: u32| {
        let mut prompt: Vec<u32> = (first..first + 32).collect();
        prompt.extend(tail..tail + 16);
        prompt
    };
    let requests = vec![
        with_prompt(1, prefix(1000, 0)),
        with_prompt(2, prefix(2000, 0)),
        with_prompt(3, vec![9; 4]),
        with_prompt(4, prefix(1000, 50)),
        with_prompt(5, prefix(2000, 50)),
        with_prompt(6, prefix(2000, 50)),
        with_prompt(7, (2000..2032).collect()),
    ];
    let mut scheduler = Scheduler::new(SchedulerConfig {
        policy: PolicyName::DfsWeight,
        // With it, requests with a common prefix would wait for the first of them.
        radix_cache: false,
        ..config(256)
    });
    for request in requests {
        scheduler.add(request, T0).unwrap();
    }
    let admitted = |plan: &StepPlan| {
        plan.rows
            .iter()
            .map(|row| row.request.0)
            .collect::<Vec<_>>()
    };
    let (plan, _) = step(&mut scheduler, &mut mock(256));
    // 2000…: four, with the prompt that is the prefix itself first, then the pair; 1000…: two.
    assert_eq!(admitted(&plan), [7, 5, 6, 2, 1, 4, 3]);

    // A small subtree that is running precedes a large one that is not.
    for id in [11, 12] {
        scheduler.add(with_prompt(id, prefix(3000, 0)), T0).unwrap();
    }
    scheduler
        .add(with_prompt(13, prefix(1000, 99)), T0)
        .unwrap();
    scheduler.decode_is_due = false;
    assert_eq!(admitted(&scheduler.plan(T0)), [13, 11, 12]);
}

#[test]
fn policies_are_named_as_on_the_command_line() {
    for policy in PolicyName::ALL {
        assert_eq!(policy.as_str().parse(), Ok(policy));
    }
    let error = "lpmm".parse::<PolicyName>().unwrap_err().to_string();
    assert!(error.contains("\"lpmm\""), "{error}");
    for policy in PolicyName::ALL {
        assert!(error.contains(policy.as_str()), "{error}");
    }
}

#[test]
fn nothing_starves_under_any_policy() {
    // The worst case of each policy against a stream of requests that it prefers, one every
    // 10 ms for twice the documented bound, on an engine that runs one request per arrival.
    let bound = Duration::from_micros(2 * MAX_HANDICAP_US as u64);
    for policy in PolicyName::ALL {
        let mut scheduler = Scheduler::new(SchedulerConfig {
            max_running_requests: 1,
            policy,
            ..config(4096)
        });
        let disliked = match policy {
            PolicyName::LongestOutputFirst => request(0, 10, 1),
            _ => Request {
                priority: i32::MIN,
                ..request(0, 30_000, 30_000)
            },
        };
        scheduler.add(disliked, T0).unwrap();
        scheduler.add(request(1, 10, 1), T0).unwrap();
        let mut now = T0;
        let mut next_id = 2;
        let admitted_at = loop {
            let plan = scheduler.plan(now);
            if plan.rows.iter().any(|row| row.request.0 == 0) {
                break now;
            }
            let token = SampledToken {
                token: 0,
                logprob: None,
                top_logprobs: Vec::new(),
            };
            let output = StepOutput {
                rows: vec![vec![token].into(); plan.rows.len()],
            };
            scheduler.commit(&plan, output);
            now += Duration::from_millis(10);
            assert!(now <= bound + Duration::from_secs(1), "{policy} starves");
            let n_output = if policy == PolicyName::LongestOutputFirst {
                30_000
            } else {
                1
            };
            scheduler
                .add(
                    Request {
                        priority: i32::MAX,
                        ..request(next_id, 10, n_output)
                    },
                    now,
                )
                .unwrap();
            if let PolicyName::LongestOutputFirst = policy {
                // Cancel it after its first token, whatever it was allowed.
                scheduler
                    .running
                    .iter_mut()
                    .for_each(|s| s.request.max_new_tokens = 1);
            }
            next_id += 1;
        };
        assert!(admitted_at <= bound, "{policy}: {admitted_at:?}");
    }
}

proptest! {
    #[test]
    fn order_of_two_waiting_requests_never_depends_on_the_present(
        a in (0u64..500_000_000, 0usize..100_000, 0usize..100_000, any::<i32>()),
        gap_us in 2 * MAX_HANDICAP_US as u64..1_000_000_000,
        b in (0usize..100_000, 0usize..100_000, any::<i32>()),
    ) {
        for policy in PolicyName::ALL {
            let policy = policy.build(3);
            let candidate = |id, n_uncomputed_tokens, n_output_left, priority| Candidate {
                request: RequestId(id),
                n_uncomputed_tokens,
                n_output_left,
                priority,
                prefix_hashes: &[],
            };
            let start = |arrival_us, candidate: &Candidate<'_>| {
                let arrival = Duration::from_micros(arrival_us);
                waiting::virtual_start_us(arrival, policy.handicap_us(candidate))
            };
            let earlier = start(a.0, &candidate(1, a.1, a.2, a.3));
            let later = start(a.0 + gap_us, &candidate(2, b.0, b.1, b.2));
            prop_assert!(earlier <= later, "{policy:?}: {earlier} > {later}");
        }
    }
}
