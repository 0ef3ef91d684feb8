//! Bookkeeping of the paged KV cache: which page belongs to which sequence. Holds no tensor.
//!
//! [`pool`] counts the holders of each page, one pool for each [`Tier`]; [`page_table`] is the
//! ordered list of one sequence's pages; [`radix`] keeps pages for later requests with the same
//! prefix, and says in [`events`] what it keeps; [`allocator`] combines them and is the only place that allocates pages. [`prefix`]
//! defines prefixes by hash chains.

pub mod allocator;
pub mod events;
pub mod page_table;
pub mod pool;
pub mod prefix;
pub mod radix;
#[cfg(test)]
mod tests;

pub use allocator::PageAllocator;
pub use events::KvEvent;
pub use page_table::PageTable;
pub use pool::{IntegrityError, PagePool, Pools, Tier};
pub use prefix::{Prefix, PrefixIndex};
pub use radix::RadixTree;

/// Tokens per page.
pub const PAGE_TOKENS: usize = 16;

/// Physical page in the executor's KV pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageIdx(pub u32);

/// Number of pages that `n_tokens` tokens of one sequence occupy.
pub const fn pages_for(n_tokens: usize) -> usize {
    n_tokens.div_ceil(PAGE_TOKENS)
}

/// Copies of whole pages between the tiers during a step.
///
/// None of them names a device page that the step's own rows write, or read if it is restored. So
/// the executor may make them concurrently with the step; they must be complete before the next one
/// computes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageCopies {
    /// From the host to the device.
    pub restores: Vec<PageCopy>,
    /// From the device to the host, after the restores.
    pub offloads: Vec<PageCopy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageCopy {
    pub device: PageIdx,
    /// Page in the host tier.
    pub host: PageIdx,
}

impl PageCopies {
    pub fn is_empty(&self) -> bool {
        self.n_pages() == 0
    }

    pub fn n_pages(&self) -> usize {
        self.restores.len() + self.offloads.len()
    }
}
