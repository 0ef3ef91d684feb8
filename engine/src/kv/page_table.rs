//! One sequence's pages, in the order of its tokens.

use super::{PAGE_TOKENS, PageIdx};

/// Physical page of each logical page of one sequence. Pages enter and leave only through
/// [`PageAllocator`](super::PageAllocator), which keeps the reference counts right.
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

    /// Tokens that these pages have room for.
    pub fn capacity_tokens(&self) -> usize {
        self.pages.len() * PAGE_TOKENS
    }
}
