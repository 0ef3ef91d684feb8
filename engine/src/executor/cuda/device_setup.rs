//! The device of a model: the GPU, its free memory, and the size of its passes.

use gpu::{CudaError, Device, Stream};
use kernels::attention::cuda::ContextParts;
use kernels::stream_linear::{Int8Room, LargeM};

use super::forward::{self, PassShape};
use super::memory::{self, Demand};
use super::{CudaLoadError, CudaOptions, graphs, sampling};
use crate::executor::MemoryParts;
use crate::model::config::ModelConfig;

/// Tokens of a pass: enough to keep the tensor cores busy; more would only take memory from the KV
/// pool.
const PASS_TOKENS: usize = 1024;

/// An opened device, with nothing allocated yet.
pub(super) struct DeviceSetup {
    pub device: Device,
    pub stream: Stream,
    pub large_m: LargeM,
    pub pass: PassShape,
    total_bytes: usize,
    free_bytes: usize,
}

impl DeviceSetup {
    pub fn open(options: &CudaOptions) -> Result<Self, CudaError> {
        let device = match options.card_profile {
            None => Device::open(options.ordinal)?,
            profile => Device::open_as(options.ordinal, profile)?,
        };
        let stream = Stream::new(&device)?;
        let (free_bytes, total_bytes) = device.memory_bytes()?;
        // The executor's own launches are serialised (`device_guard`); other processes' are not.
        let large_m = LargeM::best(&device, !device.is_shared());
        let pass = PassShape {
            max_tokens: PASS_TOKENS,
            is_tiled: true,
        };
        Ok(Self {
            device,
            stream,
            large_m,
            pass,
            total_bytes,
            free_bytes,
        })
    }

    /// Buffer sizes for 8-bit activations, if they are enabled.
    pub fn int8_room(&self, config: &ModelConfig, options: &CudaOptions) -> Option<Int8Room> {
        options.int8_activations.then(|| Int8Room {
            rows: self.pass.max_tokens,
            k: forward::longest_row(config),
        })
    }

    /// Number of KV pages that fit next to `weights` bytes, with what is set aside; or why none fits.
    pub fn pool_pages(
        &self,
        config: &ModelConfig,
        options: &CudaOptions,
        weights: u64,
    ) -> Result<(usize, MemoryParts), CudaLoadError> {
        let total = self.total_bytes as u64;
        let demand = Demand {
            device: options
                .memory_limit_bytes
                .map_or(total, |limit| limit.min(total)),
            in_use: (self.total_bytes - self.free_bytes) as u64,
            mem_fraction_static: options.mem_fraction_static,
            weights,
            workspace: forward::workspace_bytes(config, self.pass)
                + sampling::device_bytes()
                + ContextParts::n_bytes(&self.device, config.head_dim) as u64
                + self
                    .int8_room(config, options)
                    .map_or(0, |room| room.n_bytes() as u64),
            n_graphs: graphs::sizes(&options.graphs).len(),
            page: forward::page_bytes(config, options.kv_format),
            max_total_tokens: options.max_total_tokens,
        };
        let n_pages = memory::pool_pages(&demand).map_err(CudaLoadError::Memory)?;
        Ok((n_pages, demand.parts()))
    }
}
