use proptest::prelude::*;

use super::*;

#[test]
fn pages_round_up() {
    assert_eq!([0, 1, 16, 17, 32].map(pages_for), [0, 1, 1, 2, 2]);
}

#[test]
fn an_exhausted_pool_gives_nothing_and_changes_nothing() {
    let mut allocator = PageAllocator::new(3);
    let mut a = PageTable::default();
    assert!(allocator.grow(&mut a, 2 * PAGE_TOKENS));
    let mut b = PageTable::default();
    assert!(!allocator.grow(&mut b, PAGE_TOKENS + 1));
    assert_eq!(b.n_pages(), 0);
    assert_eq!(allocator.n_pages_available(), 1);
    allocator.free(&mut a);
    assert!(allocator.grow(&mut b, 3 * PAGE_TOKENS));
    assert_eq!(b.capacity_tokens(), 3 * PAGE_TOKENS);
    allocator.check_integrity([&a, &b]).unwrap();
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
    let mut allocator = PageAllocator::new(2);
    let mut a = PageTable::default();
    assert!(allocator.grow(&mut a, 1));
    let stolen = PageTable {
        pages: a.pages.clone(),
    };
    assert_eq!(
        allocator.check_integrity([&a, &stolen]),
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
        let mut allocator = PageAllocator::new(n_pages);
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
            allocator.check_integrity(&tables).unwrap();
            let n_held: usize = tables.iter().map(PageTable::n_pages).sum();
            prop_assert_eq!(allocator.n_pages_used(), n_held);
        }
        for table in &mut tables {
            allocator.free(table);
        }
        prop_assert_eq!(allocator.n_pages_used(), 0);
    }
}
