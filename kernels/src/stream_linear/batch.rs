//! Launches of `batch.cu`: up to 64 rows, from 17 on by default, where there is no `wgmma`.

use bytemuck::{Pod, Zeroable};

use super::{CHUNK_BYTES, DeviceLimits, Epilogue, Format, ManyRowsLaunch};
use crate::cuda::{Buffer, CudaError, Device, DevicePtr, Element, Kernel, LaunchConfig, Stream};

const SOURCE: &str = "stream_linear/batch";
const WARPS: usize = 8;
const THREADS: usize = WARPS * 32;
/// Tiles of a group of columns: two a warp.
const GROUP_TILES: usize = 2 * WARPS;
/// Row counts that kernels are compiled for.
const ROWS: [usize; 2] = [32, 64];
/// (weight stages, x stages) to try, best first, by row count. Measured on an H100; see NOTES.md.
const STAGES: [&[(usize, usize)]; 2] = [&[(1, 3), (1, 2)], &[(2, 4), (2, 3), (1, 3), (1, 2)]];
/// Blocks an SM at most, for which the registers were limited at compile time.
const BLOCKS_PER_SM: [usize; 2] = [2, 1];
/// Groups of 256 columns that a matrix may have.
const MAX_GROUPS: usize = 1 << 16;

/// As `BatchLinearParams` in batch.cu.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct BatchLinearParams {
    weights: DevicePtr<u8>,
    scales: DevicePtr<u8>,
    x: DevicePtr<u16>,
    out: DevicePtr<u8>,
    bias: DevicePtr<u16>,
    parts: DevicePtr<f32>,
    tickets: DevicePtr<i32>,
    m: i32,
    x_stride: i32,
    n: i32,
    n_tiles: i32,
    n_chunks: i32,
    w_stages: i32,
    x_stages: i32,
    padding: i32,
}

/// Stages of the rings and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchPlan {
    w_stages: usize,
    x_stages: usize,
    shared_bytes: usize,
    blocks_per_sm: usize,
}

#[derive(Debug)]
pub(super) struct BatchKernels {
    /// [format][epilogue][rows]
    variants: Vec<Kernel>,
    /// [blocks][2][rows * 256]: sums of column groups that several blocks share
    parts: Buffer<f32>,
    /// [groups], zero between launches
    tickets: Buffer<i32>,
    n_multiprocessors: usize,
}

/// Shared memory as the comment in batch.cu lists it.
fn shared_bytes(format: Format, rows: usize, w_stages: usize, x_stages: usize) -> usize {
    let barriers = (2 * x_stages * 8 + WARPS * w_stages * 8).next_multiple_of(128);
    let weights = WARPS * w_stages * 2 * (CHUNK_BYTES + format.scale_bytes());
    barriers + weights + x_stages * rows * (format.chunk_k() * 2 + 64)
}

/// Rings for `m` rows; `None` where the card's shared memory is too small.
pub(super) fn plan(format: Format, m: usize, limits: &DeviceLimits) -> Option<BatchPlan> {
    let variant = ROWS.iter().position(|rows| m <= *rows)?;
    // Two blocks an SM where they fit (an H100), else one (sm_120).
    (1..=BLOCKS_PER_SM[variant])
        .rev()
        .find_map(|blocks_per_sm| {
            let room = limits
                .shared_bytes_per_block
                .min(
                    (limits.shared_bytes_per_multiprocessor / blocks_per_sm)
                        .saturating_sub(limits.reserved_shared_bytes_per_block),
                )
                .saturating_sub(1024); // the kernel's own static part
            STAGES[variant].iter().find_map(|&(w_stages, x_stages)| {
                let shared_bytes = shared_bytes(format, ROWS[variant], w_stages, x_stages);
                (shared_bytes <= room).then_some(BatchPlan {
                    w_stages,
                    x_stages,
                    shared_bytes,
                    blocks_per_sm,
                })
            })
        })
}

impl BatchKernels {
    pub fn load(stream: &Stream, element: Element) -> Result<Self, CudaError> {
        let device: &Device = stream.device();
        let properties = device.properties();
        let mut variants = Vec::with_capacity(32);
        for format in Format::ALL {
            for epilogue in Epilogue::ALL {
                for rows in ROWS {
                    let prefix = format.kernel_prefix().replacen("stream", "batch", 1);
                    let name = format!("{prefix}_{}_{rows}", epilogue.kernel_infix());
                    let kernel = device.element_kernel(element, SOURCE, &name)?;
                    kernel.set_max_dynamic_shared(properties.shared_bytes_per_block - 1024)?;
                    kernel.set_shared_carveout(100)?;
                    variants.push(kernel);
                }
            }
        }
        let n_multiprocessors = properties.n_multiprocessors;
        let part = ROWS
            .iter()
            .zip(BLOCKS_PER_SM)
            .map(|(rows, blocks)| rows * blocks)
            .max();
        let n_parts = n_multiprocessors * 2 * part.unwrap_or(0) * GROUP_TILES * 16;
        Ok(Self {
            variants,
            parts: Buffer::new(device, n_parts)?,
            tickets: Buffer::zeroed(stream, MAX_GROUPS)?,
            n_multiprocessors,
        })
    }

    pub fn launch(
        &self,
        stream: &Stream,
        plan: BatchPlan,
        launch: &ManyRowsLaunch<'_>,
    ) -> Result<(), CudaError> {
        let layout = launch.layout;
        let variant = usize::from(launch.m > ROWS[0]);
        let n_groups = layout.n_tiles.div_ceil(GROUP_TILES);
        if n_groups > MAX_GROUPS {
            return Err(CudaError::Launch {
                kernel: SOURCE.to_owned(),
                what: "the number of column groups",
                found: n_groups,
                limit: MAX_GROUPS,
            });
        }
        let params = BatchLinearParams {
            weights: launch.weights.ptr(),
            scales: launch.scales.ptr(),
            x: launch.x.ptr(),
            out: launch.out,
            bias: launch.bias,
            parts: self.parts.ptr(),
            tickets: self.tickets.ptr(),
            m: launch.m as i32,
            x_stride: launch.x_stride as i32,
            n: layout.n() as i32,
            n_tiles: layout.n_tiles as i32,
            n_chunks: layout.n_chunks as i32,
            w_stages: plan.w_stages as i32,
            x_stages: plan.x_stages as i32,
            padding: 0,
        };
        let n_blocks = self.n_multiprocessors * plan.blocks_per_sm;
        let mut config = LaunchConfig::new(n_blocks as u32, THREADS as u32);
        config.shared_bytes = plan.shared_bytes;
        config.dependent = launch.dependent;
        let index = (layout.format as usize * 4 + launch.epilogue as usize) * 2 + variant;
        // SAFETY: the caller has checked weights, x, bias and output against the layout and m;
        // parts hold two shares for each of the n_blocks, tickets one for each group; the rings
        // fit the shared memory asked for.
        unsafe { self.variants[index].launch(stream, &config, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(shared_kib: usize) -> DeviceLimits {
        DeviceLimits {
            compute_major: 9,
            shared_bytes_per_block: (shared_kib - 1) * 1024,
            shared_bytes_per_multiprocessor: shared_kib * 1024,
            reserved_shared_bytes_per_block: 1024,
            max_clusters: [132, 66, 32, 16],
        }
    }

    #[test]
    fn rings_fit_the_chip_or_leave_the_rows_to_the_other_kernel() {
        // H100: 228 KiB an SM.
        let h100 = limits(228);
        let two_blocks = plan(Format::AwqG128, 20, &h100).expect("fits twice");
        assert!(2 * (two_blocks.shared_bytes + 2048) <= 228 * 1024);
        assert_eq!((two_blocks.w_stages, two_blocks.x_stages), (1, 3));
        let one_block = plan(Format::AwqG128, 64, &h100).expect("fits once");
        assert_eq!((one_block.w_stages, one_block.x_stages), (2, 4));
        assert_eq!(plan(Format::AwqG128, 65, &h100), None);
        // sm_120: 100 KiB an SM holds one block of 32 rows.
        let alone = plan(Format::AwqG128, 20, &limits(100)).expect("fits once");
        assert_eq!((alone.blocks_per_sm, alone.x_stages), (1, 3));
        assert_eq!(plan(Format::AwqG128, 64, &limits(100)), None);
    }
}
