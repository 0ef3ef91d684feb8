//! `dfs-weight`: depth-first over the tree of the waiting prompts' prefixes, the subtree with the
//! most waiting requests first, so that requests with a common beginning run next to each other.
//! A subtree whose prefix is cached, or a running request's, comes before the others: the walk
//! starts anew whenever requests come or go, and this keeps it where it was. Prompts with nothing in common
//! keep their order of arrival. One place in the walk counts as [`PLACE_US`] of waiting.

use super::{Candidate, Policy};
use crate::kv::prefix::{PrefixIndex, shared_pages};

/// 100 ms.
const PLACE_US: i64 = 100_000;

#[derive(Debug)]
pub struct DfsWeight;

impl Policy for DfsWeight {
    fn handicap_us(&self, _candidate: &Candidate<'_>) -> i64 {
        0
    }

    fn window_handicaps_us(
        &self,
        window: &[Candidate<'_>],
        held: &PrefixIndex,
    ) -> Option<Vec<i64>> {
        let mut order = Vec::with_capacity(window.len());
        walk(window, held, (0..window.len()).collect(), 0, &mut order);
        let mut handicaps = vec![0; window.len()];
        for (place, &i) in order.iter().enumerate() {
            handicaps[i] = place as i64 * PLACE_US;
        }
        Some(handicaps)
    }
}

/// Appends the requests of one subtree, all of which share their first `n_shared` pages.
fn walk(
    window: &[Candidate<'_>],
    held: &PrefixIndex,
    members: Vec<usize>,
    n_shared: usize,
    order: &mut Vec<usize>,
) {
    let [first, rest @ ..] = members.as_slice() else {
        return;
    };
    if rest.is_empty() {
        order.push(*first);
        return;
    }
    // Skip the pages that all members share, so that the recursion is as deep as the branchings
    // (fewer than members) and not as the prompts are long.
    let chain = |i: usize| window[i].prefix_hashes;
    let n_common = rest
        .iter()
        .map(|&i| shared_pages(chain(*first), chain(i)))
        .min()
        .unwrap_or(n_shared)
        .max(n_shared);
    // The children, in order of first arrival: by the next page's hash. A prompt that ends here
    // comes before the subtrees below it; at the root it shares nothing and is one of its own.
    let mut children: Vec<(bool, Vec<usize>)> = Vec::new();
    let mut child_of_hash = std::collections::HashMap::new();
    for &i in &members {
        match chain(i).get(n_common) {
            None if n_common > 0 => order.push(i),
            None => children.push((false, vec![i])),
            Some(&hash) => {
                let child = *child_of_hash.entry(hash).or_insert_with(|| {
                    children.push((held.contains(hash), Vec::new()));
                    children.len() - 1
                });
                children[child].1.push(i);
            }
        }
    }
    children.sort_by_key(|(is_held, members)| std::cmp::Reverse((*is_held, members.len())));
    for (_, members) in children {
        walk(window, held, members, n_common + 1, order);
    }
}
