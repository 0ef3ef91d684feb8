//! Plans the next step.

use std::time::Duration;

use super::sequence::Sequence;
use super::waiting::Cursor;
use super::{RequestState, Scheduler, WaitReason};
use crate::executor::cuda::MAX_ROWS;
use crate::kv::{PAGE_TOKENS, PageAllocator, pages_for};
use crate::step::{PlanRow, StepPlan};

/// Maximum number of requests that a step skips because another one is computing their prefix.
/// Bounds the cost if very many share a prefix.
const MAX_PASSED_OVER: usize = 64;

impl Scheduler {
    /// The next step. It has no rows only if there is no request, or if all are held back or wait
    /// for pages that the step restores from the host.
    pub fn plan(&mut self, now: Duration) -> StepPlan {
        self.clear_drafts();
        let mut plan = if self.config.mixed_chunk {
            self.plan_mixed(now)
        } else {
            self.plan_alternating(now)
        };
        self.add_scores(&mut plan);
        self.add_copies(&mut plan);
        plan
    }

    /// Adds the tokens whose log-probabilities the rows' requests ask for.
    fn add_scores(&self, plan: &mut StepPlan) {
        if !self.running.iter().any(Sequence::is_scored) {
            return;
        }
        let mut cursor = 0;
        for (i, row) in plan.rows.iter().enumerate() {
            let sequence = self.find_running(row.request, &mut cursor);
            let sequence = sequence.map(|i| &self.running[i]);
            plan.scores
                .extend(sequence.and_then(|s| s.scores_of(i, row)));
        }
    }

    /// Prefill first, but never twice in a row while a request decodes.
    fn plan_alternating(&mut self, now: Duration) -> StepPlan {
        if self.decode_is_due {
            let step = self.decode_step(Then::Prefill);
            if !step.rows.is_empty() {
                self.decode_is_due = false;
                return step;
            }
        }
        let rows = self.prefill_rows(now, 0);
        self.decode_is_due = !rows.is_empty();
        if rows.is_empty() {
            self.row_memory.recycle(rows);
            self.decode_step(Then::Decode)
        } else {
            prefill_step(rows)
        }
    }

    fn plan_mixed(&mut self, now: Duration) -> StepPlan {
        // Decode rows get their pages first: growing them may preempt, and must not preempt what
        // this step admits.
        self.grow_decoding(1);
        let n_riders = self.running.iter().filter(|s| s.is_due()).count();
        let n_running = self.running.len();
        let mut rows = self.prefill_rows(now, n_riders);
        if rows.is_empty() {
            self.row_memory.recycle(rows);
            return self.decode_step(Then::Decode);
        }
        let n_prompt: usize = rows.iter().map(|row| row.tokens.len()).sum();
        let n_left = self.config.max_prefill_tokens.saturating_sub(n_riders);
        let n_rows_left = MAX_ROWS.saturating_sub(n_riders + rows.len());
        if self.make_drafts(n_left.saturating_sub(n_prompt).min(n_rows_left)) {
            self.grow_drafts();
        }
        for sequence in self.running[..n_running].iter().filter(|s| s.is_due()) {
            self.row_memory.push(&mut rows, sequence, 1);
        }
        prefill_step(rows)
    }

    fn decode_step(&mut self, then: Then) -> StepPlan {
        // The allowed tokens of a guided row are known only after its previous token.
        let is_guided = self
            .running
            .iter()
            .any(|s| s.is_decoding() && s.is_guided());
        let has_drafts = self.make_drafts(usize::MAX);
        let n_wanted = if is_guided || has_drafts {
            1
        } else {
            self.config.n_continuous_decode_steps.max(1)
        };
        let n_steps = self.grow_decoding(n_wanted);
        if has_drafts {
            self.grow_drafts();
        }
        // A request that waits for pages from the host is computed as soon as they arrive.
        let is_joined = self.running.iter().any(Sequence::is_restoring);
        let goes_on = then == Then::Decode && !is_joined && !is_guided && !has_drafts;
        let may_announce = goes_on && self.config.run_ahead && self.lookahead_enabled;
        let lookahead_steps = if may_announce && !self.may_draft_next() {
            self.grow_ahead(n_steps)
        } else {
            0
        };
        if let Some(speculation) = &mut self.speculation {
            speculation.is_announced = lookahead_steps > 0;
        }
        let mut rows = self.row_memory.list();
        for sequence in self.running.iter().filter(|s| s.is_due()) {
            self.row_memory.push(&mut rows, sequence, 1);
        }
        StepPlan {
            rows,
            n_steps,
            lookahead_steps,
            ..StepPlan::default()
        }
    }

    /// Gives every decoding row pages for as many steps as possible, up to `wanted`, and returns
    /// that number. Preempts from the end if there are not enough pages for a single step.
    fn grow_decoding(&mut self, wanted: usize) -> usize {
        loop {
            let decoding = || self.running.iter().filter(|s| s.is_due());
            let n_left = decoding()
                .map(Sequence::n_output_left)
                .min()
                .unwrap_or(wanted);
            let n_available = self.allocator.n_pages_available();
            let fitting = (1..=wanted.min(n_left).max(1)).rev().find(|n_steps| {
                let n_missing: usize = decoding()
                    .map(|s| PageAllocator::n_missing(&s.pages, s.n_computed + n_steps))
                    .sum();
                n_missing <= n_available
            });
            if let Some(n_steps) = fitting {
                for s in self.running.iter_mut().filter(|s| s.is_due()) {
                    let grown = self.allocator.grow(&mut s.pages, s.n_computed + n_steps);
                    debug_assert!(grown, "the pages were counted above");
                }
                return n_steps;
            }
            // Pages for drafts are in no one's way.
            if !self.free_spare_pages() {
                self.preempt_last();
            }
        }
    }

    /// Number of decode steps to reserve pages for after this step, or 0 if that would require
    /// preemption.
    fn grow_ahead(&mut self, n_steps: usize) -> usize {
        let decoding = || self.running.iter().filter(|s| s.is_due());
        let n_left = decoding().map(Sequence::n_output_left).min().unwrap_or(0);
        let lookahead_steps = n_left.saturating_sub(n_steps).min(n_steps);
        let n_missing: usize = decoding()
            .map(|s| PageAllocator::n_missing(&s.pages, s.n_computed + n_steps + lookahead_steps))
            .sum();
        if lookahead_steps == 0 || n_missing > self.allocator.n_pages_available() {
            return 0;
        }
        for s in self.running.iter_mut().filter(|s| s.is_due()) {
            let n_tokens = s.n_computed + n_steps + lookahead_steps;
            let grown = self.allocator.grow(&mut s.pages, n_tokens);
            debug_assert!(grown, "the pages were counted above");
        }
        lookahead_steps
    }

    /// Chunks of admitted prompts in order of admission, then of newly admitted ones, within the
    /// budgets; `n_riders` decode rows are deducted from both.
    fn prefill_rows(&mut self, now: Duration, n_riders: usize) -> Vec<PlanRow> {
        let mut budget = PrefillBudget {
            n_tokens: self
                .config
                .max_prefill_tokens
                .saturating_sub(n_riders)
                .max(1),
            chunk: self
                .config
                .chunked_prefill_size
                .map(|c| c.saturating_sub(n_riders).max(1)),
            is_untouched: true,
        };
        let out_of_budget = WaitReason::TokenBudget {
            limit: self.config.max_prefill_tokens,
        };
        self.admissions.begin();
        let mut rows = self.row_memory.list();
        let computes_prompt =
            |s: &&Sequence| !s.is_decoding() && !s.is_restoring() && !s.is_held_back;
        for sequence in self.running.iter().filter(computes_prompt) {
            match budget.take(sequence.chunk_of(sequence.n_uncomputed())) {
                0 => {
                    self.admissions.leave_out(sequence.request.id);
                    self.admissions.stop_before(out_of_budget);
                    return rows;
                }
                n_tokens => self.row_memory.push(&mut rows, sequence, n_tokens),
            }
        }
        let max_running = self.config.max_running_requests.max(1);
        let batch_full = WaitReason::BatchFull { limit: max_running };
        self.n_deferred = 0;
        if self.running.len() >= max_running {
            self.admissions.stop_before(batch_full);
            return rows;
        }
        if self.waiting.is_empty() {
            return rows;
        }
        self.waiting.refresh(self.allocator.prefixes());
        let mut cursor = Cursor::default();
        while self.running.len() < max_running {
            let Some((key, next)) = self.waiting.next(&cursor) else {
                break;
            };
            let cached = self.allocator.lookup(next.shareable());
            if cursor.n_passed() < MAX_PASSED_OVER && self.is_being_computed(next, cached.n_device)
            {
                cursor.pass(key);
                self.admissions.pass(key);
                continue;
            }
            // One spare page for each running row, so that a new request is not preempted by the
            // next few decode steps; an idle pool keeps no spare pages.
            let n_new = pages_for(next.tokens.len()) - cached.n_device;
            let n_taken = n_new + cached.n_unlocked + self.running.len();
            let n_available = self.allocator.n_pages_available();
            if n_taken > n_available {
                let n_needed = n_taken;
                let reason = WaitReason::Pages {
                    n_needed,
                    n_available,
                };
                self.admissions.stop_at(key, reason);
                break;
            }
            let is_restored = self.takes_from_host(cached.n_host);
            let n_tokens = if is_restored {
                0
            } else {
                let n_left = next.tokens.len() - cached.n_device * PAGE_TOKENS;
                let n_tokens = budget.take(next.chunk_of(n_left));
                if n_tokens == 0 {
                    self.admissions.stop_at(key, out_of_budget);
                    break;
                }
                n_tokens
            };
            let Some(mut sequence) = self.waiting.take(&cursor, key) else {
                break;
            };
            self.give_pages(&mut sequence, is_restored);
            if !is_restored {
                self.host_counts.n_declined += cached.n_host as u64;
                self.row_memory.push(&mut rows, &sequence, n_tokens);
            }
            self.enter_running(sequence, now);
        }
        if self.running.len() >= max_running {
            self.admissions.stop_before(batch_full);
        }
        self.n_deferred = cursor.n_passed();
        rows
    }

    /// Whether the page after its first `n_cached` pages is being computed by a running request.
    fn is_being_computed(&self, sequence: &Sequence, n_cached: usize) -> bool {
        let next = sequence.shareable().hashes.get(n_cached);
        self.config.radix_cache && next.is_some_and(|hash| self.in_flight.contains(*hash))
    }

    /// Allocates pages for all known tokens of a sequence that is being admitted: the cached ones,
    /// then new ones, the first of which may be restored from the host.
    fn give_pages(&mut self, sequence: &mut Sequence, is_restored: bool) {
        let mut pages = std::mem::take(&mut sequence.pages);
        sequence.n_computed = self.allocator.share(&mut pages, sequence.shareable());
        sequence.n_kept_pages = pages.n_pages();
        if is_restored {
            let mut host_pages = std::mem::take(&mut sequence.host_pages);
            self.allocator
                .hold_host(&mut host_pages, sequence.shareable());
            sequence.host_pages = host_pages;
        }
        let grown = self.allocator.grow(&mut pages, sequence.tokens.len());
        debug_assert!(grown, "the pages were counted before");
        sequence.pages = pages;
    }

    fn enter_running(&mut self, mut sequence: Sequence, now: Duration) {
        if !sequence.was_admitted {
            sequence.was_admitted = true;
            sequence.n_cached = sequence
                .n_computed
                .max(sequence.host_pages.capacity_tokens());
            self.n_prompt_tokens += sequence.n_prompt() as u64;
            self.n_cached_tokens += sequence.n_cached as u64;
            let wait = now.saturating_sub(sequence.arrival);
            self.queue_waits.push((sequence.request.id, wait));
        }
        self.allocator
            .prefixes_mut()
            .insert(sequence.prompt_hashes());
        if self.config.radix_cache {
            self.in_flight.insert(sequence.hashes_in_flight());
        }
        self.place
            .insert(sequence.request.id, RequestState::Running);
        self.running.push(sequence);
    }
}

/// What follows a decode step, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Decode,
    /// If there are prompts; they come first.
    Prefill,
}

fn prefill_step(rows: Vec<PlanRow>) -> StepPlan {
    StepPlan {
        rows,
        n_steps: 1,
        ..StepPlan::default()
    }
}

/// The remaining prompt tokens of a step.
struct PrefillBudget {
    n_tokens: usize,
    chunk: Option<usize>,
    is_untouched: bool,
}

impl PrefillBudget {
    /// How many of a prompt's `n_uncomputed` tokens this step computes; 0 if there is no room.
    fn take(&mut self, n_uncomputed: usize) -> usize {
        let n_tokens = match self.chunk {
            Some(chunk) => n_uncomputed.min(chunk).min(self.n_tokens),
            // In one piece, over the budget only if alone.
            None if self.is_untouched || n_uncomputed <= self.n_tokens => n_uncomputed,
            None => 0,
        };
        self.n_tokens = self.n_tokens.saturating_sub(n_tokens);
        self.is_untouched = false;
        n_tokens
    }
}
