//! Where a sequence's pages come from: today the pool's free list alone.
//!
//! A prefix cache will answer "which pages already hold this prefix" and give up cached pages
//! under pressure; a host tier will refill pages from host memory. Both go in here, unseen by the
//! scheduler, which only grows and frees page tables.

use super::{IntegrityError, PageIdx, PagePool, PageTable, pages_for};

#[derive(Debug)]
pub struct PageAllocator {
    pool: PagePool,
}

impl PageAllocator {
    pub fn new(n_pages: usize) -> Self {
        Self {
            pool: PagePool::new(n_pages),
        }
    }

    pub fn n_pages_total(&self) -> usize {
        self.pool.n_total()
    }

    pub fn n_pages_used(&self) -> usize {
        self.pool.n_used()
    }

    /// Pages that can be had now.
    pub fn n_pages_available(&self) -> usize {
        self.pool.n_free()
    }

    /// Pages that `table` lacks to hold `n_tokens` tokens.
    pub fn n_missing(table: &PageTable, n_tokens: usize) -> usize {
        pages_for(n_tokens).saturating_sub(table.n_pages())
    }

    /// Grows `table` to hold `n_tokens` tokens, or changes nothing and returns false.
    #[must_use]
    pub fn grow(&mut self, table: &mut PageTable, n_tokens: usize) -> bool {
        let n_missing = Self::n_missing(table, n_tokens);
        if n_missing > self.pool.n_free() {
            return false;
        }
        for _ in 0..n_missing {
            let Some(page) = self.pool.alloc() else {
                return false;
            };
            table.pages.push(page);
        }
        true
    }

    /// Gives all pages of `table` back.
    pub fn free(&mut self, table: &mut PageTable) {
        // Last page first, so that the next sequence gets them in ascending order again.
        for page in table.pages.drain(..).rev() {
            self.pool.release(page);
        }
    }

    /// Pool consistent, and each page held exactly as often as `tables` name it.
    pub fn check_integrity<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a PageTable>,
    ) -> Result<(), IntegrityError> {
        self.pool.check_integrity()?;
        let mut named = vec![0u32; self.pool.n_total()];
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
