//! One sequence's pages, in the order of its tokens.

use super::{PAGE_TOKENS, PageIdx};

/// Physical page of each logical page of one sequence. Pages are added and removed only by
/// [`PageAllocator`](super::PageAllocator), which maintains the reference counts.
#[derive(Debug, Default)]
pub struct PageTable {
    pub(super) pages: Vec<PageIdx>,
}

impl PageTable {
    pub fn as_slice(&self) -> &[PageIdx] {
        &self.pages
    }

    pub fn n_pages(&self) -> usize {
        self.pages.len()
    }

    /// Number of tokens that these pages can hold.
    pub fn capacity_tokens(&self) -> usize {
        self.pages.len() * PAGE_TOKENS
    }
}
