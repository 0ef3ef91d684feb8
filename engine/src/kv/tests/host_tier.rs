//! Pages that move between the device and the host.

use super::*;

#[derive(Debug, Clone)]
pub(super) enum TierOp {
    /// A sequence of these page variants begins: it shares what the device has, restores what the
    /// host has if `restores`, and computes the rest.
    Begin { variants: Vec<u32>, restores: bool },
    /// Caches a number of a sequence's pages.
    Keep(usize, usize),
    /// A sequence's restored pages have arrived.
    Arrive(usize),
    /// A sequence ends, keeping what it computed.
    End(usize),
    /// A sequence ends and caches nothing.
    Abort(usize),
    /// A number of pages are copied to the host.
    Copy(usize),
    /// A number of copies to the host fail.
    FailedCopy(usize),
}

pub(super) fn tier_op() -> impl Strategy<Value = TierOp> {
    prop_oneof![
        4 => (prop::collection::vec(0u32..3, 0..6), any::<bool>())
            .prop_map(|(variants, restores)| TierOp::Begin { variants, restores }),
        1 => (any::<usize>(), 0usize..8).prop_map(|(i, n)| TierOp::Keep(i, n)),
        2 => any::<usize>().prop_map(TierOp::Arrive),
        3 => any::<usize>().prop_map(TierOp::End),
        1 => any::<usize>().prop_map(TierOp::Abort),
        3 => (0usize..6).prop_map(TierOp::Copy),
        1 => (0usize..6).prop_map(TierOp::FailedCopy),
    ]
}

/// A running sequence, and its pages that are being restored.
#[derive(Debug, Default)]
pub(super) struct Running {
    sequence: Computed,
    host: PageTable,
    /// Pages whose KV is available; the rest is being restored from the host.
    n_computed: usize,
}

impl Running {
    fn computed(&self) -> Prefix<'_> {
        self.sequence.prefix().first(self.n_computed)
    }
}

/// The contents of both tiers' pages: the tokens that their KV stands for.
struct Content {
    device: Vec<Vec<u32>>,
    host: Vec<Vec<u32>>,
}

impl Content {
    fn offload(&mut self, copy: PageCopy) {
        let from = &self.device[copy.device.0 as usize];
        assert!(!from.is_empty(), "an empty page was to be copied");
        self.host[copy.host.0 as usize].clone_from(from);
    }
}

pub(super) struct Cache {
    pub allocator: PageAllocator,
    pub running: Vec<Running>,
    content: Content,
}

impl Cache {
    pub fn new(n_pages: usize, n_host_pages: usize) -> Self {
        Self {
            allocator: PageAllocator::with_host_tier(n_pages, true, n_host_pages),
            running: Vec::new(),
            content: Content {
                device: vec![Vec::new(); n_pages],
                host: vec![Vec::new(); n_host_pages],
            },
        }
    }

    fn begin(&mut self, variants: &[u32], restores: bool) {
        let mut new = Running::default();
        for variant in variants {
            new.sequence.push(*variant);
        }
        let prefix = new.sequence.prefix();
        let found = self.allocator.lookup(prefix);
        let mut table = PageTable::default();
        let n_tokens = self.allocator.share(&mut table, prefix);
        assert_eq!(n_tokens, found.n_device * PAGE_TOKENS);
        if restores && found.n_host > 0 {
            let n_tokens = self.allocator.hold_host(&mut new.host, prefix);
            assert_eq!(n_tokens, (found.n_device + found.n_host) * PAGE_TOKENS);
        }
        if !self.allocator.grow(&mut table, prefix.tokens.len()) {
            self.allocator.free(&mut table);
            self.allocator.free_host(&mut new.host);
            return;
        }
        new.n_computed = found.n_device;
        let is_restoring = new.host.n_pages() > found.n_device;
        new.sequence.table = table;
        if !is_restoring {
            new.sequence.write(&mut self.content.device, found.n_device);
            new.n_computed = new.sequence.hashes.len();
        }
        self.running.push(new);
    }

    /// Copies what the host holds and computes the rest.
    fn arrive(&mut self, i: usize) {
        let running = &mut self.running[i];
        let n_host = running.host.n_pages();
        if n_host <= running.n_computed {
            return;
        }
        for page in running.n_computed..n_host {
            let slot = running.host.pages[page].0 as usize;
            let expected = &running.sequence.tokens[..(page + 1) * PAGE_TOKENS];
            assert_eq!(&self.content.host[slot], expected, "the host lost it");
            let to = running.sequence.table.pages[page].0 as usize;
            self.content.device[to] = self.content.host[slot].clone();
        }
        running.sequence.write(&mut self.content.device, n_host);
        running.n_computed = running.sequence.hashes.len();
        self.allocator.free_host(&mut running.host);
    }

    fn keep(&mut self, i: usize, n_pages: usize) {
        let mut table = std::mem::take(&mut self.running[i].sequence.table);
        let prefix = self.running[i].computed().first(n_pages);
        self.allocator.keep(&mut table, prefix);
        let found = self.allocator.lookup(prefix);
        assert_eq!(found.n_device, prefix.n_pages(), "kept on the device");
        self.running[i].sequence.table = table;
    }

    pub fn end(&mut self, i: usize) {
        let mut running = self.running.swap_remove(i);
        self.allocator.free_host(&mut running.host);
        self.allocator.free(&mut running.sequence.table);
    }

    pub fn apply(&mut self, op: TierOp) {
        let n = self.running.len();
        match op {
            TierOp::Begin { variants, restores } => self.begin(&variants, restores),
            TierOp::Keep(i, n_pages) if n > 0 => self.keep(i % n, n_pages),
            TierOp::Arrive(i) if n > 0 => self.arrive(i % n),
            TierOp::End(i) if n > 0 => {
                self.keep(i % n, usize::MAX);
                self.end(i % n);
            }
            TierOp::Abort(i) if n > 0 => self.end(i % n),
            TierOp::Copy(max) => {
                for copy in self.allocator.copy_to_host(max) {
                    self.content.offload(copy);
                }
            }
            TierOp::FailedCopy(max) => {
                let copies = self.allocator.copy_to_host(max);
                for copy in &copies {
                    self.content.host[copy.host.0 as usize].clear();
                }
                self.allocator.forget_copies(&copies);
            }
            _ => {}
        }
    }

    fn check(&self) {
        let tables = self.running.iter().map(|r| &r.sequence.table);
        let host_tables = self.running.iter().map(|r| &r.host);
        self.allocator.check_integrity(tables, host_tables).unwrap();
        for running in &self.running {
            let tokens = |page: usize| &running.sequence.tokens[..(page + 1) * PAGE_TOKENS];
            for page in 0..running.n_computed {
                let at = running.sequence.table.pages[page].0 as usize;
                assert_eq!(&self.content.device[at], tokens(page), "overwritten");
            }
            for (page, slot) in running.host.pages.iter().enumerate() {
                let held = &self.content.host[slot.0 as usize];
                assert_eq!(held, tokens(page), "overwritten on the host");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(768))]

    /// For any sequence of insertions, lookups, locks, evictions, offloads, restores and aborts,
    /// tree, pools and tables agree, and what is restored from the host is what its user would have
    /// computed.
    #[test]
    fn what_comes_back_is_what_would_be_computed(
        n_pages in 1usize..16,
        n_host_pages in 0usize..24,
        ops in prop::collection::vec(tier_op(), 1..100),
    ) {
        let mut cache = Cache::new(n_pages, n_host_pages);
        for op in ops {
            cache.apply(op);
            cache.check();
        }
        while !cache.running.is_empty() {
            cache.end(0);
        }
        prop_assert_eq!(cache.allocator.n_pages_used(), 0);
        // Nothing is locked now, so every page can be allocated, and only copies are left.
        let mut all = PageTable::default();
        prop_assert!(cache.allocator.grow(&mut all, n_pages * PAGE_TOKENS));
        cache.allocator.check_integrity([&all], []).unwrap();
        if cache.allocator.n_host_pages_used() == 0 {
            prop_assert_eq!(cache.allocator.prefixes(), &PrefixIndex::default());
        }
    }
}

/// A sequence of these pages is computed and ends.
fn pass(cache: &mut Cache, variants: &[u32]) {
    cache.begin(variants, false);
    cache.keep(0, usize::MAX);
    cache.end(0);
    cache.check();
}

fn found(cache: &Cache, variants: &[u32]) -> (usize, usize) {
    let mut sequence = Computed::default();
    for variant in variants {
        sequence.push(*variant);
    }
    let found = cache.allocator.lookup(sequence.prefix());
    (found.n_device, found.n_host)
}

#[test]
fn what_the_device_gives_up_is_found_on_the_host_if_it_was_copied() {
    let mut cache = Cache::new(4, 8);
    pass(&mut cache, &[1, 2, 3]);
    cache.apply(TierOp::Copy(2));
    assert_eq!(cache.allocator.n_host_pages_used(), 2);
    pass(&mut cache, &[4, 5, 6, 7]);
    assert_eq!(found(&cache, &[1, 2, 3]), (0, 2), "the third had no copy");
    assert_eq!(cache.allocator.n_lost(), 1);
    // It is restored, and then in both tiers.
    cache.begin(&[1, 2, 3], true);
    assert_eq!(found(&cache, &[1, 2, 3]), (0, 2), "not there yet");
    cache.arrive(0);
    cache.keep(0, usize::MAX);
    cache.check();
    assert_eq!(found(&cache, &[1, 2, 3]), (3, 0));
    assert_eq!(cache.allocator.n_host_pages_used(), 2);
}

#[test]
fn a_full_host_tier_gives_up_what_was_unused_for_longest_and_nothing_younger() {
    let mut cache = Cache::new(4, 3);
    pass(&mut cache, &[1, 2]);
    cache.apply(TierOp::Copy(8));
    pass(&mut cache, &[3, 4]);
    cache.apply(TierOp::Copy(8));
    assert_eq!(cache.allocator.n_host_pages_used(), 3);
    pass(&mut cache, &[5, 6, 7, 8]);
    let (first, second) = (found(&cache, &[1, 2]), found(&cache, &[3, 4]));
    assert_eq!(first.0 + second.0, 0);
    assert!(second.1 >= first.1, "{first:?} {second:?}");
    // Recently used pages are never evicted in favour of older ones.
    cache.apply(TierOp::Copy(8));
    assert_eq!(found(&cache, &[5, 6, 7, 8]), (4, 0));
    assert_eq!(cache.allocator.n_host_pages_used(), 3);
}

#[test]
fn a_page_that_is_being_read_stays_on_the_host() {
    let mut cache = Cache::new(2, 2);
    pass(&mut cache, &[1, 2]);
    cache.apply(TierOp::Copy(8));
    pass(&mut cache, &[3, 4]);
    assert_eq!(found(&cache, &[1, 2]), (0, 2));
    cache.begin(&[1, 2], true);
    assert!(cache.allocator.copy_to_host(8).is_empty());
    cache.check();
    cache.arrive(0);
    cache.check();
}
