//! RMSNorm of the residual stream on the GPU.

use bytemuck::Zeroable;
use gpu::{BufferView, CudaError, Device, DevicePtr, Kernel, LaunchConfig, Stream};

use super::deferred::{MAX_FUSED_NORM_ROWS, NormState, NormStateParams};
use crate::cuda::shape::ShapeCheck;
use crate::cuda::{Activation, Element, ElementView};
use crate::shared_with_device::{device_structs, shared_constants};

const CHECK: ShapeCheck = ShapeCheck("rms_norm");
/// Capacity of a block's registers.
pub const MAX_N: usize = 16_384;
const THREADS: u32 = 512;

shared_constants! {
    in "rms_norm/rms_norm.cu" { THREADS }
}

device_structs! {
    struct Params as RmsNormParams in "rms_norm/rms_norm.cu" {
        h: DevicePtr<f32>,
        weight: DevicePtr<u16>,
        rows: DevicePtr<i32>,
        x: DevicePtr<u16>,
        eps: f32,
        n: i32,
        x_stride: i32,
        h_rows: i32,
        x_tile_rows: i32,
        padding: i32,
        next: NormStateParams,
    }
}

#[derive(Debug)]
pub struct RmsNorm {
    kernel: Kernel,
    element: Element,
}

impl RmsNorm {
    /// # Errors
    ///
    /// If the binary has no such kernel for this device.
    pub fn new(device: &Device, element: Element) -> Result<Self, CudaError> {
        let kernel = element.kernel(device, "rms_norm/rms_norm", "rms_norm")?;
        kernel.set_shared_carveout(100)?;
        Ok(Self { kernel, element })
    }

    /// `h: [.., n]`, `weight: [n]`, `rows: [n_rows]` (which rows of `h`; `None` takes the first
    /// ones in order), `x: [n_rows, n]`. `n` is a multiple of 4 up to [`MAX_N`].
    ///
    /// # Errors
    ///
    /// If a view is shorter than its shape, misaligned or of another element, `n` is no multiple
    /// of 4 or above [`MAX_N`], `eps` is not above 0, or `stream` is of another device.
    pub fn launch(
        &self,
        stream: &Stream,
        h: BufferView<'_, f32>,
        weight: ElementView<'_>,
        rows: Option<BufferView<'_, i32>>,
        x: Activation<'_>,
        n_rows: usize,
        n: usize,
        eps: f32,
    ) -> Result<(), CudaError> {
        let next = NormStateParams::zeroed();
        self.launch_any(stream, h, weight, rows, x, n_rows, n, eps, next)
    }

    /// As [`Self::launch`] with rows in order, up to [`MAX_FUSED_NORM_ROWS`]; prepares `next` for
    /// the next norm.
    ///
    /// # Errors
    ///
    /// As [`Self::launch`], and for more than [`MAX_FUSED_NORM_ROWS`] rows.
    pub fn launch_first(
        &self,
        stream: &Stream,
        h: BufferView<'_, f32>,
        weight: ElementView<'_>,
        x: Activation<'_>,
        n_rows: usize,
        n: usize,
        eps: f32,
        next: &NormState,
    ) -> Result<(), CudaError> {
        CHECK.at_most("rows beside a norm", n_rows, MAX_FUSED_NORM_ROWS)?;
        self.launch_any(stream, h, weight, None, x, n_rows, n, eps, next.params())
    }

    fn launch_any(
        &self,
        stream: &Stream,
        h: BufferView<'_, f32>,
        weight: ElementView<'_>,
        rows: Option<BufferView<'_, i32>>,
        x: Activation<'_>,
        n_rows: usize,
        n: usize,
        eps: f32,
        next: NormStateParams,
    ) -> Result<(), CudaError> {
        let weight = CHECK.element("weight", weight, self.element)?;
        CHECK.multiple("n", n, 4)?;
        CHECK.at_most("n", n, MAX_N)?;
        CHECK.equal("length of weight", weight.len(), n)?;
        let x_place = x.place(CHECK, "x", self.element, n_rows, n, 8)?;
        match rows {
            Some(rows) => {
                CHECK.at_least("length of rows", rows.len(), n_rows)?;
                CHECK.rows("length of h", h, 1, n, n)?;
            }
            None => CHECK.rows("length of h", h, n_rows, n, n)?,
        }
        CHECK.aligned("h", h, 16)?;
        CHECK.aligned("weight", weight, 8)?;
        CHECK.positive("eps", eps)?;
        if n_rows == 0 {
            return Ok(());
        }
        let params = Params {
            h: h.ptr(),
            weight: weight.ptr(),
            rows: rows.map_or(DevicePtr::null(), BufferView::ptr),
            x: x.view.ptr(),
            eps,
            n: n as i32,
            x_stride: x_place.stride,
            h_rows: CHECK.int("rows of h", h.len() / n)?,
            x_tile_rows: x_place.tile_rows,
            padding: 0,
            next,
        };
        let grid = CHECK.int("n_rows", n_rows)? as u32;
        let config = LaunchConfig {
            dependent: true,
            ..LaunchConfig::new(grid, THREADS)
        };
        // SAFETY: a block reads the weight and one row of h (the kernel holds `rows` inside) and
        // writes n values of one row of x; the lengths were checked above.
        unsafe { self.kernel.launch(stream, &config, &params) }
    }
}
