//! Adds drafts to decode rows.
//!
//! Drafts take only what is left: rows of a step beyond those that are due, pages that are free
//! beyond one for every decoding row, and in a mixed step the prompt tokens that no prompt needs.
//! Pages that only drafts needed are given back before a sequence is preempted.
//!
//! A step that was announced ([`crate::step::StepPlan::lookahead_steps`]) has no drafts, and a step is announced
//! only if its rows would have none: an executor never begins a step in vain because of drafts.

use super::Scheduler;
use super::sequence::Sequence;
use crate::executor::cuda::MAX_ROWS;
use crate::kv::PageAllocator;
use crate::request::Request;
use crate::speculation::{
    DraftLength, Drafter, Drafters, SpeculationConfig, SpeculationCounts, StepTimes,
};

/// Speculation of all requests.
#[derive(Debug)]
pub(super) struct Speculation {
    pub drafters: Box<dyn Drafters>,
    n_draft_tokens: usize,
    times: StepTimes,
    pub counts: SpeculationCounts,
    /// This plan has announced the next one.
    pub is_announced: bool,
    /// The last plan announced this one.
    is_planned: bool,
}

impl Speculation {
    pub fn new(config: SpeculationConfig) -> Self {
        Self {
            drafters: config.drafters(),
            n_draft_tokens: config.n_draft_tokens,
            times: StepTimes::default(),
            counts: SpeculationCounts::new(config.n_draft_tokens),
            is_announced: false,
            is_planned: false,
        }
    }

    /// `None` if the request gets no drafts: a grammar would have to be advanced by them, and taken
    /// back.
    pub fn drafts_of(&self, request: &Request) -> Option<SequenceDrafts> {
        request.sampling.guide.is_none().then(|| SequenceDrafts {
            drafter: self.drafters.drafter_of(request),
            length: DraftLength::default(),
            next: Vec::new(),
            shadow: None,
            n_accepted: 0,
            n_rejected: 0,
        })
    }
}

/// Speculation of one request.
#[derive(Debug)]
pub(super) struct SequenceDrafts {
    drafter: Box<dyn Drafter>,
    length: DraftLength,
    /// The drafts of the next row.
    pub next: Vec<u32>,
    /// The first draft that was not computed, to be compared with the next token.
    shadow: Option<u32>,
    pub n_accepted: usize,
    pub n_rejected: usize,
}

impl SequenceDrafts {
    /// Records a row with `n_drafts` drafts, of which the first `n_right` were right and `n_kept`
    /// became part of the text.
    pub fn record(&mut self, n_drafts: usize, n_right: usize, n_kept: usize) {
        self.length.record(n_drafts, n_right);
        self.n_accepted += n_kept;
        self.n_rejected += n_drafts - n_kept;
    }

    /// Records the token that came where no draft was computed.
    pub fn record_shadow(&mut self, token: u32) {
        if let Some(shadow) = self.shadow.take() {
            self.length.record(1, usize::from(shadow == token));
        }
    }

    /// Keeps the first `n` drafts.
    fn cut(&mut self, n: usize) {
        if n == 0 && !self.next.is_empty() {
            self.shadow = self.next.first().copied();
        }
        self.next.truncate(n);
    }
}

impl Scheduler {
    /// Replaces the drafters; for tests. Requests that are there keep theirs.
    #[cfg(feature = "testkit")]
    pub fn set_drafters(&mut self, drafters: Box<dyn Drafters>) {
        if let Some(speculation) = &mut self.speculation {
            speculation.drafters = drafters;
        }
    }

    /// Measured times of decode steps, which decide how many drafts pay. Treated as an input to
    /// `plan`, like `now`.
    pub fn set_step_times(&mut self, times: StepTimes) {
        if let Some(speculation) = &mut self.speculation {
            speculation.times = times;
        }
    }

    /// What became of the drafts since the start; `None` without speculation.
    pub fn speculation_counts(&self) -> Option<&SpeculationCounts> {
        self.speculation.as_ref().map(|s| &s.counts)
    }

    /// Begins a plan: drops the drafts of the last one.
    pub(super) fn clear_drafts(&mut self) {
        if let Some(speculation) = &mut self.speculation {
            speculation.is_planned = std::mem::take(&mut speculation.is_announced);
            for drafts in self.running.iter_mut().filter_map(|s| s.drafts.as_mut()) {
                drafts.next.clear();
                drafts.shadow = None;
            }
        }
    }

    /// Makes drafts for the rows that are due, in a step that can take `n_tokens` tokens more.
    /// Returns whether there are any. They have no pages yet.
    pub(super) fn make_drafts(&mut self, n_tokens: usize) -> bool {
        let Some(speculation) = &mut self.speculation else {
            return false;
        };
        if speculation.is_planned {
            return false;
        }
        let n_due = self.running.iter().filter(|s| s.is_due()).count();
        let row_cost = speculation.times.row_cost(n_due);
        let mut n_free = MAX_ROWS.saturating_sub(n_due).min(n_tokens);
        let due = self.running.iter_mut().filter(|s| s.is_due()).enumerate();
        let mut has_drafts = false;
        for (i, sequence) in due {
            // The last token of the output needs no draft: it is not computed.
            let n_useful = sequence.n_output_left().saturating_sub(1);
            let Some(drafts) = sequence.drafts.as_mut() else {
                continue;
            };
            let share = n_free.div_ceil(n_due - i);
            let max = speculation.n_draft_tokens.min(n_useful).min(share);
            let n_wanted = drafts.length.wanted(max, row_cost);
            drafts
                .drafter
                .draft(&sequence.tokens, n_wanted.max(1), &mut drafts.next);
            drafts.cut(n_wanted);
            n_free -= drafts.next.len();
            has_drafts |= !drafts.next.is_empty();
        }
        has_drafts
    }

    /// Gives the drafts pages, and cuts those that get none. Call it when the rows have theirs.
    pub(super) fn grow_drafts(&mut self) {
        let n_decoding = self.running.iter().filter(|s| s.is_decoding()).count();
        for sequence in &mut self.running {
            let Some(drafts) = sequence.drafts.as_mut().filter(|d| !d.next.is_empty()) else {
                continue;
            };
            let n_known = sequence.n_computed + 1;
            let n_tokens = n_known + drafts.next.len();
            let n_missing = PageAllocator::n_missing(&sequence.pages, n_tokens);
            let n_spare = self
                .allocator
                .n_pages_available()
                .saturating_sub(n_decoding);
            let grows = n_missing <= n_spare && self.allocator.grow(&mut sequence.pages, n_tokens);
            if !grows {
                let n_room = sequence.pages.capacity_tokens().saturating_sub(n_known);
                let n_kept = drafts.next.len().min(n_room);
                drafts.cut(n_kept);
            }
        }
    }

    /// Frees the pages that no known token of a decoding sequence needs. Returns whether there were
    /// any.
    pub(super) fn free_spare_pages(&mut self) -> bool {
        let mut is_any = false;
        if self.speculation.is_none() {
            return is_any;
        }
        for sequence in self.running.iter_mut().filter(|s| s.is_decoding()) {
            let n_tokens = sequence.tokens.len();
            is_any |= self.allocator.shrink(&mut sequence.pages, n_tokens);
            if let Some(drafts) = &mut sequence.drafts {
                drafts.cut(0);
            }
        }
        is_any
    }

    /// Whether the step after this one, whose tokens are unknown, may have drafts.
    pub(super) fn may_draft_next(&self) -> bool {
        let Some(speculation) = &self.speculation else {
            return false;
        };
        let n_due = self.running.iter().filter(|s| s.is_due()).count();
        let row_cost = speculation.times.row_cost(n_due);
        let may_draft = |sequence: &Sequence| {
            sequence.drafts.as_ref().is_some_and(|drafts| {
                drafts.length.wanted(speculation.n_draft_tokens, row_cost) > 0
                    && drafts.drafter.may_draft_next(&sequence.tokens)
            })
        };
        self.running.iter().filter(|s| s.is_due()).any(may_draft)
    }
}
