//! Attention of packed prompt chunks: the fast kernel and the plain one, with the same arguments.

use gpu::{BufferView, CudaError, Device, DevicePtr, Dim3, Kernel, LaunchConfig, Stream};

use crate::cuda::shape::ShapeCheck;
use crate::cuda::{
    Activation, Element, ElementView, HeadShape, KvFormat, PAGE_TOKENS, PagedKv, PagedKvParams,
};
use crate::shared_with_device::{device_structs, shared_constants};

const CHECK: ShapeCheck = ShapeCheck("attention_prefill");
/// (Token, head of a group) pairs of a block of the fast kernel.
const TILE_ROWS: usize = 64;
/// Tokens of a block of the plain kernel.
const PLAIN_TOKENS: usize = 4;
const THREADS: u32 = 128;
/// The same of the kernel with `wgmma`, and its dynamic shared memory.
const WGMMA_ROWS: usize = 128;
const WGMMA_THREADS: u32 = 384;
const WGMMA_HEAD_DIM: usize = 128;
const WGMMA_SHARED_BYTES: usize = 163_904;

shared_constants! {
    in "attention/prefill.cu" { TILE_ROWS as ROWS, THREADS }
    in "attention/prefill_wgmma.cu" {
        WGMMA_ROWS as ROWS,
        WGMMA_THREADS as THREADS,
        WGMMA_HEAD_DIM as HD,
        WGMMA_SHARED_BYTES as SHARED_BYTES,
    }
}

device_structs! {
    struct Params as PackedAttentionParams in "attention/packed.cuh" {
        q: DevicePtr<u16>,
        kv: PagedKvParams,
        page_table: DevicePtr<i32>,
        q_start: DevicePtr<i32>,
        context_len: DevicePtr<i32>,
        out: DevicePtr<u16>,
        scale: f32,
        n_kv: i32,
        group: i32,
        max_pages: i32,
        q_stride: i32,
        out_stride: i32,
        n_seqs: i32,
        n_tokens: i32,
        out_tile_rows: i32,
        padding: i32,
    }
}

/// The tokens of several sequences, concatenated. A decode row is a sequence of one token.
#[derive(Debug, Clone, Copy)]
pub struct PrefillAttentionArgs<'a> {
    /// `[n_tokens, q_stride]`: head h at h * head_dim. `q_stride` is a multiple of 8.
    pub q: ElementView<'a>,
    pub q_stride: usize,
    /// Already contains the keys and values of these tokens.
    pub kv: PagedKv<'a>,
    /// `[n_seqs, max_pages]`: a sequence's pages in order.
    pub page_table: BufferView<'a, i32>,
    pub max_pages: usize,
    /// `[n_seqs + 1]`: the first token of each sequence, ascending; the last entry is n_tokens.
    pub q_start: BufferView<'a, i32>,
    /// `[n_seqs]`: number of tokens of the sequence up to and including its last one here; 0 for
    /// padding, whose part of `out` is not written.
    pub context_len: BufferView<'a, i32>,
    /// `[n_tokens, n_q * head_dim]`; a stride is even.
    pub out: Activation<'a>,
    pub n_tokens: usize,
    pub n_seqs: usize,
}

impl PrefillAttentionArgs<'_> {
    fn params(
        &self,
        element: Element,
        shape: HeadShape,
        format: KvFormat,
    ) -> Result<Params, CudaError> {
        let width = shape.n_q * shape.head_dim;
        CHECK.multiple("q_stride", self.q_stride, 8)?;
        let q = CHECK.element("q", self.q, element)?;
        CHECK.rows("length of q", q, self.n_tokens, self.q_stride, width)?;
        CHECK.aligned("q", q, 16)?;
        let out_place = self
            .out
            .place(CHECK, "out", element, self.n_tokens, width, 4)?;
        CHECK.at_least("max_pages", self.max_pages, 1)?;
        CHECK.at_most("max_pages", self.max_pages, i32::MAX as usize / PAGE_TOKENS)?;
        let n_entries = self.n_seqs.saturating_mul(self.max_pages);
        CHECK.at_least("length of page_table", self.page_table.len(), n_entries)?;
        CHECK.at_least("length of q_start", self.q_start.len(), self.n_seqs + 1)?;
        CHECK.at_least("length of context_len", self.context_len.len(), self.n_seqs)?;
        CHECK.int(
            "n_tokens times query heads",
            self.n_tokens.saturating_mul(shape.n_q),
        )?;
        Ok(Params {
            q: q.ptr(),
            kv: self.kv.params(CHECK, shape, format)?,
            page_table: self.page_table.ptr(),
            q_start: self.q_start.ptr(),
            context_len: self.context_len.ptr(),
            out: self.out.view.ptr(),
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            n_kv: shape.n_kv as i32,
            group: shape.group() as i32,
            max_pages: self.max_pages as i32,
            q_stride: CHECK.int("q_stride", self.q_stride)?,
            out_stride: out_place.stride,
            n_seqs: CHECK.int("n_seqs", self.n_seqs)?,
            n_tokens: self.n_tokens as i32,
            out_tile_rows: out_place.tile_rows,
            padding: 0,
        })
    }
}

/// A kernel's block.
#[derive(Debug, Clone, Copy)]
struct Block {
    rows: usize,
    threads: u32,
    shared_bytes: usize,
}

/// Flash attention with tensor cores, for any number of query heads per KV head: with `wgmma` for heads of 128
/// on sm_90, else with `mma.sync`.
#[derive(Debug)]
pub struct PrefillAttention {
    kernel: Kernel,
    block: Block,
    element: Element,
    shape: HeadShape,
    format: KvFormat,
}

impl PrefillAttention {
    /// # Errors
    ///
    /// If no kernel is compiled for this head dimension, format and element.
    pub fn new(
        device: &Device,
        element: Element,
        shape: HeadShape,
        format: KvFormat,
    ) -> Result<Self, CudaError> {
        let has_wgmma = device.properties().compute_capability == (9, 0);
        let (which, block) = if has_wgmma && shape.head_dim == WGMMA_HEAD_DIM {
            let block = Block {
                rows: WGMMA_ROWS,
                threads: WGMMA_THREADS,
                shared_bytes: WGMMA_SHARED_BYTES,
            };
            ("prefill_wgmma", block)
        } else {
            let block = Block {
                rows: TILE_ROWS,
                threads: THREADS,
                shared_bytes: 0,
            };
            ("prefill", block)
        };
        let kernel = kernel(device, element, shape, format, which)?;
        if block.shared_bytes > 0 {
            kernel.set_max_dynamic_shared(block.shared_bytes)?;
        }
        Ok(Self {
            kernel,
            block,
            element,
            shape,
            format,
        })
    }

    /// # Errors
    ///
    /// If a view is shorter than its shape, misaligned or of another element, or `stream` is of
    /// another device.
    pub fn launch(
        &self,
        stream: &Stream,
        args: &PrefillAttentionArgs<'_>,
    ) -> Result<(), CudaError> {
        let params = args.params(self.element, self.shape, self.format)?;
        if args.n_tokens == 0 || args.n_seqs == 0 {
            return Ok(());
        }
        // Every sequence's last tile may be partly empty; blocks without a tile exit at once.
        let n_tiles = (args.n_tokens * self.shape.group()).div_ceil(self.block.rows) + args.n_seqs;
        let grid = Dim3::new(
            CHECK.int("tiles", n_tiles)? as u32,
            self.shape.n_kv as u32,
            1,
        );
        let config = LaunchConfig {
            dependent: true,
            shared_bytes: self.block.shared_bytes,
            ..LaunchConfig::new(grid, self.block.threads)
        };
        // SAFETY: the kernel keeps q_start, contexts and pages inside the batch, the table and the
        // pool, whatever their values; the lengths were checked in `params`.
        unsafe { self.kernel.launch(stream, &config, &params) }
    }
}

/// One key after the other, in f32: slow, for comparison.
#[derive(Debug)]
pub struct PlainAttention {
    kernel: Kernel,
    element: Element,
    shape: HeadShape,
    format: KvFormat,
}

impl PlainAttention {
    /// # Errors
    ///
    /// As [`PrefillAttention::new`].
    pub fn new(
        device: &Device,
        element: Element,
        shape: HeadShape,
        format: KvFormat,
    ) -> Result<Self, CudaError> {
        let kernel = kernel(device, element, shape, format, "plain")?;
        Ok(Self {
            kernel,
            element,
            shape,
            format,
        })
    }

    /// # Errors
    ///
    /// As [`PrefillAttention::launch`].
    pub fn launch(
        &self,
        stream: &Stream,
        args: &PrefillAttentionArgs<'_>,
    ) -> Result<(), CudaError> {
        let params = args.params(self.element, self.shape, self.format)?;
        if args.n_tokens == 0 || args.n_seqs == 0 {
            return Ok(());
        }
        let n_blocks = args.n_tokens.div_ceil(PLAIN_TOKENS) as u32;
        let grid = Dim3::new(n_blocks, self.shape.n_q as u32, 1);
        let config = LaunchConfig {
            dependent: true,
            ..LaunchConfig::new(grid, THREADS)
        };
        // SAFETY: as for `PrefillAttention`; a warp has one token below n_tokens.
        unsafe { self.kernel.launch(stream, &config, &params) }
    }
}

/// `attention/<which>` for these heads. Heads are along the grid's y dimension.
fn kernel(
    device: &Device,
    element: Element,
    shape: HeadShape,
    format: KvFormat,
    which: &str,
) -> Result<Kernel, CudaError> {
    shape.check(CHECK)?;
    format.check(CHECK, element)?;
    CHECK.at_most("n_q", shape.n_q, super::MAX_ROWS)?;
    let name = format!(
        "attention_{which}_{}_{}",
        format.kernel_suffix(),
        shape.head_dim
    );
    let kernel = element.kernel(device, &format!("attention/{which}"), &name)?;
    kernel.set_shared_carveout(100)?;
    Ok(kernel)
}
