//! The inputs of a pass, on the host and on the GPU: the tokens of several sequences, concatenated.
//! In a decode step every sequence has one token.
//!
//! The arrays have fixed addresses, so that captured graphs read their current contents at each
//! replay. One copy uploads them all: they are one buffer, in the order of [`Field`], followed by
//! the page table.

use gpu::{Buffer, BufferView, CudaError, Device, HostBuffer, Stream};

use crate::kv::{PAGE_TOKENS, PageIdx};

/// Maximum number of sequences in a pass, and of rows that get logits at once.
pub(crate) const MAX_ROWS: usize = 64;

#[derive(Debug, Clone, Copy)]
enum Field {
    Ids,
    Positions,
    Slots,
    ContextLen,
    /// The rows whose logits are needed.
    OutRows,
    /// First token of each sequence, and one entry more for the end.
    SequenceStart,
}

pub(super) struct Inputs {
    host: HostBuffer<i32>,
    device: Buffer<i32>,
    max_tokens: usize,
    max_pages: usize,
}

/// One sequence's tokens in a pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct SequenceTokens<'a> {
    pub tokens: &'a [u32],
    /// Position of the first token.
    pub start: usize,
    pub pages: &'a [PageIdx],
}

impl Inputs {
    /// `max_tokens`: maximum for a pass. `max_pages`: pages of the longest sequence, including the
    /// tokens of bursts.
    pub fn new(
        device: &Device,
        stream: &Stream,
        max_tokens: usize,
        max_pages: usize,
    ) -> Result<Self, CudaError> {
        let len = table_start(max_tokens) + MAX_ROWS * max_pages;
        let host = HostBuffer::zeroed(device, len)?;
        Ok(Self {
            host,
            device: Buffer::zeroed(stream, len)?,
            max_tokens,
            max_pages,
        })
    }

    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    pub fn max_pages(&self) -> usize {
        self.max_pages
    }

    /// Writes the sequences, pads them to `n_padded` tokens with one-token sequences that access no
    /// pages, and uploads. `outputs` are rows in ascending order. At most [`MAX_ROWS`] sequences
    /// and outputs; every sequence's pages cover its positions (the plan was checked).
    pub fn upload(
        &mut self,
        stream: &Stream,
        sequences: &[SequenceTokens<'_>],
        n_padded: usize,
        outputs: &[usize],
    ) -> Result<(), CudaError> {
        let (max_tokens, max_pages) = (self.max_tokens, self.max_pages);
        let all = self.host.as_mut_slice()?;
        let (fields, table) = all.split_at_mut(table_start(max_tokens));
        let mut set =
            |field: Field, i: usize, value: i32| fields[field.start(max_tokens) + i] = value;
        let (mut row, mut n_sequences) = (0, 0);
        for sequence in sequences {
            set(Field::SequenceStart, n_sequences, row as i32);
            let context = sequence.start + sequence.tokens.len();
            set(Field::ContextLen, n_sequences, context as i32);
            let to = &mut table[n_sequences * max_pages..][..max_pages];
            for (to, page) in to.iter_mut().zip(sequence.pages) {
                *to = page.0 as i32;
            }
            n_sequences += 1;
            for (i, token) in sequence.tokens.iter().enumerate() {
                set(Field::Ids, row, *token as i32);
                set(Field::Positions, row, (sequence.start + i) as i32);
                set(Field::Slots, row, sequence.slot(i));
                row += 1;
            }
        }
        while row < n_padded {
            set(Field::SequenceStart, n_sequences, row as i32);
            set(Field::ContextLen, n_sequences, 0);
            set(Field::Ids, row, 0);
            set(Field::Positions, row, 0);
            set(Field::Slots, row, -1);
            n_sequences += 1;
            row += 1;
        }
        set(Field::SequenceStart, n_sequences, row as i32);
        for i in 0..n_padded.min(MAX_ROWS) {
            let output = outputs.get(i).map_or(0, |r| *r as i32);
            set(Field::OutRows, i, output);
        }
        let n = table_start(max_tokens) + n_sequences * max_pages;
        self.host.copy_to(stream, self.device.view(0..n)?)
    }

    /// Sets the positions and pages of the decode rows of the last upload, and leaves the ids as
    /// the GPU wrote them. In stream order, so previous steps may still be running.
    pub fn refresh<'a>(
        &mut self,
        stream: &Stream,
        places: impl Iterator<Item = (usize, &'a [PageIdx])>,
    ) -> Result<(), CudaError> {
        let (max_tokens, max_pages) = (self.max_tokens, self.max_pages);
        let all = self.host.as_mut_slice()?;
        let (fields, table) = all.split_at_mut(table_start(max_tokens));
        let mut n_rows = 0;
        for (row, (position, pages)) in places.enumerate() {
            let mut set = |field: Field, value: i32| fields[field.start(max_tokens) + row] = value;
            set(Field::Positions, position as i32);
            set(Field::Slots, slot(pages, position));
            set(Field::ContextLen, position as i32 + 1);
            let to = &mut table[row * max_pages..][..max_pages];
            for (to, page) in to.iter_mut().zip(pages) {
                *to = page.0 as i32;
            }
            n_rows = row + 1;
        }
        let start = Field::Ids.start(max_tokens) + Field::Ids.len(max_tokens);
        let range = start..table_start(max_tokens) + n_rows * max_pages;
        let to = self.device.view(range.clone())?;
        self.host.copy_range_to(stream, range, to)
    }

    fn field(&self, field: Field) -> Result<BufferView<'_, i32>, CudaError> {
        let start = field.start(self.max_tokens);
        self.device.view(start..start + field.len(self.max_tokens))
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

    pub fn sequence_start(&self) -> Result<BufferView<'_, i32>, CudaError> {
        self.field(Field::SequenceStart)
    }

    /// `[MAX_ROWS, max_pages]`
    pub fn page_table(&self) -> Result<BufferView<'_, i32>, CudaError> {
        let start = table_start(self.max_tokens);
        self.device.view(start..self.device.len())
    }
}

impl Field {
    const fn start(self, max_tokens: usize) -> usize {
        match self {
            Self::Ids => 0,
            Self::Positions => max_tokens,
            Self::Slots => 2 * max_tokens,
            Self::ContextLen => 3 * max_tokens,
            Self::OutRows => 3 * max_tokens + MAX_ROWS,
            Self::SequenceStart => 3 * max_tokens + 2 * MAX_ROWS,
        }
    }

    const fn len(self, max_tokens: usize) -> usize {
        match self {
            Self::Ids | Self::Positions | Self::Slots => max_tokens,
            Self::ContextLen | Self::OutRows => MAX_ROWS,
            Self::SequenceStart => MAX_ROWS + 1,
        }
    }
}

const fn table_start(max_tokens: usize) -> usize {
    Field::SequenceStart.start(max_tokens) + MAX_ROWS + 1
}

impl SequenceTokens<'_> {
    fn slot(&self, i: usize) -> i32 {
        slot(self.pages, self.start + i)
    }
}

/// The slot in the pool of the token at `position` of a sequence with these pages.
fn slot(pages: &[PageIdx], position: usize) -> i32 {
    let page = pages.get(position / PAGE_TOKENS).map_or(0, |page| page.0);
    (page as usize * PAGE_TOKENS + position % PAGE_TOKENS) as i32
}
