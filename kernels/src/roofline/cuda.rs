//! Launches of the read and of the products.

use gpu::{BufferView, CudaError, Device, DevicePtr, Kernel, LaunchConfig, Stream};

use crate::cuda::shape::ShapeCheck;
use crate::shared_with_device::{device_structs, shared_constants};

const CHECK: ShapeCheck = ShapeCheck("roofline");
/// Bytes of a load.
const WORD_BYTES: usize = 16;
const READ_THREADS: u32 = 512;
const READ_BLOCKS_PER_SM: usize = 2;

shared_constants! {
    in "roofline/read.cu" { READ_THREADS as THREADS }
}

device_structs! {
    #[derive(Debug)]
    struct ReadParams as ReadParams in "roofline/read.cu" {
        data: DevicePtr<u8>,
        out: DevicePtr<u32>,
        n: u64,
    }

    /// As `MultiplyParams` in multiply.cuh.
    #[derive(Debug)]
    struct MultiplyParams as MultiplyParams in "roofline/multiply.cuh" {
        out: DevicePtr<f32>,
        n_rounds: i32,
        padding: i32,
    }
}

/// A plain read of device memory.
#[derive(Debug)]
pub struct ReadMemory {
    kernel: Kernel,
    n_blocks: u32,
}

impl ReadMemory {
    /// # Errors
    ///
    /// If the binary has no such kernel for this device.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        let n_multiprocessors = device.properties().n_multiprocessors;
        Ok(Self {
            kernel: device.kernel("roofline/read", "roofline_read")?,
            n_blocks: (n_multiprocessors * READ_BLOCKS_PER_SM) as u32,
        })
    }

    /// `out: [1]` becomes itself xor all 32-bit words of `data`, in stream order. `data` is a
    /// multiple of 16 bytes, not 0, and starts on 16 bytes.
    ///
    /// # Errors
    ///
    /// If `data` is no multiple of 16 bytes or does not start on 16, `out` is empty, or `stream`
    /// is of another device.
    pub fn launch(
        &self,
        stream: &Stream,
        data: BufferView<'_, u8>,
        out: BufferView<'_, u32>,
    ) -> Result<(), CudaError> {
        CHECK.multiple("bytes to read", data.len(), WORD_BYTES)?;
        CHECK.aligned("data", data, WORD_BYTES)?;
        CHECK.at_least("length of out", out.len(), 1)?;
        stream.enter(data.device())?;
        stream.enter(out.device())?;
        let params = ReadParams {
            data: data.ptr(),
            out: out.ptr(),
            n: (data.len() / WORD_BYTES) as u64,
        };
        let config = LaunchConfig::new(self.n_blocks, READ_THREADS);
        // SAFETY: the kernel reads n words of 16 bytes, which is the view's length, and updates
        // the first value of `out`.
        unsafe { self.kernel.launch(stream, &config, &params) }
    }
}

/// Matrix products without memory.
#[derive(Debug)]
pub struct Multiply {
    kernel: Kernel,
    instruction: &'static str,
    n_blocks: u32,
    n_threads: u32,
    /// Of all blocks in a round.
    round_flops: f64,
}

impl Multiply {
    /// With `mma.sync`, which every GPU has.
    ///
    /// # Errors
    ///
    /// If the binary has no such kernel for this device.
    pub fn mma_sync(device: &Device) -> Result<Self, CudaError> {
        let n_blocks = 2 * device.properties().n_multiprocessors;
        let n_warps = n_blocks * 8;
        Ok(Self {
            kernel: device.kernel("roofline/multiply", "roofline_multiply")?,
            instruction: "mma.sync m16n8k16",
            n_blocks: n_blocks as u32,
            n_threads: 256,
            round_flops: (n_warps * 8 * 2 * 16 * 8 * 16) as f64,
        })
    }

    /// With `mma.sync` on 8-bit integers; [`Self::launch`] returns whole-number operations.
    ///
    /// # Errors
    ///
    /// If this binary does not hold the kernel for `device`.
    pub fn mma_sync_int8(device: &Device) -> Result<Self, CudaError> {
        let of_f16 = Self::mma_sync(device)?;
        Ok(Self {
            kernel: device.kernel("roofline/multiply_int8", "roofline_multiply_int8")?,
            instruction: "mma.sync m16n8k32 s8",
            // k of 32 in place of 16.
            round_flops: 2.0 * of_f16.round_flops,
            ..of_f16
        })
    }

    /// With `wgmma`; `None` on GPUs other than sm_90.
    ///
    /// # Errors
    ///
    /// If the device is `sm_90` and the binary has no such kernel.
    pub fn wgmma(device: &Device) -> Result<Option<Self>, CudaError> {
        let properties = device.properties();
        if properties.compute_capability != (9, 0) {
            return Ok(None);
        }
        let n_blocks = properties.n_multiprocessors;
        let n_warpgroups = n_blocks * 3;
        Ok(Some(Self {
            kernel: device.kernel("roofline/multiply_wgmma", "roofline_multiply_wgmma")?,
            instruction: "wgmma m64n128k16",
            n_blocks: n_blocks as u32,
            n_threads: 384,
            round_flops: (n_warpgroups * 4 * 2 * 64 * 128 * 16) as f64,
        }))
    }

    pub fn instruction(&self) -> &'static str {
        self.instruction
    }

    /// Gives `n_rounds` rounds to the stream and returns their floating-point operations.
    /// `out: [1]` is not changed.
    ///
    /// # Errors
    ///
    /// If `n_rounds` is 0 or above 2^31 − 1, `out` is empty, or `stream` is of another device.
    pub fn launch(
        &self,
        stream: &Stream,
        n_rounds: usize,
        out: BufferView<'_, f32>,
    ) -> Result<f64, CudaError> {
        CHECK.at_least("n_rounds", n_rounds, 1)?;
        CHECK.at_least("length of out", out.len(), 1)?;
        stream.enter(out.device())?;
        let params = MultiplyParams {
            out: out.ptr(),
            n_rounds: CHECK.int("n_rounds", n_rounds)?,
            padding: 0,
        };
        let config = LaunchConfig::new(self.n_blocks, self.n_threads);
        // SAFETY: the kernel reads no memory and writes at most the first value of `out`.
        unsafe { self.kernel.launch(stream, &config, &params) }?;
        Ok(self.round_flops * n_rounds as f64)
    }
}
