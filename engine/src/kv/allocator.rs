//! Where a sequence's pages come from: the prefix cache, then the pool's free list, then cached
//! pages that nobody uses, the longest unused first.
//!
//! The scheduler grows and frees page tables, asks what is cached, and says which pages are worth
//! keeping; it never sees a page being given up.

use super::{IntegrityError, PageIdx, PagePool, PageTable, Prefix, PrefixIndex, RadixTree};
use super::{PAGE_TOKENS, pages_for};

/// What the prefix cache has of a sequence, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cached {
    pub n_pages: usize,
    /// Those of them that nobody uses now: to use them takes them from the available ones.
    pub n_unlocked: usize,
}

#[derive(Debug)]
pub struct PageAllocator {
    pool: PagePool,
    tree: RadixTree,
    keeps_prefixes: bool,
    prefixes: PrefixIndex,
}

impl PageAllocator {
    /// With `keeps_prefixes`, pages outlive the sequence that filled them.
    pub fn new(n_pages: usize, keeps_prefixes: bool) -> Self {
        Self {
            pool: PagePool::new(n_pages),
            tree: RadixTree::new(n_pages),
            keeps_prefixes,
            prefixes: PrefixIndex::default(),
        }
    }

    pub fn keeps_prefixes(&self) -> bool {
        self.keeps_prefixes
    }

    pub fn n_pages_total(&self) -> usize {
        self.pool.n_total()
    }

    /// Pages in use by sequences.
    pub fn n_pages_used(&self) -> usize {
        self.pool.n_used() - self.tree.n_unlocked()
    }

    /// Pages kept for later that no sequence uses now.
    pub fn n_pages_cached(&self) -> usize {
        self.tree.n_unlocked()
    }

    /// Pages that can be had now.
    pub fn n_pages_available(&self) -> usize {
        self.pool.n_free() + self.tree.n_unlocked()
    }

    /// The prefixes that are cached, and those that the scheduler adds: of running requests.
    pub fn prefixes(&self) -> &PrefixIndex {
        &self.prefixes
    }

    pub fn prefixes_mut(&mut self) -> &mut PrefixIndex {
        &mut self.prefixes
    }

    /// Pages that `table` lacks to hold `n_tokens` tokens.
    pub fn n_missing(table: &PageTable, n_tokens: usize) -> usize {
        pages_for(n_tokens).saturating_sub(table.n_pages())
    }

    /// How much of `prefix` is cached.
    pub fn lookup(&self, prefix: Prefix<'_>) -> Cached {
        let (n_pages, n_unlocked) = self.tree.lookup(&self.pool, prefix);
        Cached {
            n_pages,
            n_unlocked,
        }
    }

    /// Gives an empty `table` the cached pages of `prefix`, and returns how many tokens they hold.
    pub fn share(&mut self, table: &mut PageTable, prefix: Prefix<'_>) -> usize {
        debug_assert!(table.pages.is_empty(), "cached pages come first");
        self.tree.lock(&mut self.pool, prefix, &mut table.pages);
        table.pages.len() * PAGE_TOKENS
    }

    /// The first pages of `table` hold the computed KV of `prefix`: others may use them, now and
    /// when the table is gone. Pages that are cached already are replaced by the cached ones.
    pub fn keep(&mut self, table: &mut PageTable, prefix: Prefix<'_>) {
        if self.keeps_prefixes {
            let Self {
                pool,
                tree,
                prefixes,
                ..
            } = self;
            tree.insert(pool, prefixes, prefix, &mut table.pages);
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

    fn take_page(&mut self) -> Option<PageIdx> {
        if self.pool.n_free() == 0 {
            self.tree.evict(&mut self.pool, &mut self.prefixes);
        }
        self.pool.alloc()
    }

    /// Gives all pages of `table` back; those that are kept stay cached.
    pub fn free(&mut self, table: &mut PageTable) {
        // Last page first, so that the next sequence gets them in ascending order again.
        let pages = table.pages.drain(..).rev();
        self.tree.unlock(&mut self.pool, pages);
    }

    /// Pool and tree consistent, and each page held exactly as often as `tables` and the tree
    /// name it.
    pub fn check_integrity<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a PageTable>,
    ) -> Result<(), IntegrityError> {
        self.pool.check_integrity()?;
        let mut named = vec![0u32; self.pool.n_total()];
        self.tree.check_integrity(&self.pool, &mut named)?;
        for page in tables.into_iter().flat_map(PageTable::as_slice) {
            let n_pages = self.pool.n_total();
            let counter = named
                .get_mut(page.0 as usize)
                .ok_or(IntegrityError::OutOfRange {
                    page: page.0,
                    n_pages,
                })?;
            *counter += 1;
        }
        for (page, &named) in named.iter().enumerate() {
            let counted = self.pool.n_holders(PageIdx(page as u32));
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
