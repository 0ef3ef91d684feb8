//! Whether drafts pay: the scheduler's own choice of their number, over an executor that only keeps
//! the time of each step, for every batch and every acceptance.

use super::*;
use crate::speculation::{
    Algorithm, Drafter, Drafters, NgramConfig, Shared, SpeculationConfig, TimesMeter,
};
use crate::step::RowOutput;

/// Steps until times and acceptance are known, and steps that are measured.
const N_LEARNING: usize = 400;
const N_MEASURED: usize = 2000;

/// Milliseconds of a decode step by rows, at some of them.
type Curve = &'static [(usize, f64)];

/// Qwen3-32B's shapes on an H200, from `data/bench/20261130T2040_h200`.
const H200: Curve = &[
    (1, 6.34),
    (4, 6.6),
    (8, 7.12),
    (20, 8.89),
    (24, 9.28),
    (60, 13.3),
    (64, 13.7),
];
/// Every row costs half a step.
const STEEP: Curve = &[(1, 1.0), (64, 32.5)];
/// Tiles of eight rows.
const TILES: Curve = &[
    (1, 1.0),
    (8, 1.0),
    (9, 1.4),
    (16, 1.4),
    (17, 1.8),
    (32, 1.9),
    (33, 2.6),
    (64, 2.7),
];

fn time(curve: Curve, n_rows: usize) -> f64 {
    let above = curve.iter().position(|(n, _)| *n >= n_rows);
    let i = above.expect("at most 64 rows");
    if i == 0 {
        return curve[0].1;
    }
    let ((low, before), (high, after)) = (curve[i - 1], curve[i]);
    let share = (n_rows - low) as f64 / (high - low) as f64;
    before + share * (after - before)
}

/// From 0 to 1, by all of the values.
fn drawn(values: [u64; 4]) -> f64 {
    let mut hash = 0u64;
    for value in values {
        // SplitMix64's mixing.
        hash = (hash ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^= hash >> 31;
    }
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// The token at a place of a request's text.
fn token(id: RequestId, at: usize) -> u32 {
    (id.0 * 7919 + at as u64 * 31) as u32 % 30_000
}

/// Drafts of each request that are right with a probability of its own.
#[derive(Debug, Clone)]
struct Oracle(Vec<f64>);

#[derive(Debug)]
struct OneOracle {
    id: RequestId,
    p_right: f64,
}

impl Drafters for Oracle {
    fn drafter_of(&self, request: &Request) -> Box<dyn Drafter> {
        Box::new(OneOracle {
            id: request.id,
            p_right: self.0[request.id.0 as usize],
        })
    }
}

impl Drafter for OneOracle {
    fn draft(&mut self, _: &mut Shared, tokens: &[u32], max: usize, drafts: &mut Vec<u32>) {
        for i in 0..max {
            let at = tokens.len() + i;
            let is_right = drawn([1, self.id.0, tokens.len() as u64, i as u64]) < self.p_right;
            drafts.push(token(self.id, at) + u32::from(!is_right));
        }
    }

    fn may_draft_next(&self, _: &[u32]) -> bool {
        true
    }
}

/// How many times as fast the requests are as without drafts, and drafts a row.
fn speed(curve: Curve, acceptance: &[f64], run_ahead: bool) -> (f64, f64) {
    let n_requests = acceptance.len();
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_total_tokens: n_requests * (1 << 15),
        max_running_requests: n_requests,
        radix_cache: false,
        run_ahead,
        speculation: Some(SpeculationConfig {
            algorithm: Algorithm::Ngram(NgramConfig::default()),
            n_draft_tokens: 7,
        }),
        ..SchedulerConfig::default()
    });
    scheduler.set_drafters(Box::new(Oracle(acceptance.to_vec())));
    for id in 0..n_requests as u64 {
        scheduler.add(request(id, 1, 30_000), T0).unwrap();
    }
    let mut meter = TimesMeter::default();
    let (mut n_tokens, mut elapsed, mut n_drafts) = (0, 0.0, 0);
    for i_step in 0..=N_LEARNING + N_MEASURED {
        let plan = scheduler.plan(T0);
        assert_eq!(plan.rows.len(), n_requests);
        let rows = plan.rows.iter().map(|row| {
            let spec = row.sample.as_ref().expect("it samples");
            let mut made = RowOutput::default();
            for n_before in 0..=row.n_drafts {
                let at = 1 + spec.output_index + n_before;
                let token = token(row.request, at);
                let (logprob, top_logprobs) = (None, Vec::new());
                let chosen = SampledToken {
                    token,
                    logprob,
                    top_logprobs,
                };
                made.push_verified(
                    row.drafts(),
                    n_before,
                    Ok::<_, crate::step::RowError>(chosen),
                );
            }
            made
        });
        let output = StepOutput {
            rows: rows.collect(),
        };
        let n_made: usize = output.rows.iter().map(|row| row.tokens.len()).sum();
        let n_rows: usize = plan.rows.iter().map(|row| row.tokens.len()).sum();
        // Three percent of noise.
        let noise = 0.97 + 0.06 * drawn([2, i_step as u64, n_rows as u64, 0]);
        let took = time(curve, n_rows) * noise;
        if i_step > 0 {
            let times = meter.observe(n_rows, took * 1e-3);
            scheduler.set_step_times(times);
        }
        if i_step > N_LEARNING {
            n_tokens += n_made;
            elapsed += took;
            n_drafts += n_rows - n_requests;
        }
        scheduler.commit(&plan, output);
        scheduler.reuse(plan);
    }
    let plain = n_tokens as f64 * time(curve, n_requests) / n_requests as f64;
    (
        plain / elapsed,
        n_drafts as f64 / (N_MEASURED * n_requests) as f64,
    )
}

/// The best that any number of drafts gives if all rows have as many, in the mean.
fn best(curve: Curve, n_requests: usize, p_right: f64) -> f64 {
    let speed = |n_drafts: usize| {
        let n_rows = n_requests * (1 + n_drafts);
        let n_tokens: f64 = (0..=n_drafts).map(|k| p_right.powi(k as i32)).sum();
        n_tokens * time(curve, n_requests) / time(curve, n_rows)
    };
    let n_most = (64 / n_requests - 1).min(7);
    (0..=n_most).map(speed).fold(1.0, f64::max)
}

#[test]
fn no_batch_and_no_acceptance_is_slower_than_without() {
    let mut slowest = (f64::MAX, String::new());
    for (name, curve) in [("H200", H200), ("steep", STEEP), ("tiles", TILES)] {
        for n_requests in 1..=64 {
            // Every acceptance in turn, and a few for each batch.
            for i in 0..3 {
                let p_right = ((n_requests * 3 + i * 7) % 21) as f64 / 20.0;
                let acceptance = vec![p_right; n_requests];
                let (speed, n_drafts) = speed(curve, &acceptance, false);
                let case = format!(
                    "{name}, batch {n_requests}, acceptance {p_right}: {speed:.3}, {n_drafts:.2} drafts"
                );
                if speed < slowest.0 {
                    slowest = (speed, case.clone());
                }
                assert!(speed >= 1.0 / 1.02, "{case}");
            }
        }
    }
    println!("the slowest: {}", slowest.1);
}

#[test]
fn requests_that_differ_are_told_apart() {
    for n_requests in [2, 8, 24] {
        let acceptance: Vec<f64> = (0..n_requests)
            .map(|i| if i % 2 == 0 { 0.9 } else { 0.0 })
            .collect();
        let (mixed, _) = speed(H200, &acceptance, false);
        let (all, _) = speed(H200, &vec![0.9; n_requests], false);
        println!("batch {n_requests}: {mixed:.2} with half of them, {all:.2} with all");
        assert!(mixed > 1.0 + 0.45 * (all - 1.0), "{mixed} of {all}");
    }
}

#[test]
fn drafts_come_back_where_steps_are_announced() {
    let (speed, _) = speed(H200, &[0.9], true);
    assert!(speed > 3.0, "{speed}");
}

/// The curve of `docs/speculation.md`.
#[test]
fn the_curve_over_acceptance_and_batch_is_near_the_best() {
    let batches = [1, 2, 4, 8, 16, 24, 32, 48, 64];
    println!(
        "| acceptance | {} |",
        batches.map(|n| n.to_string()).join(" | ")
    );
    for tenths in 0..=10 {
        let p_right = f64::from(tenths) / 10.0;
        let cells = batches.map(|n_requests| {
            let (found, _) = speed(H200, &vec![p_right; n_requests], false);
            let best = best(H200, n_requests, p_right);
            assert!(
                found > 0.85 * best,
                "batch {n_requests}, {p_right}: {found} of {best}"
            );
            format!("{found:.2}")
        });
        println!("| {p_right} | {} |", cells.join(" | "));
    }
}
