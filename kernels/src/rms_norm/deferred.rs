//! RMSNorm fused into the adjacent projections: the epilogue of one projection writes, besides the
//! residual, the input times the norm's weight and the sum of squares; the next projection
//! multiplies its sums by 1 / rms (`deferred.cuh`).
//!
//! A chain is started by [`RmsNorm::launch_first`](super::cuda::RmsNorm::launch_first) and
//! alternates between two [`NormState`]s (ping-pong buffers).

use bytemuck::Zeroable;
use gpu::{Buffer, CudaError, DevicePtr, Stream};

use crate::cuda::shape::ShapeCheck;
use crate::cuda::{Activation, Element, ElementView};
use crate::shared_with_device::{device_structs, shared_constants};

/// Maximum number of rows of a launch with a fused norm.
pub const MAX_FUSED_NORM_ROWS: usize = 64;
/// As `NORM_STRIDE` in deferred.cuh.
const STRIDE: usize = 32;

/// State of the rows' norms, for up to [`MAX_FUSED_NORM_ROWS`] rows.
#[derive(Debug)]
pub struct NormState {
    /// `[MAX_FUSED_NORM_ROWS, STRIDE]`, of which the first entry of each row is used: the sum of
    /// its squares
    squares: Buffer<u64>,
    /// `[MAX_FUSED_NORM_ROWS]`: 1 / rms of the previous norm
    scale: Buffer<f32>,
}

/// The part of a norm that a projection computes.
#[derive(Debug, Clone, Copy, Default)]
pub enum FusedNorm<'a> {
    #[default]
    None,
    /// Applies 1 / rms: x was written by a launch with [`Self::Epilogue`] into `state`. Prepares
    /// `next`.
    Prologue {
        state: &'a NormState,
        next: &'a NormState,
        eps: f32,
    },
    /// Writes, besides the residual, x for the norm with `weight: [n]`; `state` is prepared.
    Epilogue {
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
    /// Not prepared for any norm yet.
    ///
    /// # Errors
    ///
    /// If the device has not as much free memory, or the memory cannot be set.
    pub fn new(stream: &Stream) -> Result<Self, CudaError> {
        Ok(Self {
            squares: Buffer::zeroed(stream, MAX_FUSED_NORM_ROWS * STRIDE)?,
            scale: Buffer::zeroed(stream, MAX_FUSED_NORM_ROWS)?,
        })
    }

    /// Device memory of one state, in bytes.
    pub const fn n_bytes() -> usize {
        MAX_FUSED_NORM_ROWS * (STRIDE * size_of::<u64>() + size_of::<f32>())
    }

    pub(crate) fn params(&self) -> NormStateParams {
        NormStateParams {
            squares: self.squares.ptr(),
            scale: self.scale.ptr(),
        }
    }
}

impl FusedNorm<'_> {
    /// For a launch with `m` rows, `k` values of x and `n` of h in each.
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
            Self::Prologue { state, next, eps } => {
                check.positive("eps", eps)?;
                params.role = 1;
                (params.state, params.next) = (state.params(), next.params());
                params.eps = eps;
                params.n = check.int("values of a row of the norm", k)?;
            }
            Self::Epilogue { state, weight, x } => {
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
        check.at_most("rows beside a norm", m, MAX_FUSED_NORM_ROWS)?;
        Ok(params)
    }
}
