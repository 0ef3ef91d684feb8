//! The paged KV cache's bookkeeping: which page belongs to whom. Holds no tensor.
//!
//! [`pool`] counts the holders of each page, one pool a [`Tier`]; [`page_table`] is one sequence's
//! pages in order, [`radix`] remembers pages for the next request that begins alike, and
//! [`allocator`] stands between them: the one place that decides where a page comes from.
//! [`prefix`] names what begins alike.

pub mod allocator;
pub mod page_table;
pub mod pool;
pub mod prefix;
pub mod radix;
#[cfg(test)]
mod tests;

pub use allocator::PageAllocator;
pub use page_table::PageTable;
pub use pool::{IntegrityError, PagePool, Pools, Tier};
pub use prefix::{Prefix, PrefixIndex};
pub use radix::RadixTree;

/// Tokens per page.
pub const PAGE_TOKENS: usize = 16;

/// Physical page in the executor's KV pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageIdx(pub u32);

/// Pages that `n_tokens` tokens of one sequence occupy.
pub const fn pages_for(n_tokens: usize) -> usize {
    n_tokens.div_ceil(PAGE_TOKENS)
}

/// Copies of whole pages between the tiers, that a step carries out.
///
/// None of them names a page of the device that the step's own rows write or, where it is restored,
/// read: the executor may make them beside the step, and they must be done before the next one
/// computes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageCopies {
    /// From the host to the device.
    pub restores: Vec<PageCopy>,
    /// From the device to the host, behind the restores.
    pub offloads: Vec<PageCopy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageCopy {
    pub device: PageIdx,
    /// Place in the host tier.
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
