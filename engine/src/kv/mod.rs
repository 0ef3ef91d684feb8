//! The paged KV cache's bookkeeping: which page belongs to whom. Holds no tensor.

/// Tokens per page.
pub const PAGE_TOKENS: usize = 16;

/// Physical page in the executor's KV pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageIdx(pub u32);
