//! Applies the results of a step.

use super::Scheduler;
use super::drafts::Speculation;
use super::sequence::Events;
use crate::kv::PAGE_TOKENS;
use crate::request::{Failure, RequestId, TokenEvent};
use crate::step::{StepOutput, StepPlan};

impl Scheduler {
    /// Appends the sampled tokens, ends finished requests, and returns each request's events in
    /// order. Rows of requests that have been cancelled meanwhile are skipped.
    pub fn commit(&mut self, plan: &StepPlan, output: StepOutput) -> Vec<(RequestId, TokenEvent)> {
        let mut events = Events::with_capacity(plan.rows.len() * plan.n_steps);
        let mut outputs = output.rows.into_iter();
        let (mut cursor, mut any_ended) = (0, false);
        for row in &plan.rows {
            let mut output = outputs.next().unwrap_or_default();
            output.tokens.truncate(plan.n_steps.max(1) + row.n_drafts);
            let Some(i) = self.find_running(row.request, &mut cursor) else {
                continue;
            };
            let sequence = &mut self.running[i];
            if sequence.n_computed == row.start && !sequence.ended {
                let n_accepted = sequence.n_accepted_drafts();
                let pools = self.speculation.as_mut().map(Speculation::pools_mut);
                sequence.accept(row, output, pools, &mut events);
                if let Some(speculation) = self.speculation.as_mut().filter(|_| row.n_drafts > 0) {
                    let n_accepted = sequence.n_accepted_drafts() - n_accepted;
                    speculation.counts.record(row.n_drafts, n_accepted);
                }
                any_ended |= sequence.ended;
                if !sequence.is_broken {
                    self.keep_prompt(i);
                }
            }
        }
        if any_ended {
            self.remove_ended();
        }
        self.commit_copies(plan);
        events
    }

    /// Ends the requests of a failed step and frees their pages.
    pub fn fail(&mut self, plan: &StepPlan, failure: &Failure) -> Vec<(RequestId, TokenEvent)> {
        let mut events = Events::with_capacity(plan.rows.len());
        self.fail_copies(plan);
        let mut cursor = 0;
        for row in &plan.rows {
            if let Some(i) = self.find_running(row.request, &mut cursor) {
                self.running[i].ended = true;
                events.push((row.request, TokenEvent::Failed(failure.clone())));
            }
        }
        self.remove_ended();
        events
    }

    /// Caches the computed part of a running request's prompt; its output follows when it ends.
    pub(super) fn keep_prompt(&mut self, i: usize) {
        let sequence = &mut self.running[i];
        let n_computed = sequence.n_computed.min(sequence.n_prompt()) / PAGE_TOKENS;
        if !self.config.radix_cache || n_computed <= sequence.n_kept_pages {
            return;
        }
        self.in_flight
            .remove(&sequence.prefix_hashes[sequence.n_kept_pages..n_computed]);
        sequence.n_kept_pages = n_computed;
        super::keep(&mut self.allocator, sequence, n_computed);
    }

    /// Index of a running request. Rows come in the order of `running`, except for a wrap-around,
    /// so most are at the cursor. Searching on from there makes all lookups of a step linear
    /// together.
    pub(super) fn find_running(&self, id: RequestId, cursor: &mut usize) -> Option<usize> {
        if self
            .running
            .get(*cursor)
            .is_some_and(|s| s.request.id == id)
        {
            *cursor += 1;
            return Some(*cursor - 1);
        }
        if !matches!(self.place.get(&id), Some(super::RequestState::Running)) {
            return None;
        }
        let n = self.running.len();
        let i = (*cursor..n)
            .chain(0..(*cursor).min(n))
            .find(|&i| self.running[i].request.id == id)?;
        *cursor = i + 1;
        Some(i)
    }

    fn remove_ended(&mut self) {
        let ended: Vec<_> = self.running.extract_if(.., |s| s.ended).collect();
        for mut sequence in ended {
            self.place.remove(&sequence.request.id);
            self.release(&mut sequence);
            self.end_drafts(&mut sequence);
        }
    }
}
