//! A tree of all pieces of some texts, with how often each occurred.
//!
//! Every text enters all its suffixes, cut to [`Limits::depth`] tokens. A node is a sequence of
//! tokens and counts its occurrences; the children of a node are what followed it. A sequence that
//! occurred once has no nodes below it: it is a leaf that says where, and is unfolded when it occurs
//! again. So a text that repeats nothing costs a node a token.
//!
//! Texts grow by a token at a time. For each suffix of a growing text whose sequence occurred
//! elsewhere, the tree keeps the node where it ends: these are the matches of the text's end, so a
//! draft needs no search.
//!
//! Texts under different roots share nothing. Texts that have ended leave when there are too many,
//! the least recently used first, a few suffixes with each token that is entered: no call takes
//! long.

use std::collections::{BTreeMap, VecDeque};

use rustc_hash::FxHashMap;

/// No node, no token's place.
const NONE: u32 = u32::MAX;
/// Suffixes of leaving texts that go with each token entered, and at most, where room is needed.
const LEAVING_PER_TOKEN: usize = 2;
const MAX_LEAVING_PER_TOKEN: usize = 64;

pub(super) type TextId = u32;

/// What the tree may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Length of the sequences.
    pub depth: usize,
    /// Texts that have ended.
    pub n_texts: usize,
    /// Tokens of all texts.
    pub n_tokens: usize,
    pub n_nodes: usize,
}

/// What may be drafted.
#[derive(Debug, Clone, Copy)]
pub(super) struct DraftRule {
    pub max: usize,
    /// Drafts for each token of the match.
    pub per_matched: f64,
    /// Least probability that all drafts up to one are right, by the counts.
    pub min_prob: f64,
}

/// The best continuation that was found: where it begins, and how many of its tokens are expected
/// to be right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Found {
    pub score: f64,
    pub n_matched: usize,
    node: u32,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    parent: u32,
    /// The last token of the sequence.
    token: u32,
    count: u32,
    /// Occurrences that something follows: the sum of the children's counts.
    n_followed: u32,
    /// The child that occurred most often, and among equals most recently; not for roots.
    best: u32,
    first_child: u32,
    previous: u32,
    next: u32,
    /// The text that entered it last.
    text: TextId,
    /// A leaf: where in `text` the suffix begins that is its only occurrence.
    start: u32,
}

#[derive(Debug)]
struct Text {
    tokens: Vec<u32>,
    root_key: u64,
    root: u32,
    /// Suffixes whose sequence occurred elsewhere: where they begin, and the node where they end.
    ends: Vec<(u32, u32)>,
    grows: bool,
    /// Suffixes that have left.
    n_left: usize,
    last_use: u64,
}

#[derive(Debug)]
pub(super) struct SuffixTree {
    limits: Limits,
    nodes: Vec<Node>,
    unused: Vec<u32>,
    /// (node, token) → the child.
    children: FxHashMap<(u32, u32), u32>,
    /// Key of a root → its node, and the number of its texts.
    roots: FxHashMap<u64, (u32, usize)>,
    texts: FxHashMap<TextId, Text>,
    next_id: TextId,
    /// Ended texts by their last use.
    by_use: BTreeMap<u64, TextId>,
    clock: u64,
    leaving: VecDeque<TextId>,
    /// Suffixes that are in the tree.
    n_tokens: usize,
}

impl SuffixTree {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            nodes: Vec::new(),
            unused: Vec::new(),
            children: FxHashMap::default(),
            roots: FxHashMap::default(),
            texts: FxHashMap::default(),
            next_id: 0,
            by_use: BTreeMap::new(),
            clock: 0,
            leaving: VecDeque::new(),
            n_tokens: 0,
        }
    }

    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    pub fn n_nodes(&self) -> usize {
        self.nodes.len() - self.unused.len()
    }

    /// Begins an empty text.
    pub fn begin(&mut self, root_key: u64) -> TextId {
        let root = if let Some((node, n_texts)) = self.roots.get_mut(&root_key) {
            *n_texts += 1;
            *node
        } else {
            let node = self.new_node(NONE, 0, 0, NONE);
            self.roots.insert(root_key, (node, 1));
            node
        };
        while self.texts.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.texts.insert(
            id,
            Text {
                tokens: Vec::new(),
                root_key,
                root,
                ends: Vec::new(),
                grows: true,
                n_left: 0,
                last_use: 0,
            },
        );
        id
    }

    /// Appends a token to a text. False if there is no room for it: the text has ended then.
    pub fn append(&mut self, id: TextId, token: u32) -> bool {
        if !self.texts.get(&id).is_some_and(|text| text.grows) {
            return false;
        }
        if !self.make_room() {
            self.end(id);
            return false;
        }
        let Some(text) = self.texts.get_mut(&id) else {
            return false;
        };
        let last = text.tokens.len() as u32;
        text.tokens.push(token);
        let mut ends = std::mem::take(&mut text.ends);
        ends.push((last, text.root));
        ends.retain_mut(|(start, node)| {
            let depth = (last - *start) as usize + 1;
            match self.children.get(&(*node, token)).copied() {
                None => {
                    self.add_child(*node, token, id, *start);
                    false
                }
                Some(child) => {
                    self.unfold(child, depth);
                    self.count(child, id);
                    *node = child;
                    depth < self.limits.depth
                }
            }
        });
        if let Some(text) = self.texts.get_mut(&id) {
            text.ends = ends;
        }
        self.n_tokens += 1;
        true
    }

    /// Says that a text grows no more. It may leave from now on.
    pub fn end(&mut self, id: TextId) {
        if let Some(text) = self.texts.get_mut(&id).filter(|text| text.grows) {
            text.grows = false;
            text.ends = Vec::new();
            self.clock += 1;
            text.last_use = self.clock;
            self.by_use.insert(self.clock, id);
        }
        while self.by_use.len() > self.limits.n_texts {
            self.send_off();
        }
    }

    /// The best continuation of a growing text. Of equally good ones that of the longest match.
    pub fn find(&self, id: TextId, rule: DraftRule) -> Option<Found> {
        let text = self.texts.get(&id)?;
        let mut best: Option<Found> = None;
        for &(start, node) in &text.ends {
            let n_matched = text.tokens.len() - start as usize;
            let score = self.follow(node, n_matched, rule, |_| ());
            let is_better = |best: Found| {
                let by_length = n_matched.cmp(&best.n_matched);
                score.total_cmp(&best.score).then(by_length).is_gt()
            };
            if score > 0.0 && best.is_none_or(is_better) {
                best = Some(Found {
                    score,
                    n_matched,
                    node,
                });
            }
        }
        best
    }

    /// Appends the tokens of `found`, which [`Self::find`] has just given, and counts the text that
    /// they come from as used.
    pub fn draft(&mut self, found: Found, rule: DraftRule, drafts: &mut Vec<u32>) {
        self.follow(found.node, found.n_matched, rule, |token| {
            drafts.push(token);
        });
        let node = &self.nodes[found.node as usize];
        let source = match node.best {
            NONE => node.text,
            best => self.nodes[best as usize].text,
        };
        self.touch(source);
    }

    /// Walks from `node`, where a match of `n_matched` tokens ends, to what followed most often.
    /// Returns the sum of the probabilities.
    fn follow(
        &self,
        node: u32,
        n_matched: usize,
        rule: DraftRule,
        mut push: impl FnMut(u32),
    ) -> f64 {
        let max = rule.max.min((rule.per_matched * n_matched as f64) as usize);
        let (mut node, mut n, mut prob, mut score) = (node, 0, 1.0, 0.0);
        while n < max {
            let at = &self.nodes[node as usize];
            if at.start != NONE {
                // It occurred once: what followed is in the text.
                let tokens = self.texts.get(&at.text).map(|text| &text.tokens[..]);
                let followed = tokens.and_then(|t| t.get(at.start as usize + n_matched + n..));
                for token in followed.unwrap_or_default().iter().take(max - n) {
                    push(*token);
                    score += prob;
                }
                break;
            }
            if at.best == NONE {
                break;
            }
            let best = &self.nodes[at.best as usize];
            prob *= f64::from(best.count) / f64::from(at.n_followed);
            if prob < rule.min_prob {
                break;
            }
            push(best.token);
            score += prob;
            node = at.best;
            n += 1;
        }
        score
    }

    fn touch(&mut self, id: TextId) {
        let Some(text) = self.texts.get_mut(&id) else {
            return;
        };
        // A growing text has no place yet, one that leaves none any more.
        if self.by_use.remove(&text.last_use).is_some() {
            self.clock += 1;
            text.last_use = self.clock;
            self.by_use.insert(self.clock, id);
        }
    }

    fn new_node(&mut self, parent: u32, token: u32, text: TextId, start: u32) -> u32 {
        let node = Node {
            parent,
            token,
            count: u32::from(parent != NONE),
            n_followed: 0,
            best: NONE,
            first_child: NONE,
            previous: NONE,
            next: NONE,
            text,
            start,
        };
        if let Some(place) = self.unused.pop() {
            self.nodes[place as usize] = node;
            place
        } else {
            self.nodes.push(node);
            (self.nodes.len() - 1) as u32
        }
    }

    /// Adds a sequence that occurs for the first time.
    fn add_child(&mut self, parent: u32, token: u32, text: TextId, start: u32) {
        let child = self.new_node(parent, token, text, start);
        self.children.insert((parent, token), child);
        self.nodes[parent as usize].n_followed += 1;
        // A root may have as many children as there are tokens, and its best is never asked for.
        if self.nodes[parent as usize].parent == NONE {
            return;
        }
        let next = self.nodes[parent as usize].first_child;
        self.nodes[child as usize].next = next;
        if next != NONE {
            self.nodes[next as usize].previous = child;
        }
        self.nodes[parent as usize].first_child = child;
        self.raise(parent, child);
    }

    /// Records one more occurrence.
    fn count(&mut self, node: u32, text: TextId) {
        let at = &mut self.nodes[node as usize];
        at.count += 1;
        at.text = text;
        let parent = at.parent;
        self.nodes[parent as usize].n_followed += 1;
        if self.nodes[parent as usize].parent != NONE {
            self.raise(parent, node);
        }
    }

    fn raise(&mut self, parent: u32, child: u32) {
        let best = self.nodes[parent as usize].best;
        if best == NONE || self.nodes[child as usize].count >= self.nodes[best as usize].count {
            self.nodes[parent as usize].best = child;
        }
    }

    /// Gives a leaf of `depth` tokens, which occurs again, the node below it.
    fn unfold(&mut self, node: u32, depth: usize) {
        let Node { text, start, .. } = self.nodes[node as usize];
        if start == NONE {
            return;
        }
        self.nodes[node as usize].start = NONE;
        if depth >= self.limits.depth {
            return;
        }
        let Some(other) = self.texts.get_mut(&text) else {
            return;
        };
        match other.tokens.get(start as usize + depth).copied() {
            Some(token) => self.add_child(node, token, text, start),
            // It is the end of that text.
            None if other.grows => other.ends.push((start, node)),
            None => {}
        }
    }

    /// Makes room for a token. False if there is none.
    fn make_room(&mut self) -> bool {
        for _ in 0..LEAVING_PER_TOKEN {
            if !self.leaving.is_empty() {
                self.leave_one();
            }
        }
        let Limits {
            n_tokens,
            n_nodes,
            depth,
            ..
        } = self.limits;
        // A token adds up to two nodes for each suffix.
        let has_room = |tree: &Self, n_nodes: usize| {
            tree.n_tokens < n_tokens && tree.n_nodes().saturating_add(2 * depth) <= n_nodes
        };
        // Texts leave before the limit is reached: those that others repeat free no nodes at first.
        let early = n_nodes - n_nodes / 5;
        for _ in 0..MAX_LEAVING_PER_TOKEN {
            if has_room(self, early) || self.leaving.is_empty() && !self.send_off() {
                break;
            }
            self.leave_one();
        }
        has_room(self, n_nodes)
    }

    /// The least recently used text begins to leave. False if none has ended.
    fn send_off(&mut self) -> bool {
        let first = self.by_use.pop_first();
        first.map(|(_, id)| self.leaving.push_back(id)).is_some()
    }

    /// One suffix of the first leaving text goes.
    fn leave_one(&mut self) {
        let Some(&id) = self.leaving.front() else {
            return;
        };
        let Some(text) = self.texts.get_mut(&id) else {
            self.leaving.pop_front();
            return;
        };
        if let Some(suffix) = text.tokens.get(text.n_left..) {
            let suffix = &suffix[..suffix.len().min(self.limits.depth)];
            let mut path = Vec::with_capacity(suffix.len());
            let mut node = text.root;
            for token in suffix {
                let Some(&child) = self.children.get(&(node, *token)) else {
                    break;
                };
                path.push(child);
                node = child;
                if self.nodes[node as usize].start != NONE {
                    break;
                }
            }
            if !suffix.is_empty() {
                text.n_left += 1;
                self.n_tokens -= 1;
            }
            for node in path.into_iter().rev() {
                self.forget(node);
            }
        }
        let is_gone = |text: &Text| text.n_left >= text.tokens.len();
        if self.texts.get(&id).is_some_and(is_gone) {
            self.leaving.pop_front();
            if let Some(text) = self.texts.remove(&id) {
                self.leave_root(text.root_key);
            }
        }
    }

    fn leave_root(&mut self, key: u64) {
        if let Some((node, n_texts)) = self.roots.get_mut(&key) {
            *n_texts -= 1;
            if *n_texts == 0 {
                self.unused.push(*node);
                self.roots.remove(&key);
            }
        }
    }

    /// Takes one occurrence back, and the node with the last one.
    fn forget(&mut self, node: u32) {
        let at = &mut self.nodes[node as usize];
        at.count -= 1;
        let Node {
            parent,
            token,
            count,
            previous,
            next,
            ..
        } = *at;
        let above = &mut self.nodes[parent as usize];
        above.n_followed -= 1;
        let is_below_root = above.parent == NONE;
        let was_best = above.best == node;
        if count == 0 {
            if above.first_child == node {
                above.first_child = next;
            }
            if previous != NONE {
                self.nodes[previous as usize].next = next;
            }
            if next != NONE {
                self.nodes[next as usize].previous = previous;
            }
            self.children.remove(&(parent, token));
            self.unused.push(node);
        }
        if was_best && !is_below_root {
            self.nodes[parent as usize].best = self.most_frequent(parent);
        }
    }

    fn most_frequent(&self, parent: u32) -> u32 {
        let (mut best, mut most) = (NONE, 0);
        let mut child = self.nodes[parent as usize].first_child;
        while child != NONE {
            let at = &self.nodes[child as usize];
            if at.count > most {
                (best, most) = (child, at.count);
            }
            child = at.next;
        }
        best
    }
}

#[cfg(test)]
mod tests;
