//! An executor that computes nothing and reports how long a GPU would have taken, so that thousands
//! of requests can be scheduled in seconds.
//!
//! [`card`] reads the data of a GPU; [`cost`] and [`attention`] derive times from it. A step is
//! split into passes as on a real GPU. The time of the steps is returned by
//! [`SimulatedExecutor::take_elapsed`]; no thread sleeps. Tokens are invented and never stop a
//! sequence.

mod ahead;
pub mod attention;
pub mod card;
pub mod cost;

use std::time::Duration;

use kernels::stream_linear::TILED_ROWS;

pub use card::{Card, CardError, NEVER_RUN};
pub use cost::CostModel;

use self::ahead::RunAhead;
use self::attention::{KvTokens, SequenceTokens};
use super::cuda::{Piece, passes};
use super::host_tier::{CARD_STEP_BYTES, HostTierInfo};
use super::{
    Executor, ExecutorCounts, ExecutorError, ExecutorInfo, MemoryParts, SuspendedExecutor,
};
use crate::kv::{PAGE_TOKENS, PageIdx, pages_for};
use crate::request::SampledToken;
use crate::step::{PlanRow, RowOutput, StepOutput, StepPlan};

/// The name says that nothing was measured.
fn device_of(card: &Card) -> String {
    let what = if card.never_run {
        NEVER_RUN
    } else {
        "simulated"
    };
    format!("{} ({what})", card.rates.name)
}

/// A token at which no request stops.
const MADE_UP_TOKEN: u32 = u32::MAX;

/// Settings that decide how a step runs.
#[derive(Debug, Clone)]
pub struct SimulatedOptions {
    pub kv_pool_tokens: usize,
    pub weight_bytes: u64,
    pub kv_bytes_per_token: u64,
    /// Batch sizes of the captured decode graphs, ascending; a batch uses the smallest that holds
    /// it, and takes its time.
    pub graph_sizes: Vec<usize>,
    /// Whether decode batches run as two halves.
    pub two_batch_overlap: bool,
    /// Pages of the host tier.
    pub host_tier_pages: Option<usize>,
}

/// Whether the plan runs as a decode step.
fn is_decode(plan: &StepPlan) -> bool {
    plan.rows
        .iter()
        .all(|row| row.is_decode() && row.n_drafts == 0)
}

/// Whether a decode batch runs as two halves: the kernels of a half must have fewer than
/// [`TILED_ROWS`] rows.
fn is_halved(n_rows: usize) -> bool {
    n_rows > 1 && n_rows.div_ceil(2) < TILED_ROWS
}

#[derive(Debug)]
pub struct SimulatedExecutor {
    info: ExecutorInfo,
    cost: CostModel,
    graph_sizes: Vec<usize>,
    two_batch_overlap: bool,
    page_bytes: u64,
    pages_read: PagesRead,
    run_ahead: RunAhead,
    elapsed: Duration,
    counts: ExecutorCounts,
}

impl SimulatedExecutor {
    pub fn new(cost: CostModel, options: SimulatedOptions) -> Self {
        let page_bytes = PAGE_TOKENS as u64 * options.kv_bytes_per_token;
        let info = ExecutorInfo {
            name: "simulated".to_owned(),
            device: device_of(cost.card()),
            kernels: vec![("steps_of".to_owned(), cost.card().measured_on.name.clone())],
            inactive_flags: Vec::new(),
            kv_pool_tokens: options.kv_pool_tokens,
            kv_pool_bytes: options.kv_pool_tokens as u64 * options.kv_bytes_per_token,
            weight_bytes: options.weight_bytes,
            host_tier: options
                .host_tier_pages
                .map(|n_pages| HostTierInfo::new(n_pages, page_bytes, CARD_STEP_BYTES)),
            memory: MemoryParts::default(),
        };
        Self {
            info,
            cost,
            graph_sizes: options.graph_sizes,
            two_batch_overlap: options.two_batch_overlap,
            page_bytes,
            pages_read: PagesRead::default(),
            run_ahead: RunAhead::default(),
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

    /// Seconds of the plan's copies, one after the other over the host link.
    fn copies_s(&self, plan: &StepPlan) -> f64 {
        let bytes = plan.copies.n_pages() as u64 * self.page_bytes;
        bytes as f64 / (self.cost.card().rates.host_link_gb_per_s * 1e9)
    }

    /// Seconds of one of the plan's steps, `i_step` tokens after its beginning.
    fn step_s(&mut self, plan: &StepPlan, i_step: usize) -> f64 {
        passes(&plan.rows, self.cost.card().steps.max_pass_rows)
            .iter()
            .map(|pass| {
                let pass = Pass {
                    rows: &plan.rows,
                    pieces: pass,
                    i_step,
                };
                if is_decode(plan) {
                    self.decode_pass_s(pass)
                } else {
                    self.packed_pass_s(pass)
                }
            })
            .sum()
    }

    fn packed_pass_s(&mut self, pass: Pass<'_>) -> f64 {
        let attention_s = self.attention_s(pass);
        attention_s + self.cost.pass_s(pass.n_tokens(), pass.n_logits(), false)
    }

    fn decode_pass_s(&mut self, pass: Pass<'_>) -> f64 {
        let n_rows = pass.pieces.len();
        let graph = self.graph_sizes.iter().find(|size| **size >= n_rows);
        let n_padded = graph.copied().unwrap_or(n_rows);
        let pass_s = |n_rows, n_logits| self.cost.pass_s(n_rows, n_logits, graph.is_some());
        if !(self.two_batch_overlap && is_halved(n_padded)) {
            let whole_s = pass_s(n_padded, n_padded);
            return whole_s + self.attention_s(pass);
        }
        // Both halves read the layers' weights at the shared rate; the head is read once.
        let head_s = pass_s(n_padded, n_padded) - pass_s(n_padded, 0);
        let halves_s = pass_s(n_padded / 2, 0) + pass_s(n_padded.div_ceil(2), 0);
        let share = self.cost.card().steps.two_halves_share;
        head_s + share * (halves_s + self.attention_s(pass))
    }

    /// Attention time of a pass: if a sequence has more than one token, that of the kernel for
    /// packed chunks, whatever the other sequences are.
    fn attention_s(&mut self, pass: Pass<'_>) -> f64 {
        let is_packed = pass.n_tokens() > pass.pieces.len();
        let sequences = pass.pieces.iter().map(|piece| SequenceTokens {
            start: pass.rows[piece.row].start + piece.first + pass.i_step,
            n_tokens: piece.n_tokens,
        });
        if is_packed {
            return self.cost.attention().packed_s(sequences);
        }
        self.pages_read.begin_step();
        let mut tokens = KvTokens::default();
        for (sequence, piece) in sequences.zip(pass.pieces) {
            let n_visible = sequence.start + 1;
            let pages = &pass.rows[piece.row].pages;
            let pages = &pages[..pages_for(n_visible).min(pages.len())];
            let n_again = pages
                .iter()
                .filter(|page| !self.pages_read.is_first(**page))
                .count();
            let again = (n_again * PAGE_TOKENS).min(n_visible) as f64;
            tokens.again += again;
            tokens.first += n_visible as f64 - again;
        }
        self.cost.attention().decode_s(tokens)
    }
}

/// Some tokens of some rows that go through the layers together.
#[derive(Clone, Copy)]
struct Pass<'a> {
    rows: &'a [PlanRow],
    pieces: &'a [Piece],
    i_step: usize,
}

impl Pass<'_> {
    fn n_tokens(self) -> usize {
        self.pieces.iter().map(|piece| piece.n_tokens).sum()
    }

    /// Number of rows that get a token from it.
    fn n_logits(self) -> usize {
        let ends = |piece: &&Piece| {
            let row = &self.rows[piece.row];
            row.sample.is_some() && piece.first + piece.n_tokens == row.tokens.len()
        };
        self.pieces.iter().filter(ends).count()
    }
}

/// The pages that a step has read.
#[derive(Debug, Default)]
struct PagesRead {
    step: u64,
    /// Indexed by page: the step that read it last.
    last: Vec<u64>,
}

impl PagesRead {
    fn begin_step(&mut self) {
        self.step += 1;
    }

    /// Whether this is the page's first read in this step; records the read.
    fn is_first(&mut self, page: PageIdx) -> bool {
        let i = page.0 as usize;
        if i >= self.last.len() {
            self.last.resize(i + 1, 0);
        }
        std::mem::replace(&mut self.last[i], self.step) != self.step
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
        let waited_s = self
            .run_ahead
            .wait_s(plan, is_decode(plan), &mut self.counts);
        let copies_s = self.copies_s(plan);
        self.counts.copied_pages += plan.copies.n_pages() as u64;
        self.counts.copy_ns += (copies_s * 1e9) as u64;
        // Copies overlap with the steps, and the next plan's work waits for them.
        self.elapsed += Duration::from_secs_f64(waited_s + steps_s.max(copies_s));
        let rows: Vec<RowOutput> = plan
            .rows
            .iter()
            .map(|row| match row.sample {
                Some(_) => vec![token.clone(); plan.n_steps].into(),
                None => RowOutput::default(),
            })
            .collect();
        let step_s = steps_s / plan.n_steps.max(1) as f64;
        self.run_ahead.go_on(plan, is_decode(plan), &rows, step_s);
        Ok(StepOutput { rows })
    }

    fn sleep(
        self: Box<Self>,
    ) -> Result<Box<dyn SuspendedExecutor>, (Box<dyn Executor>, ExecutorError)> {
        super::cannot_sleep(self, "simulated")
    }
}

#[cfg(test)]
mod tests;
