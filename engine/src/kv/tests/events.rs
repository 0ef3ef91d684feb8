//! What a router that follows the events knows, against what the tree holds.

use std::collections::{BTreeMap, BTreeSet};

use super::host_tier::{Cache, TierOp, tier_op};
use super::*;
use crate::kv::KvEvent;
use crate::kv::prefix::{chain_hashes, extend_chain};

/// The blocks of each tier with all tokens up to their ends.
#[derive(Default)]
struct Follower([BTreeMap<u64, Vec<u32>>; 2]);

impl Follower {
    fn follow(&mut self, events: Vec<KvEvent>) {
        for event in events {
            match event {
                KvEvent::Stored {
                    tier,
                    parent,
                    hashes,
                    tokens,
                } => {
                    let blocks = &mut self.0[tier as usize];
                    let mut prefix = parent.map_or_else(Vec::new, |parent| {
                        blocks.get(&parent).expect("a known parent").clone()
                    });
                    assert_eq!(tokens.len(), hashes.len() * PAGE_TOKENS);
                    for (hash, page) in hashes.into_iter().zip(tokens.chunks(PAGE_TOKENS)) {
                        prefix.extend_from_slice(page);
                        let known = blocks.insert(hash, prefix.clone());
                        assert_eq!(known, None, "it was stored already");
                    }
                }
                KvEvent::Removed { tier, hashes } => {
                    for hash in hashes {
                        let known = self.0[tier as usize].remove(&hash);
                        assert!(known.is_some(), "it was not stored");
                    }
                }
                KvEvent::Cleared => *self = Self::default(),
            }
        }
    }

    fn check(&self, cache: &Cache) {
        let known: [BTreeSet<u64>; 2] = self
            .0
            .each_ref()
            .map(|blocks| blocks.keys().copied().collect());
        assert_eq!(known, cache.allocator.cached_hashes());
        for (hash, prefix) in self.0.iter().flatten() {
            assert_eq!(chain_hashes(prefix).last(), Some(hash));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// For any sequence of insertions, evictions, copies to the host and back, failures and
    /// flushes, a router that follows the events knows the tree's blocks and their tokens, and so
    /// does one that is told everything in between.
    #[test]
    fn a_router_that_follows_knows_what_is_cached(
        n_pages in 1usize..16,
        n_host_pages in 0usize..24,
        ops in prop::collection::vec((tier_op(), 0u8..16), 1..100),
    ) {
        let mut cache = Cache::new(n_pages, n_host_pages);
        cache.allocator.record_events();
        let mut follower = Follower::default();
        for (op, other) in ops {
            cache.apply(op);
            match other {
                0 => {
                    while !cache.running.is_empty() {
                        cache.end(0);
                    }
                    cache.allocator.forget();
                }
                1 => cache.allocator.restate_events(),
                // Events of several changes come together.
                2 => continue,
                _ => {}
            }
            follower.follow(cache.allocator.take_events());
            follower.check(&cache);
        }
    }
}

#[test]
fn a_page_that_moves_to_the_host_is_stored_there_and_removed_here() {
    let mut cache = Cache::new(2, 4);
    cache.allocator.record_events();
    let pass = |cache: &mut Cache, variants: Vec<u32>| {
        let restores = false;
        cache.apply(TierOp::Begin { variants, restores });
        cache.apply(TierOp::End(0));
        cache.allocator.take_events()
    };
    let stored = pass(&mut cache, vec![1, 2]);
    let [
        KvEvent::Stored {
            tier: Tier::Device,
            parent: None,
            hashes,
            tokens,
        },
    ] = &stored[..]
    else {
        panic!("one event of two blocks: {stored:?}");
    };
    assert_eq!((hashes.len(), tokens.len()), (2, 2 * PAGE_TOKENS));
    let pages = hashes.clone();
    cache.apply(TierOp::Copy(8));
    let copied = cache.allocator.take_events();
    assert!(
        matches!(&copied[..], [KvEvent::Stored { tier: Tier::Host, hashes, .. }] if *hashes == pages),
        "{copied:?}"
    );
    let evicted = pass(&mut cache, vec![3, 4]);
    let leaf_first: Vec<u64> = pages.iter().rev().copied().collect();
    let removed = KvEvent::Removed {
        tier: Tier::Device,
        hashes: leaf_first,
    };
    assert_eq!(evicted[0], removed);
}

#[test]
fn nothing_is_recorded_unless_asked_for_and_salted_blocks_have_other_names() {
    let mut cache = Cache::new(2, 0);
    let variants = vec![1];
    cache.apply(TierOp::Begin {
        variants,
        restores: false,
    });
    assert!(cache.allocator.take_events().is_empty());
    let tokens: Vec<u32> = (0..64).collect();
    let of_root = |root| {
        let mut chain = Vec::new();
        extend_chain(&mut chain, root, &tokens);
        chain
    };
    let (plain, salted) = (of_root(0), of_root(77));
    assert!(plain.iter().all(|hash| !salted.contains(hash)));
}
