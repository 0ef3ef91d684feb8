//! KV pages that the card has no room for, in pinned memory of the host.
//!
//! Copies run on a stream of their own. They begin behind what the compute stream has been given so
//! far, since a step that was begun ahead and discarded may still write behind the tokens of a
//! page that has another owner now; and the compute stream waits for them before the next plan's
//! work. The step of their own plan touches none of their pages, so it runs beside them, replayed
//! graph or not. The scheduler plans so few a step that they end with it.
//!
//! One call copies a page: K and V of every layer, which lie one layer's pool apart on the card and
//! one behind the other on the host.

use kernels::cuda::{CudaError, Event, HostBuffer, RowsCopy, Stream};

use super::{Forward, KvPool};
use crate::executor::host_tier::CARD_STEP_BYTES;
use crate::executor::{ExecutorCounts, HostTierInfo};
use crate::kv::{PageCopies, PageCopy};

pub struct HostTier {
    /// `[n_pages, 2 * n_layers, bytes of K (or V) of a page and layer]`
    host: HostBuffer<u8>,
    stream: Stream,
    n_pages: usize,
    /// Of one page; its place is not set.
    rows: RowsCopy,
    /// Behind what the compute stream was given before the copies.
    computed: Event,
    /// Around the copies.
    began: Event,
    copied: Event,
    /// Pages whose copies the compute stream does not wait for yet.
    n_pending: usize,
}

impl KvPool {
    /// K and V of each layer of page 0.
    fn page_rows(&self, n_layers: usize) -> RowsCopy {
        let pitch = self.layer_bytes / 2;
        RowsCopy {
            n_rows: 2 * n_layers,
            row_len: pitch / self.n_pages.max(1),
            pitch,
            device_start: 0,
            host_start: 0,
        }
    }
}

impl HostTier {
    pub fn new(stream: &Stream, forward: &Forward, n_pages: usize) -> Result<Self, CudaError> {
        let device = stream.device();
        let rows = forward.kv.page_rows(forward.config.n_layers);
        Ok(Self {
            host: HostBuffer::zeroed(device, n_pages * rows.n_rows * rows.row_len)?,
            stream: Stream::new(device)?,
            n_pages,
            rows,
            computed: Event::new(device)?,
            began: Event::new(device)?,
            copied: Event::new(device)?,
            n_pending: 0,
        })
    }

    pub fn info(&self) -> HostTierInfo {
        HostTierInfo::new(self.n_pages, self.page_bytes() as u64, CARD_STEP_BYTES)
    }

    fn page_bytes(&self) -> usize {
        self.rows.n_rows * self.rows.row_len
    }

    /// What `compute` is given from here on runs behind the copies of the last plan.
    pub fn settle(
        &mut self,
        compute: &Stream,
        counts: &mut ExecutorCounts,
    ) -> Result<(), CudaError> {
        if self.n_pending == 0 {
            return Ok(());
        }
        compute.wait_for(&self.copied)?;
        // Usually long ago; the time of copies that are still under way is not worth a wait.
        if self.copied.is_reached()? {
            counts.copied_pages += self.n_pending as u64;
            let elapsed_ms = f64::from(self.copied.elapsed_ms(&self.began)?);
            counts.copy_ns += (elapsed_ms * 1e6) as u64;
        }
        self.n_pending = 0;
        Ok(())
    }

    /// Begins a plan's copies, behind what `compute` was given so far.
    pub fn begin(
        &mut self,
        compute: &Stream,
        forward: &Forward,
        copies: &PageCopies,
    ) -> Result<(), CudaError> {
        if copies.is_empty() {
            return Ok(());
        }
        let queued = self.queue(compute, &forward.kv, copies);
        if queued.is_err() {
            // Nothing marks their end, so wait for those that were queued.
            self.stream.synchronize()?;
        } else {
            self.n_pending = copies.n_pages();
        }
        queued
    }

    fn queue(
        &mut self,
        compute: &Stream,
        pool: &KvPool,
        copies: &PageCopies,
    ) -> Result<(), CudaError> {
        self.computed.record(compute)?;
        self.stream.wait_for(&self.computed)?;
        self.began.record(&self.stream)?;
        let all = pool.buffer.all();
        for copy in &copies.restores {
            let rows = self.place(*copy);
            self.host.copy_rows_to(&self.stream, all, rows)?;
        }
        for copy in &copies.offloads {
            let rows = self.place(*copy);
            self.host.copy_rows_from(&self.stream, all, rows)?;
        }
        self.copied.record(&self.stream)
    }

    /// A page outside either side is refused by the copy.
    fn place(&self, copy: PageCopy) -> RowsCopy {
        RowsCopy {
            device_start: copy.device.0 as usize * self.rows.row_len,
            host_start: copy.host.0 as usize * self.page_bytes(),
            ..self.rows
        }
    }
}
