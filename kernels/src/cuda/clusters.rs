//! Which clusters of a launch a device holds.

use gpu::{CudaError, Kernel, LaunchConfig};

/// One launch in clusters of blocks: what it asks for, and what the device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterLaunch {
    pub kernel: String,
    /// Threads of a block.
    pub n_threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
    /// Blocks of the cluster that the launcher would like.
    pub wanted: u32,
    /// Blocks of the cluster that it uses here: fewer on a chip without room for as many.
    pub used: u32,
    /// Clusters of 1, 2, 4 and 8 blocks ([`gpu::CLUSTERS`]) that the device holds at a time.
    pub n_active: [usize; 4],
}

impl ClusterLaunch {
    pub(crate) fn of(
        kernel: &Kernel,
        config: &LaunchConfig,
        wanted: u32,
        used: u32,
    ) -> Result<Self, CudaError> {
        Ok(Self {
            kernel: kernel.name().to_owned(),
            n_threads: config.block.x,
            shared_bytes: config.shared_bytes,
            wanted,
            used,
            n_active: kernel.active_clusters(config)?,
        })
    }
}
