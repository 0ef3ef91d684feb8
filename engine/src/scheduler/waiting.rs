//! The queue of requests that wait for admission, ordered by virtual start
//! (see [`policy`](super::policy)).
//!
//! Ageing is part of the virtual start, so the passing of time changes no order. The policy's
//! handicap at entry is final; an order of the longest-waiting requests that depends on other
//! requests is kept for as long as its inputs stay the same.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use super::policy::{Candidate, MAX_HANDICAP_US, PREFIX_WINDOW, Policy};
use super::sequence::Sequence;
use crate::kv::PrefixIndex;

/// Position in the queue. The arrival index makes it unique and breaks ties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueueKey {
    virtual_start_us: i64,
    arrival_index: u64,
}

#[derive(Debug)]
pub(super) struct WaitingQueue {
    policy: Box<dyn Policy>,
    /// Boxed, so that the map's nodes are dense.
    sequences: BTreeMap<QueueKey, Box<Sequence>>,
    /// Known tokens of all of them that have not been computed.
    n_uncomputed: usize,
    /// For policies that order a window: its keys, first to be admitted last. Otherwise empty.
    window: Vec<QueueKey>,
    /// The inputs of `window`; `None` if they changed.
    window_source: Option<WindowSource>,
    /// Kept to reuse its memory.
    handicaps_us: Vec<i64>,
    order: Vec<(i64, QueueKey)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct WindowSource {
    /// Requests after this position are not in the window; `None` if all are in it.
    last: Option<QueueKey>,
    /// [`PrefixIndex::n_changes`] at that time.
    n_changes: u64,
}

/// The progress of a step's admissions.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    n_passed: usize,
    last_passed: Option<QueueKey>,
}

impl Cursor {
    /// Leaves the request at `key`, returned by [`WaitingQueue::next`], in the queue.
    pub fn pass(&mut self, key: QueueKey) {
        self.n_passed += 1;
        self.last_passed = Some(key);
    }

    pub fn n_passed(&self) -> usize {
        self.n_passed
    }
}

pub(super) fn virtual_start_us(arrival: Duration, handicap_us: i64) -> i64 {
    arrival.as_micros() as i64 + handicap_us.clamp(-MAX_HANDICAP_US, MAX_HANDICAP_US)
}

impl WaitingQueue {
    pub fn new(policy: Box<dyn Policy>) -> Self {
        Self {
            policy,
            sequences: BTreeMap::new(),
            n_uncomputed: 0,
            window: Vec::new(),
            window_source: None,
            handicaps_us: Vec::new(),
            order: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Tokens to compute before all have their first token, if none are in the cache.
    pub fn n_uncomputed(&self) -> usize {
        self.n_uncomputed
    }

    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    pub fn insert(&mut self, sequence: Sequence) -> QueueKey {
        let handicap_us = self.policy.handicap_us(&candidate(&sequence));
        let key = QueueKey {
            virtual_start_us: virtual_start_us(sequence.arrival, handicap_us),
            arrival_index: sequence.arrival_index,
        };
        self.n_uncomputed += sequence.n_uncomputed();
        self.sequences.insert(key, Box::new(sequence));
        self.changed_at(key);
        key
    }

    pub fn remove(&mut self, key: QueueKey) -> Option<Sequence> {
        self.changed_at(key);
        let sequence = self.sequences.remove(&key)?;
        self.n_uncomputed -= sequence.n_uncomputed();
        Some(*sequence)
    }

    /// Records that a request came or went at `key`.
    fn changed_at(&mut self, key: QueueKey) {
        let last = self.window_source.and_then(|source| source.last);
        if last.is_none_or(|last| key <= last) {
            self.window_source = None;
        }
    }

    /// Orders the window again if anything changed. Called once in each step, before admissions.
    pub fn refresh(&mut self, held: &PrefixIndex) {
        if !self.policy.orders_window() {
            return;
        }
        let n_changes = held.n_changes();
        if self
            .window_source
            .is_some_and(|source| source.n_changes == n_changes)
        {
            return;
        }
        let candidates: Vec<Candidate<'_>> = self
            .sequences
            .values()
            .take(PREFIX_WINDOW)
            .map(|sequence| candidate(sequence))
            .collect();
        self.handicaps_us.clear();
        self.policy
            .window_handicaps_us(&candidates, held, &mut self.handicaps_us);
        self.order.clear();
        self.order
            .extend(
                self.sequences
                    .keys()
                    .zip(&self.handicaps_us)
                    .map(|(key, handicap_us)| {
                        let clamped = handicap_us.clamp(&-MAX_HANDICAP_US, &MAX_HANDICAP_US);
                        (key.virtual_start_us + clamped, *key)
                    }),
            );
        self.window_source = Some(WindowSource {
            last: self
                .order
                .last()
                .filter(|_| self.sequences.len() > PREFIX_WINDOW)
                .map(|(_, key)| *key),
            n_changes,
        });
        self.order.sort_unstable_by(|a, b| b.cmp(a));
        self.window.clear();
        self.window.extend(self.order.iter().map(|(_, key)| *key));
    }

    /// The next request to admit after those that the step has skipped; after the window there is
    /// none until the next [`Self::refresh`].
    pub fn next(&self, cursor: &Cursor) -> Option<(QueueKey, &Sequence)> {
        if self.policy.orders_window() {
            let i = self.window.len().checked_sub(cursor.n_passed + 1)?;
            let key = self.window[i];
            return Some((key, self.sequences.get(&key)?));
        }
        let after = cursor.last_passed.map_or(Bound::Unbounded, Bound::Excluded);
        let (key, sequence) = self.sequences.range((after, Bound::Unbounded)).next()?;
        Some((*key, sequence))
    }

    /// All, as the last [`Self::refresh`] ordered them; those that came later are last.
    pub fn in_order(&self) -> impl Iterator<Item = (QueueKey, &Sequence)> {
        let found = |key: &QueueKey| Some((*key, self.sequences.get(key)?.as_ref()));
        let rest = self
            .sequences
            .keys()
            .filter(|key| !self.window.contains(key));
        self.window.iter().rev().chain(rest).filter_map(found)
    }

    /// Removes the request at `key`, returned by [`Self::next`].
    pub fn take(&mut self, cursor: &Cursor, key: QueueKey) -> Option<Sequence> {
        if self.policy.orders_window() {
            let i = self.window.len().checked_sub(cursor.n_passed + 1)?;
            self.window.remove(i);
        }
        self.remove(key)
    }

    /// Drops what is kept, for the test that keeping it changes nothing.
    #[cfg(test)]
    pub fn forget_order(&mut self) {
        self.window_source = None;
    }
}

fn candidate(sequence: &Sequence) -> Candidate<'_> {
    Candidate {
        request: sequence.request.id,
        n_uncomputed_tokens: sequence.n_uncomputed(),
        n_output_left: sequence.n_output_left(),
        priority: sequence.request.priority,
        prefix_hashes: &sequence.prefix_hashes,
    }
}
