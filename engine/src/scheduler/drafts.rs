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
use crate::executor::DraftAsk;
use crate::executor::cuda::MAX_ROWS;
use crate::kv::PageAllocator;
use crate::request::{Request, RequestId};
use crate::speculation::{
    Acceptance, Answers, Candidate, Drafter, Drafters, PooledAcceptance, Shared, SpeculationConfig,
    SpeculationCounts, StepTimes, choose,
};

/// Plans after which a draft model is asked for one draft, though none is expected to pay.
const PLANS_UNTIL_PROBE: u64 = 32;

/// Speculation of all requests.
#[derive(Debug)]
pub(super) struct Speculation {
    pub drafters: Box<dyn Drafters>,
    pub shared: Shared,
    n_draft_tokens: usize,
    times: StepTimes,
    /// Of all requests' drafts, and of those that grammars forced.
    acceptance: Pools,
    pub counts: SpeculationCounts,
    /// This plan has announced the next one.
    pub is_announced: bool,
    /// The last plan announced this one.
    is_planned: bool,
    has_draft_model: bool,
    n_plans: u64,
}

impl Speculation {
    pub fn new(config: SpeculationConfig) -> Self {
        let drafters = config.drafters();
        Self {
            shared: drafters.shared(),
            drafters,
            n_draft_tokens: config.n_draft_tokens,
            times: StepTimes::default(),
            acceptance: Pools {
                drafted: PooledAcceptance::default(),
                forced: PooledAcceptance::of_forced(),
            },
            counts: SpeculationCounts::new(config.n_draft_tokens),
            is_announced: false,
            is_planned: false,
            has_draft_model: config.algorithm.is_of_model(),
            n_plans: 0,
        }
    }

    pub fn pools_mut(&mut self) -> &mut Pools {
        &mut self.acceptance
    }

    pub fn drafts_of(&self, request: &Request) -> SequenceDrafts {
        SequenceDrafts {
            drafter: self.drafters.drafter_of(request),
            acceptance: Acceptance::default(),
            given: Vec::new(),
            forced: Vec::new(),
            forced_acceptance: Acceptance::default(),
            next: Vec::new(),
            are_forced: false,
            shadow: None,
            n_accepted: 0,
            n_rejected: 0,
        }
    }
}

#[derive(Debug)]
pub(super) struct Pools {
    drafted: PooledAcceptance,
    forced: PooledAcceptance,
}

/// Speculation of one request.
#[derive(Debug)]
pub(super) struct SequenceDrafts {
    drafter: Box<dyn Drafter>,
    acceptance: Acceptance,
    /// What a draft model guesses, instead of the drafter.
    given: Vec<u32>,
    /// Tokens that a grammar forces, which are drafted before what is guessed.
    pub forced: Vec<u32>,
    forced_acceptance: Acceptance,
    /// The drafts of the next row.
    pub next: Vec<u32>,
    /// They are what a grammar forces.
    are_forced: bool,
    /// The first draft that was not computed, to be compared with the next token.
    shadow: Option<u32>,
    pub n_accepted: usize,
    pub n_rejected: usize,
}

impl SequenceDrafts {
    /// Records a row with `n_drafts` drafts, of which the first `n_right` were right and `n_kept`
    /// became part of the text.
    pub fn record(&mut self, pools: &mut Pools, n_drafts: usize, n_right: usize, n_kept: usize) {
        // The grammar has refused the one after those that were computed.
        let is_refused = self.next.len() > n_drafts;
        self.count(pools, n_drafts + usize::from(is_refused), n_right);
        self.n_accepted += n_kept;
        self.n_rejected += n_drafts - n_kept;
    }

    /// Records the token that came where no draft was computed.
    pub fn record_shadow(&mut self, pools: &mut Pools, token: u32) {
        if let Some(shadow) = self.shadow.take() {
            self.count(pools, 1, usize::from(shadow == token));
        } else if !self.next.is_empty() {
            // The grammar has refused the first one.
            self.count(pools, 1, 0);
        }
    }

    fn count(&mut self, pools: &mut Pools, n_drafts: usize, n_right: usize) {
        if self.are_forced {
            self.forced_acceptance
                .record(&mut pools.forced, n_drafts, n_right);
        } else {
            self.acceptance
                .record(&mut pools.drafted, n_drafts, n_right);
        }
    }

    /// Drops the drafts of the last plan.
    pub fn clear(&mut self) {
        self.next.clear();
        self.shadow = None;
    }

    /// Drafts up to `max` tokens.
    fn make(&mut self, shared: &mut Shared, tokens: &[u32], max: usize) {
        self.are_forced = !self.forced.is_empty();
        let given = std::mem::take(&mut self.given);
        if self.are_forced {
            self.next.append(&mut self.forced);
            self.next.truncate(max);
        } else if !given.is_empty() {
            self.next = given;
            self.next.truncate(max);
        } else {
            self.drafter.draft(shared, tokens, max, &mut self.next);
        }
    }

    fn candidate(&self, pools: &Pools) -> Candidate {
        let (own, pool) = if self.are_forced {
            (&self.forced_acceptance, &pools.forced)
        } else {
            (&self.acceptance, &pools.drafted)
        };
        Candidate {
            p_right: own.p_right(pool),
            deviation: own.deviation(),
            n_drafts: self.next.len(),
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
            speculation.shared = drafters.shared();
            speculation.drafters = drafters;
        }
    }

    /// Recent answers that drafts are taken from; `None` without them.
    pub fn answers(&self) -> Option<&Answers> {
        self.speculation.as_ref()?.shared.answers.as_ref()
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

    /// Tells the drafter of a request that has ended.
    pub(super) fn end_drafts(&mut self, sequence: &mut Sequence) {
        if let (Some(speculation), Some(drafts)) = (&mut self.speculation, &mut sequence.drafts) {
            drafts
                .drafter
                .end(&mut speculation.shared, &sequence.tokens);
        }
    }

    /// Begins a plan: drops the drafts of the last one.
    pub(super) fn clear_drafts(&mut self) {
        if let Some(speculation) = &mut self.speculation {
            speculation.n_plans += 1;
            speculation.is_planned = std::mem::take(&mut speculation.is_announced);
            for drafts in self.running.iter_mut().filter_map(|s| s.drafts.as_mut()) {
                drafts.clear();
            }
        }
    }

    /// The due requests that a draft model is to guess for, with the number of drafts that is
    /// expected to pay; empty unless the algorithm has one. Where none pays, one draft is asked for
    /// now and then, to be compared.
    pub fn draft_asks(&self) -> Vec<DraftAsk<'_>> {
        let Some(speculation) = self.speculation.as_ref().filter(|s| s.has_draft_model) else {
            return Vec::new();
        };
        let due = || self.running.iter().filter(|s| s.is_due());
        let candidates: Vec<Candidate> = due()
            .map(|sequence| {
                let n_useful = sequence.n_output_left().saturating_sub(1);
                let drafts = sequence.drafts.as_ref().filter(|d| d.forced.is_empty());
                drafts.map_or_else(Candidate::default, |drafts| Candidate {
                    p_right: drafts.acceptance.p_right(&speculation.acceptance.drafted),
                    deviation: drafts.acceptance.deviation(),
                    n_drafts: speculation.n_draft_tokens.min(n_useful),
                })
            })
            .collect();
        let chosen = choose(candidates.clone(), MAX_ROWS, &speculation.times);
        let least = usize::from(speculation.n_plans.is_multiple_of(PLANS_UNTIL_PROBE));
        let asks = due().zip(candidates).zip(chosen);
        asks.filter_map(|((sequence, candidate), n_drafts)| {
            let n_drafts = n_drafts.max(least).min(candidate.n_drafts);
            (n_drafts > 0).then(|| DraftAsk {
                request: sequence.request.id,
                tokens: &sequence.tokens,
                pages: sequence.pages.as_slice(),
                n_drafts,
            })
        })
        .collect()
    }

    /// What the draft model has guessed for requests. Treated as an input to `plan`, like `now`.
    pub fn set_drafted(&mut self, drafted: impl IntoIterator<Item = (RequestId, Vec<u32>)>) {
        let mut cursor = 0;
        for (id, tokens) in drafted {
            if let Some(i) = self.find_running(id, &mut cursor)
                && let Some(drafts) = &mut self.running[i].drafts
            {
                drafts.given = tokens;
            }
        }
    }

    /// Makes drafts for the rows that are due, in a step that can take `n_tokens` tokens more.
    /// Returns whether there are any. They have no pages yet.
    ///
    /// Where none are computed, the first is compared with the token that comes: so a text that
    /// begins to repeat itself is noticed at no cost.
    pub(super) fn make_drafts(&mut self, n_tokens: usize) -> bool {
        let Some(speculation) = &mut self.speculation else {
            return false;
        };
        let n_due = self.running.iter().filter(|s| s.is_due()).count();
        let n_free = if speculation.is_planned {
            0
        } else {
            MAX_ROWS.saturating_sub(n_due).min(n_tokens)
        };
        let mut candidates = Vec::with_capacity(n_due);
        for sequence in self.running.iter_mut().filter(|s| s.is_due()) {
            // The last token of the output needs no draft: it is not computed.
            let n_useful = sequence.n_output_left().saturating_sub(1);
            let max = speculation.n_draft_tokens.min(n_useful);
            let candidate = sequence.drafts.as_mut().map(|drafts| {
                // One is enough to compare with.
                let max = max.min(n_free).max(1);
                drafts.make(&mut speculation.shared, &sequence.tokens, max);
                let candidate = drafts.candidate(&speculation.acceptance);
                Candidate {
                    n_drafts: candidate.n_drafts.min(n_useful),
                    ..candidate
                }
            });
            candidates.push(candidate.unwrap_or_default());
        }
        let chosen = choose(candidates, n_free, &speculation.times);
        let mut has_drafts = false;
        let due = self.running.iter_mut().filter(|s| s.is_due());
        for (sequence, n_drafts) in due.zip(chosen) {
            if let Some(drafts) = &mut sequence.drafts {
                drafts.cut(n_drafts);
                has_drafts |= n_drafts > 0;
            }
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
        let due = self.running.iter().filter(|s| s.is_due());
        let candidate = |sequence: &Sequence| {
            let drafts = sequence.drafts.as_ref();
            let drafts = drafts.filter(|d| d.drafter.may_draft_next(&sequence.tokens));
            drafts.map_or_else(Candidate::default, |drafts| Candidate {
                n_drafts: speculation.n_draft_tokens,
                ..drafts.candidate(&speculation.acceptance)
            })
        };
        let candidates: Vec<Candidate> = due.map(candidate).collect();
        let chosen = choose(candidates, MAX_ROWS, &speculation.times);
        chosen.iter().any(|n| *n > 0)
    }
}
