//! Decides when cached pages move between the device and the host.
//!
//! Cached pages are copied to the host step by step, so that the device can evict them at any time.
//! A request whose prefix is on the host gets it restored into new pages and is computed from there
//! on once all of it has arrived; until then none of its rows is planned, and other requests' steps
//! continue. While any request decodes, a step carries at most [`HostTierConfig::n_copies`] in each
//! direction, so that the copies end with the step and the next one need not wait.
//!
//! Measured times decide whether restoring is worth it: see [`RestoreCosts`].

use super::Scheduler;
use super::sequence::Sequence;
use crate::executor::HostTierInfo;
use crate::kv::{PAGE_TOKENS, PageCopy};
use crate::step::StepPlan;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct HostTierConfig {
    pub n_pages: usize,
    /// Maximum number of pages that one step copies in each direction.
    pub n_copies: usize,
}

impl From<HostTierInfo> for HostTierConfig {
    fn from(tier: HostTierInfo) -> Self {
        Self {
            n_pages: tier.n_pages,
            n_copies: tier.n_copies,
        }
    }
}

/// Measured times of steps and copies so far; 0 if not measured yet. An input of `plan`, like
/// `now`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RestoreCosts {
    /// Seconds to copy a page.
    pub page_s: f64,
    /// Seconds to compute a prompt token.
    pub token_s: f64,
    /// Seconds of a decode step.
    pub step_s: f64,
}

impl RestoreCosts {
    /// Whether copying `n_pages` is faster than computing them. While a request decodes, copies
    /// come in portions of `n_copies` for each step. A time that was not measured counts as 0,
    /// except for computing, which then counts as slower.
    pub fn is_worth_it(&self, n_pages: usize, portion: Option<usize>) -> bool {
        if self.token_s <= 0.0 {
            return true;
        }
        let copied_s = n_pages as f64 * self.page_s;
        let waited_s = portion.map_or(0.0, |n| n_pages.div_ceil(n.max(1)) as f64 * self.step_s);
        copied_s.max(waited_s) < (n_pages * PAGE_TOKENS) as f64 * self.token_s
    }
}

/// Statistics of the host tier since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostTierStats {
    pub n_pages_used: usize,
    pub n_pages_total: usize,
    /// Pages copied to the host.
    pub n_offloaded: u64,
    /// Pages restored to the device.
    pub n_restored: u64,
    /// Pages on the host that were computed again because that was faster.
    pub n_declined: u64,
    /// Cached pages that were evicted from the device without a copy.
    pub n_lost: u64,
}

/// Counters of [`HostTierStats`].
#[derive(Debug, Default)]
#[expect(clippy::struct_field_names, reason = "counts are named so")]
pub(super) struct HostTierCounts {
    pub n_offloaded: u64,
    pub n_restored: u64,
    pub n_declined: u64,
}

impl Scheduler {
    /// Sets the measured times; later plans use them.
    pub fn set_restore_costs(&mut self, costs: RestoreCosts) {
        self.restore_costs = costs;
    }

    pub fn host_tier_stats(&self) -> HostTierStats {
        HostTierStats {
            n_pages_used: self.allocator.n_host_pages_used(),
            n_pages_total: self.allocator.n_host_pages_total(),
            n_offloaded: self.host_counts.n_offloaded,
            n_restored: self.host_counts.n_restored,
            n_declined: self.host_counts.n_declined,
            n_lost: self.allocator.n_lost(),
        }
    }

    /// Whether to restore `n_pages` that are only on the host.
    pub(super) fn takes_from_host(&self, n_pages: usize) -> bool {
        let Some(tier) = self.config.host_tier.filter(|_| n_pages > 0) else {
            return false;
        };
        let portion = self.has_decoding().then_some(tier.n_copies);
        self.restore_costs.is_worth_it(n_pages, portion)
    }

    fn has_decoding(&self) -> bool {
        self.running.iter().any(Sequence::is_decoding)
    }

    /// Adds the pages that running requests wait for, then copies of cached ones. Call it when this
    /// plan evicts no more pages.
    pub(super) fn add_copies(&mut self, plan: &mut StepPlan) {
        let Some(tier) = self.config.host_tier else {
            return;
        };
        let mut n_left = if self.has_decoding() {
            tier.n_copies
        } else {
            usize::MAX
        };
        for sequence in self.running.iter_mut().filter(|s| s.is_restoring()) {
            let pages = sequence.pages.as_slice();
            let host = sequence.host_pages.as_slice();
            let first = sequence.n_computed / PAGE_TOKENS;
            let n = (host.len() - first).min(n_left);
            let both = pages.iter().zip(host).skip(first).take(n);
            plan.copies
                .restores
                .extend(both.map(|(device, host)| PageCopy {
                    device: *device,
                    host: *host,
                }));
            sequence.n_restoring = n;
            n_left -= n;
        }
        plan.copies.offloads = self.allocator.copy_to_host(tier.n_copies);
    }

    /// Records that the plan's copies were made.
    pub(super) fn commit_copies(&mut self, plan: &StepPlan) {
        if plan.copies.is_empty() {
            return;
        }
        self.host_counts.n_offloaded += plan.copies.offloads.len() as u64;
        for i in 0..self.running.len() {
            let sequence = &mut self.running[i];
            if sequence.n_restoring == 0 {
                continue;
            }
            self.host_counts.n_restored += sequence.n_restoring as u64;
            sequence.n_computed += sequence.n_restoring * PAGE_TOKENS;
            sequence.n_restoring = 0;
            if !sequence.is_restoring() {
                self.allocator.free_host(&mut sequence.host_pages);
            }
            self.keep_prompt(i);
        }
    }

    /// Records that the plan's copies failed, at least in part: pages to be restored are computed
    /// instead.
    pub(super) fn fail_copies(&mut self, plan: &StepPlan) {
        for sequence in self.running.iter_mut().filter(|s| s.n_restoring > 0) {
            sequence.n_restoring = 0;
            sequence.n_cached = sequence.n_cached.min(sequence.n_computed);
            self.allocator.free_host(&mut sequence.host_pages);
        }
        self.allocator.forget_copies(&plan.copies.offloads);
    }
}
