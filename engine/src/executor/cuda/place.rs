//! Where a model is to run: the card, what is free there, and how its passes are cut.

use kernels::cuda::{CudaError, Device, Stream};
use kernels::stream_linear::{Int8Room, ManyRows};

use super::forward::{self, PassShape};
use super::memory::{self, Demand};
use super::{CudaLoadError, CudaOptions, graphs, sampling};
use crate::model::config::ModelConfig;

/// Tokens of a pass: enough to keep the matrix instructions busy; more only takes memory from the
/// KV pool.
const PASS_TOKENS: usize = 1024;

/// Where a model is to run, with nothing allocated yet.
pub(super) struct Place {
    pub device: Device,
    pub stream: Stream,
    pub many_rows: ManyRows,
    pub pass: PassShape,
    total_bytes: usize,
    free_bytes: usize,
}

impl Place {
    pub fn open(options: &CudaOptions) -> Result<Self, CudaError> {
        let device = match options.card_profile {
            None => Device::open(options.ordinal)?,
            profile => Device::open_as(options.ordinal, profile)?,
        };
        let stream = Stream::new(&device)?;
        let (free_bytes, total_bytes) = device.memory_bytes()?;
        // The executor's own launches follow each other (`turn`); other processes' do not.
        let many_rows = ManyRows::best(&device, !device.is_shared());
        let pass = PassShape {
            max_tokens: PASS_TOKENS,
            is_tiled: true,
        };
        Ok(Self {
            device,
            stream,
            many_rows,
            pass,
            total_bytes,
            free_bytes,
        })
    }

    /// Of activations in 8 bits, where they are asked for.
    pub fn int8_room(&self, config: &ModelConfig, options: &CudaOptions) -> Option<Int8Room> {
        options.int8_activations.then(|| Int8Room {
            rows: self.pass.max_tokens,
            k: forward::longest_row(config),
        })
    }

    /// Pages of the KV pool beside so many bytes of weights, or why there is room for none.
    pub fn pool_pages(
        &self,
        config: &ModelConfig,
        options: &CudaOptions,
        weights: u64,
    ) -> Result<usize, CudaLoadError> {
        let total = self.total_bytes as u64;
        memory::pool_pages(&Demand {
            device: options
                .memory_limit_bytes
                .map_or(total, |limit| limit.min(total)),
            in_use: (self.total_bytes - self.free_bytes) as u64,
            mem_fraction_static: options.mem_fraction_static,
            weights,
            workspace: forward::workspace_bytes(config, self.pass)
                + sampling::device_bytes()
                + self
                    .int8_room(config, options)
                    .map_or(0, |room| room.n_bytes() as u64),
            n_graphs: graphs::sizes(&options.graphs).len(),
            page: forward::page_bytes(config, options.kv_format),
            max_total_tokens: options.max_total_tokens,
        })
        .map_err(CudaLoadError::Memory)
    }
}
