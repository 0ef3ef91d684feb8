//! Chooses pages to copy to the host.
//!
//! All device pages of the tree are copied, recently used or not, so that any of them can be
//! evicted at any time without waiting for a copy. The least recently used come first, since they
//! are the next to be evicted.

use super::{NodeId, ROOT, RadixTree};
use crate::kv::{PageCopy, Pools, PrefixIndex, Tier};

impl RadixTree {
    /// Allocates host copies for up to `max` pages without one, least recently used first, evicting
    /// copies that were used less recently. The caller does the copying.
    pub fn copy_to_host(
        &mut self,
        pools: &mut Pools,
        index: &mut PrefixIndex,
        max: usize,
    ) -> Vec<PageCopy> {
        let mut copies: Vec<PageCopy> = Vec::new();
        while copies.len() < max {
            let mut after = 0;
            let is_full = pools[Tier::Host].n_free() == 0;
            if is_full {
                let Some(&(oldest, id)) = self.leaves[Tier::Host as usize].first() else {
                    break;
                };
                let victim = self.nodes[id as usize].held[Tier::Host as usize].last();
                // Do not evict what was just chosen.
                if copies.iter().any(|copy| Some(&copy.host) == victim) {
                    break;
                }
                after = oldest + 1;
            }
            if self.uncopied.range((after, 0)..).next().is_none() {
                break;
            }
            if is_full {
                self.evict(pools, index, Tier::Host);
            }
            // Looked up after the eviction, which may have merged two nodes.
            let Some(&(_, id)) = self.uncopied.range((after, 0)..).next() else {
                break;
            };
            let id = self.first_without_copy(id);
            let Some(slot) = pools[Tier::Host].alloc() else {
                break;
            };
            let node = &self.nodes[id as usize];
            let i = node.held[Tier::Host as usize].len();
            let Some(&page) = node.held[Tier::Device as usize].get(i) else {
                pools[Tier::Host].release(slot);
                break;
            };
            self.put(Tier::Host, id, slot);
            self.n_unlocked[Tier::Host as usize] += 1;
            self.refresh(pools, id);
            self.refresh(pools, self.nodes[id as usize].parent);
            copies.push(PageCopy {
                device: page,
                host: slot,
            });
        }
        copies
    }

    /// Cancels the copies of the last [`Self::copy_to_host`].
    pub fn forget_copies(
        &mut self,
        pools: &mut Pools,
        index: &mut PrefixIndex,
        copies: &[PageCopy],
    ) {
        for PageCopy { host: slot, .. } in copies.iter().rev() {
            let node = self.node_of_page[Tier::Host as usize]
                .get(slot.0 as usize)
                .copied()
                .flatten();
            let is_last = |id: &NodeId| {
                self.nodes[*id as usize].held[Tier::Host as usize].last() == Some(slot)
            };
            let Some(id) = node.filter(is_last) else {
                debug_assert!(false, "host page {} is not a copy made last", slot.0);
                continue;
            };
            self.n_unlocked[Tier::Host as usize] -=
                usize::from(pools[Tier::Host].n_holders(*slot) == 1);
            self.drop_last(pools, index, Tier::Host, id);
        }
    }

    /// The topmost node on the path to `id` with pages that have no copy on the host.
    fn first_without_copy(&self, id: NodeId) -> NodeId {
        let (mut first, mut above) = (id, id);
        while above != ROOT {
            let node = &self.nodes[above as usize];
            if !node.is_whole_in(Tier::Host) {
                first = above;
            }
            above = node.parent;
        }
        first
    }
}
