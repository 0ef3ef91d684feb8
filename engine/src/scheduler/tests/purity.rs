//! A plan depends only on state and time: not on the memory it is written into, nor on what the
//! queue keeps of its last order.

use super::*;

/// Where the rows' tokens and pages lie.
fn addresses(plan: &StepPlan) -> Vec<(*const u32, *const crate::kv::PageIdx)> {
    plan.rows
        .iter()
        .map(|row| (row.tokens.as_ptr(), row.pages.as_ptr()))
        .collect()
}

#[test]
fn a_batch_that_stays_the_same_is_written_into_the_memory_of_the_last_plan() {
    let penalised = |id| Request {
        sampling: Arc::new(SamplingParams {
            presence_penalty: 1.0,
            ..SamplingParams::default()
        }),
        ..request(id, 20, 10)
    };
    let mut scheduler = Scheduler::new(config(64));
    let mut executor = mock(64);
    for id in 0..5 {
        scheduler.add(penalised(id), T0).unwrap();
    }
    step(&mut scheduler, &mut executor);
    let mut last = None;
    for i in 0..6 {
        let (plan, _) = step(&mut scheduler, &mut executor);
        let place = addresses(&plan);
        let spec = plan.rows[4].sample.as_ref().unwrap();
        // The previous contents are gone: 20 prompt tokens, and one of each step so far.
        assert_eq!((spec.history.len(), spec.output_index), (21 + i, 1 + i));
        assert!(last.is_none_or(|last| last == place), "step {i}");
        last = Some(place);
        scheduler.reuse(plan);
    }
}

#[derive(Debug, Clone)]
enum Event {
    Add {
        prefix: u32,
        n_prompt: usize,
        max_new_tokens: usize,
        priority: i32,
    },
    Cancel(usize),
    Step,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0u32..4, 1usize..70, 1usize..20, -2i32..3).prop_map(
            |(prefix, n_prompt, max_new_tokens, priority)| Event::Add {
                prefix,
                n_prompt,
                max_new_tokens,
                priority,
            }
        ),
        1 => any::<usize>().prop_map(Event::Cancel),
        4 => Just(Event::Step),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Two schedulers see the same events. One recycles its plans and keeps what it may; the other
    /// starts every plan in fresh memory with nothing kept.
    #[test]
    fn plans_are_those_of_a_scheduler_that_keeps_nothing(
        n_pages in 8usize..40,
        max_running_requests in 1usize..6,
        mixed_chunk in any::<bool>(),
        radix_cache in any::<bool>(),
        policy in 0..PolicyName::ALL.len(),
        events in prop::collection::vec(event(), 1..120),
    ) {
        let config = SchedulerConfig {
            max_running_requests,
            mixed_chunk,
            radix_cache,
            chunked_prefill_size: Some(32),
            policy: PolicyName::ALL[policy],
            ..config(n_pages)
        };
        let mut keeping = (Scheduler::new(config.clone()), mock(n_pages));
        let mut fresh = (Scheduler::new(config), mock(n_pages));
        for (i, event) in events.into_iter().enumerate() {
            let now = Duration::from_millis(i as u64);
            match event {
                Event::Add { prefix, n_prompt, max_new_tokens, priority } => {
                    let own = i as u32 * 1000;
                    let request = Request {
                        prompt: (0..n_prompt as u32)
                            .map(|t| if t < 40 { prefix * 7919 + t } else { own + t })
                            .collect(),
                        priority,
                        ..request(i as u64, n_prompt, max_new_tokens)
                    };
                    let added = keeping.0.add(request.clone(), now);
                    prop_assert_eq!(added, fresh.0.add(request, now));
                }
                Event::Cancel(nth) => {
                    let mut ids = keeping.0.request_ids();
                    ids.sort_unstable();
                    if !ids.is_empty() {
                        let id = ids[nth % ids.len()];
                        prop_assert_eq!(keeping.0.cancel(id), fresh.0.cancel(id));
                    }
                }
                Event::Step => {
                    fresh.0.waiting.forget_order();
                    let plan = keeping.0.plan(now);
                    let expected = fresh.0.plan(now);
                    prop_assert_eq!(format!("{plan:?}"), format!("{expected:?}"));
                    if !plan.rows.is_empty() {
                        let output = keeping.1.execute(&plan).unwrap();
                        let events = keeping.0.commit(&plan, output);
                        let output = fresh.1.execute(&expected).unwrap();
                        prop_assert_eq!(events, fresh.0.commit(&expected, output));
                    }
                    keeping.0.reuse(plan);
                }
            }
        }
    }
}
