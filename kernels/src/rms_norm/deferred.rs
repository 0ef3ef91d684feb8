//! Norms that have no launch of their own: one projection writes what the norm's product with the
//! weight needs beside the residual, the next one multiplies its sums by 1 / rms (`deferred.cuh`).
//!
//! A chain of them is begun by [`RmsNorm::launch_first`](super::cuda::RmsNorm::launch_first) and
//! goes back and forth between two [`NormState`]s.

use bytemuck::Zeroable;

use crate::cuda::shape::ShapeCheck;
use crate::cuda::{Activation, Buffer, CudaError, DevicePtr, Element, ElementView, Stream};
use crate::shared_with_device::{device_structs, shared_constants};

/// Rows of a launch that can read or write such a norm.
pub const MAX_DEFERRED_ROWS: usize = 64;
/// As `NORM_STRIDE` in deferred.cuh.
const STRIDE: usize = 32;

/// What is known of the rows' norms, for up to [`MAX_DEFERRED_ROWS`] rows.
#[derive(Debug)]
pub struct NormState {
    /// `[MAX_DEFERRED_ROWS, STRIDE]`, of which the first of each row counts: its squares
    squares: Buffer<u64>,
    /// `[MAX_DEFERRED_ROWS]`: 1 / rms of the norm before
    scale: Buffer<f32>,
}

/// What a projection does of the norms beside it.
#[derive(Debug, Clone, Copy, Default)]
pub enum DeferredNorm<'a> {
    #[default]
    None,
    /// x was written by a launch with [`Self::Writes`] into `state`. `next` is made ready.
    Reads {
        state: &'a NormState,
        next: &'a NormState,
        eps: f32,
    },
    /// Beside the residual, x for the norm with `weight: [n]`; `state` is ready.
    Writes {
        state: &'a NormState,
        weight: ElementView<'a>,
        /// `[m, n]`
        x: Activation<'a>,
    },
}

shared_constants! {
    in "rms_norm/deferred.cuh" { STRIDE as NORM_STRIDE }
}

device_structs! {
    #[derive(Debug)]
    pub(crate) struct NormStateParams as NormState in "rms_norm/deferred.cuh" {
        squares: DevicePtr<u64>,
        scale: DevicePtr<f32>,
    }

    #[derive(Debug)]
    pub(crate) struct DeferredNormParams as DeferredNorm in "rms_norm/deferred.cuh" {
        state: NormStateParams,
        next: NormStateParams,
        weight: DevicePtr<u16>,
        x: DevicePtr<u16>,
        eps: f32,
        n: i32,
        x_stride: i32,
        x_tile_rows: i32,
        role: i32,
        padding: i32,
    }
}

impl NormState {
    /// Ready for nothing yet.
    pub fn new(stream: &Stream) -> Result<Self, CudaError> {
        Ok(Self {
            squares: Buffer::zeroed(stream, MAX_DEFERRED_ROWS * STRIDE)?,
            scale: Buffer::zeroed(stream, MAX_DEFERRED_ROWS)?,
        })
    }

    /// Device memory of one, in bytes.
    pub const fn n_bytes() -> usize {
        MAX_DEFERRED_ROWS * (STRIDE * size_of::<u64>() + size_of::<f32>())
    }

    pub(crate) fn params(&self) -> NormStateParams {
        NormStateParams {
            squares: self.squares.ptr(),
            scale: self.scale.ptr(),
        }
    }
}

impl DeferredNorm<'_> {
    /// Of a launch with `m` rows, `k` values of x and `n` of h in each.
    pub(crate) fn params(
        self,
        check: ShapeCheck,
        element: Element,
        m: usize,
        k: usize,
        n: usize,
    ) -> Result<DeferredNormParams, CudaError> {
        let mut params = DeferredNormParams::zeroed();
        match self {
            Self::None => return Ok(params),
            Self::Reads { state, next, eps } => {
                check.positive("eps", eps)?;
                params.role = 1;
                (params.state, params.next) = (state.params(), next.params());
                params.eps = eps;
                params.n = check.int("values of a row of the norm", k)?;
            }
            Self::Writes { state, weight, x } => {
                let weight = check.element("the norm's weight", weight, element)?;
                check.equal("length of the norm's weight", weight.len(), n)?;
                let place = x.place(check, "x of the norm", element, m, n, 4)?;
                params.role = 2;
                params.state = state.params();
                params.weight = weight.ptr();
                params.x = x.view.ptr();
                (params.x_stride, params.x_tile_rows) = (place.stride, place.tile_rows);
            }
        }
        check.at_most("rows beside a norm", m, MAX_DEFERRED_ROWS)?;
        Ok(params)
    }
}
