//! The prefix cache: a radix tree over pages. It remembers which physical page holds the KV of
//! which tokens behind which others, after the sequence that computed it has gone.
//!
//! An edge carries a run of whole pages; a node is split where two sequences part, at a page
//! border, and becomes one with its only child again when the others have been evicted. Children
//! are looked up by the chain hash of their first page and then compared token by token, so a
//! collision of hashes costs a cached page and never shares a wrong one.
//!
//! The tree is one holder of each of its pages. A page with another holder is in use, *locked*:
//! it stays. Whoever uses a page uses all pages before it, so along a path locked pages come
//! first, and the pages of the tree that nobody else holds can be given up one by one from the
//! leaves. That happens in order of last use.
//! Deliberately absent: whose pages these are, and when to give one up.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use super::prefix::{Prefix, PrefixIndex, extend_chain};
use super::{IntegrityError, PAGE_TOKENS, PageIdx, PagePool};

type NodeId = u32;

/// Has no pages, and is nobody's child.
const ROOT: NodeId = 0;

#[derive(Debug, Default)]
struct Node {
    /// `[pages.len() * PAGE_TOKENS]`
    tokens: Vec<u32>,
    /// Chain hash of each page.
    hashes: Vec<u64>,
    pages: Vec<PageIdx>,
    parent: NodeId,
    /// By the hash of their first page.
    children: FxHashMap<u64, NodeId>,
    /// Never before that of a child.
    last_used: u64,
    /// Under which time it is in `unlocked_leaves`, if it is.
    queued_at: Option<u64>,
}

/// How far a search came: to the first `n_pages` of `node`.
#[derive(Debug, Clone, Copy)]
struct End {
    node: NodeId,
    n_pages: usize,
}

#[derive(Debug)]
pub struct RadixTree {
    nodes: Vec<Node>,
    /// Entries of `nodes` that are free.
    vacant: Vec<NodeId>,
    /// Which node holds each physical page.
    node_of_page: Vec<Option<NodeId>>,
    /// Leaves whose last page is not locked, the longest unused first.
    unlocked_leaves: BTreeSet<(u64, NodeId)>,
    /// Counts uses.
    clock: u64,
    n_pages: usize,
    n_unlocked: usize,
}

impl RadixTree {
    /// An empty tree over the pages of a pool of `n_pages`.
    pub fn new(n_pages: usize) -> Self {
        Self {
            nodes: vec![Node::default()],
            vacant: Vec::new(),
            node_of_page: vec![None; n_pages],
            unlocked_leaves: BTreeSet::new(),
            clock: 0,
            n_pages: 0,
            n_unlocked: 0,
        }
    }

    /// Pages in the tree.
    pub fn n_pages(&self) -> usize {
        self.n_pages
    }

    /// Pages that [`Self::evict`] can give up, one after the other.
    pub fn n_unlocked(&self) -> usize {
        self.n_unlocked
    }

    /// Leading pages of `prefix` that are cached, and how many of them are not locked.
    pub fn lookup(&self, pool: &PagePool, prefix: Prefix<'_>) -> (usize, usize) {
        let (mut n_pages, mut n_unlocked) = (0, 0);
        self.descend(prefix, |node, n| {
            n_pages += n;
            n_unlocked += node.pages[..n]
                .iter()
                .filter(|page| pool.n_holders(**page) == 1)
                .count();
        });
        (n_pages, n_unlocked)
    }

    /// Makes the caller a holder of the leading pages of `prefix` that are cached, and appends
    /// them to `pages`.
    pub fn lock(&mut self, pool: &mut PagePool, prefix: Prefix<'_>, pages: &mut Vec<PageIdx>) {
        let n_before = pages.len();
        let end = self.descend(prefix, |node, n| pages.extend_from_slice(&node.pages[..n]));
        for page in &pages[n_before..] {
            self.retain(pool, *page);
        }
        self.touch(pool, end.node);
    }

    /// The caller, who holds `pages`, is done with them. Those in the tree stay there.
    pub fn unlock(&mut self, pool: &mut PagePool, pages: impl Iterator<Item = PageIdx>) {
        let mut touched = Vec::new();
        for page in pages {
            pool.release(page);
            let Some(node) = self.node_of_page[page.0 as usize] else {
                continue;
            };
            self.n_unlocked += usize::from(pool.n_holders(page) == 1);
            if touched.last() != Some(&node) {
                touched.push(node);
            }
        }
        self.clock += 1;
        for node in touched {
            self.nodes[node as usize].last_used = self.clock;
            self.refresh(pool, node);
        }
    }

    /// Remembers `pages`, held by the caller, as those of `prefix`. Where the tree has a page for
    /// the same tokens already, the caller's goes back to the pool and the tree's replaces it in
    /// `pages`. New pages are entered into `index`.
    pub fn insert(
        &mut self,
        pool: &mut PagePool,
        index: &mut PrefixIndex,
        prefix: Prefix<'_>,
        pages: &mut [PageIdx],
    ) {
        let mut known = Vec::new();
        let end = self.descend(prefix, |node, n| known.extend_from_slice(&node.pages[..n]));
        for (own, known) in pages.iter_mut().zip(&known) {
            if own != known {
                self.retain(pool, *known);
                pool.release(*own);
                *own = *known;
            }
        }
        let n_known = known.len();
        let new_pages = pages.get(n_known..prefix.n_pages()).unwrap_or_default();
        // A child of this hash that is another's by its tokens: these pages cannot be remembered.
        let collides = prefix.hashes.get(n_known).is_some_and(|hash| {
            let node = &self.nodes[end.node as usize];
            node.children.contains_key(hash) || node.hashes.get(end.n_pages) == Some(hash)
        });
        if new_pages.is_empty() || collides {
            self.touch(pool, end.node);
            return;
        }
        if end.n_pages < self.nodes[end.node as usize].pages.len() {
            self.split(pool, end);
        }
        let upper = &self.nodes[end.node as usize];
        let node = if end.node != ROOT && upper.children.is_empty() {
            end.node
        } else {
            self.new_child(end.node, prefix.hashes[n_known])
        };
        for &page in new_pages {
            // Held by the caller, so this one enters locked.
            let held = pool.retain(page);
            debug_assert!(held, "page {} of a sequence has no holder", page.0);
            self.node_of_page[page.0 as usize] = Some(node);
        }
        self.n_pages += new_pages.len();
        let hashes = &prefix.hashes[n_known..];
        index.insert(hashes);
        let tokens = &prefix.tokens[n_known * PAGE_TOKENS..prefix.n_pages() * PAGE_TOKENS];
        let label = &mut self.nodes[node as usize];
        label.tokens.extend_from_slice(tokens);
        label.hashes.extend_from_slice(hashes);
        label.pages.extend_from_slice(new_pages);
        self.touch(pool, node);
    }

    /// Gives up the last page of the leaf that was not used for longest; false where every page
    /// is locked.
    pub fn evict(&mut self, pool: &mut PagePool, index: &mut PrefixIndex) -> bool {
        let Some(&(_, id)) = self.unlocked_leaves.first() else {
            return false;
        };
        let node = &mut self.nodes[id as usize];
        let (Some(page), Some(hash)) = (node.pages.pop(), node.hashes.pop()) else {
            return false;
        };
        node.tokens.truncate(node.pages.len() * PAGE_TOKENS);
        let is_empty = node.pages.is_empty();
        index.remove(&[hash]);
        self.node_of_page[page.0 as usize] = None;
        self.n_pages -= 1;
        self.n_unlocked -= 1;
        pool.release(page);
        if is_empty {
            self.remove_leaf(pool, id, hash);
        } else {
            self.refresh(pool, id);
        }
        true
    }

    /// Walks down along `prefix`; `visit` gets each node and how many of its pages match.
    fn descend(&self, prefix: Prefix<'_>, mut visit: impl FnMut(&Node, usize)) -> End {
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
            visit(node, n_pages);
            n_done += n_pages;
            end = End {
                node: child,
                n_pages,
            };
            if n_pages < node.pages.len() {
                break;
            }
        }
        end
    }

    /// One more holder of a page of the tree.
    fn retain(&mut self, pool: &mut PagePool, page: PageIdx) {
        self.n_unlocked -= usize::from(pool.n_holders(page) == 1);
        let held = pool.retain(page);
        debug_assert!(held, "page {} of the tree has no holder", page.0);
    }

    /// `node` and what is above it were used now.
    fn touch(&mut self, pool: &PagePool, node: NodeId) {
        self.clock += 1;
        let mut above = node;
        while above != ROOT {
            self.nodes[above as usize].last_used = self.clock;
            above = self.nodes[above as usize].parent;
        }
        self.refresh(pool, node);
    }

    /// Puts `id` into `unlocked_leaves`, or takes it out, as it should be. To be called for every
    /// node that was used, lost its last child or got one, or whose last page changed.
    fn refresh(&mut self, pool: &PagePool, id: NodeId) {
        let node = &mut self.nodes[id as usize];
        let is_unlocked = node.children.is_empty()
            && node
                .pages
                .last()
                .is_some_and(|page| pool.n_holders(*page) == 1);
        let due = is_unlocked.then_some(node.last_used);
        if due == node.queued_at {
            return;
        }
        if let Some(at) = std::mem::replace(&mut node.queued_at, due) {
            self.unlocked_leaves.remove(&(at, id));
        }
        if let Some(at) = due {
            self.unlocked_leaves.insert((at, id));
        }
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
    fn split(&mut self, pool: &PagePool, end: End) {
        let upper = &mut self.nodes[end.node as usize];
        let lower = Node {
            tokens: upper.tokens.split_off(end.n_pages * PAGE_TOKENS),
            hashes: upper.hashes.split_off(end.n_pages),
            pages: upper.pages.split_off(end.n_pages),
            parent: end.node,
            children: std::mem::take(&mut upper.children),
            last_used: upper.last_used,
            queued_at: None,
        };
        let first_hash = lower.hashes[0];
        let id = self.new_node(lower);
        self.nodes[end.node as usize]
            .children
            .insert(first_hash, id);
        self.adopt(id);
        self.refresh(pool, end.node);
        self.refresh(pool, id);
    }

    /// Makes a node and its only child one.
    fn merge_with_child(&mut self, pool: &PagePool, id: NodeId) {
        let Some(child) = self.nodes[id as usize].children.drain().next() else {
            return;
        };
        let child = child.1;
        if let Some(at) = self.nodes[child as usize].queued_at {
            self.unlocked_leaves.remove(&(at, child));
        }
        let lower = std::mem::take(&mut self.nodes[child as usize]);
        self.vacant.push(child);
        let upper = &mut self.nodes[id as usize];
        upper.tokens.extend_from_slice(&lower.tokens);
        upper.hashes.extend_from_slice(&lower.hashes);
        upper.pages.extend_from_slice(&lower.pages);
        upper.children = lower.children;
        self.adopt(id);
        self.refresh(pool, id);
    }

    /// Tells the pages and children of `id` that they are its.
    fn adopt(&mut self, id: NodeId) {
        let node = &self.nodes[id as usize];
        for page in &node.pages {
            self.node_of_page[page.0 as usize] = Some(id);
        }
        let children: Vec<NodeId> = node.children.values().copied().collect();
        for child in children {
            self.nodes[child as usize].parent = id;
        }
    }

    /// Removes a leaf that has no page left; its first one had this hash.
    fn remove_leaf(&mut self, pool: &PagePool, id: NodeId, first_hash: u64) {
        let node = std::mem::take(&mut self.nodes[id as usize]);
        if let Some(at) = node.queued_at {
            self.unlocked_leaves.remove(&(at, id));
        }
        self.vacant.push(id);
        let parent = &mut self.nodes[node.parent as usize];
        parent.children.remove(&first_hash);
        match parent.children.len() {
            _ if node.parent == ROOT => {}
            0 => self.refresh(pool, node.parent),
            1 => self.merge_with_child(pool, node.parent),
            _ => {}
        }
    }

    /// Labels, counts, locks and queue agree with each other and with `pool`. Adds one to `named`
    /// for each page of the tree. O(pages): for tests and debugging.
    pub(super) fn check_integrity(
        &self,
        pool: &PagePool,
        named: &mut [u32],
    ) -> Result<(), IntegrityError> {
        let wrong = |what: &str, node: NodeId| IntegrityError::Tree {
            what: what.to_owned(),
            node,
        };
        let (mut n_pages, mut n_unlocked, mut n_queued, mut n_nodes) = (0, 0, 0, 1);
        // Each node with the hash of the page above it, and whether that one is locked.
        let mut to_visit: Vec<(NodeId, Vec<u64>, bool)> = vec![(ROOT, Vec::new(), true)];
        while let Some((id, above, mut is_locked)) = to_visit.pop() {
            let node = &self.nodes[id as usize];
            if node.tokens.len() != node.pages.len() * PAGE_TOKENS
                || node.hashes.len() != node.pages.len()
                || (node.pages.is_empty() != (id == ROOT))
            {
                return Err(wrong("the lengths of its label differ", id));
            }
            let mut chain = above;
            let n_above = chain.len();
            let mut padded = vec![0; n_above * PAGE_TOKENS];
            padded.extend_from_slice(&node.tokens);
            extend_chain(&mut chain, &padded);
            if chain[n_above..] != node.hashes {
                return Err(wrong("its hashes are not those of its tokens", id));
            }
            for page in &node.pages {
                let place = self.node_of_page.get(page.0 as usize);
                if place != Some(&Some(id)) {
                    return Err(wrong("one of its pages says it belongs elsewhere", id));
                }
                if let Some(n) = named.get_mut(page.0 as usize) {
                    *n += 1;
                }
                let page_is_locked = pool.n_holders(*page) > 1;
                if page_is_locked && !is_locked {
                    return Err(wrong("a page is locked behind one that is not", id));
                }
                is_locked = page_is_locked;
                n_unlocked += usize::from(!page_is_locked);
            }
            n_pages += node.pages.len();
            if id != ROOT && node.children.len() == 1 {
                return Err(wrong("it has one child and is not one with it", id));
            }
            let due =
                (id != ROOT && node.children.is_empty() && !is_locked).then_some(node.last_used);
            let is_queued = due.is_some_and(|at| self.unlocked_leaves.contains(&(at, id)));
            if node.queued_at != due || due.is_some() != is_queued {
                return Err(wrong("it is in the queue and should not be, or not", id));
            }
            n_queued += usize::from(is_queued);
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
        if n_pages != self.n_pages
            || n_unlocked != self.n_unlocked
            || n_queued != self.unlocked_leaves.len()
            || n_nodes + self.vacant.len() != self.nodes.len()
        {
            return Err(wrong("the tree's counts are wrong", ROOT));
        }
        Ok(())
    }
}
