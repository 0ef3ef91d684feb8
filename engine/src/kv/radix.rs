//! The prefix cache: a radix tree over pages. It remembers which physical page holds the KV of
//! which tokens behind which others, after the sequence that computed it has gone.
//!
//! An edge carries a run of whole pages; a node is split where two sequences part, at a page
//! border, and becomes one with its only child again when the others have been evicted. Children
//! are looked up by the chain hash of their first page and then compared token by token, so a
//! collision of hashes costs a cached page and never shares a wrong one.
//!
//! A page of the tree lies on the device, in the host tier, or in both: a node has a physical page
//! for some of its first pages in each tier. Along a path from the root the pages that are on the
//! device come first, and so do those that have a copy on the host, so each tier can give its pages
//! up one by one from its own leaves. What neither tier holds any more leaves the tree.
//!
//! The tree is one holder of each of its physical pages. One with another holder is in use,
//! *locked*: it stays. Whoever uses a page uses all pages before it, so along a path locked pages
//! come first, and those that nobody else holds can be given up. That happens in order of last use.
//! Deliberately absent: whose pages these are, and when to give one up.

mod host_copies;
mod integrity;

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use super::prefix::{Prefix, PrefixIndex};
use super::{PAGE_TOKENS, PageIdx, Pools, Tier};

type NodeId = u32;

/// Has no pages, and is nobody's child.
const ROOT: NodeId = 0;

#[derive(Debug, Default)]
struct Node {
    /// `[hashes.len() * PAGE_TOKENS]`
    tokens: Vec<u32>,
    /// Chain hash of each page.
    hashes: Vec<u64>,
    /// For each tier: the physical pages of the first so many pages.
    held: [Vec<PageIdx>; 2],
    parent: NodeId,
    /// By the hash of their first page.
    children: FxHashMap<u64, NodeId>,
    /// How many children have a physical page in each tier.
    n_children_in: [usize; 2],
    /// Never before that of a child.
    last_used: u64,
    /// Under which time it is in `leaves` and in `uncopied`, if it is.
    queued_at: [Option<u64>; 2],
    uncopied_at: Option<u64>,
}

impl Node {
    fn is_whole_in(&self, tier: Tier) -> bool {
        self.held[tier as usize].len() == self.hashes.len()
    }
}

/// How far a search came: to the first `n_pages` of `node`.
#[derive(Debug, Clone, Copy)]
struct End {
    node: NodeId,
    n_pages: usize,
}

/// What [`RadixTree::lookup`] found, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Found {
    pub n_device: usize,
    /// Those of them that are not locked.
    pub n_unlocked: usize,
    /// Behind those on the device, on the host alone.
    pub n_host: usize,
}

#[derive(Debug)]
pub struct RadixTree {
    nodes: Vec<Node>,
    /// Entries of `nodes` that are free.
    vacant: Vec<NodeId>,
    /// For each tier: which node holds each physical page.
    node_of_page: [Vec<Option<NodeId>>; 2],
    /// For each tier: nodes whose last page there is not locked, and below which it has none, the
    /// longest unused first.
    leaves: [BTreeSet<(u64, NodeId)>; 2],
    /// Nodes with more pages on the device than copies on the host; empty without a host tier.
    uncopied: BTreeSet<(u64, NodeId)>,
    /// Counts uses.
    clock: u64,
    n_held: [usize; 2],
    n_unlocked: [usize; 2],
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
        }
    }

    /// Physical pages of the tree.
    pub fn n_held(&self, tier: Tier) -> usize {
        self.n_held[tier as usize]
    }

    /// Pages that [`Self::evict`] can give up, one after the other.
    pub fn n_unlocked(&self, tier: Tier) -> usize {
        self.n_unlocked[tier as usize]
    }

    /// Leading pages of `prefix` that are cached.
    pub fn lookup(&self, pools: &Pools, prefix: Prefix<'_>) -> Found {
        let mut found = Found::default();
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

    /// Makes the caller a holder of the leading pages of `prefix` that are in this tier, and
    /// appends them to `pages`.
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

    /// The caller, who holds `pages`, is done with them. Those in the tree stay there.
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

    /// Remembers `pages`, held by the caller, as those of `prefix` on the device. Where the tree
    /// has a page for the same tokens there already, the caller's goes back to the pool and the
    /// tree's replaces it in `pages`. New prefixes are entered into `index`.
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
                    // On the host alone until now.
                    None => self.put_locked(pools, id, *own),
                }
            }
            n_known += n;
        }
        let new_pages = pages.get(n_known..prefix.n_pages()).unwrap_or_default();
        // A child of this hash that is another's by its tokens: these pages cannot be remembered.
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

    /// Gives up the last page of the tier's leaf that was not used for longest; `None` where every
    /// page is locked. True: the other tier holds a page for the same tokens.
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

    /// Walks down along `prefix`; `visit` gets each node and how many of its pages match.
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

    /// One more holder of a page of the tree.
    fn retain(&mut self, pools: &mut Pools, tier: Tier, page: PageIdx) {
        self.n_unlocked[tier as usize] -= usize::from(pools[tier].n_holders(page) == 1);
        let held = pools[tier].retain(page);
        debug_assert!(held, "page {} of the tree has no holder", page.0);
    }

    /// The next page of `id` on the device is this one, which the caller holds: it enters locked.
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
    }

    /// The tree no longer holds the last page of `id` in this tier. True where it still has one for
    /// the same tokens in the other.
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

    /// `node` and what is above it were used now.
    fn touch(&mut self, pools: &Pools, node: NodeId) {
        self.clock += 1;
        let has_host_tier = pools[Tier::Host].n_total() > 0;
        let mut above = node;
        while above != ROOT {
            self.nodes[above as usize].last_used = self.clock;
            // Without a host tier only a leaf is in a queue.
            if above == node || has_host_tier {
                self.refresh(pools, above);
            }
            above = self.nodes[above as usize].parent;
        }
    }

    /// Puts `id` into the queues, or takes it out, as it should be. To be called for every node
    /// that was used, whose pages changed, or whose children's did.
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

    /// When a leaf of this tier whose last page is not locked was used last.
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

    /// A child of `parent` without pages yet, the first of which will have this hash.
    fn new_child(&mut self, parent: NodeId, first_hash: u64) -> NodeId {
        let child = self.new_node(Node {
            parent,
            ..Node::default()
        });
        let children = &mut self.nodes[parent as usize].children;
        children.insert(first_hash, child);
        child
    }

    /// Cuts a node behind `end.n_pages` of its pages; what is behind becomes its only child.
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

    /// Makes a node and its only child one.
    fn merge_with_child(&mut self, pools: &Pools, id: NodeId) {
        let Some(child) = self.nodes[id as usize].children.drain().next() else {
            return;
        };
        let child = child.1;
        let lower = self.take_out(child);
        let upper = &mut self.nodes[id as usize];
        upper.tokens.extend_from_slice(&lower.tokens);
        upper.hashes.extend_from_slice(&lower.hashes);
        // A child has pages only in tiers in which its parent is whole.
        for (upper, lower) in upper.held.iter_mut().zip(&lower.held) {
            upper.extend_from_slice(lower);
        }
        upper.children = lower.children;
        upper.n_children_in = lower.n_children_in;
        self.adopt(id);
        self.refresh(pools, id);
    }

    /// Takes a node out of `nodes` and the queues.
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

    /// Tells the pages and children of `id` that they are its.
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

    /// Removes a leaf that has no page left; its first one had this hash.
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

/// Brings a queue and what a node knows of it up to date.
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
