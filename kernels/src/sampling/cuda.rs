//! The likeliest token of each row, and the rows moved on by one token.

use bytemuck::{Pod, Zeroable};

use crate::cuda::shape::ShapeCheck;
use crate::cuda::{BufferView, CudaError, Device, DevicePtr, Kernel, LaunchConfig, Stream};

const CHECK: ShapeCheck = ShapeCheck("argmax_advance");
/// Blocks a row.
const CLUSTER: usize = 8;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    logits: DevicePtr<f32>,
    n: i32,
    stride: i32,
    next_ids: DevicePtr<i32>,
    history: DevicePtr<i32>,
    step: DevicePtr<i32>,
    m: i32,
    advance: i32,
    positions: DevicePtr<i32>,
    context_len: DevicePtr<i32>,
    slots: DevicePtr<i32>,
    page_table: DevicePtr<i32>,
    max_pages: i32,
    n_steps: i32,
}

#[derive(Debug)]
pub struct ArgmaxAdvance {
    kernel: Kernel,
}

#[derive(Debug, Clone, Copy)]
pub struct ArgmaxAdvanceArgs<'a> {
    /// `[n_rows, stride]`, of which `vocab` values count. Among equals the lowest id wins. A NaN
    /// counts as larger than every number.
    pub logits: BufferView<'a, f32>,
    pub vocab: usize,
    pub stride: usize,
    /// `[n_rows]`: written, the input of the next step.
    pub next_ids: BufferView<'a, i32>,
    /// `[n_steps, n_rows]`: row `*step` is written, if it is inside.
    pub history: BufferView<'a, i32>,
    /// `[1]`: which row of `history`; `None` is row 0.
    pub step: Option<BufferView<'a, i32>>,
    pub n_rows: usize,
    /// Where the rows are moved on; `None` leaves that to the host.
    pub advance: Option<AdvanceState<'a>>,
}

/// The state of the rows on the device. A row whose `context_len` is 0 is padding and stays.
#[derive(Debug, Clone, Copy)]
pub struct AdvanceState<'a> {
    /// `[n_rows]`: becomes the old context length.
    pub positions: BufferView<'a, i32>,
    /// `[n_rows]`: grows by one.
    pub context_len: BufferView<'a, i32>,
    /// `[n_rows]`: the new token's slot; -1 behind the end of the page table.
    pub slots: BufferView<'a, i32>,
    /// `[n_rows, max_pages]`
    pub page_table: BufferView<'a, i32>,
    pub max_pages: usize,
}

impl ArgmaxAdvance {
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        let kernel = device.kernel("sampling/argmax", "argmax_advance")?;
        kernel.set_shared_carveout(100)?;
        Ok(Self { kernel })
    }

    pub fn launch(&self, stream: &Stream, args: &ArgmaxAdvanceArgs<'_>) -> Result<(), CudaError> {
        let n_rows = args.n_rows;
        CHECK.at_least("vocab", args.vocab, 1)?;
        CHECK.rows("length of logits", args.logits, n_rows, args.stride, args.vocab)?;
        CHECK.at_least("length of next_ids", args.next_ids.len(), n_rows)?;
        CHECK.at_least("length of history", args.history.len(), n_rows)?;
        CHECK.at_least("length of step", args.step.map_or(1, BufferView::len), 1)?;
        if let Some(state) = &args.advance {
            CHECK.at_least("length of positions", state.positions.len(), n_rows)?;
            CHECK.at_least("length of context_len", state.context_len.len(), n_rows)?;
            CHECK.at_least("length of slots", state.slots.len(), n_rows)?;
            CHECK.at_least("max_pages", state.max_pages, 1)?;
            let n_entries = n_rows.saturating_mul(state.max_pages);
            CHECK.at_least("length of page_table", state.page_table.len(), n_entries)?;
        }
        if n_rows == 0 {
            return Ok(());
        }
        let pointer = |view: fn(&AdvanceState<'_>) -> DevicePtr<i32>| {
            args.advance.as_ref().map_or(DevicePtr::null(), view)
        };
        let params = Params {
            logits: args.logits.ptr(),
            n: CHECK.int("vocab", args.vocab)?,
            stride: CHECK.int("stride", args.stride)?,
            next_ids: args.next_ids.ptr(),
            history: args.history.ptr(),
            step: args.step.map_or(DevicePtr::null(), BufferView::ptr),
            m: CHECK.int("n_rows", n_rows)?,
            advance: i32::from(args.advance.is_some()),
            positions: pointer(|state| state.positions.ptr()),
            context_len: pointer(|state| state.context_len.ptr()),
            slots: pointer(|state| state.slots.ptr()),
            page_table: pointer(|state| state.page_table.ptr()),
            max_pages: CHECK.int("max_pages", args.advance.map_or(1, |state| state.max_pages))?,
            n_steps: CHECK.int("steps of history", args.history.len() / n_rows)?,
        };
        let grid = CHECK.int("blocks", n_rows.saturating_mul(CLUSTER))? as u32;
        let config = LaunchConfig {
            cluster: CLUSTER as u32,
            dependent: true,
            ..LaunchConfig::new(grid, 256)
        };
        // SAFETY: a cluster reads one row of logits and of the page table and writes one entry of
        // each array (the kernel holds the step inside); the lengths were checked above.
        unsafe { self.kernel.launch(stream, &config, &params) }
    }
}
