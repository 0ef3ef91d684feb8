//! `dfs-weight`: depth-first over the tree of the waiting prompts' prefixes, the subtree with the
//! most waiting requests first, so that requests with a common prefix run next to each other. A
//! subtree whose prefix is cached or belongs to a running request precedes the others: the
//! traversal restarts whenever requests come or go, and this keeps it at its position. Prompts that
//! share nothing keep their order of arrival. One position in the traversal counts as [`PLACE_US`]
//! of waiting.

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

use super::{Candidate, Policy};
use crate::kv::prefix::{PrefixIndex, shared_pages};

/// 100 ms.
const PLACE_US: i64 = 100_000;

/// Holds the traversal's buffers.
#[derive(Debug, Default)]
pub struct DfsWeight {
    /// Indices of the window, in traversal order so far.
    order: Vec<usize>,
    /// Subtrees of the ancestors, then of the current node.
    children: Vec<Child>,
    /// Index of the child that contains each member.
    child_of_member: Vec<usize>,
    child_of_hash: FxHashMap<u64, usize>,
    place_of_child: Vec<usize>,
    sorted: Vec<usize>,
}

/// A subtree: some of a node's members.
#[derive(Debug, Clone, Copy)]
struct Child {
    is_held: bool,
    n_members: usize,
    /// Index in order of first arrival.
    number: usize,
}

impl Policy for DfsWeight {
    fn handicap_us(&self, _candidate: &Candidate<'_>) -> i64 {
        0
    }

    fn orders_window(&self) -> bool {
        true
    }

    fn window_handicaps_us(
        &mut self,
        window: &[Candidate<'_>],
        held: &PrefixIndex,
        handicaps_us: &mut Vec<i64>,
    ) {
        self.order.clear();
        self.order.extend(0..window.len());
        self.walk(window, held, 0, window.len(), 0);
        handicaps_us.resize(window.len(), 0);
        for (place, &i) in self.order.iter().enumerate() {
            handicaps_us[i] = place as i64 * PLACE_US;
        }
    }
}

impl DfsWeight {
    /// Orders the requests of one subtree, `order[from..to]`, which are in order of arrival and
    /// share their first `n_shared` pages.
    fn walk(
        &mut self,
        window: &[Candidate<'_>],
        held: &PrefixIndex,
        from: usize,
        to: usize,
        n_shared: usize,
    ) {
        let [first, rest @ ..] = &self.order[from..to] else {
            return;
        };
        if rest.is_empty() {
            return;
        }
        // Skip the pages that all members share, so that the recursion depth is bounded by the
        // number of branches (fewer than members), not by the length of the prompts.
        let chain = |i: usize| window[i].prefix_hashes;
        let mut n_common = usize::MAX;
        for &i in rest {
            n_common = n_common.min(shared_pages(chain(*first), chain(i)));
            if n_common <= n_shared {
                break;
            }
        }
        let n_common = n_common.max(n_shared);
        let first_child = self.children.len();
        let n_ends_here = self.split(window, held, from..to, n_common);
        let mut start = from + n_ends_here;
        for i in first_child..self.children.len() {
            let n_members = self.children[i].n_members;
            self.walk(window, held, start, start + n_members, n_common + 1);
            start += n_members;
        }
        self.children.truncate(first_child);
    }

    /// Groups a node's members by child, using the hash of page `n_common`, and appends its
    /// children. A prompt that ends here precedes the subtrees below it (their number is returned);
    /// at the root it shares nothing and is its own child.
    fn split(
        &mut self,
        window: &[Candidate<'_>],
        held: &PrefixIndex,
        range: std::ops::Range<usize>,
        n_common: usize,
    ) -> usize {
        const ENDS_HERE: usize = usize::MAX;
        let first_child = self.children.len();
        self.child_of_hash.clear();
        self.child_of_member.clear();
        let mut n_ends_here = 0;
        for &i in &self.order[range.clone()] {
            let next_number = self.children.len() - first_child;
            let hash = window[i].prefix_hashes.get(n_common);
            let number = match hash {
                None if n_common > 0 => {
                    n_ends_here += 1;
                    self.child_of_member.push(ENDS_HERE);
                    continue;
                }
                None => next_number,
                Some(&hash) => *self.child_of_hash.entry(hash).or_insert(next_number),
            };
            if number == next_number {
                self.children.push(Child {
                    is_held: hash.is_some_and(|hash| held.contains(*hash)),
                    n_members: 0,
                    number,
                });
            }
            self.children[first_child + number].n_members += 1;
            self.child_of_member.push(number);
        }
        let children = &mut self.children[first_child..];
        children.sort_by_key(|child| Reverse((child.is_held, child.n_members)));
        // Where each child's next member goes.
        self.place_of_child.clear();
        self.place_of_child.resize(children.len(), 0);
        let mut place = n_ends_here;
        for child in children {
            self.place_of_child[child.number] = place;
            place += child.n_members;
        }
        let mut place_of_end = 0;
        self.sorted.clear();
        self.sorted.resize(range.len(), 0);
        for (&i, &number) in self.order[range.clone()].iter().zip(&self.child_of_member) {
            let place = if number == ENDS_HERE {
                &mut place_of_end
            } else {
                &mut self.place_of_child[number]
            };
            self.sorted[*place] = i;
            *place += 1;
        }
        self.order[range].copy_from_slice(&self.sorted);
        n_ends_here
    }
}
