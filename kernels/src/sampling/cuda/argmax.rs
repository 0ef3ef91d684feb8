//! The most likely token of each row.

use gpu::{BufferView, CudaError, Device, DevicePtr, Kernel, LaunchConfig, Stream};

use super::{AdvanceParams, AdvanceState, advance_params};
use crate::cuda::ClusterLaunch;
use crate::cuda::shape::ShapeCheck;
use crate::shared_with_device::{device_structs, shared_constants};

const CHECK: ShapeCheck = ShapeCheck("argmax_advance");
/// Blocks for each row, if the device can hold a cluster of that size.
const CLUSTER: u32 = 8;
const THREADS: u32 = 256;

shared_constants! {
    in "sampling/argmax.cu" { THREADS, CLUSTER as MAX_RANKS }
}

device_structs! {
    struct Params as ArgmaxAdvanceParams in "sampling/argmax.cu" {
        logits: DevicePtr<f32>,
        n: i32,
        stride: i32,
        to: AdvanceParams,
    }
}

#[derive(Debug)]
pub struct ArgmaxAdvance {
    kernel: Kernel,
    cluster: u32,
}

#[derive(Debug, Clone, Copy)]
pub struct ArgmaxAdvanceArgs<'a> {
    /// `[n_rows, stride]`, of which `vocab` values are used. Among equals the lowest id wins. A row
    /// without a most likely token gets an error in `history` and token 0 in `next_ids`:
    /// [`TokenError::NotFinite`](super::TokenError) if one of its logits is NaN or +inf,
    /// [`TokenError::AllMasked`](super::TokenError) if all are -inf. Other rows are not affected.
    pub logits: BufferView<'a, f32>,
    pub vocab: usize,
    pub stride: usize,
    /// `[n_rows]`: written, the input of the next step.
    pub next_ids: BufferView<'a, i32>,
    /// `[n_steps, n_rows]`: row `*step` is written, if it is inside. See
    /// [`TokenError::token`](super::TokenError::token).
    pub history: BufferView<'a, i32>,
    /// `[1]`: which row of `history`; `None` is row 0.
    pub step: Option<BufferView<'a, i32>>,
    pub n_rows: usize,
    /// The rows' state to advance; `None` leaves that to the host.
    pub advance: Option<AdvanceState<'a>>,
}

impl ArgmaxAdvance {
    /// # Errors
    ///
    /// If the binary has no such kernel for this device.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        let kernel = device.kernel("sampling/argmax", "argmax_advance")?;
        kernel.set_shared_carveout(100)?;
        let cluster = kernel.largest_cluster(&LaunchConfig {
            cluster: CLUSTER,
            ..LaunchConfig::new(CLUSTER, THREADS)
        })?;
        Ok(Self { kernel, cluster })
    }

    /// The launch in clusters, and which of them the device holds.
    ///
    /// # Errors
    ///
    /// If the driver cannot say it.
    pub fn cluster_launch(&self) -> Result<ClusterLaunch, CudaError> {
        let config = LaunchConfig::new(1, THREADS);
        ClusterLaunch::of(&self.kernel, &config, CLUSTER, self.cluster)
    }

    /// # Errors
    ///
    /// If a view is shorter than its shape, a size is 0 or above 2^31 − 1, or `stream` is of
    /// another device.
    pub fn launch(&self, stream: &Stream, args: &ArgmaxAdvanceArgs<'_>) -> Result<(), CudaError> {
        let n_rows = args.n_rows;
        CHECK.at_least("vocab", args.vocab, 1)?;
        CHECK.rows(
            "length of logits",
            args.logits,
            n_rows,
            args.stride,
            args.vocab,
        )?;
        if n_rows == 0 {
            return Ok(());
        }
        let params = Params {
            logits: args.logits.ptr(),
            n: CHECK.int("vocab", args.vocab)?,
            stride: CHECK.int("stride", args.stride)?,
            to: advance_params(
                CHECK,
                args.next_ids,
                args.history,
                args.step,
                n_rows,
                args.advance,
            )?,
        };
        let n_blocks = n_rows.saturating_mul(self.cluster as usize);
        let grid = CHECK.int("blocks", n_blocks)? as u32;
        let config = LaunchConfig {
            cluster: self.cluster,
            dependent: true,
            ..LaunchConfig::new(grid, THREADS)
        };
        // SAFETY: a cluster reads one row of logits and of the page table and writes one entry of
        // each array (the kernel holds the step inside); the lengths were checked above.
        unsafe { self.kernel.launch(stream, &config, &params) }
    }
}
