//! Where KV pages go that the pool has no room for: more of the same memory.
//!
//! Copies run on the threads that compute, before the step's rows: cores that copied beside them
//! would be missing there. So a step is longer by its copies, of which
//! [`STEP_BYTES`] bound the number.

use std::time::Instant;

use kernels::KernelError;
use kernels::attention::{AttentionShape, KvFormat, KvPages};
use kernels::pool::WorkerPool;

use super::super::{ExecutorCounts, HostTierInfo};
use crate::kv::{PageCopies, PageCopy};

/// Bytes that a step copies in each direction while others decode: some milliseconds.
const STEP_BYTES: u64 = 8 << 20;

pub(super) struct HostTier {
    /// One a layer, as the pool has them.
    layers: Vec<KvPages>,
    n_pages: usize,
}

impl HostTier {
    pub fn new(
        shape: AttentionShape,
        format: KvFormat,
        n_layers: usize,
        n_pages: usize,
    ) -> Result<Self, KernelError> {
        let layers = (0..n_layers)
            .map(|_| KvPages::new(shape, n_pages, format))
            .collect::<Result<_, _>>()?;
        Ok(Self { layers, n_pages })
    }

    pub fn info(&self) -> HostTierInfo {
        let bytes: usize = self.layers.iter().map(KvPages::bytes).sum();
        HostTierInfo::new(
            self.n_pages,
            (bytes / self.n_pages.max(1)) as u64,
            STEP_BYTES,
        )
    }

    /// Makes the copies, layers spread over the threads.
    pub fn copy(
        &mut self,
        threads: &mut WorkerPool,
        kv: &mut [KvPages],
        copies: &PageCopies,
        counts: &mut ExecutorCounts,
    ) -> Result<(), KernelError> {
        let started = Instant::now();
        let mut layers: Vec<_> = kv
            .iter_mut()
            .zip(&mut self.layers)
            .map(|(device, host)| (device, host, Ok(())))
            .collect();
        threads.for_each_mut(&mut layers, &|_, (device, host, outcome)| {
            *outcome = copy_layer(device, host, copies);
        })?;
        for (_, _, outcome) in layers {
            outcome?;
        }
        counts.copied_pages += copies.n_pages() as u64;
        counts.copy_ns += started.elapsed().as_nanos() as u64;
        Ok(())
    }
}

fn copy_layer(
    device_pages: &mut KvPages,
    host_pages: &mut KvPages,
    copies: &PageCopies,
) -> Result<(), KernelError> {
    for PageCopy { device, host } in &copies.restores {
        device_pages.copy_page(device.0, host_pages, host.0)?;
    }
    for PageCopy { device, host } in &copies.offloads {
        host_pages.copy_page(host.0, device_pages, device.0)?;
    }
    Ok(())
}
