//! The requests one by one, and why those wait that the last plan left out. The reasons are recorded
//! where the plan decides; nothing here decides anything.

use std::time::Duration;

use super::Scheduler;
use super::sequence::Sequence;
use super::waiting::QueueKey;
use crate::request::RequestId;

/// Why the last plan left a request out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum WaitReason {
    /// It came after the last admissions.
    New,
    /// Decoding requests needed its pages; it will be computed again.
    Preempted,
    /// Admission stopped at a request before it.
    Order,
    /// As many requests run as may.
    BatchFull { limit: usize },
    /// Other prompts take the step's tokens.
    TokenBudget { limit: usize },
    /// The pool cannot supply its pages, with one to spare for each running request.
    Pages { n_needed: usize, n_available: usize },
    /// Another request is computing its prefix.
    SharedPrefix,
    /// The mask of its grammar is not ready.
    Grammar,
    /// Its prefix is being copied from the host.
    Restore,
}

/// A request as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestView {
    pub id: RequestId,
    pub is_running: bool,
    pub priority: i32,
    pub n_prompt: usize,
    /// Tokens of prompt and output whose KV is there.
    pub n_computed: usize,
    pub n_output: usize,
    pub max_new_tokens: usize,
    pub age: Duration,
    /// `None`: nothing holds it up, although prompts and decoding requests may alternate.
    pub wait: Option<WaitReason>,
}

/// The last step's admissions.
#[derive(Debug, Default)]
pub(super) struct Admissions {
    /// How many steps have admitted; a request that entered the queue at this number has not been
    /// looked at.
    pub n: u64,
    /// Why they stopped: at this request, or before any of the queue.
    stop: Option<(Option<QueueKey>, WaitReason)>,
    /// Those that were skipped.
    passed: Vec<QueueKey>,
    /// The first running prompt that the budget left out.
    first_without_tokens: Option<RequestId>,
}

impl Admissions {
    pub fn begin(&mut self) {
        self.n += 1;
        self.stop = None;
        self.passed.clear();
        self.first_without_tokens = None;
    }

    pub fn pass(&mut self, key: QueueKey) {
        self.passed.push(key);
    }

    pub fn stop_at(&mut self, key: QueueKey, reason: WaitReason) {
        self.stop = Some((Some(key), reason));
    }

    /// No request that is left in the queue was looked at.
    pub fn stop_before(&mut self, reason: WaitReason) {
        self.stop = Some((None, reason));
    }

    pub fn leave_out(&mut self, running: RequestId) {
        self.first_without_tokens = Some(running);
    }

    fn of_waiting(&self, key: QueueKey, sequence: &Sequence) -> WaitReason {
        if sequence.entered_at == self.n {
            return if sequence.was_admitted {
                WaitReason::Preempted
            } else {
                WaitReason::New
            };
        }
        if self.passed.contains(&key) {
            return WaitReason::SharedPrefix;
        }
        match self.stop {
            Some((at, reason)) if at.is_none_or(|at| at == key) => reason,
            _ => WaitReason::Order,
        }
    }
}

impl Scheduler {
    /// The running requests in the order of their admission, then the waiting ones in the policy's
    /// order; at most `limit`.
    pub fn requests(&self, now: Duration, limit: usize) -> Vec<RequestView> {
        let mut is_left_out = false;
        let budget = WaitReason::TokenBudget {
            limit: self.config.max_prefill_tokens,
        };
        let running = self.running.iter().map(|sequence| {
            is_left_out |= self.admissions.first_without_tokens == Some(sequence.request.id);
            let wait = if sequence.is_held_back {
                Some(WaitReason::Grammar)
            } else if sequence.is_restoring() {
                Some(WaitReason::Restore)
            } else {
                (is_left_out && !sequence.is_decoding()).then_some(budget)
            };
            view(sequence, now, true, wait)
        });
        let waiting = self.waiting.in_order().map(|(key, sequence)| {
            let wait = self.admissions.of_waiting(key, sequence);
            view(sequence, now, false, Some(wait))
        });
        running.chain(waiting).take(limit).collect()
    }
}

fn view(s: &Sequence, now: Duration, is_running: bool, wait: Option<WaitReason>) -> RequestView {
    RequestView {
        id: s.request.id,
        is_running,
        priority: s.request.priority,
        n_prompt: s.n_prompt(),
        n_computed: s.n_computed,
        n_output: s.n_output(),
        max_new_tokens: s.request.max_new_tokens,
        age: now.saturating_sub(s.arrival),
        wait,
    }
}
