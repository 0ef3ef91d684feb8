//! The paged KV cache's bookkeeping: which page belongs to whom. Holds no tensor.
//!
//! [`pool`] counts the holders of each page, [`page_table`] is one sequence's pages in order, and
//! [`allocator`] stands between them: the one place that decides where a page comes from.
//! Deliberately absent: prefix reuse between requests and a host tier. Both change where a page
//! comes from, so both belong behind [`PageAllocator`].

pub mod allocator;
pub mod page_table;
pub mod pool;
#[cfg(test)]
mod tests;

pub use allocator::PageAllocator;
pub use page_table::PageTable;
pub use pool::{IntegrityError, PagePool};

/// Tokens per page.
pub const PAGE_TOKENS: usize = 16;

/// Physical page in the executor's KV pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageIdx(pub u32);

/// Pages that `n_tokens` tokens of one sequence occupy.
pub const fn pages_for(n_tokens: usize) -> usize {
    n_tokens.div_ceil(PAGE_TOKENS)
}
