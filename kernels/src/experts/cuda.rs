//! Experts on the GPU: the norm before them, their choice, their projections and the sum of what they make.
//!
//! Five launches: choose (with the norm), group the places by expert (not for one token), gate and up, down, add.
//! Their grids depend on the number of tokens alone, so they can be captured.

use gpu::{Buffer, BufferView, CudaError, Device, DevicePtr, Dim3, Kernel, LaunchConfig, Stream};

use super::Choice;
use crate::KernelError;
use crate::cuda::shape::ShapeCheck;
use crate::cuda::{ClusterLaunch, Element, ElementBuffer, ElementView};
use crate::shared_with_device::{device_structs, shared_constants};
use crate::stream_linear::{Arrangement, Format, Layout, StreamLinear, TILE_COLUMNS};

const CHECK: ShapeCheck = ShapeCheck("experts");
const ROUTING: &str = "experts/routing";
const LINEAR: &str = "experts/expert_linear";
const ROUTER_THREADS: u32 = 512;
const ROUTER_TOKENS: usize = 8;
/// Elements between rows in shared memory.
const ROW_PADDING: usize = 32;
/// Blocks that share a router's experts, if the device can hold a cluster of that size.
const ROUTER_CLUSTER: u32 = 8;
pub const MAX_EXPERTS: usize = 512;
pub const MAX_ACTIVE: usize = 32;
const GROUP_THREADS: u32 = 1024;
const ADD_THREADS: u32 = 256;
const WARPS: usize = 8;
const THREADS: usize = WARPS * 32;
const PIECE_K: usize = 64;
const FEW_ROWS: usize = 8;
/// Blocks of `few` on a multiprocessor, at most.
const FEW_BLOCKS: usize = 3;
/// 32-bit registers of a multiprocessor of every supported chip.
const REGISTERS: usize = 65_536;
/// Words of two steps of 4 loads of 16 bytes, for two tiles and all threads.
const FEW_SHARED_BYTES: usize = 2 * 4 * 2 * 16 * THREADS;
const FEW_SUM_BYTES: usize = 4 * WARPS * 2 * FEW_ROWS * (TILE_COLUMNS + 1);
const MANY_ROWS: usize = 64;
/// Places of an expert, on average, from which its weights are better read once for 64 places than for 8.
const MANY_FROM: usize = 8;
/// Rows of activations have a stride that is a multiple of this, the longest chunk of k.
const STRIDE_COLUMNS: usize = 256;
/// Dynamic shared memory that a block of every supported chip has, beside 9 KiB of the kernel's own.
const SHARED_BYTES: usize = 90 * 1024;

shared_constants! {
    in "experts/routing.cu" {
        ROUTER_THREADS, ROUTER_TOKENS, ROW_PADDING, MAX_EXPERTS, MAX_ACTIVE, GROUP_THREADS, ADD_THREADS
    }
    in "experts/expert_linear.cu" { WARPS, PIECE_K, FEW_ROWS, MANY_ROWS }
}

device_structs! {
    struct ChooseParams as ChooseExpertsParams in "experts/routing.cu" {
        h: DevicePtr<f32>,
        norm: DevicePtr<u16>,
        router: DevicePtr<u16>,
        x: DevicePtr<u16>,
        experts: DevicePtr<i32>,
        weights: DevicePtr<f32>,
        jobs: DevicePtr<i32>,
        tokens: DevicePtr<i32>,
        places: DevicePtr<i32>,
        eps: f32,
        m: i32,
        hidden: i32,
        x_stride: i32,
        n_experts: i32,
        n_active: i32,
        normalise: i32,
        padding: i32,
    }

    struct GroupParams as GroupPlacesParams in "experts/routing.cu" {
        experts: DevicePtr<i32>,
        jobs: DevicePtr<i32>,
        tokens: DevicePtr<i32>,
        places: DevicePtr<i32>,
        n_places: i32,
        n_experts: i32,
        n_active: i32,
        job_rows: i32,
        n_jobs: i32,
        padding: i32,
    }

    struct LinearParams as ExpertLinearParams in "experts/expert_linear.cu" {
        weights: DevicePtr<u8>,
        scales: DevicePtr<u8>,
        x: DevicePtr<u16>,
        out: DevicePtr<u8>,
        jobs: DevicePtr<i32>,
        tokens: DevicePtr<i32>,
        x_stride: i32,
        out_stride: i32,
        n_tiles: i32,
        n_chunks: i32,
        k_shift: i32,
        is_gated: i32,
    }

    struct AddParams as AddExpertsParams in "experts/routing.cu" {
        h: DevicePtr<f32>,
        made: DevicePtr<f32>,
        weights: DevicePtr<f32>,
        places: DevicePtr<i32>,
        hidden: i32,
        n_active: i32,
    }
}

/// The experts of a layer, all of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertsShape {
    /// Width of the residual stream: a multiple of 32.
    pub hidden: usize,
    /// Width of an expert: a multiple of 16.
    pub intermediate: usize,
    pub choice: Choice,
}

/// How many jobs a launch has, and of how many places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Jobs {
    rows: usize,
    n: usize,
}

impl ExpertsShape {
    /// # Errors
    ///
    /// If the kernels do not take these sizes; the error names the limit.
    pub fn check(&self) -> Result<(), KernelError> {
        let Choice {
            n_experts,
            n_active,
            ..
        } = self.choice;
        let most = MAX_ACTIVE.min(n_experts);
        let limits = [
            (
                "number of experts",
                n_experts,
                (1..=MAX_EXPERTS).contains(&n_experts),
                format!("1 to {MAX_EXPERTS}"),
            ),
            (
                "number of experts a token",
                n_active,
                (1..=most).contains(&n_active),
                format!("1 to {most}"),
            ),
            (
                "width of an expert",
                self.intermediate,
                self.intermediate > 0 && self.intermediate.is_multiple_of(TILE_COLUMNS),
                format!("a multiple of {TILE_COLUMNS}, not 0"),
            ),
            (
                "hidden size",
                self.hidden,
                self.hidden > 0 && self.hidden.is_multiple_of(2 * TILE_COLUMNS),
                format!("a multiple of {}, not 0", 2 * TILE_COLUMNS),
            ),
            (
                "shared memory of the router's block",
                self.router_shared_bytes(),
                self.router_shared_bytes() <= SHARED_BYTES,
                format!(
                    "at most {SHARED_BYTES} (8 tokens of 2 bytes x hidden size + 32 and 4 x experts)"
                ),
            ),
        ];
        match limits.into_iter().find(|(_, _, fits, _)| !fits) {
            None => Ok(()),
            Some((what, found, _, expected)) => Err(KernelError::Shape {
                op: "experts",
                what,
                found,
                expected,
            }),
        }
    }

    /// All experts' gate and up in one packed matrix: parts 2 e and 2 e + 1 are those of expert e.
    ///
    /// # Errors
    ///
    /// As [`Layout::new`].
    pub fn gate_up(&self, format: Format) -> Result<Layout, KernelError> {
        let parts = vec![self.intermediate; 2 * self.choice.n_experts];
        Layout::new(format, Arrangement::GateUp, &parts, self.hidden)
    }

    /// All experts' down in one packed matrix, a part an expert.
    ///
    /// # Errors
    ///
    /// As [`Layout::new`].
    pub fn down(&self, format: Format) -> Result<Layout, KernelError> {
        let parts = vec![self.hidden; self.choice.n_experts];
        Layout::new(format, Arrangement::Stacked, &parts, self.intermediate)
    }

    fn router_shared_bytes(&self) -> usize {
        ROUTER_TOKENS * (2 * (self.hidden + ROW_PADDING) + 4 * self.choice.n_experts)
    }

    fn group_shared_bytes(&self) -> usize {
        4 * (GROUP_THREADS as usize / 32) * self.choice.n_experts
    }

    /// Enough jobs for any choice of `n_tokens`.
    fn jobs(&self, n_tokens: usize) -> Jobs {
        let Choice {
            n_experts,
            n_active,
            ..
        } = self.choice;
        let n_places = n_tokens * n_active;
        let is_many = n_places > MANY_FROM * n_experts;
        let rows = if is_many { MANY_ROWS } else { FEW_ROWS };
        // Every expert may have one that is not full.
        let n = n_places.min(n_experts.min(n_places) + n_places / rows);
        Jobs { rows, n }
    }

    fn max_jobs(&self, max_tokens: usize) -> usize {
        (1..=max_tokens).map(|n| self.jobs(n).n).max().unwrap_or(0)
    }
}

/// What experts need beside their weights, for passes of up to `max_tokens`.
#[derive(Debug)]
pub struct ExpertBuffers {
    max_tokens: usize,
    /// `[max_tokens, stride(hidden)]`: the normalised rows. Padding is zero and stays.
    x: ElementBuffer,
    /// `[max_tokens, n_active]`
    experts: Buffer<i32>,
    weights: Buffer<f32>,
    places: Buffer<i32>,
    /// `[places]`
    tokens: Buffer<i32>,
    /// `[1 + max_jobs, 4]`
    jobs: Buffer<i32>,
    /// `[places, stride(intermediate)]`: silu(gate) * up. Padding is zero and stays.
    gated: ElementBuffer,
    /// `[places, hidden]`
    made: Buffer<f32>,
}

fn stride(columns: usize) -> usize {
    columns.next_multiple_of(STRIDE_COLUMNS)
}

impl ExpertBuffers {
    /// # Errors
    ///
    /// If the device has not as much free memory.
    pub fn new(
        stream: &Stream,
        element: Element,
        shape: &ExpertsShape,
        max_tokens: usize,
    ) -> Result<Self, CudaError> {
        let n_places = max_tokens * shape.choice.n_active;
        let gated = n_places * stride(shape.intermediate);
        Ok(Self {
            max_tokens,
            x: ElementBuffer::zeroed(stream, element, max_tokens * stride(shape.hidden))?,
            experts: Buffer::zeroed(stream, n_places)?,
            weights: Buffer::zeroed(stream, n_places)?,
            places: Buffer::zeroed(stream, n_places)?,
            tokens: Buffer::zeroed(stream, n_places)?,
            jobs: Buffer::zeroed(stream, 4 * (1 + shape.max_jobs(max_tokens)))?,
            gated: ElementBuffer::zeroed(stream, element, gated)?,
            made: Buffer::zeroed(stream, n_places * shape.hidden)?,
        })
    }

    /// Device memory of [`Self::new`].
    pub fn bytes_of(shape: &ExpertsShape, max_tokens: usize) -> usize {
        let n_places = max_tokens * shape.choice.n_active;
        let rows = max_tokens * stride(shape.hidden) + n_places * stride(shape.intermediate);
        2 * rows + n_places * (4 * shape.hidden + 16) + 16 * (1 + shape.max_jobs(max_tokens))
    }

    /// `[n_tokens, n_active]` of the last launch: the experts of each token, the most weighted first.
    pub fn experts(&self) -> BufferView<'_, i32> {
        self.experts.all()
    }

    /// Of [`Self::experts`].
    pub fn weights(&self) -> BufferView<'_, f32> {
        self.weights.all()
    }

    /// `[max_tokens, hidden.next_multiple_of(256)]`: the last launch's input, normalised.
    pub fn x(&self) -> ElementView<'_> {
        self.x.all()
    }
}

#[derive(Debug)]
struct LinearKernels {
    format: Format,
    few: Kernel,
    /// Blocks of a launch of `few`: as many as the device holds at a time.
    n_few_blocks: usize,
    many: Kernel,
}

/// The experts of one layer: the weights that a launch reads.
#[derive(Debug, Clone, Copy)]
pub struct ExpertWeights<'a> {
    /// `[hidden]`: of the norm before the experts.
    pub norm: ElementView<'a>,
    /// `[n_experts, hidden]`
    pub router: ElementView<'a>,
    /// Laid out as [`ExpertsShape::gate_up`].
    pub gate_up: &'a StreamLinear,
    /// Laid out as [`ExpertsShape::down`].
    pub down: &'a StreamLinear,
}

/// The kernels for layers of one shape.
#[derive(Debug)]
pub struct Experts {
    shape: ExpertsShape,
    element: Element,
    choose: Kernel,
    cluster: u32,
    group: Kernel,
    add: Kernel,
    linear: Vec<LinearKernels>,
}

impl Experts {
    /// With kernels for weights in `formats`.
    ///
    /// # Errors
    ///
    /// If the kernels do not take the shape or one of the formats with this element, or the binary lacks one for this
    /// device.
    pub fn new(
        device: &Device,
        element: Element,
        shape: ExpertsShape,
        formats: &[Format],
    ) -> Result<Self, CudaError> {
        shape.check()?;
        let choose = element.kernel(device, ROUTING, "choose_experts")?;
        let shared_bytes = shape.router_shared_bytes();
        choose.set_max_dynamic_shared(shared_bytes)?;
        let cluster = choose.largest_cluster(&LaunchConfig {
            cluster: ROUTER_CLUSTER,
            shared_bytes,
            ..LaunchConfig::new(ROUTER_CLUSTER, ROUTER_THREADS)
        })?;
        let group = element.kernel(device, ROUTING, "group_places")?;
        group.set_max_dynamic_shared(shape.group_shared_bytes())?;
        let mut linear: Vec<LinearKernels> = Vec::new();
        for &format in formats {
            if linear.iter().any(|kernels| kernels.format == format) {
                continue;
            }
            if !format.has_element(element) {
                let message = format!(
                    "{format:?} has no kernels with {} activations",
                    element.name()
                );
                return Err(value_error(message));
            }
            let load = |prefix: &str| {
                let name = format!("{prefix}_{}", format.kernel_name());
                element.kernel(device, LINEAR, &name)
            };
            let few = load("few")?;
            few.set_max_dynamic_shared(FEW_SHARED_BYTES)?;
            linear.push(LinearKernels {
                format,
                n_few_blocks: n_few_blocks(device, &few)?,
                few,
                many: load("many")?,
            });
        }
        let add = element.kernel(device, ROUTING, "add_experts")?;
        for kernel in [&choose, &group, &add] {
            kernel.set_shared_carveout(100)?;
        }
        for kernels in &linear {
            // What shared memory leaves is the L1, where scales wait for their weights.
            kernels.few.set_shared_carveout(100)?;
            kernels.many.set_shared_carveout(50)?;
        }
        Ok(Self {
            shape,
            element,
            choose,
            cluster,
            group,
            add,
            linear,
        })
    }

    /// The router's launch in clusters, and which of them the device holds.
    ///
    /// # Errors
    ///
    /// If the driver cannot say it.
    pub fn cluster_launch(&self) -> Result<ClusterLaunch, CudaError> {
        let config = LaunchConfig {
            shared_bytes: self.shape.router_shared_bytes(),
            ..LaunchConfig::new(1, ROUTER_THREADS)
        };
        ClusterLaunch::of(&self.choose, &config, ROUTER_CLUSTER, self.cluster)
    }

    /// Adds to `h: [n_tokens, hidden]` what the chosen experts make of its normalised rows, in stream order; may be
    /// captured. A row that is not finite makes its own sum NaN and no other.
    ///
    /// # Errors
    ///
    /// If `n_tokens` is 0 or above what `buffers` were made for, a matrix is not loaded or laid out otherwise, `h` is
    /// shorter, or a view or `stream` is of another device.
    pub fn launch(
        &self,
        stream: &Stream,
        h: BufferView<'_, f32>,
        weights: &ExpertWeights<'_>,
        buffers: &ExpertBuffers,
        n_tokens: usize,
        eps: f32,
    ) -> Result<(), CudaError> {
        CHECK.at_least("number of tokens", n_tokens, 1)?;
        CHECK.at_most("number of tokens", n_tokens, buffers.max_tokens)?;
        let jobs = self.shape.jobs(n_tokens);
        self.launch_choice(stream, h, weights, buffers, n_tokens, eps)?;
        if n_tokens > 1 {
            self.launch_grouping(stream, buffers, n_tokens, jobs)?;
        }
        self.launch_linear(stream, weights.gate_up, buffers, jobs, true)?;
        self.launch_linear(stream, weights.down, buffers, jobs, false)?;
        self.launch_sum(stream, h, buffers, n_tokens)
    }

    fn launch_choice(
        &self,
        stream: &Stream,
        h: BufferView<'_, f32>,
        weights: &ExpertWeights<'_>,
        buffers: &ExpertBuffers,
        n_tokens: usize,
        eps: f32,
    ) -> Result<(), CudaError> {
        let ExpertsShape { hidden, choice, .. } = self.shape;
        let norm = CHECK.element("norm", weights.norm, self.element)?;
        let router = CHECK.element("router", weights.router, self.element)?;
        CHECK.element("x", buffers.x.all(), self.element)?;
        CHECK.equal("length of norm", norm.len(), hidden)?;
        CHECK.equal("length of router", router.len(), choice.n_experts * hidden)?;
        CHECK.rows("length of h", h, n_tokens, hidden, hidden)?;
        CHECK.aligned("h", h, 16)?;
        CHECK.aligned("norm", norm, 8)?;
        CHECK.aligned("router", router, 16)?;
        CHECK.positive("eps", eps)?;
        stream.enter(h.device())?;
        stream.enter(norm.device())?;
        stream.enter(router.device())?;
        stream.enter(buffers.jobs.device())?;
        let params = ChooseParams {
            h: h.ptr(),
            norm: norm.ptr(),
            router: router.ptr(),
            x: buffers.x.all().ptr(),
            experts: buffers.experts.ptr(),
            weights: buffers.weights.ptr(),
            jobs: buffers.jobs.ptr(),
            tokens: buffers.tokens.ptr(),
            places: buffers.places.ptr(),
            eps,
            m: CHECK.int("number of tokens", n_tokens)?,
            hidden: CHECK.int("hidden size", hidden)?,
            x_stride: CHECK.int("hidden size", stride(hidden))?,
            n_experts: choice.n_experts as i32,
            n_active: choice.n_active as i32,
            normalise: i32::from(choice.normalise),
            padding: 0,
        };
        let n_clusters = n_tokens.div_ceil(ROUTER_TOKENS) as u32;
        let config = LaunchConfig {
            cluster: self.cluster,
            shared_bytes: self.shape.router_shared_bytes(),
            dependent: true,
            ..LaunchConfig::new(n_clusters * self.cluster, ROUTER_THREADS)
        };
        // SAFETY: clusters read whole rows of h, the norm and the router, and write rows of x and entries of the
        // tokens below n_tokens, for which `buffers` has room; of one token n_active jobs and places.
        unsafe { self.choose.launch(stream, &config, &params) }
    }

    fn launch_grouping(
        &self,
        stream: &Stream,
        buffers: &ExpertBuffers,
        n_tokens: usize,
        jobs: Jobs,
    ) -> Result<(), CudaError> {
        let choice = self.shape.choice;
        let n_places = n_tokens * choice.n_active;
        let params = GroupParams {
            experts: buffers.experts.ptr(),
            jobs: buffers.jobs.ptr(),
            tokens: buffers.tokens.ptr(),
            places: buffers.places.ptr(),
            n_places: CHECK.int("number of places", n_places)?,
            n_experts: choice.n_experts as i32,
            n_active: choice.n_active as i32,
            job_rows: jobs.rows as i32,
            n_jobs: CHECK.int("number of jobs", jobs.n)?,
            padding: 0,
        };
        let config = LaunchConfig {
            shared_bytes: self.shape.group_shared_bytes(),
            dependent: true,
            ..LaunchConfig::new(1, GROUP_THREADS)
        };
        // SAFETY: the kernel reads n_places experts and writes as many tokens and places; it writes n_jobs jobs, for
        // which `buffers` has room, as max_jobs is the most of any number of tokens.
        unsafe { self.group.launch(stream, &config, &params) }
    }

    fn launch_linear(
        &self,
        stream: &Stream,
        linear: &StreamLinear,
        buffers: &ExpertBuffers,
        jobs: Jobs,
        is_gated: bool,
    ) -> Result<(), CudaError> {
        let layout = linear.layout();
        let expected = if is_gated {
            self.shape.gate_up(layout.format)?
        } else {
            self.shape.down(layout.format)?
        };
        if *layout != expected {
            let message = format!("experts' weights laid out as {layout:?}, must be {expected:?}");
            return Err(value_error(message));
        }
        linear.check_loaded()?;
        let kernels = self.linear.iter().find(|k| k.format == layout.format);
        let Some(kernels) = kernels else {
            let message = format!("no kernels for experts in {:?} were loaded", layout.format);
            return Err(value_error(message));
        };
        stream.enter(linear.packed_weights().device())?;
        let (hidden, intermediate) = (self.shape.hidden, self.shape.intermediate);
        let n_tiles = layout.n_tiles / self.shape.choice.n_experts;
        let n_pieces = layout.n_chunks * layout.format.chunk_k() / PIECE_K;
        let is_many = jobs.rows == MANY_ROWS;
        // Enough warps that one load of each brings its whole share of k.
        let loaded_at_once = layout.format.pieces_of_four_loads();
        let k_warps = n_pieces
            .div_ceil(loaded_at_once)
            .next_power_of_two()
            .min(WARPS);
        let pairs_of_block = if is_many { WARPS } else { WARPS / k_warps };
        let (gated, tokens) = (buffers.gated.all(), buffers.tokens.ptr());
        let params = LinearParams {
            weights: linear.packed_weights().ptr(),
            scales: linear.packed_scales().ptr(),
            x: if is_gated {
                buffers.x.all().ptr()
            } else {
                gated.ptr()
            },
            out: if is_gated {
                gated.ptr().cast()
            } else {
                buffers.made.ptr().cast()
            },
            jobs: buffers.jobs.ptr(),
            tokens: if is_gated { tokens } else { DevicePtr::null() },
            x_stride: stride(if is_gated { hidden } else { intermediate }) as i32,
            out_stride: if is_gated {
                stride(intermediate)
            } else {
                hidden
            } as i32,
            n_tiles: CHECK.int("tiles of an expert", n_tiles)?,
            n_chunks: layout.n_chunks as i32,
            k_shift: k_warps.trailing_zeros() as i32,
            is_gated: i32::from(is_gated),
        };
        let n_columns = (n_tiles / 2).div_ceil(pairs_of_block);
        let n_jobs = CHECK.int("number of jobs", jobs.n)? as u32;
        let (kernel, grid, shared_bytes) = if is_many {
            (&kernels.many, Dim3::new(n_columns as u32, n_jobs, 1), 0)
        } else {
            let n_blocks = (n_columns * jobs.n).min(kernels.n_few_blocks) as u32;
            (&kernels.few, Dim3::from(n_blocks), FEW_SHARED_BYTES)
        };
        let config = LaunchConfig {
            shared_bytes,
            dependent: true,
            ..LaunchConfig::new(grid, THREADS as u32)
        };
        // SAFETY: jobs name experts below n_experts, whose tiles the layout has (checked above), and places below
        // n_tokens * n_active, for which x, gated and made have rows; tokens of places are below n_tokens.
        unsafe { kernel.launch(stream, &config, &params) }
    }

    fn launch_sum(
        &self,
        stream: &Stream,
        h: BufferView<'_, f32>,
        buffers: &ExpertBuffers,
        n_tokens: usize,
    ) -> Result<(), CudaError> {
        let (hidden, n_active) = (self.shape.hidden, self.shape.choice.n_active);
        let params = AddParams {
            h: h.ptr(),
            made: buffers.made.ptr(),
            weights: buffers.weights.ptr(),
            places: buffers.places.ptr(),
            hidden: hidden as i32,
            n_active: n_active as i32,
        };
        let n_columns = (hidden / 4).div_ceil(ADD_THREADS as usize) as u32;
        let grid = Dim3::new(n_columns, n_tokens as u32, 1);
        let config = LaunchConfig {
            dependent: true,
            ..LaunchConfig::new(grid, ADD_THREADS)
        };
        // SAFETY: rows of h below n_tokens, whose length was checked with the choice, and rows of `made` that the
        // places of these tokens name.
        unsafe { self.add.launch(stream, &config, &params) }
    }
}

fn n_few_blocks(device: &Device, few: &Kernel) -> Result<usize, CudaError> {
    let properties = device.properties();
    let of_block = FEW_SHARED_BYTES + FEW_SUM_BYTES + properties.reserved_shared_bytes_per_block;
    let by_shared = properties.shared_bytes_per_multiprocessor / of_block;
    let by_registers = REGISTERS / (few.n_registers()?.next_multiple_of(8) * THREADS);
    let fit = by_shared.min(by_registers).clamp(1, FEW_BLOCKS);
    Ok(properties.n_multiprocessors * fit)
}

fn value_error(message: String) -> CudaError {
    let op = "experts";
    KernelError::Value { op, message }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> ExpertsShape {
        ExpertsShape {
            hidden: 2048,
            intermediate: 768,
            choice: Choice {
                n_experts: 128,
                n_active: 8,
                normalise: true,
            },
        }
    }

    /// One expert after the other, so that a launch finds expert e after the tiles of e others.
    #[test]
    fn experts_lie_one_after_the_other() {
        let layout = shape().gate_up(Format::AwqG128).expect("a layout");
        assert_eq!((layout.n_tiles, layout.n()), (128 * 96, 128 * 768));
        assert_eq!(layout.tile_place(2 * 5), (2, 5 * 96));
        assert_eq!(layout.tile_place(2 * 5 + 1), (2, 5 * 96 + 1));
        let layout = shape().down(Format::AwqG128).expect("a layout");
        assert_eq!(
            (layout.n_tiles, layout.tile_place(5)),
            (128 * 128, (1, 5 * 128))
        );
    }

    /// The worst choice: as many experts as there can be have one place more than fills their jobs.
    #[test]
    fn there_are_jobs_for_every_choice() {
        let shape = shape();
        for n_tokens in 1..=1100 {
            let (jobs, n_places) = (shape.jobs(n_tokens), n_tokens * 8);
            let n_experts = n_places.min(128);
            let most = n_experts + (n_places - n_experts) / jobs.rows;
            assert!(
                jobs.n >= most && jobs.n <= n_places,
                "{n_tokens}: {jobs:?}, {most}"
            );
        }
        assert_eq!(shape.jobs(1), Jobs { rows: 8, n: 8 });
        assert_eq!(shape.jobs(20), Jobs { rows: 8, n: 148 });
        assert_eq!(shape.jobs(1024), Jobs { rows: 64, n: 256 });
    }

    #[test]
    fn sizes_that_the_kernels_do_not_take_are_named() {
        let text = |change: &dyn Fn(&mut ExpertsShape)| {
            let mut shape = shape();
            change(&mut shape);
            shape.check().map_err(|error| error.to_string())
        };
        assert!(text(&|_| ()).is_ok());
        for (change, expected) in [
            (
                &(|s: &mut ExpertsShape| s.intermediate = 100) as &dyn Fn(&mut ExpertsShape),
                "width of an expert is 100",
            ),
            (&|s| s.hidden = 2064, "hidden size is 2064"),
            (&|s| s.choice.n_experts = 513, "number of experts is 513"),
            (
                &|s| s.choice.n_active = 33,
                "number of experts a token is 33",
            ),
            (&|s| s.hidden = 8192, "router"),
        ] {
            let error = text(change).expect_err("a limit");
            assert!(error.contains(expected), "{error}");
        }
    }
}
