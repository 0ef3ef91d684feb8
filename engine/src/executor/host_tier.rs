//! The size of an executor's host tier, and its description.

use crate::kv::PAGE_TOKENS;

/// Maximum share of the free memory that the tier takes, unless its size is given in bytes.
const SHARE_OF_FREE_MEMORY: f64 = 0.75;

/// Bytes that a step copies in each direction between GPU and host while other requests decode: 1.3
/// ms at the 25 GB/s of PCIe 4, less than a decode step of any model with pages of that size.
pub const CARD_STEP_BYTES: u64 = 32 << 20;

/// A host tier of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct HostTierInfo {
    pub n_pages: usize,
    pub page_bytes: u64,
    /// Maximum number of pages that a step copies in each direction while other requests decode.
    pub n_copies: usize,
}

impl HostTierInfo {
    /// The number of copies that fit in `step_bytes`, at least one.
    pub fn new(n_pages: usize, page_bytes: u64, step_bytes: u64) -> Self {
        Self {
            n_pages,
            page_bytes,
            n_copies: (step_bytes / page_bytes.max(1)).max(1) as usize,
        }
    }
}

/// Requested size of the tier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HostTierOptions {
    pub size: HostTierSize,
    /// Free host memory.
    pub free_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HostTierSize {
    /// A multiple of the device's pool.
    Ratio(f64),
    Bytes(u64),
}

impl HostTierOptions {
    /// Number of pages of the tier for a pool of `n_pool_pages`, or why they do not fit. A multiple
    /// of the pool is reduced to the free memory; a number of bytes is not.
    ///
    /// # Errors
    ///
    /// If a number of bytes is asked for that is not free.
    pub fn n_pages(&self, n_pool_pages: usize, page_bytes: u64) -> Result<usize, String> {
        let page_bytes = page_bytes.max(1);
        match self.size {
            HostTierSize::Ratio(ratio) => {
                let wanted = (n_pool_pages as f64 * ratio) as usize;
                let share = self.free_bytes as f64 * SHARE_OF_FREE_MEMORY;
                let fits = (share / page_bytes as f64) as usize;
                if wanted > fits {
                    tracing::warn!(
                        wanted_tokens = wanted * PAGE_TOKENS,
                        tokens = fits * PAGE_TOKENS,
                        free_bytes = self.free_bytes,
                        "the host tier is reduced to the free memory"
                    );
                }
                Ok(wanted.min(fits).max(1))
            }
            HostTierSize::Bytes(bytes) if bytes > self.free_bytes => Err(format!(
                "--hicache-size: {bytes} bytes for the host tier, {} are free",
                self.free_bytes
            )),
            HostTierSize::Bytes(bytes) => Ok(((bytes / page_bytes) as usize).max(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_cut_to_what_is_free_and_bytes_are_refused() {
        let options = |size, free_bytes| HostTierOptions { size, free_bytes };
        let pages = |size, free_bytes| options(size, free_bytes).n_pages(100, 1000);
        assert_eq!(pages(HostTierSize::Ratio(2.0), 1_000_000), Ok(200));
        assert_eq!(pages(HostTierSize::Ratio(0.5), 1_000_000), Ok(50));
        assert_eq!(pages(HostTierSize::Ratio(2.0), 100_000), Ok(75));
        assert_eq!(pages(HostTierSize::Ratio(0.001), 100_000), Ok(1));
        assert_eq!(pages(HostTierSize::Bytes(30_999), 100_000), Ok(30));
        let refused = pages(HostTierSize::Bytes(200_000), 100_000).unwrap_err();
        assert!(
            refused.contains("200000") && refused.contains("100000"),
            "{refused}"
        );
    }

    #[test]
    fn a_step_copies_at_least_one_page() {
        assert_eq!(HostTierInfo::new(8, 1000, 3500).n_copies, 3);
        assert_eq!(HostTierInfo::new(8, 1000, 10).n_copies, 1);
    }
}
