//! Requests served by the real scheduler on an executor, without clocks: arrivals are counted in
//! steps, so two runs make the same plans as long as they make the same tokens.

use std::sync::Arc;
use std::time::Duration;

use engine::executor::Executor;
use engine::request::{Request, RequestId, SampledToken, SamplingParams, TokenEvent};
use engine::scheduler::{Scheduler, SchedulerConfig};

#[derive(Debug, Clone)]
pub struct Arrival {
    /// Number of steps before it arrives.
    pub at_step: usize,
    pub prompt: Vec<u32>,
    pub max_new_tokens: usize,
    pub stop_token_ids: Vec<u32>,
    pub params: SamplingParams,
    /// Number of steps before its client disconnects.
    pub cancelled_at: Option<usize>,
}

/// The output of each request, in the order of `arrivals`.
pub fn serve(
    executor: &mut dyn Executor,
    config: SchedulerConfig,
    arrivals: &[Arrival],
) -> Vec<Vec<SampledToken>> {
    let mut scheduler = Scheduler::new(config);
    let mut made = vec![Vec::new(); arrivals.len()];
    let last_arrival = arrivals.iter().map(|a| a.at_step).max().unwrap_or(0);
    let mut step = 0;
    while step <= last_arrival || !scheduler.is_idle() {
        for (id, arrival) in arrivals.iter().enumerate() {
            let id = RequestId(id as u64);
            if arrival.at_step == step {
                let request = Request {
                    id,
                    prompt: arrival.prompt.clone().into(),
                    sampling: Arc::new(arrival.params.clone()),
                    max_new_tokens: arrival.max_new_tokens,
                    stop_token_ids: arrival.stop_token_ids.clone().into(),
                    priority: 0,
                    prefix_root: 0,
                };
                scheduler.add(request, Duration::ZERO).expect("it fits");
            }
            if arrival.cancelled_at == Some(step) {
                scheduler.cancel(id);
            }
        }
        step += 1;
        if scheduler.is_idle() {
            continue;
        }
        let plan = scheduler.plan(Duration::ZERO);
        let output = executor.execute(&plan).expect("a step");
        for (id, event) in scheduler.commit(&plan, output) {
            match event {
                TokenEvent::Token(token) => made[id.0 as usize].push(token),
                TokenEvent::Finished { .. } | TokenEvent::PromptLogprobs(_) => {}
                TokenEvent::Failed(failure) => panic!("request {id}: {failure}"),
            }
        }
    }
    made
}

pub fn scheduler(n_continuous_decode_steps: usize) -> SchedulerConfig {
    SchedulerConfig {
        max_total_tokens: 8192,
        n_continuous_decode_steps,
        run_ahead: true,
        ..SchedulerConfig::default()
    }
}
