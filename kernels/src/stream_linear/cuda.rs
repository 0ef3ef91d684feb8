//! Weights on the device and their launches.

mod choice;
mod loaded;
mod output;
mod repack;

use std::sync::{Arc, OnceLock};

use gpu::{Buffer, BufferView, CudaError, Device, DevicePtr, LaunchConfig, MemoryPlace, Stream};

use self::loaded::LargeMKernels;
pub use self::loaded::StreamLinearKernels;
pub use self::output::Output;
pub use self::repack::AwqPart;
use super::plan::check_plan;
use super::variant::{LoadedKernels, Variant, not_there};
use super::{Arrangement, Epilogue, Layout, MAX_ROWS, OP};
use crate::KernelError;
use crate::cuda::shape::ShapeCheck;
use crate::cuda::{Activation, ElementView, RowLayout};
use crate::rms_norm::deferred::{DeferredNormParams, FusedNorm, MAX_FUSED_NORM_ROWS};
use crate::shared_with_device::device_structs;

const SOURCE: &str = "stream_linear/stream_linear";
const ROW_ALIGNMENT: usize = 8;
const CHECK: ShapeCheck = ShapeCheck(OP);

device_structs! {
    #[derive(Debug)]
    struct StreamLinearParams as StreamLinearParams in "stream_linear/stream_linear.cu" {
        weights: DevicePtr<u8>,
        scales: DevicePtr<u8>,
        x: DevicePtr<u16>,
        out: DevicePtr<u8>,
        bias: DevicePtr<u16>,
        m: i32,
        x_stride: i32,
        n: i32,
        n_tiles: i32,
        n_chunks: i32,
        n_stages: i32,
        phase_chunks: i32,
        n_phases: i32,
        norm: DeferredNormParams,
    }
}

/// Which kernel takes rows in tiles: 17 and more always, from [`TILED_ROWS`](super::TILED_ROWS) on by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LargeM {
    /// `wgmma.cu`, on sm_90: any number of rows, x tiled. Blocks wait for each other, so a
    /// launch needs the device to itself (`exclusive_device`: the caller uses one stream and no
    /// other process uses the device), or pays for a cooperative launch.
    Wgmma { exclusive_device: bool },
    /// `mma.cu`, elsewhere: any number of rows, x tiled. No block waits for another.
    Mma,
}

impl LargeM {
    /// The faster one that the device has.
    pub fn best(device: &Device, exclusive_device: bool) -> Self {
        if device.properties().compute_capability == (9, 0) {
            Self::Wgmma { exclusive_device }
        } else {
            Self::Mma
        }
    }
}

/// One launch with x in tiles, its shapes checked.
pub(super) struct LargeMLaunch<'a> {
    pub layout: &'a Layout,
    pub weights: BufferView<'a, u8>,
    pub scales: BufferView<'a, u8>,
    pub m: usize,
    pub x: BufferView<'a, u16>,
    /// Of tiled x.
    pub x_rows: usize,
    pub bias: DevicePtr<u16>,
    pub out: DevicePtr<u8>,
    /// Of a tiled output; 0 for plain rows.
    pub out_tile_rows: usize,
    pub epilogue: Epilogue,
    pub dependent: bool,
    pub next: Option<&'a NextMatrix>,
}

/// The matrix that is read after this one.
#[derive(Debug)]
pub(super) struct NextMatrix {
    pub layout: Layout,
    pub weights: DevicePtr<u8>,
    pub scales: DevicePtr<u8>,
}

/// A packed matrix in device memory.
#[derive(Debug)]
pub struct StreamLinear {
    kernels: Arc<StreamLinearKernels>,
    layout: Layout,
    weights: Buffer<u8>,
    scales: Buffer<u8>,
    is_loaded: Vec<bool>,
    next: Option<NextMatrix>,
    /// By rows, up to [`MAX_ROWS`]; found when first needed.
    variants: Vec<OnceLock<Variant>>,
}

impl StreamLinear {
    /// Memory for a matrix; load every part before the first launch.
    ///
    /// # Errors
    ///
    /// If the device has not as much free memory, or the kernels were loaded for other formats.
    pub fn new(kernels: &Arc<StreamLinearKernels>, layout: Layout) -> Result<Self, CudaError> {
        Self::new_in(kernels, layout, MemoryPlace::Device)
    }

    /// As [`Self::new`], with the weights in this memory; from the host's they are read over the bus by every launch.
    ///
    /// # Errors
    ///
    /// As [`Self::new`], or if the system cannot lock as much memory.
    pub fn new_in(
        kernels: &Arc<StreamLinearKernels>,
        layout: Layout,
        place: MemoryPlace,
    ) -> Result<Self, CudaError> {
        if !kernels.takes(layout.format) {
            let format = layout.format;
            return Err(value_error(format!(
                "no kernels for {format:?} with activations in {:?} were loaded",
                kernels.element
            )));
        }
        let weights = Buffer::new_in(&kernels.device, place, layout.weight_bytes())?;
        let scales = Buffer::new_in(&kernels.device, place, layout.scale_bytes())?;
        let is_loaded = vec![false; layout.parts_n.len()];
        let variants = (0..MAX_ROWS).map(|_| OnceLock::new()).collect();
        Ok(Self {
            kernels: Arc::clone(kernels),
            layout,
            weights,
            scales,
            is_loaded,
            next: None,
            variants,
        })
    }

    /// Sets the matrix that the next launch of this kind will read: this matrix's launches then
    /// prefetch its beginning into the L2 cache as they finish. `next` must live as long as this
    /// matrix is used.
    pub fn set_next(&mut self, next: &Self) {
        self.next = Some(NextMatrix {
            layout: next.layout.clone(),
            weights: next.weights.ptr(),
            scales: next.scales.ptr(),
        });
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What this matrix's launches can choose from.
    pub fn loaded_kernels(&self) -> LoadedKernels {
        self.kernels.loaded()
    }

    pub fn place(&self) -> MemoryPlace {
        self.weights.place()
    }

    /// Memory of weights and scales.
    pub fn n_bytes(&self) -> usize {
        self.weights.n_bytes() + self.scales.n_bytes()
    }

    /// `[n_tiles][n_chunks][2048]`
    pub fn packed_weights(&self) -> BufferView<'_, u8> {
        self.weights.all()
    }

    /// `[n_tiles][n_chunks][scale_bytes]`
    pub fn packed_scales(&self) -> BufferView<'_, u8> {
        self.scales.all()
    }

    /// Dummy weights in all parts, the same for the same seed, in stream order.
    ///
    /// # Errors
    ///
    /// If `stream` is of another device.
    pub fn fill_random(&mut self, stream: &Stream, seed: u64) -> Result<(), CudaError> {
        let (weights, scales) = (self.weights.all(), self.scales.all());
        let element = self.kernels.element;
        super::random::fill_packed(stream, &self.layout, element, weights, scales, seed)?;
        self.is_loaded.fill(true);
        Ok(())
    }

    /// # Errors
    ///
    /// If a part of the weights was never loaded; the error has its number.
    pub fn check_loaded(&self) -> Result<(), CudaError> {
        match self.is_loaded.iter().position(|is_loaded| !is_loaded) {
            None => Ok(()),
            Some(part) => Err(value_error(format!(
                "part {part} of the weights was never loaded"
            ))),
        }
    }

    /// y = x Wᵀ (+ bias), in stream order; may be captured.
    ///
    /// x: `[m][padded_k]`, laid out as [`Self::wants_tiled`] says: plain rows start
    /// on 16 bytes and have a stride that is a multiple of 8; a tiled matrix is allocated for
    /// whole tiles of rows. A row holds [`Layout::padded_k`] values, of which those from k on must
    /// be zero (any finite value is harmless, NaN is not). bias: `[n]`.
    /// `dependent`: start while the kernel before this one runs (it must not write W).
    ///
    /// # Errors
    ///
    /// If a part is not loaded, `m` is 0 or above what the kernels take, a view is shorter than
    /// its shape, misaligned or of another element, or `stream` is of another device.
    pub fn launch(
        &self,
        stream: &Stream,
        m: usize,
        x: Activation<'_>,
        bias: Option<ElementView<'_>>,
        output: Output<'_>,
        dependent: bool,
    ) -> Result<(), CudaError> {
        let norm = FusedNorm::None;
        self.launch_with_norm(stream, m, x, bias, output, norm, dependent)
    }

    /// As [`Self::launch`], with the previous or the next norm fused, if [`Self::fuses_norm`].
    ///
    /// # Errors
    ///
    /// As [`Self::launch`], and if the variant for `m` rows does not fuse norms.
    pub fn launch_with_norm(
        &self,
        stream: &Stream,
        m: usize,
        x: Activation<'_>,
        bias: Option<ElementView<'_>>,
        output: Output<'_>,
        norm: FusedNorm<'_>,
        dependent: bool,
    ) -> Result<(), CudaError> {
        let variant = self.variant(m)?;
        self.launch_any(stream, variant, m, x, bias, output, norm, dependent)
    }

    /// Whether a launch of `m` rows can fuse the previous or the next norm.
    ///
    /// # Errors
    ///
    /// If `m` has no variant: see [`Self::variant`].
    pub fn fuses_norm(&self, m: usize) -> Result<bool, CudaError> {
        Ok(m <= MAX_FUSED_NORM_ROWS && self.variant(m)?.fuses_norm())
    }

    /// As [`Self::launch`], with this variant, for timing candidates. x is tiled if
    /// [`Variant::is_tiled`].
    ///
    /// # Errors
    ///
    /// As [`Self::launch`], and if `variant` cannot compute this matrix with `m` rows.
    pub fn launch_variant(
        &self,
        stream: &Stream,
        variant: Variant,
        m: usize,
        x: Activation<'_>,
        bias: Option<ElementView<'_>>,
        output: Output<'_>,
        dependent: bool,
    ) -> Result<(), CudaError> {
        let norm = FusedNorm::None;
        self.launch_any(stream, variant, m, x, bias, output, norm, dependent)
    }

    fn launch_any(
        &self,
        stream: &Stream,
        variant: Variant,
        m: usize,
        x: Activation<'_>,
        bias: Option<ElementView<'_>>,
        output: Output<'_>,
        norm: FusedNorm<'_>,
        dependent: bool,
    ) -> Result<(), CudaError> {
        let layout = &self.layout;
        let max_rows = self.kernels.max_rows();
        if m == 0 || m > max_rows {
            return Err(row_error(m, max_rows).into());
        }
        let n = layout.n();
        self.check_loaded()?;
        let is_silu = output.epilogue() == Epilogue::SiluMul;
        if is_silu != (layout.arrangement == Arrangement::GateUp) {
            return Err(value_error(format!(
                "the epilogue {:?} does not go with the arrangement {:?}",
                output.epilogue(),
                layout.arrangement
            )));
        }
        let is_tiled = variant.is_tiled();
        if is_tiled != matches!(x.layout, RowLayout::Tiled { .. }) {
            let wanted = if is_tiled { "tiled" } else { "plain rows" };
            return Err(value_error(format!("{m} rows of x must be {wanted}")));
        }
        let element = self.kernels.element;
        x.place(CHECK, "x", element, m, layout.padded_k(), 2 * ROW_ALIGNMENT)?;
        if let Some(view) = output.elements() {
            CHECK.element("the output", view, element)?;
        }
        check_norm(variant, m, output, norm)?;
        let norm = norm.params(CHECK, element, m, layout.k, n)?;
        let out_tile_rows = match output {
            Output::SiluMul(to) => {
                to.place(CHECK, "the output", element, m, n, 2)?;
                match to.layout {
                    RowLayout::Tiled { rows } if is_tiled => rows,
                    RowLayout::Plain { stride } if stride == n => 0,
                    other => {
                        return Err(value_error(format!(
                            "an output laid out as {other:?} beside {m} rows of {n} values"
                        )));
                    }
                }
            }
            _ => 0,
        };
        let (out, out_len) = output.place();
        check_at_least("the output's values", out_len, m * n)?;
        if let Some(bias) = bias {
            CHECK.element("the bias", bias, element)?;
            check_len("the bias's values", bias.len(), n)?;
            stream.enter(bias.device())?;
        }
        stream.enter(x.view.device())?;
        stream.enter(output.device())?;
        let (x_stride, x_rows) = match x.layout {
            RowLayout::Plain { stride } => (stride, 0),
            RowLayout::Tiled { rows } => (0, rows),
        };
        let large_m = LargeMLaunch {
            layout,
            weights: self.weights.all(),
            scales: self.scales.all(),
            m,
            x: x.view.words(),
            x_rows,
            bias: bias.map_or(DevicePtr::null(), ElementView::ptr),
            out,
            out_tile_rows,
            epilogue: output.epilogue(),
            dependent,
            next: self.next.as_ref(),
        };
        let limits = &self.kernels.limits;
        let plan = match (variant, &self.kernels.large_m) {
            (Variant::Stream(plan), _) => plan,
            (Variant::MmaInt8 { rows }, _) => {
                let Some(kernels) = &self.kernels.int8 else {
                    return Err(not_there(variant, m, self.kernels.loaded()).into());
                };
                return kernels.launch(stream, rows, &large_m);
            }
            (Variant::Wgmma { rows }, LargeMKernels::Wgmma(kernels, _)) => {
                return kernels.launch(stream, rows, &large_m);
            }
            (
                Variant::Mma { rows },
                LargeMKernels::Mma(kernels) | LargeMKernels::Wgmma(_, Some(kernels)),
            ) => {
                return kernels.launch(stream, rows, &large_m);
            }
            (_, _) => return Err(not_there(variant, m, self.kernels.loaded()).into()),
        };
        let shared_bytes = check_plan(layout, &plan, m, limits)?;
        let params = StreamLinearParams {
            weights: self.weights.ptr(),
            scales: self.scales.ptr(),
            x: x.view.ptr(),
            out,
            bias: bias.map_or(DevicePtr::null(), ElementView::ptr),
            m: m as i32,
            x_stride: x_stride as i32,
            n: n as i32,
            n_tiles: layout.n_tiles as i32,
            n_chunks: layout.n_chunks as i32,
            n_stages: plan.n_stages as i32,
            phase_chunks: plan.phase_chunks as i32,
            n_phases: plan.n_phases as i32,
            norm,
        };
        let n_threads = plan.rows.n_warps(self.kernels.limits.compute_major) * 32;
        let mut config =
            LaunchConfig::new((plan.n_ranks * plan.n_clusters) as u32, n_threads as u32);
        config.cluster = plan.n_ranks as u32;
        config.shared_bytes = shared_bytes;
        config.dependent = dependent;
        let kernel = self
            .kernels
            .variant(layout.format, output.epilogue(), plan.rows);
        // SAFETY: weights and scales have the layout's sizes; x, bias and output were checked to
        // cover m rows; the plan fits the shared memory; buffers are freed only after the device
        // is idle.
        unsafe { kernel.launch(stream, &config, &params) }
    }

    fn part_n(&self, part: usize) -> Result<usize, CudaError> {
        let n_parts = self.layout.parts_n.len();
        self.layout.parts_n.get(part).copied().ok_or_else(|| {
            KernelError::Shape {
                op: OP,
                what: "the part",
                found: part,
                expected: format!("below {n_parts}"),
            }
            .into()
        })
    }
}

fn check_norm(
    variant: Variant,
    m: usize,
    output: Output<'_>,
    norm: FusedNorm<'_>,
) -> Result<(), CudaError> {
    let epilogue = output.epilogue();
    let fits = match norm {
        FusedNorm::None => return Ok(()),
        FusedNorm::Prologue { .. } => {
            matches!(epilogue, Epilogue::Store | Epilogue::SiluMul)
        }
        FusedNorm::Epilogue { .. } => epilogue == Epilogue::AddResidual,
    };
    if !fits {
        let message = format!("the norm {norm:?} does not go with the epilogue {epilogue:?}");
        return Err(value_error(message));
    }
    if !variant.fuses_norm() {
        let message = format!("{m} rows by `{variant}`, which cannot fuse a norm");
        return Err(value_error(message));
    }
    Ok(())
}

fn row_error(m: usize, max_rows: usize) -> KernelError {
    let expected = format!("1 to {max_rows}");
    KernelError::Shape {
        op: OP,
        what: "the number of rows",
        found: m,
        expected,
    }
}

fn value_error(message: String) -> CudaError {
    KernelError::Value { op: OP, message }.into()
}

fn check_len(what: &'static str, found: usize, expected: usize) -> Result<(), KernelError> {
    crate::error::check_shape(OP, what, found, expected)
}

fn check_at_least(what: &'static str, found: usize, least: usize) -> Result<(), KernelError> {
    if found >= least {
        return Ok(());
    }
    Err(KernelError::Shape {
        op: OP,
        what,
        found,
        expected: format!("at least {least}"),
    })
}
