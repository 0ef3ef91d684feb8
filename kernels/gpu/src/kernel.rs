//! Kernels and their launches.
//!
//! Every kernel takes one struct by value (`__grid_constant__`), so a launch has one
//! parameter and its size is checked against the compiled kernel.

use bytemuck::Pod;
use cudarc::driver::sys;

use super::error::check;
use super::{CudaError, Device, Stream};

const MAX_CLUSTER: u32 = 8;
/// The sizes of clusters that launches use, in blocks.
pub const CLUSTERS: [u32; 4] = [1, 2, 4, 8];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dim3 {
    pub x: u32,
    pub y: u32,
    pub z: u32,
}

impl Dim3 {
    pub const fn new(x: u32, y: u32, z: u32) -> Self {
        Self { x, y, z }
    }

    const fn volume(self) -> usize {
        self.x as usize * self.y as usize * self.z as usize
    }
}

impl From<u32> for Dim3 {
    fn from(x: u32) -> Self {
        Self { x, y: 1, z: 1 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks.
    pub grid: Dim3,
    /// Threads of a block.
    pub block: Dim3,
    /// Number of blocks in a cluster, along x; 1 for none. At most 8, which every chip supports.
    pub cluster: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
    /// Programmatic dependent launch: the blocks may start while the previous kernel still runs,
    /// and `griddepcontrol.wait` in the kernel waits for its results. Only for kernels that use it.
    pub dependent: bool,
    /// All blocks are resident on the GPU at once, even next to other work; costs the overlap of
    /// `dependent`. For kernels whose blocks wait for each other.
    pub cooperative: bool,
}

impl LaunchConfig {
    /// No cluster, no dynamic shared memory, starts after the previous work.
    pub fn new(grid: impl Into<Dim3>, block: impl Into<Dim3>) -> Self {
        let (grid, block) = (grid.into(), block.into());
        Self {
            grid,
            block,
            cluster: 1,
            shared_bytes: 0,
            dependent: false,
            cooperative: false,
        }
    }
}

/// A compiled kernel of a loaded module. Clones are the same kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    device: Device,
    function: sys::CUfunction,
    name: String,
    param_bytes: usize,
    max_threads: usize,
}

// SAFETY: the driver's handle may be used from every thread.
unsafe impl Send for Kernel {}
// SAFETY: as above; launches are ordered by their stream, not by the handle.
unsafe impl Sync for Kernel {}

impl Kernel {
    pub(super) fn new(
        device: Device,
        function: sys::CUfunction,
        name: &str,
    ) -> Result<Self, CudaError> {
        // Loads the code now rather than lazily inside a capture.
        // SAFETY: a function of a loaded module.
        check("cuFuncLoad", unsafe { sys::cuFuncLoad(function) })?;
        let (mut offset, mut param_bytes) = (0, 0);
        // SAFETY: the driver writes offset and size of parameter 0, or refuses if there is none.
        check("cuFuncGetParamInfo", unsafe {
            sys::cuFuncGetParamInfo(function, 0, &raw mut offset, &raw mut param_bytes)
        })?;
        let mut kernel = Self {
            device,
            function,
            name: name.to_string(),
            param_bytes,
            max_threads: 0,
        };
        kernel.max_threads =
            kernel.attribute(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        Ok(kernel)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The launch bound from compilation, or the limit from its registers.
    pub fn max_threads(&self) -> usize {
        self.max_threads
    }

    /// Registers of a thread.
    ///
    /// # Errors
    ///
    /// If the device is lost.
    pub fn n_registers(&self) -> Result<usize, CudaError> {
        self.attribute(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)
    }

    /// Lets launches ask for up to `n_bytes` of dynamic shared memory. Needed above 48 KiB; call
    /// it once, before any capture.
    ///
    /// # Errors
    ///
    /// If a block of this device cannot have as much.
    pub fn set_max_dynamic_shared(&self, n_bytes: usize) -> Result<(), CudaError> {
        let limit = self.device.properties().shared_bytes_per_block;
        self.check_limit("dynamic shared memory in bytes", n_bytes, limit)?;
        self.set_attribute(
            sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            n_bytes as i32,
        )
    }

    /// The preferred share of shared memory in the L1 memory, in per cent: a hint to the driver.
    ///
    /// # Errors
    ///
    /// If `percent` is above 100.
    pub fn set_shared_carveout(&self, percent: u32) -> Result<(), CudaError> {
        self.check_limit(
            "the shared memory carveout in per cent",
            percent as usize,
            100,
        )?;
        self.set_attribute(
            sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
            self.device.inner.carveout(percent) as i32,
        )
    }

    /// Number of clusters of this launch that the device can hold at a time.
    ///
    /// # Errors
    ///
    /// If the launch exceeds a limit of the device or the kernel, or `stream` is of another device.
    pub fn max_active_clusters(
        &self,
        stream: &Stream,
        config: &LaunchConfig,
    ) -> Result<usize, CudaError> {
        self.check_config(config)?;
        stream.enter(&self.device)?;
        let mut attributes = LaunchAttributes::of(config);
        let raw = attributes.config(stream.raw(), config);
        let mut n_clusters = 0;
        // SAFETY: function and stream live; `raw` points to `attributes`, which outlives the call.
        check("cuOccupancyMaxActiveClusters", unsafe {
            sys::cuOccupancyMaxActiveClusters(&raw mut n_clusters, self.function, &raw const raw)
        })?;
        let n_clusters = n_clusters.max(0) as usize;
        Ok(self.device.inner.scaled_to_profile(n_clusters))
    }

    /// The largest cluster of 1, 2, 4 or 8 blocks, at most `config.cluster`, that fits on the
    /// device. A chip with disabled multiprocessors may have no room for large ones. The grid of
    /// `config` is ignored.
    ///
    /// # Errors
    ///
    /// If a launch of one cluster exceeds a limit of the device or the kernel.
    pub fn largest_cluster(&self, config: &LaunchConfig) -> Result<u32, CudaError> {
        largest_fitting(config.cluster, |cluster| {
            Ok(self.n_active(config, cluster)? > 0)
        })
    }

    /// How many clusters of each size of [`CLUSTERS`] the device itself holds at a time of this
    /// launch, whose own cluster and grid are ignored.
    ///
    /// # Errors
    ///
    /// If a launch of one cluster exceeds a limit of the device or the kernel.
    pub fn active_clusters(&self, config: &LaunchConfig) -> Result<[usize; 4], CudaError> {
        let mut n_active = [0; 4];
        for (n, cluster) in n_active.iter_mut().zip(CLUSTERS) {
            *n = self.n_active(config, cluster)?;
        }
        Ok(n_active)
    }

    /// Clusters of `cluster` blocks that the device holds at a time.
    fn n_active(&self, config: &LaunchConfig, cluster: u32) -> Result<usize, CudaError> {
        self.device.inner.bind()?;
        let config = LaunchConfig {
            grid: cluster.into(),
            cluster,
            ..*config
        };
        self.check_config(&config)?;
        let mut n_active = 0;
        if cluster == 1 {
            // SAFETY: the function is loaded in the current context; the driver writes one integer.
            check("cuOccupancyMaxActiveBlocksPerMultiprocessor", unsafe {
                sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                    &raw mut n_active,
                    self.function,
                    config.block.volume() as i32,
                    config.shared_bytes,
                )
            })?;
            let n_multiprocessors = self.device.own_properties().n_multiprocessors;
            return Ok(n_active.max(0) as usize * n_multiprocessors);
        }
        let mut attributes = LaunchAttributes::of(&config);
        let raw = attributes.config(std::ptr::null_mut(), &config);
        // SAFETY: the function is loaded in the current context, whose default stream is meant;
        // `raw` points to `attributes`, which outlives the call.
        check("cuOccupancyMaxActiveClusters", unsafe {
            sys::cuOccupancyMaxActiveClusters(&raw mut n_active, self.function, &raw const raw)
        })?;
        Ok(n_active.max(0) as usize)
    }

    /// Queues one launch on `stream`; `params` is the kernel's only argument.
    ///
    /// # Errors
    ///
    /// If the launch exceeds a limit of the device or the kernel, `P` has another size than the
    /// kernel's parameter, or `stream` is of another device.
    ///
    /// # Safety
    /// The pointers in `params` must cover all that the kernel reads and writes with these
    /// values and this grid, and live until the launch has run. A launcher has checked its
    /// shapes before.
    pub unsafe fn launch<P: Pod>(
        &self,
        stream: &Stream,
        config: &LaunchConfig,
        params: &P,
    ) -> Result<(), CudaError> {
        self.check_config(config)?;
        if size_of::<P>() != self.param_bytes {
            return Err(CudaError::Parameters {
                kernel: self.name.clone(),
                expected: self.param_bytes,
                found: size_of::<P>(),
            });
        }
        stream.enter(&self.device)?;
        let mut attributes = LaunchAttributes::of(config);
        let raw = attributes.config(stream.raw(), config);
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast()];
        // SAFETY: function and stream live; `raw` points to `attributes`, which outlives the call;
        // the driver copies the one argument, whose size is the kernel's; the caller vouches for
        // its pointers.
        check("cuLaunchKernelEx", unsafe {
            sys::cuLaunchKernelEx(
                &raw const raw,
                self.function,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        })
    }

    fn check_config(&self, config: &LaunchConfig) -> Result<(), CudaError> {
        self.check_limit(
            "the number of threads a block",
            config.block.volume(),
            self.max_threads,
        )?;
        self.check_limit("the cluster", config.cluster as usize, MAX_CLUSTER as usize)?;
        self.check_limit(
            "dynamic shared memory in bytes",
            config.shared_bytes,
            self.device.properties().shared_bytes_per_block,
        )?;
        let is_whole = config.cluster > 0 && config.grid.x.is_multiple_of(config.cluster);
        if config.grid.volume() == 0 || config.block.volume() == 0 || !is_whole {
            return Err(CudaError::Launch {
                kernel: self.name.clone(),
                what: "the remainder of grid over cluster, or an empty grid",
                found: config.grid.x as usize,
                limit: config.cluster as usize,
            });
        }
        Ok(())
    }

    fn check_limit(&self, what: &'static str, found: usize, limit: usize) -> Result<(), CudaError> {
        if found <= limit {
            return Ok(());
        }
        Err(CudaError::Launch {
            kernel: self.name.clone(),
            what,
            found,
            limit,
        })
    }

    fn attribute(&self, which: sys::CUfunction_attribute) -> Result<usize, CudaError> {
        self.device.inner.bind()?;
        let mut value = 0;
        // SAFETY: a function of a loaded module; the driver writes one integer.
        let result = unsafe { sys::cuFuncGetAttribute(&raw mut value, which, self.function) };
        check("cuFuncGetAttribute", result)?;
        Ok(value.max(0) as usize)
    }

    fn set_attribute(&self, which: sys::CUfunction_attribute, value: i32) -> Result<(), CudaError> {
        self.device.inner.bind()?;
        // SAFETY: a function of a loaded module; the driver checks the value.
        let result = unsafe { sys::cuFuncSetAttribute(self.function, which, value) };
        check("cuFuncSetAttribute", result)
    }
}

/// The largest power of two up to `at_most` that `fits`; a single block always does.
fn largest_fitting(
    at_most: u32,
    mut fits: impl FnMut(u32) -> Result<bool, CudaError>,
) -> Result<u32, CudaError> {
    for cluster in [8, 4, 2] {
        if cluster <= at_most && fits(cluster)? {
            return Ok(cluster);
        }
    }
    Ok(1)
}

/// The attributes that the driver reads during a launch.
struct LaunchAttributes {
    values: [sys::CUlaunchAttribute; 3],
    n: u32,
}

impl LaunchAttributes {
    fn of(config: &LaunchConfig) -> Self {
        let attribute = |id, value| sys::CUlaunchAttribute {
            id,
            pad: [0; 4],
            value,
        };
        let zero = sys::CUlaunchAttributeValue { pad: [0; 64] };
        let ignored = attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_IGNORE, zero);
        let (mut values, mut n) = ([ignored; 3], 0);
        if config.cluster > 1 {
            let mut value = zero;
            value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                x: config.cluster,
                y: 1,
                z: 1,
            };
            values[n] = attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                value,
            );
            n += 1;
        }
        if config.dependent {
            let mut value = zero;
            value.programmaticStreamSerializationAllowed = 1;
            values[n] = attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                value,
            );
            n += 1;
        }
        if config.cooperative {
            let mut value = zero;
            value.cooperative = 1;
            values[n] = attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
                value,
            );
            n += 1;
        }
        Self {
            values,
            n: n as u32,
        }
    }

    /// Points into `self`.
    fn config(&mut self, stream: sys::CUstream, config: &LaunchConfig) -> sys::CUlaunchConfig {
        sys::CUlaunchConfig {
            gridDimX: config.grid.x,
            gridDimY: config.grid.y,
            gridDimZ: config.grid.z,
            blockDimX: config.block.x,
            blockDimY: config.block.y,
            blockDimZ: config.block.z,
            sharedMemBytes: config.shared_bytes as u32,
            hStream: stream,
            attrs: self.values.as_mut_ptr(),
            numAttrs: self.n,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chip_without_room_for_large_clusters_gets_smaller_ones() {
        let largest = |at_most, room| largest_fitting(at_most, |cluster| Ok(cluster <= room));
        assert_eq!(largest(8, 8).expect("no call fails"), 8);
        assert_eq!(largest(8, 4).expect("no call fails"), 4);
        assert_eq!(largest(8, 3).expect("no call fails"), 2);
        assert_eq!(largest(8, 0).expect("no call fails"), 1);
        assert_eq!(largest(5, 8).expect("no call fails"), 4);
        let failed = largest_fitting(8, |_| Err(CudaError::NoDriver));
        assert!(matches!(failed, Err(CudaError::NoDriver)));
    }
}
