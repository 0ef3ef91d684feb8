//! The prefix cache: a radix tree over pages. It records which physical page holds the KV of which
//! tokens in which context, after the sequence that computed it has ended.
//!
//! An edge carries a run of whole pages. A node is split at a page border where two sequences
//! diverge, and merged with its only child when the others have been evicted. Children are found by
//! the chain hash of their first page and then compared token by token, so a hash collision costs a
//! cached page and never shares a wrong one.
//!
//! A page of the tree is on the device, in the host tier, or in both: a node has a physical page
//! for some of its first pages in each tier. Along a path from the root, pages on the device come
//! first, and so do pages with a copy on the host, so each tier can evict its pages one by one from
//! its own leaves. Pages that neither tier holds leave the tree.
//!
//! The tree is one holder of each of its physical pages. A page with another holder is in use,
//! *locked*, and stays. A user of a page also uses all pages before it, so along a path locked
//! pages come first, and unlocked ones can be evicted. Eviction is in order of last use.
//! Deliberately absent: which sequence a page belongs to, and when to evict.

mod host_copies;
mod integrity;
mod recorded;

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use super::events::EventLog;
use super::prefix::{Prefix, PrefixIndex};
use super::{PAGE_TOKENS, PageIdx, Pools, Tier};

type NodeId = u32;

/// Has no pages and no parent.
const ROOT: NodeId = 0;

#[derive(Debug, Default)]
struct Node {
    /// `[hashes.len() * PAGE_TOKENS]`
    tokens: Vec<u32>,
    /// Chain hash of each page.
    hashes: Vec<u64>,
    /// For each tier: the physical pages of its first pages.
    held: [Vec<PageIdx>; 2],
    parent: NodeId,
    /// Children by the hash of their first page.
    children: FxHashMap<u64, NodeId>,
    /// Number of children with a physical page, for each tier.
    n_children_in: [usize; 2],
    /// Never earlier than that of a child.
    last_used: u64,
    /// The time of its entries in `leaves` and in `uncopied`, if any.
    queued_at: [Option<u64>; 2],
    uncopied_at: Option<u64>,
}

impl Node {
    fn is_whole_in(&self, tier: Tier) -> bool {
        self.held[tier as usize].len() == self.hashes.len()
    }
}

/// The end of a search: the first `n_pages` of `node`.
#[derive(Debug, Clone, Copy)]
struct End {
    node: NodeId,
    n_pages: usize,
}

/// The result of [`RadixTree::lookup`], in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrefixHit {
    pub n_device: usize,
    /// Number of device pages that are not locked.
    pub n_unlocked: usize,
    /// Number of pages after those on the device that are only on the host.
    pub n_host: usize,
}

#[derive(Debug)]
pub struct RadixTree {
    nodes: Vec<Node>,
    /// Unused entries of `nodes`.
    vacant: Vec<NodeId>,
    /// For each tier: the node that holds each physical page.
    node_of_page: [Vec<Option<NodeId>>; 2],
    /// For each tier: nodes whose last page there is unlocked and that have no page below, least
    /// recently used first.
    leaves: [BTreeSet<(u64, NodeId)>; 2],
    /// Nodes with more pages on the device than copies on the host; empty without a host tier.
    uncopied: BTreeSet<(u64, NodeId)>,
    /// Counts uses.
    clock: u64,
    n_held: [usize; 2],
    n_unlocked: [usize; 2],
    /// `None` if nothing follows the contents.
    log: Option<EventLog>,
}

impl RadixTree {
    /// An empty tree over the pages of these pools.
    pub fn new(pools: &Pools) -> Self {
        let nobodys = |tier| vec![None; pools[tier].n_total()];
        Self {
            nodes: vec![Node::default()],
            vacant: Vec::new(),
            node_of_page: [nobodys(Tier::Device), nobodys(Tier::Host)],
            leaves: [BTreeSet::new(), BTreeSet::new()],
            uncopied: BTreeSet::new(),
            clock: 0,
            n_held: [0; 2],
            n_unlocked: [0; 2],
            log: None,
        }
    }

    /// Number of physical pages in the tree.
    pub fn n_held(&self, tier: Tier) -> usize {
        self.n_held[tier as usize]
    }

    /// Number of pages that [`Self::evict`] can evict one after the other.
    pub fn n_unlocked(&self, tier: Tier) -> usize {
        self.n_unlocked[tier as usize]
    }

    /// Looks up the leading pages of `prefix` that are cached.
    pub fn lookup(&self, pools: &Pools, prefix: Prefix<'_>) -> PrefixHit {
        let mut found = PrefixHit::default();
        self.descend(prefix, |_, node, n| {
            let held = &node.held[Tier::Device as usize];
            let on_device = &held[..n.min(held.len())];
            found.n_device += on_device.len();
            found.n_host += n - on_device.len();
            found.n_unlocked += on_device
                .iter()
                .filter(|page| pools[Tier::Device].n_holders(**page) == 1)
                .count();
        });
        found
    }

    /// Makes the caller a holder of the leading pages of `prefix` in this tier, and appends them to
    /// `pages`.
    pub fn lock(
        &mut self,
        pools: &mut Pools,
        tier: Tier,
        prefix: Prefix<'_>,
        pages: &mut Vec<PageIdx>,
    ) {
        let n_before = pages.len();
        let end = self.descend(prefix, |_, node, n| {
            let held = &node.held[tier as usize];
            pages.extend_from_slice(&held[..n.min(held.len())]);
        });
        for page in &pages[n_before..] {
            self.retain(pools, tier, *page);
        }
        self.touch(pools, end.node);
    }

    /// Releases the caller's hold on `pages`. Pages in the tree stay there.
    pub fn unlock(&mut self, pools: &mut Pools, tier: Tier, pages: impl Iterator<Item = PageIdx>) {
        let mut touched = Vec::new();
        for page in pages {
            pools[tier].release(page);
            let Some(node) = self.node_of_page[tier as usize][page.0 as usize] else {
                continue;
            };
            self.n_unlocked[tier as usize] += usize::from(pools[tier].n_holders(page) == 1);
            if touched.last() != Some(&node) {
                touched.push(node);
            }
        }
        self.clock += 1;
        for node in touched {
            self.nodes[node as usize].last_used = self.clock;
            self.refresh(pools, node);
        }
    }

    /// Enters `pages`, held by the caller, as the pages of `prefix` on the device. If the tree
    /// already has a device page for the same tokens, the caller's goes back to the pool and is
    /// replaced in `pages`. New prefixes are added to `index`.
    pub fn insert(
        &mut self,
        pools: &mut Pools,
        index: &mut PrefixIndex,
        prefix: Prefix<'_>,
        pages: &mut [PageIdx],
    ) {
        let mut path = Vec::new();
        let end = self.descend(prefix, |id, _, n| path.push((id, n)));
        let mut n_known = 0;
        for (id, n) in path {
            for (i, own) in pages.iter_mut().skip(n_known).take(n).enumerate() {
                match self.nodes[id as usize].held[Tier::Device as usize].get(i) {
                    Some(known) if known == own => {}
                    Some(&known) => {
                        self.retain(pools, Tier::Device, known);
                        pools[Tier::Device].release(*own);
                        *own = known;
                    }
                    // It was only on the host until now.
                    None => self.put_locked(pools, id, *own),
                }
            }
            n_known += n;
        }
        let new_pages = pages.get(n_known..prefix.n_pages()).unwrap_or_default();
        // A child has this hash but different tokens: these pages cannot be cached.
        let collides = prefix.hashes.get(n_known).is_some_and(|hash| {
            let node = &self.nodes[end.node as usize];
            node.children.contains_key(hash) || node.hashes.get(end.n_pages) == Some(hash)
        });
        if new_pages.is_empty() || collides {
            self.touch(pools, end.node);
            return;
        }
        if end.n_pages < self.nodes[end.node as usize].hashes.len() {
            self.split(pools, end);
        }
        let upper = &self.nodes[end.node as usize];
        let node = if end.node != ROOT && upper.children.is_empty() {
            end.node
        } else {
            self.new_child(end.node, prefix.hashes[n_known])
        };
        let hashes = &prefix.hashes[n_known..];
        index.insert(hashes);
        let tokens = &prefix.tokens[n_known * PAGE_TOKENS..prefix.n_pages() * PAGE_TOKENS];
        let label = &mut self.nodes[node as usize];
        label.tokens.extend_from_slice(tokens);
        label.hashes.extend_from_slice(hashes);
        for &page in new_pages {
            self.put_locked(pools, node, page);
        }
        self.touch(pools, node);
        self.refresh(pools, end.node);
    }

    /// Evicts the last page of the tier's least recently used leaf; `None` if every page is locked.
    /// True: the other tier still holds a page for the same tokens.
    pub fn evict(
        &mut self,
        pools: &mut Pools,
        index: &mut PrefixIndex,
        tier: Tier,
    ) -> Option<bool> {
        let &(_, id) = self.leaves[tier as usize].first()?;
        self.n_unlocked[tier as usize] -= 1;
        Some(self.drop_last(pools, index, tier, id))
    }

    /// Descends along `prefix`; `visit` gets each node and the number of its pages that match.
    fn descend(&self, prefix: Prefix<'_>, mut visit: impl FnMut(NodeId, &Node, usize)) -> End {
        let mut end = End {
            node: ROOT,
            n_pages: 0,
        };
        let mut n_done = 0;
        while let Some(hash) = prefix.hashes.get(n_done) {
            let Some(&child) = self.nodes[end.node as usize].children.get(hash) else {
                break;
            };
            let node = &self.nodes[child as usize];
            let n_pages = node
                .tokens
                .chunks_exact(PAGE_TOKENS)
                .zip(prefix.pages_from(n_done))
                .take_while(|(ours, theirs)| ours == theirs)
                .count();
            if n_pages == 0 {
                break;
            }
            visit(child, node, n_pages);
            n_done += n_pages;
            end = End {
                node: child,
                n_pages,
            };
            if n_pages < node.hashes.len() {
                break;
            }
        }
        end
    }

    /// Adds a holder to a page of the tree.
    fn retain(&mut self, pools: &mut Pools, tier: Tier, page: PageIdx) {
        self.n_unlocked[tier as usize] -= usize::from(pools[tier].n_holders(page) == 1);
        let held = pools[tier].retain(page);
        debug_assert!(held, "page {} of the tree has no holder", page.0);
    }

    /// Adds this page, which the caller holds, as the next device page of `id`; it starts locked.
    fn put_locked(&mut self, pools: &mut Pools, id: NodeId, page: PageIdx) {
        let held = pools[Tier::Device].retain(page);
        debug_assert!(held, "page {} of a sequence has no holder", page.0);
        self.put(Tier::Device, id, page);
    }

    fn put(&mut self, tier: Tier, id: NodeId, page: PageIdx) {
        let node = &mut self.nodes[id as usize];
        let held = &mut node.held[tier as usize];
        held.push(page);
        let (is_first, parent) = (held.len() == 1, node.parent);
        self.node_of_page[tier as usize][page.0 as usize] = Some(id);
        self.n_held[tier as usize] += 1;
        self.nodes[parent as usize].n_children_in[tier as usize] += usize::from(is_first);
        self.record_stored(tier, id);
    }

    /// Removes the last page of `id` in this tier. Returns true if the other tier still has a page
    /// for the same tokens.
    fn drop_last(
        &mut self,
        pools: &mut Pools,
        index: &mut PrefixIndex,
        tier: Tier,
        id: NodeId,
    ) -> bool {
        let node = &mut self.nodes[id as usize];
        let Some(page) = node.held[tier as usize].pop() else {
            return false;
        };
        self.node_of_page[tier as usize][page.0 as usize] = None;
        self.n_held[tier as usize] -= 1;
        pools[tier].release(page);
        let n_left = node.held[tier as usize].len();
        self.record_removed(tier, id, n_left);
        let node = &mut self.nodes[id as usize];
        let n_labelled = node.held.iter().map(Vec::len).max().unwrap_or(0);
        let (parent, is_kept) = (node.parent, n_left < n_labelled);
        let dropped = node.hashes.split_off(n_labelled);
        node.tokens.truncate(n_labelled * PAGE_TOKENS);
        index.remove(&dropped);
        if n_left == 0 {
            self.nodes[parent as usize].n_children_in[tier as usize] -= 1;
        }
        match dropped.first() {
            Some(hash) if n_labelled == 0 => self.remove_leaf(pools, id, *hash),
            _ => {
                self.refresh(pools, id);
                self.refresh(pools, parent);
            }
        }
        is_kept
    }

    /// Marks `node` and its ancestors as used now.
    fn touch(&mut self, pools: &Pools, node: NodeId) {
        self.clock += 1;
        let has_host_tier = pools[Tier::Host].n_total() > 0;
        let mut above = node;
        while above != ROOT {
            self.nodes[above as usize].last_used = self.clock;
            // Without a host tier only leaves are in a queue.
            if above == node || has_host_tier {
                self.refresh(pools, above);
            }
            above = self.nodes[above as usize].parent;
        }
    }

    /// Updates the queue entries of `id`. Call it for every node that was used, whose pages
    /// changed, or whose children's pages changed.
    fn refresh(&mut self, pools: &Pools, id: NodeId) {
        if id == ROOT {
            return;
        }
        for tier in Tier::BOTH {
            let due = self.due(pools, tier, id);
            let queued_at = &mut self.nodes[id as usize].queued_at[tier as usize];
            requeue(&mut self.leaves[tier as usize], queued_at, due, id);
        }
        let node = &mut self.nodes[id as usize];
        let due = is_uncopied(pools, node).then_some(node.last_used);
        requeue(&mut self.uncopied, &mut node.uncopied_at, due, id);
    }

    /// Last use of a leaf of this tier whose last page is unlocked.
    fn due(&self, pools: &Pools, tier: Tier, id: NodeId) -> Option<u64> {
        let node = &self.nodes[id as usize];
        let last = node.held[tier as usize].last()?;
        let is_unlocked =
            node.n_children_in[tier as usize] == 0 && pools[tier].n_holders(*last) == 1;
        is_unlocked.then_some(node.last_used)
    }

    fn new_node(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.vacant.pop() {
            self.nodes[id as usize] = node;
            return id;
        }
        self.nodes.push(node);
        (self.nodes.len() - 1) as NodeId
    }

    /// Adds a child of `parent` without pages; the first page will have this hash.
    fn new_child(&mut self, parent: NodeId, first_hash: u64) -> NodeId {
        let child = self.new_node(Node {
            parent,
            ..Node::default()
        });
        let children = &mut self.nodes[parent as usize].children;
        children.insert(first_hash, child);
        child
    }

    /// Splits a node after `end.n_pages` pages; the rest becomes its only child.
    fn split(&mut self, pools: &Pools, end: End) {
        let upper = &mut self.nodes[end.node as usize];
        let lower = Node {
            tokens: upper.tokens.split_off(end.n_pages * PAGE_TOKENS),
            hashes: upper.hashes.split_off(end.n_pages),
            held: upper
                .held
                .each_mut()
                .map(|held| held.split_off(end.n_pages.min(held.len()))),
            parent: end.node,
            children: std::mem::take(&mut upper.children),
            n_children_in: upper.n_children_in,
            last_used: upper.last_used,
            queued_at: [None; 2],
            uncopied_at: None,
        };
        upper.n_children_in = lower
            .held
            .each_ref()
            .map(|held| usize::from(!held.is_empty()));
        let first_hash = lower.hashes[0];
        let id = self.new_node(lower);
        self.nodes[end.node as usize]
            .children
            .insert(first_hash, id);
        self.adopt(id);
        self.refresh(pools, end.node);
        self.refresh(pools, id);
    }

    /// Merges a node with its only child.
    fn merge_with_child(&mut self, pools: &Pools, id: NodeId) {
        let Some(child) = self.nodes[id as usize].children.drain().next() else {
            return;
        };
        let child = child.1;
        let lower = self.take_out(child);
        let upper = &mut self.nodes[id as usize];
        upper.tokens.extend_from_slice(&lower.tokens);
        upper.hashes.extend_from_slice(&lower.hashes);
        // A child has pages only in tiers in which its parent is complete.
        for (upper, lower) in upper.held.iter_mut().zip(&lower.held) {
            upper.extend_from_slice(lower);
        }
        upper.children = lower.children;
        upper.n_children_in = lower.n_children_in;
        self.adopt(id);
        self.refresh(pools, id);
    }

    /// Removes a node from `nodes` and the queues.
    fn take_out(&mut self, id: NodeId) -> Node {
        let node = std::mem::take(&mut self.nodes[id as usize]);
        for (queue, at) in self.leaves.iter_mut().zip(node.queued_at) {
            if let Some(at) = at {
                queue.remove(&(at, id));
            }
        }
        if let Some(at) = node.uncopied_at {
            self.uncopied.remove(&(at, id));
        }
        self.vacant.push(id);
        node
    }

    /// Updates the back-references of the pages and children of `id`.
    fn adopt(&mut self, id: NodeId) {
        let node = &self.nodes[id as usize];
        for (node_of_page, held) in self.node_of_page.iter_mut().zip(&node.held) {
            for page in held {
                node_of_page[page.0 as usize] = Some(id);
            }
        }
        let children: Vec<NodeId> = node.children.values().copied().collect();
        for child in children {
            self.nodes[child as usize].parent = id;
        }
    }

    /// Removes a leaf without pages; its first page had this hash.
    fn remove_leaf(&mut self, pools: &Pools, id: NodeId, first_hash: u64) {
        let node = self.take_out(id);
        let parent = &mut self.nodes[node.parent as usize];
        parent.children.remove(&first_hash);
        match parent.children.len() {
            1 if node.parent != ROOT => self.merge_with_child(pools, node.parent),
            _ => self.refresh(pools, node.parent),
        }
    }
}

fn is_uncopied(pools: &Pools, node: &Node) -> bool {
    let [device, host] = &node.held;
    pools[Tier::Host].n_total() > 0 && device.len() > host.len()
}

/// Updates a queue and the node's record of it.
fn requeue(
    queue: &mut BTreeSet<(u64, NodeId)>,
    queued_at: &mut Option<u64>,
    due: Option<u64>,
    id: NodeId,
) {
    if due == *queued_at {
        return;
    }
    if let Some(at) = std::mem::replace(queued_at, due) {
        queue.remove(&(at, id));
    }
    if let Some(at) = due {
        queue.insert((at, id));
    }
}
