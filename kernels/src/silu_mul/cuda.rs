//! SiLU(gate) * up on the GPU.

use gpu::{CudaError, Device, DevicePtr, Dim3, Kernel, LaunchConfig, Stream};

use crate::cuda::shape::ShapeCheck;
use crate::cuda::{Element, ElementView};
use crate::shared_with_device::{device_structs, shared_constants};

const CHECK: ShapeCheck = ShapeCheck("silu_mul");
const THREADS: usize = 256;
/// Values of a thread.
const VECTOR: usize = 8;
const MAX_GRID_Y: usize = 65_535;

shared_constants! {
    in "silu_mul/silu_mul.cu" { THREADS, VECTOR }
}

device_structs! {
    struct Params as SiluMulParams in "silu_mul/silu_mul.cu" {
        gate: DevicePtr<u16>,
        up: DevicePtr<u16>,
        out: DevicePtr<u16>,
        n: i32,
        stride: i32,
        out_stride: i32,
        m: i32,
    }
}

#[derive(Debug)]
pub struct SiluMul {
    kernel: Kernel,
    element: Element,
}

impl SiluMul {
    /// # Errors
    ///
    /// If the binary has no such kernel for this device.
    pub fn new(device: &Device, element: Element) -> Result<Self, CudaError> {
        let kernel = element.kernel(device, "silu_mul/silu_mul", "silu_mul")?;
        kernel.set_shared_carveout(100)?;
        Ok(Self { kernel, element })
    }

    /// `gate, up: [n_rows, stride]`, `out: [n_rows, out_stride]`, `n` values of each row. `n` and
    /// the strides are multiples of 8. `out` may be the same memory as `gate`.
    ///
    /// # Errors
    ///
    /// If a view is shorter than its shape, misaligned or of another element, `n` or a stride is
    /// no multiple of 8, or `stream` is of another device.
    pub fn launch(
        &self,
        stream: &Stream,
        gate: ElementView<'_>,
        up: ElementView<'_>,
        stride: usize,
        out: ElementView<'_>,
        out_stride: usize,
        n_rows: usize,
        n: usize,
    ) -> Result<(), CudaError> {
        let gate = CHECK.element("gate", gate, self.element)?;
        let up = CHECK.element("up", up, self.element)?;
        let out = CHECK.element("out", out, self.element)?;
        CHECK.multiple("n", n, VECTOR)?;
        CHECK.multiple("stride", stride, VECTOR)?;
        CHECK.multiple("out_stride", out_stride, VECTOR)?;
        CHECK.rows("length of gate", gate, n_rows, stride, n)?;
        CHECK.rows("length of up", up, n_rows, stride, n)?;
        CHECK.rows("length of out", out, n_rows, out_stride, n)?;
        CHECK.aligned("gate", gate, 16)?;
        CHECK.aligned("up", up, 16)?;
        CHECK.aligned("out", out, 16)?;
        if n_rows == 0 {
            return Ok(());
        }
        let params = Params {
            gate: gate.ptr(),
            up: up.ptr(),
            out: out.ptr(),
            n: CHECK.int("n", n)?,
            stride: CHECK.int("stride", stride)?,
            out_stride: CHECK.int("out_stride", out_stride)?,
            m: CHECK.int("n_rows", n_rows)?,
        };
        let n_columns = n.div_ceil(VECTOR * THREADS) as u32;
        let grid = Dim3::new(n_columns, n_rows.min(MAX_GRID_Y) as u32, 1);
        let config = LaunchConfig {
            dependent: true,
            ..LaunchConfig::new(grid, THREADS as u32)
        };
        // SAFETY: threads touch n values of each row in words of 16 bytes; lengths, multiples and
        // alignment were checked above.
        unsafe { self.kernel.launch(stream, &config, &params) }
    }
}
