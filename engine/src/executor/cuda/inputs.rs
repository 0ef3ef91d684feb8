//! What a pass of up to [`MAX_ROWS`] tokens is told, on the host and on the card.
//!
//! The arrays lie at fixed addresses, so that captured graphs read them anew at each replay. One
//! copy brings them all: they are one buffer, in the order of [`Field`].

use kernels::cuda::{Buffer, BufferView, CudaError, Device, HostBuffer, Stream};

use crate::kv::{PAGE_TOKENS, PageIdx};

/// Tokens that go through the layers in one pass.
pub(super) const MAX_ROWS: usize = 64;

#[derive(Debug, Clone, Copy)]
enum Field {
    Ids,
    Positions,
    Slots,
    ContextLen,
    /// Row of each token whose logits are wanted.
    OutRows,
}
const N_FIELDS: usize = 5;

pub(super) struct Inputs {
    host: HostBuffer<i32>,
    device: Buffer<i32>,
    max_pages: usize,
}

/// One token of a pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct TokenRow<'a> {
    pub token: u32,
    pub position: usize,
    pub pages: &'a [PageIdx],
}

impl Inputs {
    /// `max_pages`: of the longest sequence, the bursts' tokens included.
    pub fn new(device: &Device, stream: &Stream, max_pages: usize) -> Result<Self, CudaError> {
        let len = MAX_ROWS * (N_FIELDS + max_pages);
        let host = HostBuffer::zeroed(device, len)?;
        Ok(Self {
            host,
            device: Buffer::zeroed(stream, len)?,
            max_pages,
        })
    }

    pub fn max_pages(&self) -> usize {
        self.max_pages
    }

    /// Writes the rows and pads them up to `n_padded` with rows that touch nothing, then copies.
    /// `outputs` are rows, rising. Every row's pages cover its position (the plan was checked).
    pub fn upload(
        &mut self,
        stream: &Stream,
        rows: &[TokenRow<'_>],
        n_padded: usize,
        outputs: &[usize],
    ) -> Result<(), CudaError> {
        let max_pages = self.max_pages;
        let all = self.host.as_mut_slice()?;
        let (fields, table) = all.split_at_mut(MAX_ROWS * N_FIELDS);
        for i in 0..n_padded {
            let row = rows.get(i);
            let mut set = |field: Field, value: i32| fields[field as usize * MAX_ROWS + i] = value;
            set(Field::Ids, row.map_or(0, |r| r.token as i32));
            set(Field::Positions, row.map_or(0, |r| r.position as i32));
            set(Field::ContextLen, row.map_or(0, |r| r.position as i32 + 1));
            set(Field::Slots, row.map_or(-1, TokenRow::slot));
            set(Field::OutRows, outputs.get(i).map_or(0, |r| *r as i32));
            let to = &mut table[i * max_pages..][..max_pages];
            for (to, page) in to.iter_mut().zip(row.map_or(&[][..], |r| r.pages)) {
                *to = page.0 as i32;
            }
        }
        let n = MAX_ROWS * N_FIELDS + n_padded * max_pages;
        self.host.copy_to(stream, self.device.view(0..n)?)
    }

    fn field(&self, field: Field) -> Result<BufferView<'_, i32>, CudaError> {
        let start = field as usize * MAX_ROWS;
        self.device.view(start..start + MAX_ROWS)
    }

    pub fn ids(&self) -> Result<BufferView<'_, i32>, CudaError> {
        self.field(Field::Ids)
    }

    pub fn positions(&self) -> Result<BufferView<'_, i32>, CudaError> {
        self.field(Field::Positions)
    }

    pub fn slots(&self) -> Result<BufferView<'_, i32>, CudaError> {
        self.field(Field::Slots)
    }

    pub fn context_len(&self) -> Result<BufferView<'_, i32>, CudaError> {
        self.field(Field::ContextLen)
    }

    pub fn out_rows(&self) -> Result<BufferView<'_, i32>, CudaError> {
        self.field(Field::OutRows)
    }

    /// `[MAX_ROWS, max_pages]`
    pub fn page_table(&self) -> Result<BufferView<'_, i32>, CudaError> {
        self.device.view(MAX_ROWS * N_FIELDS..self.device.len())
    }
}

impl TokenRow<'_> {
    fn slot(&self) -> i32 {
        let page = self
            .pages
            .get(self.position / PAGE_TOKENS)
            .map_or(0, |page| page.0);
        (page as usize * PAGE_TOKENS + self.position % PAGE_TOKENS) as i32
    }
}
