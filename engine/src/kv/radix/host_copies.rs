//! Which pages get a copy on the host.
//!
//! Copies are made of whatever the tree has on the device, used just now or not, so that a page
//! can be given up there at any time without waiting for one. The longest unused go first, since
//! they are the next to be given up.

use super::{NodeId, ROOT, RadixTree};
use crate::kv::{PageCopy, Pools, PrefixIndex, Tier};

impl RadixTree {
    /// Gives copies on the host to up to `max` pages that have none, the longest unused first, at
    /// the cost of copies that were not used for longer. The copying is the caller's.
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
                // Not what was chosen just now.
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
            // Looked up behind the eviction, which may have made two nodes one.
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

    /// The copies of the last [`Self::copy_to_host`] were not made.
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

    /// The topmost node on the way to `id` that has pages without a copy on the host.
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
