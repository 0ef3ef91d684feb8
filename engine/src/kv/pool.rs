//! Physical pages with reference counts and a free list, one pool for each tier.
//!
//! A page is either on the free list without holders or off it with at least one;
//! [`PagePool::check_integrity`] verifies that. Deliberately absent: any knowledge of sequences.

use std::ops::{Index, IndexMut};

use super::PageIdx;

/// The location of a page's KV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Where KV is computed with.
    Device,
    /// Where evicted KV is kept; has no pages if there is no such tier.
    Host,
}

impl Tier {
    pub const BOTH: [Self; 2] = [Self::Device, Self::Host];
}

#[derive(Debug)]
pub struct Pools([PagePool; 2]);

impl Pools {
    pub fn new(n_device: usize, n_host: usize) -> Self {
        Self([PagePool::new(n_device), PagePool::new(n_host)])
    }
}

impl Index<Tier> for Pools {
    type Output = PagePool;

    fn index(&self, tier: Tier) -> &PagePool {
        &self.0[tier as usize]
    }
}

impl IndexMut<Tier> for Pools {
    fn index_mut(&mut self, tier: Tier) -> &mut PagePool {
        &mut self.0[tier as usize]
    }
}

/// All physical pages of one tier.
#[derive(Debug)]
pub struct PagePool {
    /// Number of holders of each page; 0 means free.
    n_holders: Vec<u32>,
    /// Last in, first out, so that recently used memory, which is still in the CPU's caches, is
    /// reused first.
    free: Vec<PageIdx>,
}

/// An inconsistency found by [`PagePool::check_integrity`] or its callers.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntegrityError {
    #[error("page {page} is on the free list {n_times} times while it has {n_holders} holders")]
    FreeList {
        page: u32,
        n_times: u32,
        n_holders: u32,
    },
    #[error("free list names page {page}, the pool has {n_pages}")]
    OutOfRange { page: u32, n_pages: usize },
    #[error(
        "page {page} counts {counted} holders, page tables and prefix tree name it {named} times"
    )]
    Holders { page: u32, counted: u32, named: u32 },
    #[error("node {node} of the prefix tree: {what}")]
    Tree { what: String, node: u32 },
}

impl PagePool {
    pub fn new(n_pages: usize) -> Self {
        Self {
            n_holders: vec![0; n_pages],
            free: (0..n_pages as u32).rev().map(PageIdx).collect(),
        }
    }

    pub fn n_total(&self) -> usize {
        self.n_holders.len()
    }

    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    pub fn n_used(&self) -> usize {
        self.n_total() - self.n_free()
    }

    /// A free page with the caller as its only holder; `None` if there is no free page.
    pub fn alloc(&mut self) -> Option<PageIdx> {
        let page = self.free.pop()?;
        self.n_holders[page.0 as usize] = 1;
        Some(page)
    }

    /// Adds a holder to a page in use; returns false, without a change, if it has none.
    #[must_use]
    pub fn retain(&mut self, page: PageIdx) -> bool {
        match self.n_holders.get_mut(page.0 as usize) {
            Some(n) if *n > 0 => {
                *n += 1;
                true
            }
            _ => false,
        }
    }

    /// Removes a holder; removing the last one frees the page. Returns false, without a change, if
    /// it had none, which is a bug of the caller.
    pub fn release(&mut self, page: PageIdx) -> bool {
        match self.n_holders.get_mut(page.0 as usize) {
            Some(n) if *n > 0 => {
                *n -= 1;
                if *n == 0 {
                    self.free.push(page);
                }
                true
            }
            _ => {
                debug_assert!(false, "page {} released without a holder", page.0);
                false
            }
        }
    }

    pub fn n_holders(&self, page: PageIdx) -> u32 {
        self.n_holders.get(page.0 as usize).copied().unwrap_or(0)
    }

    /// Checks free list and reference counts. O(pages): for tests and debugging.
    ///
    /// # Errors
    ///
    /// [`IntegrityError::OutOfRange`] or [`IntegrityError::FreeList`] with the first wrong page.
    pub fn check_integrity(&self) -> Result<(), IntegrityError> {
        let n_pages = self.n_total();
        let mut n_times = vec![0u32; n_pages];
        for page in &self.free {
            match n_times.get_mut(page.0 as usize) {
                Some(n) => *n += 1,
                None => {
                    return Err(IntegrityError::OutOfRange {
                        page: page.0,
                        n_pages,
                    });
                }
            }
        }
        for (page, (&n_holders, &n_times)) in self.n_holders.iter().zip(&n_times).enumerate() {
            if n_times != u32::from(n_holders == 0) {
                return Err(IntegrityError::FreeList {
                    page: page as u32,
                    n_times,
                    n_holders,
                });
            }
        }
        Ok(())
    }
}
