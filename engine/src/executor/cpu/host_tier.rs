//! The host tier on the CPU: more of the same memory for evicted KV pages.
//!
//! Copies run on the compute threads before the step's rows: concurrent copies would only take
//! cores away from them. A step is therefore longer by its copies, whose number [`STEP_BYTES`]
//! bounds.

use std::time::Instant;

use host::pool::WorkerPool;
use kernels::KernelError;
use kernels::attention::{AttentionShape, KvFormat, KvPages};

use super::super::{ExecutorCounts, HostTierInfo};
use crate::kv::{PageCopies, PageCopy};

/// Bytes that a step copies in each direction while other requests decode: a few milliseconds.
const STEP_BYTES: u64 = 8 << 20;

pub(super) struct HostTier {
    /// One for each layer, like the pool.
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

    /// Makes the copies, with layers spread over the threads.
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
