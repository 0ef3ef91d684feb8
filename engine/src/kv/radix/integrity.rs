//! Consistency check of the tree. O(pages): for tests and debugging.

use std::collections::BTreeSet;

use super::{NodeId, ROOT, RadixTree, is_uncopied};
use crate::kv::prefix::extend_chain;
use crate::kv::{IntegrityError, PAGE_TOKENS, Pools, Tier};

impl RadixTree {
    /// Checks that labels, counts, locks and queues agree with each other and with `pools`.
    /// Increments `named` for each page that the tree holds in a tier.
    pub(in crate::kv) fn check_integrity(
        &self,
        pools: &Pools,
        named: &mut [Vec<u32>; 2],
    ) -> Result<(), IntegrityError> {
        let mut n_nodes = 1;
        let mut sums = Sums::default();
        // Each node with the hash of the preceding page, and whether that one is locked.
        let mut to_visit: Vec<(NodeId, Vec<u64>, [bool; 2])> = vec![(ROOT, Vec::new(), [true; 2])];
        while let Some((id, above, mut is_locked)) = to_visit.pop() {
            let node = &self.nodes[id as usize];
            let n_labelled = node.held.iter().map(Vec::len).max().unwrap_or(0);
            if node.tokens.len() != n_labelled * PAGE_TOKENS
                || node.hashes.len() != n_labelled
                || ((n_labelled == 0) != (id == ROOT))
            {
                return Err(wrong("the lengths of its label differ", id));
            }
            let mut chain = above;
            let n_above = chain.len();
            let mut padded = vec![0; n_above * PAGE_TOKENS];
            padded.extend_from_slice(&node.tokens);
            // The first page's hash also depends on its chain's root, which the tree does not know.
            if n_above == 0 {
                chain.extend(node.hashes.first());
            }
            extend_chain(&mut chain, 0, &padded);
            if chain[n_above..] != node.hashes {
                return Err(wrong("its hashes are not those of its tokens", id));
            }
            for tier in Tier::BOTH {
                self.check_held(pools, named, tier, id, &mut is_locked, &mut sums)?;
            }
            let is_uncopied = id != ROOT && is_uncopied(pools, node);
            if node.uncopied_at != is_uncopied.then_some(node.last_used)
                || is_uncopied != self.uncopied.contains(&(node.last_used, id))
            {
                return Err(wrong("it waits for a copy and should not, or not", id));
            }
            sums.n_uncopied += usize::from(is_uncopied);
            if id != ROOT && node.children.len() == 1 {
                return Err(wrong("it has one child and was not merged with it", id));
            }
            n_nodes += node.children.len();
            let last: Vec<u64> = chain.last().copied().into_iter().collect();
            for (hash, &child) in &node.children {
                let below = &self.nodes[child as usize];
                if below.parent != id || below.hashes.first() != Some(hash) {
                    return Err(wrong("its parent names it wrongly", child));
                }
                if id != ROOT && below.last_used > node.last_used {
                    return Err(wrong("it was used later than its parent", child));
                }
                to_visit.push((child, last.clone(), is_locked));
            }
        }
        let n_queued = self.leaves.each_ref().map(BTreeSet::len);
        if sums.n_held != self.n_held
            || sums.n_unlocked != self.n_unlocked
            || sums.n_queued != n_queued
            || sums.n_uncopied != self.uncopied.len()
            || n_nodes + self.vacant.len() != self.nodes.len()
        {
            return Err(wrong("the tree's counts are wrong", ROOT));
        }
        Ok(())
    }

    /// Checks a node's pages of one tier.
    fn check_held(
        &self,
        pools: &Pools,
        named: &mut [Vec<u32>; 2],
        tier: Tier,
        id: NodeId,
        is_locked: &mut [bool; 2],
        sums: &mut Sums,
    ) -> Result<(), IntegrityError> {
        let (node, t) = (&self.nodes[id as usize], tier as usize);
        let is_locked = &mut is_locked[t];
        for page in &node.held[t] {
            if self.node_of_page[t].get(page.0 as usize) != Some(&Some(id)) {
                return Err(wrong("one of its pages says it belongs elsewhere", id));
            }
            if let Some(n) = named[t].get_mut(page.0 as usize) {
                *n += 1;
            }
            let page_is_locked = pools[tier].n_holders(*page) > 1;
            if page_is_locked && !*is_locked {
                return Err(wrong("a locked page follows an unlocked one", id));
            }
            *is_locked = page_is_locked;
            sums.n_unlocked[t] += usize::from(!page_is_locked);
        }
        sums.n_held[t] += node.held[t].len();
        let children = node
            .children
            .values()
            .map(|child| &self.nodes[*child as usize]);
        let n_children = children.filter(|child| !child.held[t].is_empty()).count();
        if n_children != node.n_children_in[t] {
            return Err(wrong("it counts its children in a tier wrongly", id));
        }
        if n_children > 0 && !node.is_whole_in(tier) {
            return Err(wrong("a child has pages in a tier where it lacks some", id));
        }
        let due = if id == ROOT {
            None
        } else {
            self.due(pools, tier, id)
        };
        let is_queued = due.is_some_and(|at| self.leaves[t].contains(&(at, id)));
        if node.queued_at[t] != due || due.is_some() != is_queued {
            return Err(wrong("it is in the queue and should not be, or not", id));
        }
        sums.n_queued[t] += usize::from(is_queued);
        Ok(())
    }
}

/// The counts of a check.
#[derive(Default)]
#[expect(clippy::struct_field_names, reason = "counts are named so")]
struct Sums {
    n_held: [usize; 2],
    n_unlocked: [usize; 2],
    n_queued: [usize; 2],
    n_uncopied: usize,
}

fn wrong(what: &str, node: NodeId) -> IntegrityError {
    IntegrityError::Tree {
        what: what.to_owned(),
        node,
    }
}
