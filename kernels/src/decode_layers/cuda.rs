//! Launches of `decode_layers.cu`.

use bytemuck::{Pod, Zeroable};

use super::plan::{DecodeShape, PRODUCTS, Plan, n_threads, plan};
use super::{MAX_ROWS, OP};
use crate::KernelError;
use crate::cuda::shape::ShapeCheck;
use crate::cuda::{
    Buffer, BufferView, CudaError, DevicePtr, Element, ElementView, Kernel, KvFormat, LaunchConfig,
    PAGE_TOKENS, PagedKv, Stream,
};
use crate::stream_linear::{DeviceLimits, StreamLinear, TILE_COLUMNS};

const SOURCE: &str = "decode_layers/decode_layers";
const CHECK: ShapeCheck = ShapeCheck(OP);
/// Chunks of a ring on the way at a time: with more, multiprocessors get unequal shares of the memory.
const N_FLIGHT: i32 = 2;

/// As `LayerPointers` in decode_layers.cu.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LayerPointers {
    weights: [DevicePtr<u8>; PRODUCTS],
    scales: [DevicePtr<u8>; PRODUCTS],
    attn_norm: DevicePtr<u16>,
    mlp_norm: DevicePtr<u16>,
    q_norm: DevicePtr<u16>,
    k_norm: DevicePtr<u16>,
    qkv_bias: DevicePtr<u16>,
    o_bias: DevicePtr<u16>,
    k: DevicePtr<u8>,
    v: DevicePtr<u8>,
}

/// As `ProductShape` in decode_layers.cu.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ProductShape {
    n_tiles: i32,
    n_chunks: i32,
}

/// As `DecodeLayersParams` in decode_layers.cu.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    layers: DevicePtr<LayerPointers>,
    h: DevicePtr<f32>,
    qkv: DevicePtr<u16>,
    attended: DevicePtr<u16>,
    gated: DevicePtr<u16>,
    squares: DevicePtr<f32>,
    arrivals: DevicePtr<u32>,
    positions: DevicePtr<i32>,
    slots: DevicePtr<i32>,
    page_table: DevicePtr<i32>,
    context_len: DevicePtr<i32>,
    cos_sin: DevicePtr<f32>,
    products: [ProductShape; PRODUCTS],
    eps: f32,
    scale: f32,
    k_scale: f32,
    v_scale: f32,
    m: i32,
    n_layers: i32,
    n_q: i32,
    n_kv: i32,
    max_pages: i32,
    n_pages: i32,
    n_positions: i32,
    n_stages: i32,
    max_splits: i32,
    n_flight: i32,
}

/// One layer's weights and KV pages. All must outlive the [`DecodeLayers`] that is made of them,
/// which keeps their addresses.
#[derive(Debug, Clone, Copy)]
pub struct DecodeLayer<'a> {
    /// q/k/v, o, gate and up, down.
    pub products: [&'a StreamLinear; PRODUCTS],
    /// `[hidden]`
    pub attn_norm: ElementView<'a>,
    /// `[hidden]`
    pub mlp_norm: ElementView<'a>,
    /// `[head_dim]`
    pub q_norm: Option<ElementView<'a>>,
    /// `[head_dim]`
    pub k_norm: Option<ElementView<'a>>,
    /// `[(n_q + 2 n_kv) * head_dim]`
    pub qkv_bias: Option<ElementView<'a>>,
    /// `[hidden]`
    pub o_bias: Option<ElementView<'a>>,
    /// The same number of pages and scales in every layer.
    pub kv: PagedKv<'a>,
}

/// The layers of a decoder, ready for decode steps.
#[derive(Debug)]
pub struct DecodeLayers {
    kernel: Kernel,
    element: Element,
    shape: DecodeShape,
    limits: DeviceLimits,
    layers: Buffer<LayerPointers>,
    /// `[MAX_ROWS, hidden / 16]`
    squares: Buffer<f32>,
    /// Blocks at the grid's barriers, and blocks that have left; zero between launches.
    arrivals: Buffer<u32>,
    kv_scales: (f32, f32),
    n_pages: usize,
    max_splits: usize,
    is_alone: bool,
}

/// A step's rows, one token each.
#[derive(Debug, Clone, Copy)]
pub struct DecodeLayersArgs<'a> {
    pub n_rows: usize,
    /// `[n_rows, hidden]`: the embedded tokens, then what the layers make of them.
    pub h: BufferView<'a, f32>,
    /// `[n_rows, (n_q + 2 n_kv) * head_dim]`, overwritten, as are the next two.
    pub qkv: ElementView<'a>,
    /// `[n_rows, n_q * head_dim]`
    pub attended: ElementView<'a>,
    /// `[n_rows, intermediate]`
    pub gated: ElementView<'a>,
    /// `[n_positions, head_dim]`: cosines, then sines, of head_dim / 2 angles.
    pub cos_sin: BufferView<'a, f32>,
    pub n_positions: usize,
    /// `[n_rows]`; a position outside the table is held inside.
    pub positions: BufferView<'a, i32>,
    /// `[n_rows]`: page * 16 + token; a row outside the pool (padding: -1) stores nothing.
    pub slots: BufferView<'a, i32>,
    /// `[n_rows, max_pages]`: a row's pages in order.
    pub page_table: BufferView<'a, i32>,
    pub max_pages: usize,
    /// `[n_rows]`: tokens the row sees, its own included; 0 for a padding row.
    pub context_len: BufferView<'a, i32>,
    /// Of the norms.
    pub eps: f32,
}

impl DecodeLayers {
    /// `max_splits`: blocks that share a context, at most; a cluster has up to 4. `is_alone`:
    /// nothing else runs on the device meanwhile, so that all blocks, which wait for each other,
    /// are on it together without being told to.
    ///
    /// An error says why the kernel cannot have these layers on this device.
    pub fn new(
        stream: &Stream,
        shape: DecodeShape,
        element: Element,
        format: KvFormat,
        layers: &[DecodeLayer<'_>],
        max_splits: usize,
        is_alone: bool,
    ) -> Result<Self, CudaError> {
        let device = stream.device();
        let properties = device.properties();
        shape.heads.check(CHECK)?;
        format.check(CHECK, element)?;
        CHECK.at_least("max_splits", max_splits, 1)?;
        CHECK.equal("layers", layers.len(), shape.n_layers)?;
        let name = format!(
            "decode_layers_{}_{}",
            format.kernel_suffix(),
            shape.heads.head_dim
        );
        let kernel = device.element_kernel(element, SOURCE, &name)?;
        let compute_major = properties.compute_capability.0;
        let n_threads = n_threads(compute_major);
        CHECK.equal("threads of a block", n_threads, kernel.max_threads())?;
        kernel.set_max_dynamic_shared(properties.shared_bytes_per_block)?;
        kernel.set_shared_carveout(100)?;
        let mut max_clusters = [properties.n_multiprocessors, 0, 0, 0];
        for (i, n_ranks) in [2_u32, 4].into_iter().enumerate() {
            let mut config = LaunchConfig::new(n_ranks, n_threads as u32);
            config.cluster = n_ranks;
            config.shared_bytes = properties.shared_bytes_per_block;
            max_clusters[i + 1] = kernel.max_active_clusters(stream, &config)?;
        }
        let limits = DeviceLimits {
            compute_major,
            shared_bytes_per_block: properties.shared_bytes_per_block,
            shared_bytes_per_multiprocessor: properties.shared_bytes_per_multiprocessor,
            reserved_shared_bytes_per_block: properties.reserved_shared_bytes_per_block,
            max_clusters,
        };
        plan(&shape, 1, &limits)?;
        let pointers = layers
            .iter()
            .map(|layer| layer.pointers(&shape, element, format))
            .collect::<Result<Vec<_>, _>>()?;
        let (hidden, kv) = (shape.layouts[0].k, layers[0].kv);
        for layer in layers {
            CHECK.equal("pages of a layer", layer.kv.n_pages, kv.n_pages)?;
            if (layer.kv.k_scale, layer.kv.v_scale) != (kv.k_scale, kv.v_scale) {
                let message = "KV scales differ between layers".to_owned();
                return Err(KernelError::Value { op: OP, message }.into());
            }
        }
        Ok(Self {
            layers: Buffer::from_slice(stream, &pointers)?,
            squares: Buffer::zeroed(stream, MAX_ROWS * hidden / TILE_COLUMNS)?,
            arrivals: Buffer::zeroed(stream, 2)?,
            kv_scales: (kv.k_scale, kv.v_scale),
            n_pages: kv.n_pages,
            kernel,
            element,
            shape,
            limits,
            max_splits,
            is_alone,
        })
    }

    /// How `m` rows are launched, or why they cannot be.
    pub fn plan(&self, m: usize) -> Result<Plan, KernelError> {
        plan(&self.shape, m, &self.limits)
    }

    /// `h` through all layers, in stream order; keys and values into their pages. May be captured,
    /// and starts while the kernel before it runs.
    pub fn launch(&self, stream: &Stream, args: &DecodeLayersArgs<'_>) -> Result<(), CudaError> {
        let m = args.n_rows;
        let plan = self.plan(m)?;
        let [qkv_shape, o_shape, _, down_shape] = &self.shape.layouts;
        let hidden = qkv_shape.k;
        CHECK.rows("length of h", args.h, m, hidden, hidden)?;
        CHECK.aligned("h", args.h, 16)?;
        let row = |what, view, width| -> Result<DevicePtr<u16>, CudaError> {
            let view = CHECK.element(what, view, self.element)?;
            CHECK.rows(what, view, m, width, width)?;
            CHECK.aligned(what, view, 16)?;
            Ok(view.ptr())
        };
        let head_dim = self.shape.heads.head_dim;
        CHECK.at_least("n_positions", args.n_positions, 1)?;
        CHECK.rows(
            "length of cos_sin",
            args.cos_sin,
            args.n_positions,
            head_dim,
            head_dim,
        )?;
        CHECK.at_least("length of positions", args.positions.len(), m)?;
        CHECK.at_least("length of slots", args.slots.len(), m)?;
        CHECK.at_least("length of context_len", args.context_len.len(), m)?;
        CHECK.at_least("max_pages", args.max_pages, 1)?;
        CHECK.at_most("max_pages", args.max_pages, i32::MAX as usize / PAGE_TOKENS)?;
        let n_entries = m.saturating_mul(args.max_pages);
        CHECK.at_least("length of page_table", args.page_table.len(), n_entries)?;
        CHECK.positive("eps", args.eps)?;
        let params = Params {
            layers: self.layers.ptr(),
            h: args.h.ptr(),
            qkv: row("qkv", args.qkv, qkv_shape.n())?,
            attended: row("attended", args.attended, o_shape.k)?,
            gated: row("gated", args.gated, down_shape.k)?,
            squares: self.squares.ptr(),
            arrivals: self.arrivals.ptr(),
            positions: args.positions.ptr(),
            slots: args.slots.ptr(),
            page_table: args.page_table.ptr(),
            context_len: args.context_len.ptr(),
            cos_sin: args.cos_sin.ptr(),
            products: self.shape.layouts.each_ref().map(|layout| ProductShape {
                n_tiles: layout.n_tiles as i32,
                n_chunks: layout.n_chunks as i32,
            }),
            eps: args.eps,
            scale: 1.0 / (head_dim as f32).sqrt(),
            k_scale: self.kv_scales.0,
            v_scale: self.kv_scales.1,
            m: m as i32,
            n_layers: self.shape.n_layers as i32,
            n_q: self.shape.heads.n_q as i32,
            n_kv: self.shape.heads.n_kv as i32,
            max_pages: args.max_pages as i32,
            n_pages: self.n_pages as i32,
            n_positions: CHECK.int("n_positions", args.n_positions)?,
            n_stages: plan.n_stages as i32,
            max_splits: CHECK.int("max_splits", self.max_splits)?,
            n_flight: N_FLIGHT,
        };
        let n_threads = n_threads(self.limits.compute_major);
        let config = LaunchConfig {
            cluster: plan.n_ranks as u32,
            shared_bytes: plan.shared_bytes,
            dependent: true,
            cooperative: !self.is_alone,
            ..LaunchConfig::new((plan.n_ranks * plan.n_clusters) as u32, n_threads as u32)
        };
        // SAFETY: weights, norms, biases and pages had the shape's sizes when their addresses were
        // taken, and live by the promise of `DecodeLayer`; the activations were checked to cover m
        // rows; positions, slots, pages and contexts are held inside by the kernel; the plan fits
        // the shared memory and, being what the device holds at a time, the card.
        unsafe { self.kernel.launch(stream, &config, &params) }
    }
}

impl DecodeLayer<'_> {
    fn pointers(
        &self,
        shape: &DecodeShape,
        element: Element,
        format: KvFormat,
    ) -> Result<LayerPointers, CudaError> {
        for (linear, layout) in self.products.iter().zip(&shape.layouts) {
            if linear.layout() != layout {
                let message = format!("a matrix {:?} instead of {layout:?}", linear.layout());
                return Err(KernelError::Value { op: OP, message }.into());
            }
        }
        let vector = |what, view: ElementView<'_>, n| -> Result<DevicePtr<u16>, CudaError> {
            let view = CHECK.element(what, view, element)?;
            CHECK.equal(what, view.len(), n)?;
            CHECK.aligned(what, view, 8)?;
            Ok(view.ptr())
        };
        let optional = |what, view: Option<ElementView<'_>>, n| {
            view.map_or(Ok(DevicePtr::null()), |view| vector(what, view, n))
        };
        let (hidden, head_dim) = (shape.layouts[0].k, shape.heads.head_dim);
        // Checked here, once; of what comes out, the kernel wants two addresses.
        self.kv.params(CHECK, shape.heads, format)?;
        Ok(LayerPointers {
            weights: self.products.map(|linear| linear.packed_weights().ptr()),
            scales: self.products.map(|linear| linear.packed_scales().ptr()),
            attn_norm: vector("attn_norm", self.attn_norm, hidden)?,
            mlp_norm: vector("mlp_norm", self.mlp_norm, hidden)?,
            q_norm: optional("q_norm", self.q_norm, head_dim)?,
            k_norm: optional("k_norm", self.k_norm, head_dim)?,
            qkv_bias: optional("qkv_bias", self.qkv_bias, shape.layouts[0].n())?,
            o_bias: optional("o_bias", self.o_bias, hidden)?,
            k: self.kv.k.ptr(),
            v: self.kv.v.ptr(),
        })
    }
}
