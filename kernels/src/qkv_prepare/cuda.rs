//! Norm, rotation and cache write of a step's rows, decode and prefill alike.

use gpu::{
    BufferView, CudaError, Device, DevicePtr, Dim3, HostCounter, Kernel, LaunchConfig, Stream,
};

use crate::cuda::shape::ShapeCheck;
use crate::cuda::{Element, ElementView, PagedKvParams};
pub use crate::cuda::{HeadShape, KvFormat, PagedKv};
use crate::shared_with_device::{device_structs, shared_constants};

const CHECK: ShapeCheck = ShapeCheck("qkv_prepare");
/// Heads of a block, one a warp.
const HEADS_PER_BLOCK: usize = 16;

shared_constants! {
    in "qkv_prepare/qkv_prepare.cu" { HEADS_PER_BLOCK }
}

device_structs! {
    struct Params as QkvPrepareParams in "qkv_prepare/qkv_prepare.cu" {
        qkv: DevicePtr<u16>,
        q_norm: DevicePtr<u16>,
        k_norm: DevicePtr<u16>,
        cos_sin: DevicePtr<f32>,
        positions: DevicePtr<i32>,
        slots: DevicePtr<i32>,
        kv: PagedKvParams,
        n_saturated: DevicePtr<u64>,
        eps: f32,
        m: i32,
        n_q: i32,
        n_kv: i32,
        row_stride: i32,
        n_positions: i32,
    }
}

#[derive(Debug)]
pub struct QkvPrepare {
    kernel: Kernel,
    element: Element,
    shape: HeadShape,
    format: KvFormat,
}

#[derive(Debug, Clone, Copy)]
pub struct QkvPrepareArgs<'a> {
    /// `[n_rows, row_stride]`: n_q query heads, n_kv key heads, n_kv value heads of a row. Queries
    /// are normalised and rotated in place.
    pub qkv: ElementView<'a>,
    pub row_stride: usize,
    /// `[head_dim]`
    pub q_norm: Option<ElementView<'a>>,
    /// `[head_dim]`
    pub k_norm: Option<ElementView<'a>>,
    /// `[n_positions, head_dim]`: cosines, then sines, of head_dim / 2 angles.
    pub cos_sin: BufferView<'a, f32>,
    pub n_positions: usize,
    /// `[n_rows]`; a position outside the table is clamped.
    pub positions: BufferView<'a, i32>,
    /// `[n_rows]`: page * 16 + token; a row outside the pool (padding: -1) is skipped.
    pub slots: BufferView<'a, i32>,
    /// Only finite values are stored: values too large for the format are clamped, NaN becomes 0.
    pub kv: PagedKv<'a>,
    /// Incremented by the number of keys and values at or beyond the end of the format's range.
    pub saturated: Option<&'a HostCounter>,
    /// Epsilon of the norms.
    pub eps: f32,
    pub n_rows: usize,
}

impl QkvPrepare {
    /// # Errors
    ///
    /// If no kernel is compiled for this head dimension, format and element.
    pub fn new(
        device: &Device,
        element: Element,
        shape: HeadShape,
        format: KvFormat,
    ) -> Result<Self, CudaError> {
        shape.check(CHECK)?;
        format.check(CHECK, element)?;
        let name = format!("qkv_prepare_{}_{}", format.kernel_suffix(), shape.head_dim);
        let kernel = element.kernel(device, "qkv_prepare/qkv_prepare", &name)?;
        kernel.set_shared_carveout(100)?;
        Ok(Self {
            kernel,
            element,
            shape,
            format,
        })
    }

    /// # Errors
    ///
    /// If a view is shorter than its shape, misaligned or of another element, or `stream` is of
    /// another device.
    pub fn launch(&self, stream: &Stream, args: &QkvPrepareArgs<'_>) -> Result<(), CudaError> {
        let HeadShape {
            n_q,
            n_kv,
            head_dim,
        } = self.shape;
        let n_heads = n_q + 2 * n_kv;
        let qkv = CHECK.element("qkv", args.qkv, self.element)?;
        CHECK.rows(
            "length of qkv",
            qkv,
            args.n_rows,
            args.row_stride,
            n_heads * head_dim,
        )?;
        // The kernel reads pairs of elements and angles.
        CHECK.multiple("row_stride", args.row_stride, 2)?;
        CHECK.aligned("qkv", qkv, 4)?;
        let norm = |what, norm: Option<ElementView<'_>>| -> Result<_, CudaError> {
            let Some(norm) = norm else {
                return Ok(DevicePtr::null());
            };
            let norm = CHECK.element(what, norm, self.element)?;
            CHECK.equal(what, norm.len(), head_dim)?;
            CHECK.aligned(what, norm, 4)?;
            Ok(norm.ptr())
        };
        let q_norm = norm("length of q_norm", args.q_norm)?;
        let k_norm = norm("length of k_norm", args.k_norm)?;
        CHECK.at_least("n_positions", args.n_positions, 1)?;
        CHECK.rows(
            "length of cos_sin",
            args.cos_sin,
            args.n_positions,
            head_dim,
            head_dim,
        )?;
        CHECK.aligned("cos_sin", args.cos_sin, 8)?;
        CHECK.at_least("length of positions", args.positions.len(), args.n_rows)?;
        CHECK.at_least("length of slots", args.slots.len(), args.n_rows)?;
        CHECK.positive("eps", args.eps)?;
        let kv = args.kv.params(CHECK, self.shape, self.format)?;
        if args.n_rows == 0 {
            return Ok(());
        }
        if let Some(counter) = args.saturated {
            stream.enter(counter.device())?;
        }
        let params = Params {
            qkv: qkv.ptr(),
            q_norm,
            k_norm,
            cos_sin: args.cos_sin.ptr(),
            positions: args.positions.ptr(),
            slots: args.slots.ptr(),
            kv,
            n_saturated: args.saturated.map_or(DevicePtr::null(), HostCounter::ptr),
            eps: args.eps,
            m: CHECK.int("n_rows", args.n_rows)?,
            n_q: n_q as i32,
            n_kv: n_kv as i32,
            row_stride: CHECK.int("row_stride", args.row_stride)?,
            n_positions: CHECK.int("n_positions", args.n_positions)?,
        };
        let grid = Dim3::new(params.m as u32, n_heads.div_ceil(HEADS_PER_BLOCK) as u32, 1);
        let config = LaunchConfig {
            dependent: true,
            ..LaunchConfig::new(grid, (HEADS_PER_BLOCK * 32) as u32)
        };
        // SAFETY: a warp touches one head of a row below n_rows, one row of cos_sin and one slot
        // of the pool (the kernel holds positions and slots inside); lengths were checked above.
        unsafe { self.kernel.launch(stream, &config, &params) }
    }
}
