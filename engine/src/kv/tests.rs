mod events;
mod host_tier;

use proptest::prelude::*;

use super::*;

#[test]
fn pages_round_up() {
    assert_eq!([0, 1, 16, 17, 32].map(pages_for), [0, 1, 1, 2, 2]);
}

#[test]
fn an_exhausted_pool_gives_nothing_and_changes_nothing() {
    let mut allocator = PageAllocator::new(3, false);
    let mut a = PageTable::default();
    assert!(allocator.grow(&mut a, 2 * PAGE_TOKENS));
    let mut b = PageTable::default();
    assert!(!allocator.grow(&mut b, PAGE_TOKENS + 1));
    assert_eq!(b.n_pages(), 0);
    assert_eq!(allocator.n_pages_available(), 1);
    allocator.free(&mut a);
    assert!(allocator.grow(&mut b, 3 * PAGE_TOKENS));
    assert_eq!(b.capacity_tokens(), 3 * PAGE_TOKENS);
    allocator.check_integrity([&a, &b], []).unwrap();
}

#[test]
fn a_shared_page_lives_until_its_last_holder_leaves() {
    let mut pool = PagePool::new(1);
    let page = pool.alloc().unwrap();
    assert!(pool.retain(page));
    assert!(pool.release(page));
    assert_eq!(pool.n_free(), 0);
    assert!(pool.release(page));
    assert_eq!(pool.n_free(), 1);
    assert!(!pool.retain(page), "a free page cannot be shared");
}

#[test]
fn integrity_check_sees_a_page_named_twice() {
    let mut allocator = PageAllocator::new(2, false);
    let mut a = PageTable::default();
    assert!(allocator.grow(&mut a, 1));
    let stolen = PageTable {
        pages: a.pages.clone(),
    };
    assert_eq!(
        allocator.check_integrity([&a, &stolen], []),
        Err(IntegrityError::Holders {
            page: 0,
            counted: 1,
            named: 2
        })
    );
}

#[derive(Debug, Clone)]
enum Op {
    Alloc,
    Retain(usize),
    Release(usize),
}

proptest! {
    #[test]
    fn pool_matches_a_plain_list_of_holders(
        n_pages in 0usize..12,
        ops in prop::collection::vec(
            prop_oneof![
                Just(Op::Alloc),
                any::<usize>().prop_map(Op::Retain),
                any::<usize>().prop_map(Op::Release),
            ],
            0..80,
        ),
    ) {
        let mut pool = PagePool::new(n_pages);
        let mut held: Vec<PageIdx> = Vec::new();
        for op in ops {
            match op {
                Op::Alloc => {
                    let distinct: std::collections::HashSet<_> = held.iter().copied().collect();
                    let page = pool.alloc();
                    prop_assert_eq!(page.is_none(), distinct.len() == n_pages);
                    prop_assert!(page.is_none_or(|p| !distinct.contains(&p)), "given twice");
                    held.extend(page);
                }
                Op::Retain(i) if !held.is_empty() => {
                    let page = held[i % held.len()];
                    prop_assert!(pool.retain(page));
                    held.push(page);
                }
                Op::Release(i) if !held.is_empty() => {
                    let page = held.swap_remove(i % held.len());
                    prop_assert!(pool.release(page));
                }
                _ => {}
            }
            pool.check_integrity().unwrap();
            for page in 0..n_pages as u32 {
                let expected = held.iter().filter(|h| h.0 == page).count();
                prop_assert_eq!(pool.n_holders(PageIdx(page)) as usize, expected);
            }
        }
    }

    #[test]
    fn tables_grow_all_or_nothing_and_give_everything_back(
        n_pages in 1usize..20,
        ops in prop::collection::vec((0usize..4, 0usize..120, any::<bool>()), 0..60),
    ) {
        let mut allocator = PageAllocator::new(n_pages, false);
        let mut tables: Vec<PageTable> = (0..4).map(|_| PageTable::default()).collect();
        for (i, n_tokens, free) in ops {
            let before = tables[i].n_pages();
            if free {
                allocator.free(&mut tables[i]);
                prop_assert_eq!(tables[i].n_pages(), 0);
            } else if allocator.grow(&mut tables[i], n_tokens) {
                prop_assert_eq!(tables[i].n_pages(), before.max(pages_for(n_tokens)));
            } else {
                prop_assert_eq!(tables[i].n_pages(), before);
            }
            allocator.check_integrity(&tables, []).unwrap();
            let n_held: usize = tables.iter().map(PageTable::n_pages).sum();
            prop_assert_eq!(allocator.n_pages_used(), n_held);
        }
        for table in &mut tables {
            allocator.free(table);
        }
        prop_assert_eq!(allocator.n_pages_used(), 0);
    }
}

#[derive(Debug, Clone)]
enum CacheOp {
    /// A sequence of these page variants begins, shares what is cached, computes the rest.
    Begin(Vec<u32>),
    /// Computes one more page of a sequence.
    Extend(usize, u32),
    /// Caches a number of a sequence's pages.
    Keep(usize, usize),
    /// A sequence ends, keeping what it computed.
    End(usize),
    /// A sequence ends and caches nothing.
    Abort(usize),
}

fn cache_op() -> impl Strategy<Value = CacheOp> {
    prop_oneof![
        3 => prop::collection::vec(0u32..3, 0..6).prop_map(CacheOp::Begin),
        2 => (any::<usize>(), 0u32..3).prop_map(|(i, v)| CacheOp::Extend(i, v)),
        2 => (any::<usize>(), 0usize..8).prop_map(|(i, n)| CacheOp::Keep(i, n)),
        2 => any::<usize>().prop_map(CacheOp::End),
        1 => any::<usize>().prop_map(CacheOp::Abort),
    ]
}

/// A sequence under test: its tokens, and their pages, all computed.
#[derive(Debug, Default)]
struct Computed {
    tokens: Vec<u32>,
    hashes: Vec<u64>,
    table: PageTable,
}

impl Computed {
    fn push(&mut self, variant: u32) {
        self.tokens
            .extend((0..PAGE_TOKENS as u32).map(|i| variant * 100 + i));
        prefix::extend_chain(&mut self.hashes, 0, &self.tokens);
    }

    fn prefix(&self) -> Prefix<'_> {
        Prefix {
            hashes: &self.hashes,
            tokens: &self.tokens,
        }
    }

    /// Records in `content` that each page holds the KV of these tokens and their prefix, from page
    /// `first` on.
    fn write(&self, content: &mut [Vec<u32>], first: usize) {
        for (i, page) in self.table.pages.iter().enumerate().skip(first) {
            content[page.0 as usize] = self.tokens[..(i + 1) * PAGE_TOKENS].to_vec();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// For any sequence of insertions, lookups, locks, evictions and aborts, tree, pool and tables
    /// agree, and a shared page holds what its new user would have computed.
    #[test]
    fn shared_pages_hold_what_their_users_would_compute(
        n_pages in 1usize..24,
        ops in prop::collection::vec(cache_op(), 1..80),
    ) {
        let mut allocator = PageAllocator::new(n_pages, true);
        let mut running: Vec<Computed> = Vec::new();
        let mut content = vec![Vec::new(); n_pages];
        for op in ops {
            match op {
                CacheOp::Begin(variants) => {
                    let mut sequence = Computed::default();
                    for variant in variants {
                        sequence.push(variant);
                    }
                    let mut table = PageTable::default();
                    let cached = allocator.lookup(sequence.prefix());
                    let n_available = allocator.n_pages_available();
                    let n_tokens = allocator.share(&mut table, sequence.prefix());
                    prop_assert_eq!(n_tokens, cached.n_device * PAGE_TOKENS);
                    prop_assert_eq!(allocator.n_pages_available(), n_available - cached.n_unlocked);
                    for (i, page) in table.pages.iter().enumerate() {
                        let expected = &sequence.tokens[..(i + 1) * PAGE_TOKENS];
                        prop_assert_eq!(&content[page.0 as usize], expected);
                    }
                    if allocator.grow(&mut table, sequence.tokens.len()) {
                        sequence.table = table;
                        sequence.write(&mut content, cached.n_device);
                        running.push(sequence);
                    } else {
                        allocator.free(&mut table);
                    }
                }
                CacheOp::Extend(i, variant) if !running.is_empty() => {
                    let i = i % running.len();
                    let sequence = &mut running[i];
                    let n_before = sequence.table.n_pages();
                    let n_tokens = sequence.tokens.len() + PAGE_TOKENS;
                    if allocator.grow(&mut sequence.table, n_tokens) {
                        sequence.push(variant);
                        sequence.write(&mut content, n_before);
                    }
                }
                CacheOp::Keep(i, n) if !running.is_empty() => {
                    let i = i % running.len();
                    let mut table = std::mem::take(&mut running[i].table);
                    allocator.keep(&mut table, running[i].prefix().first(n));
                    running[i].table = table;
                    let cached = allocator.lookup(running[i].prefix());
                    prop_assert!(cached.n_device >= n.min(running[i].hashes.len()));
                }
                CacheOp::End(i) if !running.is_empty() => {
                    let mut sequence = running.swap_remove(i % running.len());
                    let mut table = std::mem::take(&mut sequence.table);
                    allocator.keep(&mut table, sequence.prefix());
                    allocator.free(&mut table);
                    let cached = allocator.lookup(sequence.prefix());
                    prop_assert_eq!(cached.n_device, sequence.hashes.len());
                }
                CacheOp::Abort(i) if !running.is_empty() => {
                    let mut sequence = running.swap_remove(i % running.len());
                    allocator.free(&mut sequence.table);
                }
                _ => {}
            }
            allocator.check_integrity(running.iter().map(|s| &s.table), []).unwrap();
            for sequence in &running {
                for (i, page) in sequence.table.pages.iter().enumerate() {
                    let expected = &sequence.tokens[..(i + 1) * PAGE_TOKENS];
                    prop_assert_eq!(&content[page.0 as usize], expected, "overwritten");
                }
            }
        }
        for mut sequence in running {
            allocator.free(&mut sequence.table);
        }
        prop_assert_eq!(allocator.n_pages_used(), 0);
        // Nothing is locked now, so every page can be allocated.
        let mut all = PageTable::default();
        prop_assert!(allocator.grow(&mut all, n_pages * PAGE_TOKENS));
        allocator.check_integrity([&all], []).unwrap();
        prop_assert_eq!(allocator.prefixes(), &PrefixIndex::default());
    }
}

#[test]
fn pages_of_equal_hash_and_different_tokens_are_not_shared() {
    let mut allocator = PageAllocator::new(4, true);
    let mut sequence = Computed::default();
    sequence.push(1);
    let mut table = PageTable::default();
    assert!(allocator.grow(&mut table, PAGE_TOKENS));
    allocator.keep(&mut table, sequence.prefix());
    let mut forged = Computed::default();
    forged.push(2);
    forged.hashes = sequence.hashes.clone();
    assert_eq!(allocator.lookup(forged.prefix()).n_device, 0);
    let mut own = PageTable::default();
    assert!(allocator.grow(&mut own, PAGE_TOKENS));
    allocator.keep(&mut own, forged.prefix());
    assert_ne!(own.pages, table.pages);
    allocator.check_integrity([&own, &table], []).unwrap();
}
