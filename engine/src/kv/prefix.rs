//! Prompt prefixes in whole pages, the unit in which KV can be shared.
//!
//! A prompt is a chain of hashes, one for each full page, each covering everything before it; two
//! prompts share n pages if their first n hashes agree. A chain starts at a root: for given tokens,
//! different roots give different hashes throughout, so prompts with different roots share nothing.
//! Hashes decide where to look and in which order to admit; whether KV is shared is decided by
//! comparing the tokens themselves, in [`radix`](super::radix).

use rustc_hash::FxHashMap;

use super::PAGE_TOKENS;

/// Whole pages from the beginning of one sequence: their hashes, and at least their tokens.
#[derive(Debug, Clone, Copy)]
pub struct Prefix<'a> {
    /// One for each page, see [`extend_chain`].
    pub hashes: &'a [u64],
    /// At least `hashes.len() * PAGE_TOKENS`.
    pub tokens: &'a [u32],
}

impl<'a> Prefix<'a> {
    /// The first `n_pages` of it, or all if it is shorter.
    #[must_use]
    pub fn first(self, n_pages: usize) -> Self {
        Self {
            hashes: &self.hashes[..n_pages.min(self.hashes.len())],
            tokens: self.tokens,
        }
    }

    pub fn n_pages(self) -> usize {
        self.hashes.len()
    }

    /// The tokens of its pages from `page` on, one whole page per item.
    pub(super) fn pages_from(self, page: usize) -> impl Iterator<Item = &'a [u32]> {
        let range = page * PAGE_TOKENS..self.hashes.len() * PAGE_TOKENS;
        self.tokens
            .get(range)
            .unwrap_or_default()
            .chunks_exact(PAGE_TOKENS)
    }
}

/// Finaliser of splitmix64: every input bit affects the whole word.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Extends `chain`, which starts at `root`, to one hash for each whole page of `tokens`, each
/// covering all tokens up to that page's end.
pub fn extend_chain(chain: &mut Vec<u64>, root: u64, tokens: &[u32]) {
    // `mix` is a bijection, so different roots stay different.
    let mut hash = chain.last().copied().unwrap_or(root);
    for page in tokens.chunks_exact(PAGE_TOKENS).skip(chain.len()) {
        for &token in page {
            hash = mix(hash ^ u64::from(token));
        }
        chain.push(hash);
    }
}

/// The chain of a whole prompt at the root 0.
pub fn chain_hashes(prompt: &[u32]) -> Vec<u64> {
    let mut chain = Vec::with_capacity(prompt.len() / PAGE_TOKENS);
    extend_chain(&mut chain, 0, prompt);
    chain
}

/// Number of leading pages that two chains share.
pub fn shared_pages(a: &[u64], b: &[u64]) -> usize {
    // Equal at i implies equal before i, since each hash covers its predecessors.
    let n = a.len().min(b.len());
    let (mut low, mut high) = (0, n);
    while low < high {
        let middle = usize::midpoint(low, high);
        if a[middle] == b[middle] {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// A multiset of prefixes, for example those of running requests and of cached pages.
#[derive(Debug, Default)]
pub struct PrefixIndex {
    n_holders: FxHashMap<u64, u32>,
    n_changes: u64,
}

/// Equal if the same prefixes have equally many holders, in whatever order they were added.
impl PartialEq for PrefixIndex {
    fn eq(&self, other: &Self) -> bool {
        self.n_holders == other.n_holders
    }
}

impl Eq for PrefixIndex {}

impl PrefixIndex {
    pub fn insert(&mut self, chain: &[u64]) {
        for &hash in chain {
            let n_holders = self.n_holders.entry(hash).or_insert(0);
            self.n_changes += u64::from(*n_holders == 0);
            *n_holders += 1;
        }
    }

    pub fn remove(&mut self, chain: &[u64]) {
        for &hash in chain {
            if let Some(n) = self.n_holders.get_mut(&hash) {
                *n -= 1;
                if *n == 0 {
                    self.n_holders.remove(&hash);
                    self.n_changes += 1;
                }
            }
        }
    }

    /// Number of times a prefix got its first holder or lost its last one: while this is unchanged,
    /// so are the results of [`Self::contains`] and [`Self::matched_tokens`].
    pub fn n_changes(&self) -> u64 {
        self.n_changes
    }

    /// Whether the prefix with this hash has a holder.
    pub fn contains(&self, hash: u64) -> bool {
        self.n_holders.contains_key(&hash)
    }

    /// Number of leading tokens of `chain` that have a holder. The holder of a page also holds the
    /// pages before it, so a binary search suffices.
    pub fn matched_tokens(&self, chain: &[u64]) -> usize {
        chain.partition_point(|hash| self.n_holders.contains_key(hash)) * PAGE_TOKENS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_agree_exactly_over_the_shared_pages() {
        let a: Vec<u32> = (0..70).collect();
        let mut b = a.clone();
        b[40] = 9999;
        let (a, b) = (chain_hashes(&a), chain_hashes(&b));
        assert_eq!(a.len(), 4);
        let mut longer = a[..1].to_vec();
        extend_chain(&mut longer, 0, &(0..70).collect::<Vec<_>>());
        assert_eq!(longer, a);
        assert_eq!(shared_pages(&a, &b), 2);
        assert_eq!(shared_pages(&a, &a), 4);
        assert_eq!(shared_pages(&a, &[]), 0);
    }

    #[test]
    fn chains_of_different_roots_agree_nowhere() {
        let tokens: Vec<u32> = (0..70).collect();
        let of_root = |root| {
            let mut chain = Vec::new();
            extend_chain(&mut chain, root, &tokens);
            chain
        };
        for (a, b) in [(0, 1), (1, 2), (u64::MAX, 0)] {
            let (a, b) = (of_root(a), of_root(b));
            assert!(a.iter().zip(&b).all(|(a, b)| a != b));
        }
    }

    #[test]
    fn the_index_forgets_what_leaves() {
        let long = chain_hashes(&[7; 64]);
        let short = chain_hashes(&[7; 32]);
        let mut index = PrefixIndex::default();
        index.insert(&long);
        assert_eq!(index.n_changes(), 4);
        index.insert(&short);
        assert_eq!(index.n_changes(), 4, "these had a holder already");
        assert_eq!(index.matched_tokens(&long), 64);
        index.remove(&long);
        assert_eq!(index.n_changes(), 6);
        assert_eq!(index.matched_tokens(&long), 32);
        index.remove(&short);
        assert_eq!(index.matched_tokens(&long), 0);
        assert!(index.n_holders.is_empty());
    }
}
