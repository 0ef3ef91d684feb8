//! The queue of requests that wait for admission, ordered by virtual start
//! (see [`policy`](super::policy)).

use std::collections::BTreeMap;
use std::time::Duration;

use super::policy::{Candidate, MAX_HANDICAP_US, PREFIX_WINDOW, Policy};
use super::sequence::Sequence;
use crate::kv::PrefixIndex;

/// Place in the queue. The arrival index makes it unique and breaks ties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueueKey {
    virtual_start_us: i64,
    arrival_index: u64,
}

#[derive(Debug)]
pub(super) struct WaitingQueue {
    policy: Box<dyn Policy>,
    sequences: BTreeMap<QueueKey, Sequence>,
    /// For policies that order a window anew: its keys, first to be admitted last. Otherwise empty.
    window: Vec<QueueKey>,
    window_is_stale: bool,
}

pub(super) fn virtual_start_us(arrival: Duration, handicap_us: i64) -> i64 {
    arrival.as_micros() as i64 + handicap_us.clamp(-MAX_HANDICAP_US, MAX_HANDICAP_US)
}

impl WaitingQueue {
    pub fn new(policy: Box<dyn Policy>) -> Self {
        Self {
            policy,
            sequences: BTreeMap::new(),
            window: Vec::new(),
            window_is_stale: true,
        }
    }

    pub fn len(&self) -> usize {
        self.sequences.len()
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
        self.sequences.insert(key, sequence);
        self.window_is_stale = true;
        key
    }

    pub fn remove(&mut self, key: QueueKey) -> Option<Sequence> {
        self.window_is_stale = true;
        self.sequences.remove(&key)
    }

    /// Running requests or cached pages changed: what prefix-aware policies computed no longer holds.
    pub fn prefixes_changed(&mut self) {
        self.window_is_stale = true;
    }

    /// Orders the window anew if anything changed. Called once a step, before admissions.
    pub fn refresh(&mut self, held: &PrefixIndex) {
        if !self.window_is_stale {
            return;
        }
        self.window_is_stale = false;
        self.window.clear();
        // Asking with an empty window tells whether the policy orders one at all.
        if self.policy.window_handicaps_us(&[], held).is_none() {
            return;
        }
        let (keys, candidates): (Vec<QueueKey>, Vec<Candidate<'_>>) = self
            .sequences
            .iter()
            .take(PREFIX_WINDOW)
            .map(|(key, sequence)| (*key, candidate(sequence)))
            .unzip();
        let handicaps = self
            .policy
            .window_handicaps_us(&candidates, held)
            .unwrap_or_default();
        let mut order: Vec<(i64, QueueKey)> = keys
            .into_iter()
            .zip(handicaps)
            .map(|(key, handicap_us)| {
                let clamped = handicap_us.clamp(-MAX_HANDICAP_US, MAX_HANDICAP_US);
                (key.virtual_start_us + clamped, key)
            })
            .collect();
        order.sort_unstable_by(|a, b| b.cmp(a));
        self.window.extend(order.into_iter().map(|(_, key)| key));
    }

    /// The request to be admitted after `n_before` others; behind the window there is none until
    /// the next [`Self::refresh`].
    pub fn nth(&self, n_before: usize) -> Option<&Sequence> {
        if self.window.is_empty() {
            return self.sequences.values().nth(n_before);
        }
        let i = self.window.len().checked_sub(n_before + 1)?;
        self.sequences.get(&self.window[i])
    }

    /// Takes [`Self::nth`] out.
    pub fn remove_nth(&mut self, n_before: usize) -> Option<Sequence> {
        if self.window.is_empty() {
            let key = *self.sequences.keys().nth(n_before)?;
            return self.sequences.remove(&key);
        }
        let i = self.window.len().checked_sub(n_before + 1)?;
        let key = self.window.remove(i);
        self.sequences.remove(&key)
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
