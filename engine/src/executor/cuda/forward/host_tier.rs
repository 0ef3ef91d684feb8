//! The host tier of the KV cache: evicted pages in pinned host memory.
//!
//! Copies run on their own stream. They start after the work queued on the compute stream so far,
//! since a discarded lookahead step may still write past the tokens of a page that has a new owner;
//! and the compute stream waits for them before the next plan's work. The step of their own plan
//! uses none of their pages, so it runs concurrently, as a graph or not. The scheduler limits the
//! copies of a step so that they end with it.
//!
//! One call copies a page: K and V of every layer, which are one layer's pool apart on the GPU and
//! contiguous on the host.

use gpu::{CudaError, Event, HostBuffer, RowsCopy, Stream};

use super::{Forward, KvPool};
use crate::executor::host_tier::CARD_STEP_BYTES;
use crate::executor::{ExecutorCounts, HostTierInfo};
use crate::kv::{PageCopies, PageCopy};

pub struct HostTier {
    /// `[n_pages, 2 * n_layers, bytes of K (or V) of a page and layer]`
    host: HostBuffer<u8>,
    stream: Stream,
    n_pages: usize,
    /// The copy for one page; source and destination are not set.
    rows: RowsCopy,
    /// Recorded after the work queued on the compute stream before the copies.
    computed: Event,
    /// Events before and after the copies.
    began: Event,
    copied: Event,
    /// Copied pages that the compute stream does not wait for yet.
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

    /// Work queued on `compute` from here on runs after the copies of the last plan.
    pub fn settle(
        &mut self,
        compute: &Stream,
        counts: &mut ExecutorCounts,
    ) -> Result<(), CudaError> {
        if self.n_pending == 0 {
            return Ok(());
        }
        compute.wait_for(&self.copied)?;
        // The copies have usually ended long before; the duration of running ones is not worth
        // waiting for.
        if self.copied.is_reached()? {
            counts.copied_pages += self.n_pending as u64;
            let elapsed_ms = f64::from(self.copied.elapsed_ms(&self.began)?);
            counts.copy_ns += (elapsed_ms * 1e6) as u64;
        }
        self.n_pending = 0;
        Ok(())
    }

    /// Starts a plan's copies, after the work queued on `compute` so far.
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
            // Nothing marks their end, so wait for the copies that were queued.
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

    /// The copy refuses a page outside either tier.
    fn place(&self, copy: PageCopy) -> RowsCopy {
        RowsCopy {
            device_start: copy.device.0 as usize * self.rows.row_len,
            host_start: copy.host.0 as usize * self.page_bytes(),
            ..self.rows
        }
    }
}
