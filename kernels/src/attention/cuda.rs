//! Attention over the paged cache on the GPU: decode rows here, packed chunks in `packed`.

mod packed;

use gpu::{Buffer, BufferView, CudaError, Device, DevicePtr, Dim3, Kernel, LaunchConfig, Stream};

use crate::cuda::shape::ShapeCheck;
use crate::cuda::{Activation, ClusterLaunch, Element, ElementView, PagedKvParams};
pub use crate::cuda::{HeadShape, KvFormat, PagedKv};
use crate::shared_with_device::{device_structs, shared_constants};
pub use packed::{PlainAttention, PrefillAttention, PrefillAttentionArgs};

const CHECK: ShapeCheck = ShapeCheck("attention_decode");
/// Maximum number of query heads per KV head: the columns of one matrix instruction.
pub const MAX_GROUP: usize = 8;
/// Blocks of a cluster.
pub const MAX_SPLITS: usize = 8;
const THREADS: u32 = 128;
/// Rows of a launch: blocks along y.
pub const MAX_ROWS: usize = 65_535;

device_structs! {
    struct DecodeParams as AttentionDecodeParams in "attention/decode.cu" {
        q: DevicePtr<u16>,
        kv: PagedKvParams,
        page_table: DevicePtr<i32>,
        context_len: DevicePtr<i32>,
        out: DevicePtr<u16>,
        part_out: DevicePtr<f32>,
        part_weights: DevicePtr<f32>,
        tickets: DevicePtr<i32>,
        scale: f32,
        n_kv: i32,
        group: i32,
        max_pages: i32,
        q_stride: i32,
        out_stride: i32,
        fresh: i32,
        out_tile_rows: i32,
    }
}

/// One query token a row, each with its own context: flash decoding with split KV.
#[derive(Debug)]
pub struct DecodeAttention {
    kernel: Kernel,
    /// For launches of more blocks than fit on the GPU at once.
    many: Option<Many>,
    element: Element,
    shape: HeadShape,
    format: KvFormat,
    max_splits: usize,
    /// Blocks of the largest cluster that the device holds.
    max_cluster: u32,
    /// Blocks of the plain kernel that the device holds.
    resident_blocks: usize,
}

/// Device memory in which the clusters that share a long context leave their results. Launches that use it at
/// the same time, on several streams, need one each.
#[derive(Debug)]
pub struct ContextParts {
    /// `[clusters][8][head_dim]`
    out: Buffer<f32>,
    /// `[clusters][8][2]`
    weights: Buffer<f32>,
    /// `[clusters]`, zero between launches
    tickets: Buffer<i32>,
}

impl ContextParts {
    /// For launches on `stream`'s device with heads of at most `head_dim` values.
    ///
    /// # Errors
    ///
    /// If there is not enough device memory.
    pub fn new(stream: &Stream, head_dim: usize) -> Result<Self, CudaError> {
        let device = stream.device();
        let n_clusters = resident_blocks(device);
        Ok(Self {
            out: Buffer::new(device, n_clusters * MAX_GROUP * head_dim)?,
            weights: Buffer::new(device, n_clusters * MAX_GROUP * 2)?,
            tickets: Buffer::zeroed(stream, n_clusters)?,
        })
    }

    /// Device memory of [`Self::new`].
    pub fn n_bytes(device: &Device, head_dim: usize) -> usize {
        resident_blocks(device) * (MAX_GROUP * (head_dim + 2) * size_of::<f32>() + size_of::<i32>())
    }
}

/// Blocks of the plain kernel that the device holds; no launch with parts has more clusters.
fn resident_blocks(device: &Device) -> usize {
    PLAIN_BLOCKS * device.properties().n_multiprocessors
}

#[derive(Debug)]
struct Many {
    kernel: Kernel,
    /// Launches of more blocks than this use it.
    above_blocks: usize,
}

/// Blocks of the plain kernel that a multiprocessor holds with `head_dim` 128.
const PLAIN_BLOCKS: usize = 3;
/// Clusters that may share a context.
const MAX_PARTS: usize = 8;
/// Pages that each of them has at least.
const PART_PAGES: usize = 64;

shared_constants! {
    in "attention/decode.cu" { PART_PAGES }
}

#[derive(Debug, Clone, Copy)]
pub struct DecodeAttentionArgs<'a> {
    /// `[n_rows, q_stride]`: head h at h * head_dim. `q_stride` is a multiple of 8.
    pub q: ElementView<'a>,
    pub q_stride: usize,
    pub kv: PagedKv<'a>,
    /// `[n_rows, max_pages]`: a row's pages in order.
    pub page_table: BufferView<'a, i32>,
    pub max_pages: usize,
    /// `[n_rows]`: tokens that the row sees, including its own; 0 for a padding row, whose part of
    /// `out` is not written.
    pub context_len: BufferView<'a, i32>,
    /// `[n_rows, n_q * head_dim]`
    pub out: Activation<'a>,
    pub n_rows: usize,
    /// Number of blocks that share a context, at most the `max_splits` of [`DecodeAttention::new`];
    /// fewer are used if the device cannot hold a cluster of that size.
    pub n_splits: usize,
    /// Where several clusters may share the long context of a row; without it, one has the whole.
    pub parts: Option<&'a ContextParts>,
    /// Maximum number of tokens at the end of every context that are written by the step this
    /// launch belongs to. Lengths, page table and older pages are read before earlier kernels in
    /// the stream have finished: no kernel of the same step may write them, unless a kernel in
    /// between waits before it lets others start (`embedding`).
    pub fresh: usize,
}

impl DecodeAttention {
    /// `max_splits`: 1 to 8. `reduce_in_fp32`: partial results are merged in f32 rather than in the
    /// element type.
    ///
    /// # Errors
    ///
    /// If no kernel is compiled for this head dimension, format and element, a KV head has too
    /// many query heads, or `max_splits` is out of its range.
    pub fn new(
        device: &Device,
        element: Element,
        shape: HeadShape,
        format: KvFormat,
        max_splits: usize,
        reduce_in_fp32: bool,
    ) -> Result<Self, CudaError> {
        shape.check(CHECK)?;
        format.check(CHECK, element)?;
        CHECK.at_most("query heads a KV head", shape.group(), MAX_GROUP)?;
        CHECK.at_least("max_splits", max_splits, 1)?;
        CHECK.at_most("max_splits", max_splits, MAX_SPLITS)?;
        let partial = if reduce_in_fp32 { "fp32" } else { "elem" };
        let name = format!(
            "attention_decode_{}_{}_{partial}",
            format.kernel_suffix(),
            shape.head_dim
        );
        let kernel = element.kernel(device, "attention/decode", &name)?;
        kernel.set_shared_carveout(100)?;
        let many = if shape.head_dim == 128 {
            let name = format!("{name}_many");
            let kernel = element.kernel(device, "attention/decode", &name)?;
            kernel.set_shared_carveout(100)?;
            Some(Many {
                kernel,
                above_blocks: resident_blocks(device),
            })
        } else {
            None
        };
        let mut max_cluster = MAX_SPLITS as u32;
        for kernel in [Some(&kernel), many.as_ref().map(|many| &many.kernel)] {
            let Some(kernel) = kernel else { continue };
            max_cluster = kernel.largest_cluster(&LaunchConfig {
                cluster: max_cluster,
                ..LaunchConfig::new(max_cluster, THREADS)
            })?;
        }
        Ok(Self {
            kernel,
            many,
            element,
            shape,
            format,
            max_splits,
            max_cluster,
            resident_blocks: resident_blocks(device),
        })
    }

    /// The launches in clusters, and which of them the device holds.
    ///
    /// # Errors
    ///
    /// If the driver cannot say it.
    pub fn cluster_launches(&self) -> Result<Vec<ClusterLaunch>, CudaError> {
        let config = LaunchConfig::new(1, THREADS);
        let kernels = [Some(&self.kernel), self.many.as_ref().map(|m| &m.kernel)];
        let launches = kernels.into_iter().flatten();
        launches
            .map(|kernel| ClusterLaunch::of(kernel, &config, MAX_SPLITS as u32, self.max_cluster))
            .collect()
    }

    /// Clusters for each row and KV head of a launch of `n_blocks` blocks without parts: as many as the device
    /// holds at once, if a page table of `max_pages` is long enough for them.
    fn n_parts(&self, n_blocks: usize, max_pages: usize) -> usize {
        let fitting = self.resident_blocks / n_blocks.max(1);
        fitting.min(max_pages / PART_PAGES).clamp(1, MAX_PARTS)
    }

    /// # Errors
    ///
    /// If a view is shorter than its shape, misaligned or of another element, a count is above
    /// its limit, or `stream` is of another device.
    pub fn launch(&self, stream: &Stream, args: &DecodeAttentionArgs<'_>) -> Result<(), CudaError> {
        let HeadShape {
            n_q,
            n_kv,
            head_dim,
        } = self.shape;
        let width = n_q * head_dim;
        CHECK.at_most("n_rows", args.n_rows, MAX_ROWS)?;
        CHECK.at_least("n_splits", args.n_splits, 1)?;
        CHECK.at_most("n_splits", args.n_splits, self.max_splits)?;
        CHECK.multiple("q_stride", args.q_stride, 8)?;
        let q = CHECK.element("q", args.q, self.element)?;
        CHECK.rows("length of q", q, args.n_rows, args.q_stride, width)?;
        CHECK.aligned("q", q, 16)?;
        let out_place = args
            .out
            .place(CHECK, "out", self.element, args.n_rows, width, 2)?;
        CHECK.at_least("max_pages", args.max_pages, 1)?;
        CHECK.at_most(
            "max_pages",
            args.max_pages,
            i32::MAX as usize / crate::cuda::PAGE_TOKENS,
        )?;
        let n_entries = args.n_rows.saturating_mul(args.max_pages);
        CHECK.at_least("length of page_table", args.page_table.len(), n_entries)?;
        CHECK.at_least("length of context_len", args.context_len.len(), args.n_rows)?;
        let kv = args.kv.params(CHECK, self.shape, self.format)?;
        if args.n_rows == 0 {
            return Ok(());
        }
        let cluster = (args.n_splits as u32).min(self.max_cluster);
        let n_clusters = n_kv * args.n_rows;
        let n_blocks = n_clusters * cluster as usize;
        let n_parts = match args.parts {
            Some(parts) => {
                let n_parts = self.n_parts(n_blocks, args.max_pages);
                if n_parts > 1 {
                    let n_values = n_clusters * n_parts * MAX_GROUP * head_dim;
                    CHECK.at_least("length of the parts' results", parts.out.len(), n_values)?;
                }
                n_parts
            }
            None => 1,
        };
        let params = DecodeParams {
            q: q.ptr(),
            kv,
            page_table: args.page_table.ptr(),
            context_len: args.context_len.ptr(),
            out: args.out.view.ptr(),
            part_out: args
                .parts
                .map_or(DevicePtr::null(), |parts| parts.out.ptr()),
            part_weights: args
                .parts
                .map_or(DevicePtr::null(), |parts| parts.weights.ptr()),
            tickets: args
                .parts
                .map_or(DevicePtr::null(), |parts| parts.tickets.ptr()),
            scale: 1.0 / (head_dim as f32).sqrt(),
            n_kv: n_kv as i32,
            group: self.shape.group() as i32,
            max_pages: args.max_pages as i32,
            q_stride: CHECK.int("q_stride", args.q_stride)?,
            out_stride: out_place.stride,
            fresh: CHECK.int("fresh", args.fresh)?,
            out_tile_rows: out_place.tile_rows,
        };
        let grid = Dim3::new(n_kv as u32 * cluster, args.n_rows as u32, n_parts as u32);
        let config = LaunchConfig {
            cluster,
            dependent: true,
            ..LaunchConfig::new(grid, THREADS)
        };
        let kernel = match &self.many {
            Some(many) if n_blocks > many.above_blocks => &many.kernel,
            _ => &self.kernel,
        };
        // SAFETY: a block reads and writes the heads of one row below n_rows and the pages of its
        // table; the kernel holds contexts and pages inside; the lengths were checked above. There is a
        // place for every part, and with more than one of them a ticket for every row and KV head.
        unsafe { kernel.launch(stream, &config, &params) }
    }
}
