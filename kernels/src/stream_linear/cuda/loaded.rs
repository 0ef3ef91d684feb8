//! The kernels of a device, looked up once for all matrices.

use std::sync::Arc;

use gpu::{BufferView, CudaError, Device, Kernel, LaunchConfig, Stream};

use super::super::mma::MmaKernels;
use super::super::mma_int8::{Int8Kernels, Int8Room};
use super::super::variant::LoadedKernels;
use super::super::wgmma::WgmmaKernels;
use super::super::{DeviceLimits, Epilogue, Format, MAX_TILED_ROWS, RowBucket, TILED_ROWS};
use super::{LargeM, SOURCE, repack};
use crate::cuda::{ClusterLaunch, Element};

/// All variants of the kernel, looked up once.
#[derive(Debug)]
pub struct StreamLinearKernels {
    pub(super) device: Device,
    pub(super) element: Element,
    /// [format][epilogue][rows up to the format's most]
    pub(super) stream: Vec<[Vec<Kernel>; 4]>,
    pub(super) repack_awq: Kernel,
    pub(super) repack_half: Kernel,
    pub(super) large_m: LargeMKernels,
    pub(super) int8: Option<Int8Kernels>,
    pub(super) limits: DeviceLimits,
}

#[derive(Debug)]
pub(super) enum LargeMKernels {
    /// With the kernels for formats that `wgmma.cu` does not have, if any was asked for.
    Wgmma(WgmmaKernels, Option<MmaKernels>),
    Mma(MmaKernels),
}

impl StreamLinearKernels {
    /// Kernels whose activations, 16-bit weights and biases are of `element`.
    ///
    /// # Errors
    ///
    /// If a kernel is missing in the binary or was compiled for another block size, or the
    /// device has too little memory.
    pub fn load(
        stream: &Stream,
        element: Element,
        large_m: LargeM,
    ) -> Result<Arc<Self>, CudaError> {
        Self::load_with_int8(stream, element, large_m, None)
    }

    /// As [`Self::load_for`] all formats.
    ///
    /// # Errors
    ///
    /// As [`Self::load`].
    pub fn load_with_int8(
        stream: &Stream,
        element: Element,
        large_m: LargeM,
        int8: Option<Int8Room>,
    ) -> Result<Arc<Self>, CudaError> {
        Self::load_for(stream, element, large_m, int8, &Format::ALL)
    }

    /// For matrices of `formats`; others are refused where they would need kernels for many rows that were not loaded.
    /// With `int8`, AWQ weights in groups of 128 are multiplied with activations in 8 bits from
    /// [`LARGE_M_MIN`](super::super::LARGE_M_MIN) rows on; it takes [`Int8Room::n_bytes`] of device memory, and all launches go to one
    /// stream.
    ///
    /// # Errors
    ///
    /// As [`Self::load`].
    pub fn load_for(
        stream: &Stream,
        element: Element,
        large_m: LargeM,
        int8: Option<Int8Room>,
        formats: &[Format],
    ) -> Result<Arc<Self>, CudaError> {
        let device = stream.device().clone();
        let properties = device.properties().clone();
        let compute_major = properties.compute_capability.0;
        let load = |format: Format, epilogue: Epilogue, rows: RowBucket| {
            let (format, infix) = (format.kernel_name(), epilogue.kernel_infix());
            let name = format!("stream_{format}_{infix}_{}", rows.max());
            let kernel = element.kernel(&device, SOURCE, &name)?;
            kernel.set_max_dynamic_shared(properties.shared_bytes_per_block)?;
            kernel.set_shared_carveout(100)?;
            let n_threads = rows.n_warps(compute_major) * 32;
            if kernel.max_threads() != n_threads {
                // Host and source disagree on the warps, hence on shared memory.
                return Err(CudaError::Launch {
                    kernel: name,
                    what: "the number of threads a block",
                    found: n_threads,
                    limit: kernel.max_threads(),
                });
            }
            Ok(kernel)
        };
        let mut variants = Vec::with_capacity(Format::ALL.len());
        for format in Format::ALL {
            let of = |epilogue| {
                let rows = RowBucket::ALL.into_iter();
                rows.filter(|_| format.has_element(element))
                    .filter(|rows| rows.max() <= format.max_stream_rows())
                    .map(|rows| load(format, epilogue, rows))
                    .collect::<Result<Vec<_>, _>>()
            };
            let [a, b, c, d] = Epilogue::ALL.map(of);
            variants.push([a?, b?, c?, d?]);
        }
        let mut max_clusters = [properties.n_multiprocessors, 0, 0, 0];
        for (i, n_ranks) in [2_u32, 4, 8].into_iter().enumerate() {
            let n_threads = (RowBucket::Up8.n_warps(compute_major) * 32) as u32;
            let mut config = LaunchConfig::new(n_ranks, n_threads);
            config.cluster = n_ranks;
            config.shared_bytes = properties.shared_bytes_per_block;
            let n_clusters = variants[0][0][0].max_active_clusters(stream, &config)?;
            // One block a multiprocessor, even where two would fit.
            max_clusters[i + 1] = n_clusters.min(properties.n_multiprocessors / n_ranks as usize);
        }
        let limits = DeviceLimits {
            compute_major,
            shared_bytes_per_block: properties.shared_bytes_per_block,
            shared_bytes_per_multiprocessor: properties.shared_bytes_per_multiprocessor,
            reserved_shared_bytes_per_block: properties.reserved_shared_bytes_per_block,
            max_clusters,
        };
        let repack_awq = device.kernel(repack::SOURCE, "repack_awq")?;
        let repack_half = device.kernel(repack::SOURCE, "repack_half")?;
        let large_m = match large_m {
            LargeM::Wgmma { exclusive_device } => {
                let wgmma = WgmmaKernels::load(stream, element, exclusive_device)?;
                let lacks = |format: &Format| !format.has_wgmma() && format.has_element(element);
                let others = formats.iter().any(lacks);
                let others = others
                    .then(|| MmaKernels::load(stream, element))
                    .transpose()?;
                LargeMKernels::Wgmma(wgmma, others)
            }
            LargeM::Mma => LargeMKernels::Mma(MmaKernels::load(stream, element)?),
        };
        let int8 = int8
            .map(|room| Int8Kernels::load(stream, element, room))
            .transpose()?;
        Ok(Arc::new(Self {
            device,
            element,
            stream: variants,
            repack_awq,
            repack_half,
            large_m,
            int8,
            limits,
        }))
    }

    pub fn element(&self) -> Element {
        self.element
    }

    pub fn limits(&self) -> &DeviceLimits {
        &self.limits
    }

    /// The launch of `stream_linear.cu` for up to 8 rows with all the shared memory of a block, and
    /// which of its clusters the device holds. The planner uses no larger one.
    ///
    /// # Errors
    ///
    /// If the driver cannot say it.
    pub fn cluster_launch(&self) -> Result<ClusterLaunch, CudaError> {
        let rows = RowBucket::Up8;
        let n_threads = (rows.n_warps(self.limits.compute_major) * 32) as u32;
        let config = LaunchConfig {
            shared_bytes: self.limits.shared_bytes_per_block,
            ..LaunchConfig::new(1, n_threads)
        };
        let sizes = [8, 4, 2, 1];
        let largest = sizes.into_iter().zip(self.limits.max_clusters.iter().rev());
        let used = largest
            .into_iter()
            .find(|(_, n_clusters)| **n_clusters > 0)
            .map_or(1, |(size, _)| size);
        let kernel = self.variant(Format::AwqG128, Epilogue::Store, rows);
        ClusterLaunch::of(kernel, &config, 8, used)
    }

    /// Rows that a launch takes.
    pub fn max_rows(&self) -> usize {
        MAX_TILED_ROWS
    }

    /// Whether a launch of `m` rows wants x tiled by default; see [`StreamLinear::wants_tiled`](super::StreamLinear::wants_tiled).
    pub fn wants_tiled(&self, m: usize) -> bool {
        m >= TILED_ROWS
    }

    /// Whether all kernels for matrices of this format are there.
    pub(super) fn takes(&self, format: Format) -> bool {
        let has_tiles =
            format.has_wgmma() || !matches!(self.large_m, LargeMKernels::Wgmma(_, None));
        has_tiles && format.has_element(self.element)
    }

    /// What was loaded for many rows.
    pub fn large_m(&self) -> LargeM {
        match &self.large_m {
            LargeMKernels::Wgmma(kernels, _) => LargeM::Wgmma {
                exclusive_device: kernels.exclusive_device,
            },
            LargeMKernels::Mma(_) => LargeM::Mma,
        }
    }

    /// The loaded kernels, as needed to choose a variant.
    pub fn loaded(&self) -> LoadedKernels {
        LoadedKernels {
            large_m: self.large_m(),
            int8: self.int8.is_some(),
        }
    }

    /// x of the last launch in 8 bits, `[k / 128][rows][128]` and `[k / 128][rows]`
    /// (quantize_rows.cuh); `None` if no kernel for it was loaded.
    pub fn quantized_x(&self) -> Option<(BufferView<'_, u8>, BufferView<'_, f32>)> {
        self.int8.as_ref().map(Int8Kernels::quantized)
    }

    /// `rows`: one that the format has.
    pub(super) fn variant(&self, format: Format, epilogue: Epilogue, rows: RowBucket) -> &Kernel {
        // The enums' order is the order of their `ALL`, in which `load` has filled the list.
        &self.stream[format as usize][epilogue as usize][rows as usize]
    }
}
