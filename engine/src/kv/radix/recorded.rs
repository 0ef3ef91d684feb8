//! Records the tree's changes as events, if a router follows them.

use super::{NodeId, ROOT, RadixTree};
use crate::kv::events::{EventLog, KvEvent};
use crate::kv::{PAGE_TOKENS, Tier};

impl RadixTree {
    /// From now on changes are recorded.
    pub fn record_events(&mut self) {
        self.log.get_or_insert_default();
    }

    /// The events since the last call, in order; none unless they are recorded.
    pub fn take_events(&mut self) -> Vec<KvEvent> {
        self.log.as_mut().map(EventLog::take).unwrap_or_default()
    }

    /// Replaces the events not taken yet by those that lead from nothing to the present contents.
    pub fn restate(&mut self) {
        if self.log.is_none() {
            return;
        }
        let mut log = EventLog::cleared();
        let mut to_visit = vec![ROOT];
        while let Some(id) = to_visit.pop() {
            let node = &self.nodes[id as usize];
            for tier in Tier::BOTH {
                for i in 0..node.held[tier as usize].len() {
                    self.state(&mut log, tier, id, i);
                }
            }
            to_visit.extend(node.children.values());
        }
        self.log = Some(log);
    }

    #[cfg(test)]
    pub(in crate::kv) fn cached_hashes(&self) -> [std::collections::BTreeSet<u64>; 2] {
        Tier::BOTH.map(|tier| {
            let nodes = self.nodes.iter();
            let held = nodes.flat_map(|node| &node.hashes[..node.held[tier as usize].len()]);
            held.copied().collect()
        })
    }

    /// The log of a tree that this one replaces, which is empty now.
    pub(in crate::kv) fn continue_log(&mut self, before: &mut Self) {
        self.log = before.log.take();
        if let Some(log) = &mut self.log {
            log.clear();
        }
    }

    /// Records the last page of `id` in this tier as stored.
    pub(super) fn record_stored(&mut self, tier: Tier, id: NodeId) {
        if let Some(mut log) = self.log.take() {
            let i = self.nodes[id as usize].held[tier as usize].len() - 1;
            self.state(&mut log, tier, id, i);
            self.log = Some(log);
        }
    }

    /// Records that `id` gave up its page `i` in this tier.
    pub(super) fn record_removed(&mut self, tier: Tier, id: NodeId, i: usize) {
        if let Some(log) = &mut self.log {
            log.removed(tier, self.nodes[id as usize].hashes[i]);
        }
    }

    fn state(&self, log: &mut EventLog, tier: Tier, id: NodeId, i: usize) {
        let node = &self.nodes[id as usize];
        let parent = match i.checked_sub(1) {
            Some(before) => node.hashes.get(before),
            // A node is complete where a child has pages.
            None => self.nodes[node.parent as usize].hashes.last(),
        };
        let tokens = &node.tokens[i * PAGE_TOKENS..(i + 1) * PAGE_TOKENS];
        log.stored(tier, parent.copied(), node.hashes[i], tokens);
    }
}
