//! An executor that computes nothing and says how long it would have taken on a card, so that
//! thousands of requests can be scheduled in seconds.
//!
//! [`card`] reads what is known of a card, [`cost`] makes times of it. The time that the steps
//! took is asked for with [`SimulatedExecutor::take_elapsed`]; nobody sleeps. Tokens are made up
//! and never stop a sequence.

pub mod card;
pub mod cost;

use std::time::Duration;

use kernels::stream_linear::MANY_ROWS;

pub use card::{Card, CardError};
pub use cost::CostModel;

use super::host_tier::{CARD_STEP_BYTES, HostTierInfo};
use super::{Asleep, Executor, ExecutorCounts, ExecutorError, ExecutorInfo, StepOutput, StepPlan};
use crate::kv::PAGE_TOKENS;
use crate::request::SampledToken;

/// A token that no request stops at.
const MADE_UP_TOKEN: u32 = u32::MAX;

/// Settings that decide how a step is carried out.
#[derive(Debug, Clone, Copy)]
pub struct SimulatedOptions {
    pub kv_pool_tokens: usize,
    pub weight_bytes: u64,
    pub kv_bytes_per_token: u64,
    /// Decode steps of up to so many rows are replayed from a graph.
    pub max_graph_rows: usize,
    /// Decode batches run as two halves.
    pub two_batch_overlap: bool,
    /// Pages of KV on the card's host.
    pub host_tier_pages: Option<usize>,
}

/// Whether a decode batch runs as two halves: the kernels of a half must have fewer than
/// [`MANY_ROWS`] rows.
fn is_halved(n_rows: usize) -> bool {
    n_rows > 1 && n_rows.div_ceil(2) < MANY_ROWS
}

#[derive(Debug)]
pub struct SimulatedExecutor {
    info: ExecutorInfo,
    cost: CostModel,
    max_graph_rows: usize,
    two_batch_overlap: bool,
    page_bytes: u64,
    elapsed: Duration,
    counts: ExecutorCounts,
}

impl SimulatedExecutor {
    pub fn new(cost: CostModel, options: SimulatedOptions) -> Self {
        let page_bytes = PAGE_TOKENS as u64 * options.kv_bytes_per_token;
        let info = ExecutorInfo {
            name: "simulated".to_owned(),
            device: format!("{} (simulated)", cost.card().rates.name),
            kernels: vec![("steps_of".to_owned(), cost.card().measured_on.name.clone())],
            inactive_flags: Vec::new(),
            kv_pool_tokens: options.kv_pool_tokens,
            kv_pool_bytes: options.kv_pool_tokens as u64 * options.kv_bytes_per_token,
            weight_bytes: options.weight_bytes,
            host_tier: options
                .host_tier_pages
                .map(|n_pages| HostTierInfo::new(n_pages, page_bytes, CARD_STEP_BYTES)),
        };
        Self {
            info,
            cost,
            max_graph_rows: options.max_graph_rows,
            two_batch_overlap: options.two_batch_overlap,
            page_bytes,
            elapsed: Duration::ZERO,
            counts: ExecutorCounts::default(),
        }
    }

    /// How long the steps since the last call would have taken.
    pub fn take_elapsed(&mut self) -> Duration {
        std::mem::take(&mut self.elapsed)
    }

    pub fn cost(&self) -> &CostModel {
        &self.cost
    }

    /// Seconds of the plan's copies, one after the other over the host's link.
    fn copies_s(&self, plan: &StepPlan) -> f64 {
        let bytes = plan.copies.n_pages() as u64 * self.page_bytes;
        bytes as f64 / (self.cost.card().rates.host_link_gb_per_s * 1e9)
    }

    /// Seconds of one of the plan's steps: its rows' tokens, packed, in passes.
    fn step_s(&self, plan: &StepPlan, i_step: usize) -> f64 {
        let steps = &self.cost.card().steps;
        let is_decode = plan
            .rows
            .iter()
            .all(|row| row.tokens.len() == 1 && row.sample.is_some());
        let mut total_s = 0.0;
        let (mut n_rows, mut n_logits, mut n_read) = (0, 0, 0.0);
        let mut flush = |n_rows: &mut usize, n_logits: &mut usize, n_read: &mut f64| {
            let graph = is_decode && *n_rows <= self.max_graph_rows;
            total_s += if is_decode && self.two_batch_overlap && is_halved(*n_rows) {
                // Both halves read the layers' weights, at the rate that they share; the head is
                // read once.
                let cost =
                    |n_rows, n_logits| self.cost.pass_s(n_rows, n_logits, *n_read / 2.0, graph);
                let head_s = cost(*n_rows, *n_logits) - cost(*n_rows, 0);
                cost(*n_rows / 2, 0) + cost(n_rows.div_ceil(2), 0) + head_s
            } else {
                self.cost.pass_s(*n_rows, *n_logits, *n_read, graph)
            };
            (*n_rows, *n_logits, *n_read) = (0, 0, 0.0);
        };
        for row in &plan.rows {
            let mut start = row.start + i_step;
            let mut n_left = row.tokens.len();
            while n_left > 0 {
                let n = n_left.min(steps.max_pass_rows - n_rows);
                n_read += cost::kv_tokens_read(start, n, steps.rows_per_kv_read);
                n_rows += n;
                n_left -= n;
                start += n;
                n_logits += usize::from(n_left == 0 && row.sample.is_some());
                if n_rows == steps.max_pass_rows {
                    flush(&mut n_rows, &mut n_logits, &mut n_read);
                }
            }
        }
        if n_rows > 0 {
            flush(&mut n_rows, &mut n_logits, &mut n_read);
        }
        total_s
    }
}

impl Executor for SimulatedExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn counts(&self) -> ExecutorCounts {
        self.counts
    }

    fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError> {
        super::check_plan(plan, "simulated")?;
        let token = SampledToken {
            token: MADE_UP_TOKEN,
            logprob: None,
            top_logprobs: Vec::new(),
        };
        let steps_s: f64 = (0..plan.n_steps).map(|i| self.step_s(plan, i)).sum();
        let copies_s = self.copies_s(plan);
        self.counts.copied_pages += plan.copies.n_pages() as u64;
        self.counts.copy_ns += (copies_s * 1e9) as u64;
        // Copies run beside the steps, and the next plan's work waits for them.
        self.elapsed += Duration::from_secs_f64(steps_s.max(copies_s));
        let rows = plan.rows.iter().map(|row| match row.sample {
            Some(_) => vec![token.clone(); plan.n_steps],
            None => Vec::new(),
        });
        Ok(StepOutput {
            rows: rows.collect(),
        })
    }

    fn sleep(self: Box<Self>) -> Result<Box<dyn Asleep>, (Box<dyn Executor>, ExecutorError)> {
        super::cannot_sleep(self, "simulated")
    }
}

#[cfg(test)]
mod tests;
