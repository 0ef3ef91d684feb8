//! Allocates a sequence's pages: from the prefix cache, then from the pool's free list, then by
//! evicting the least recently used cached pages.
//!
//! With a host tier, cached pages are copied there in the background
//! ([`PageAllocator::copy_to_host`]). A page evicted from the device is then still on the host,
//! from where a request that needs it restores it into a new page, which is shared like any other.
//!
//! The scheduler grows and frees page tables, looks up cached prefixes, and says which pages to
//! keep; it never sees an eviction.

use super::radix::PrefixHit;
use super::{
    IntegrityError, KvEvent, PageCopy, PageIdx, PageTable, Pools, Prefix, PrefixIndex, RadixTree,
    Tier,
};
use super::{PAGE_TOKENS, pages_for};

#[derive(Debug)]
pub struct PageAllocator {
    pools: Pools,
    tree: RadixTree,
    keeps_prefixes: bool,
    prefixes: PrefixIndex,
    n_lost: u64,
}

impl PageAllocator {
    /// With `keeps_prefixes`, pages outlive the sequence that filled them.
    pub fn new(n_pages: usize, keeps_prefixes: bool) -> Self {
        Self::with_host_tier(n_pages, keeps_prefixes, 0)
    }

    /// As [`Self::new`], with a host tier of `n_host_pages` pages.
    pub fn with_host_tier(n_pages: usize, keeps_prefixes: bool, n_host_pages: usize) -> Self {
        let pools = Pools::new(n_pages, if keeps_prefixes { n_host_pages } else { 0 });
        Self {
            tree: RadixTree::new(&pools),
            pools,
            keeps_prefixes,
            prefixes: PrefixIndex::default(),
            n_lost: 0,
        }
    }

    /// Drops all cached pages, because their contents are gone. No sequence may hold pages.
    pub fn forget(&mut self) {
        let n_host_pages = self.pools[Tier::Host].n_total();
        let n_lost = self.n_lost;
        let mut empty =
            Self::with_host_tier(self.n_pages_total(), self.keeps_prefixes, n_host_pages);
        empty.tree.continue_log(&mut self.tree);
        *self = empty;
        self.n_lost = n_lost;
    }

    /// From now on changes of the prefix cache are recorded.
    pub fn record_events(&mut self) {
        self.tree.record_events();
    }

    /// As [`RadixTree::take_events`].
    pub fn take_events(&mut self) -> Vec<KvEvent> {
        self.tree.take_events()
    }

    /// The chain hashes of the cached pages of each tier.
    #[cfg(test)]
    pub(super) fn cached_hashes(&self) -> [std::collections::BTreeSet<u64>; 2] {
        self.tree.cached_hashes()
    }

    /// As [`RadixTree::restate`].
    pub fn restate_events(&mut self) {
        self.tree.restate();
    }

    pub fn keeps_prefixes(&self) -> bool {
        self.keeps_prefixes
    }

    pub fn n_pages_total(&self) -> usize {
        self.pools[Tier::Device].n_total()
    }

    /// Pages held by sequences.
    pub fn n_pages_used(&self) -> usize {
        self.pools[Tier::Device].n_used() - self.tree.n_unlocked(Tier::Device)
    }

    /// Cached pages that no sequence uses now.
    pub fn n_pages_cached(&self) -> usize {
        self.tree.n_unlocked(Tier::Device)
    }

    /// Pages that can be allocated now.
    pub fn n_pages_available(&self) -> usize {
        self.pools[Tier::Device].n_free() + self.tree.n_unlocked(Tier::Device)
    }

    pub fn n_host_pages_total(&self) -> usize {
        self.pools[Tier::Host].n_total()
    }

    /// Host-tier pages in use.
    pub fn n_host_pages_used(&self) -> usize {
        self.tree.n_held(Tier::Host)
    }

    /// Number of cached pages evicted since the start without a copy on the host.
    pub fn n_lost(&self) -> u64 {
        self.n_lost
    }

    /// The cached prefixes, and those of running requests, which the scheduler adds.
    pub fn prefixes(&self) -> &PrefixIndex {
        &self.prefixes
    }

    pub fn prefixes_mut(&mut self) -> &mut PrefixIndex {
        &mut self.prefixes
    }

    /// Number of pages that `table` lacks for `n_tokens` tokens.
    pub fn n_missing(table: &PageTable, n_tokens: usize) -> usize {
        pages_for(n_tokens).saturating_sub(table.n_pages())
    }

    /// Looks up how much of `prefix` is cached. Using unlocked pages on the device takes them from
    /// the available ones; pages on the host need new device pages.
    pub fn lookup(&self, prefix: Prefix<'_>) -> PrefixHit {
        self.tree.lookup(&self.pools, prefix)
    }

    /// Gives an empty `table` the pages of `prefix` that are cached on the device, and returns the
    /// number of tokens in them.
    ///
    /// ```
    /// use engine::kv::prefix::chain_hashes;
    /// use engine::kv::{PAGE_TOKENS, PageAllocator, PageTable, Prefix};
    ///
    /// let mut pages = PageAllocator::new(8, true);
    /// let prompt: Vec<u32> = (0..2 * PAGE_TOKENS as u32).collect();
    /// let hashes = chain_hashes(&prompt);
    /// let prefix = Prefix { hashes: &hashes, tokens: &prompt };
    ///
    /// let mut first = PageTable::default();
    /// assert!(pages.grow(&mut first, prompt.len()));
    /// pages.keep(&mut first, prefix); // its KV is computed
    ///
    /// let mut second = PageTable::default();
    /// assert_eq!(pages.share(&mut second, prefix), prompt.len());
    /// assert_eq!(second.as_slice(), first.as_slice());
    /// ```
    pub fn share(&mut self, table: &mut PageTable, prefix: Prefix<'_>) -> usize {
        self.hold(Tier::Device, table, prefix)
    }

    /// Gives an empty `table` the host copies of the pages of `prefix`, for reading until
    /// [`Self::free_host`].
    pub fn hold_host(&mut self, table: &mut PageTable, prefix: Prefix<'_>) -> usize {
        self.hold(Tier::Host, table, prefix)
    }

    fn hold(&mut self, tier: Tier, table: &mut PageTable, prefix: Prefix<'_>) -> usize {
        debug_assert!(table.pages.is_empty(), "cached pages come first");
        self.tree
            .lock(&mut self.pools, tier, prefix, &mut table.pages);
        table.pages.len() * PAGE_TOKENS
    }

    /// Caches the first pages of `table`, which hold the computed KV of `prefix`: other requests
    /// may use them, even after the table is freed. Pages whose tokens are cached already are
    /// replaced by the cached ones.
    pub fn keep(&mut self, table: &mut PageTable, prefix: Prefix<'_>) {
        if self.keeps_prefixes {
            let Self {
                pools,
                tree,
                prefixes,
                ..
            } = self;
            tree.insert(pools, prefixes, prefix, &mut table.pages);
        }
    }

    /// Grows `table` to hold `n_tokens` tokens, or changes nothing and returns false.
    #[must_use]
    pub fn grow(&mut self, table: &mut PageTable, n_tokens: usize) -> bool {
        let n_missing = Self::n_missing(table, n_tokens);
        if n_missing > self.n_pages_available() {
            return false;
        }
        for _ in 0..n_missing {
            let Some(page) = self.take_page() else {
                return false;
            };
            table.pages.push(page);
        }
        true
    }

    /// Frees the last pages of `table`, which hold no token that was computed, down to those for
    /// `n_tokens` tokens. Returns whether there were any.
    pub fn shrink(&mut self, table: &mut PageTable, n_tokens: usize) -> bool {
        let n_pages = pages_for(n_tokens);
        if table.n_pages() <= n_pages {
            return false;
        }
        let pages = table.pages.drain(n_pages..).rev();
        self.tree.unlock(&mut self.pools, Tier::Device, pages);
        true
    }

    fn take_page(&mut self) -> Option<PageIdx> {
        if self.pools[Tier::Device].n_free() == 0 {
            let Self {
                pools,
                tree,
                prefixes,
                n_lost,
                ..
            } = self;
            let is_on_host = tree.evict(pools, prefixes, Tier::Device)?;
            *n_lost += u64::from(!is_on_host);
        }
        self.pools[Tier::Device].alloc()
    }

    /// Frees all pages of `table`; the cached ones stay cached.
    pub fn free(&mut self, table: &mut PageTable) {
        self.let_go(Tier::Device, table);
    }

    /// As [`Self::free`], for pages from [`Self::hold_host`].
    pub fn free_host(&mut self, table: &mut PageTable) {
        self.let_go(Tier::Host, table);
    }

    fn let_go(&mut self, tier: Tier, table: &mut PageTable) {
        // Last page first, so that the next sequence gets them in ascending order again.
        let pages = table.pages.drain(..).rev();
        self.tree.unlock(&mut self.pools, tier, pages);
    }

    /// Chooses up to `max` cached pages to copy to the host. The copies count as made from now on,
    /// so no page may be evicted before they are made or cancelled by [`Self::forget_copies`].
    pub fn copy_to_host(&mut self, max: usize) -> Vec<PageCopy> {
        self.tree
            .copy_to_host(&mut self.pools, &mut self.prefixes, max)
    }

    /// Cancels the copies that [`Self::copy_to_host`] chose last.
    pub fn forget_copies(&mut self, copies: &[PageCopy]) {
        self.tree
            .forget_copies(&mut self.pools, &mut self.prefixes, copies);
    }

    /// Checks that pools and tree are consistent, and that each page is held exactly as often as
    /// `tables` (`host_tables` for the host tier) and the tree name it.
    ///
    /// # Errors
    ///
    /// The first disagreement, with the page.
    pub fn check_integrity<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a PageTable>,
        host_tables: impl IntoIterator<Item = &'a PageTable>,
    ) -> Result<(), IntegrityError> {
        let mut named = Tier::BOTH.map(|tier| vec![0u32; self.pools[tier].n_total()]);
        self.tree.check_integrity(&self.pools, &mut named)?;
        let [device, host] = &mut named;
        self.check_pool(Tier::Device, device, tables)?;
        self.check_pool(Tier::Host, host, host_tables)
    }

    /// `named`: how often the tree names each page.
    fn check_pool<'a>(
        &self,
        tier: Tier,
        named: &mut [u32],
        tables: impl IntoIterator<Item = &'a PageTable>,
    ) -> Result<(), IntegrityError> {
        let pool = &self.pools[tier];
        pool.check_integrity()?;
        for page in tables.into_iter().flat_map(PageTable::as_slice) {
            let n_pages = pool.n_total();
            let counter = named
                .get_mut(page.0 as usize)
                .ok_or(IntegrityError::OutOfRange {
                    page: page.0,
                    n_pages,
                })?;
            *counter += 1;
        }
        for (page, &named) in named.iter().enumerate() {
            let counted = pool.n_holders(PageIdx(page as u32));
            if counted != named {
                return Err(IntegrityError::Holders {
                    page: page as u32,
                    counted,
                    named,
                });
            }
        }
        Ok(())
    }
}
