//! The end of a decode step on the GPU: chooses the next token of each row and advances the rows by
//! one. [`ArgmaxAdvance`] if every row is plainly greedy, [`Sample`] otherwise.

mod argmax;
mod sample;

pub use argmax::{ArgmaxAdvance, ArgmaxAdvanceArgs};
pub use sample::{
    LogprobOutputs, MAX_TOP_LOGPROBS, PenalizedToken, Sample, SampleArgs, SamplingRow, TokenError,
};

use gpu::{BufferView, CudaError, DevicePtr};

use crate::cuda::shape::ShapeCheck;
use crate::shared_with_device::device_structs;

/// The state of the rows on the device. A row whose `context_len` is 0 is padding and stays.
#[derive(Debug, Clone, Copy)]
pub struct AdvanceState<'a> {
    /// `[n_rows]`: becomes the old context length.
    pub positions: BufferView<'a, i32>,
    /// `[n_rows]`: grows by one.
    pub context_len: BufferView<'a, i32>,
    /// `[n_rows]`: the new token's slot; -1 past the end of the page table.
    pub slots: BufferView<'a, i32>,
    /// `[n_rows, max_pages]`
    pub page_table: BufferView<'a, i32>,
    pub max_pages: usize,
}

device_structs! {
    /// `Advance` of `advance.cuh`.
    struct AdvanceParams as Advance in "sampling/advance.cuh" {
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
}

/// `n_rows` is above 0.
fn advance_params(
    check: ShapeCheck,
    next_ids: BufferView<'_, i32>,
    history: BufferView<'_, i32>,
    step: Option<BufferView<'_, i32>>,
    n_rows: usize,
    state: Option<AdvanceState<'_>>,
) -> Result<AdvanceParams, CudaError> {
    check.at_least("length of next_ids", next_ids.len(), n_rows)?;
    check.at_least("length of history", history.len(), n_rows)?;
    check.at_least("length of step", step.map_or(1, BufferView::len), 1)?;
    let mut params = AdvanceParams {
        next_ids: next_ids.ptr(),
        history: history.ptr(),
        step: step.map_or(DevicePtr::null(), BufferView::ptr),
        m: check.int("n_rows", n_rows)?,
        advance: 0,
        positions: DevicePtr::null(),
        context_len: DevicePtr::null(),
        slots: DevicePtr::null(),
        page_table: DevicePtr::null(),
        max_pages: 0,
        n_steps: check.int("steps of history", history.len() / n_rows)?,
    };
    if let Some(state) = state {
        check.at_least("length of positions", state.positions.len(), n_rows)?;
        check.at_least("length of context_len", state.context_len.len(), n_rows)?;
        check.at_least("length of slots", state.slots.len(), n_rows)?;
        check.at_least("max_pages", state.max_pages, 1)?;
        let n_entries = n_rows.saturating_mul(state.max_pages);
        check.at_least("length of page_table", state.page_table.len(), n_entries)?;
        params.advance = 1;
        params.positions = state.positions.ptr();
        params.context_len = state.context_len.ptr();
        params.slots = state.slots.ptr();
        params.page_table = state.page_table.ptr();
        params.max_pages = check.int("max_pages", state.max_pages)?;
    }
    Ok(params)
}
