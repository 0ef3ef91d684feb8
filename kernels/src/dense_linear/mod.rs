//! `y = W x` for weights that stay in f32, f16, bf16 or FP8 (E4M3) with scales, with f32 activations
//! and sums.
//!
//! Rows are stored as they come, `[n_out, n_in]`. A block is 4 rows by up to 4 tokens; a token's
//! result does not depend on the block that it was computed in. An FP8 weight is its code's value
//! times its scale, rounded to f32 once.

mod cpu;
pub mod reference;

use host::memory::{AlignedBytes, Arena};

use crate::KernelError;
use crate::error::check_shape;
use crate::isa::Isa;
use crate::lanes::{LANES, e4m3};
use crate::quant_linear::OutputView;

const OP: &str = "dense_linear";
/// Rows that one unit of work holds.
pub const TILE_ROWS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DenseFormat {
    F32,
    F16,
    BF16,
}

impl DenseFormat {
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

#[derive(Debug)]
pub struct DenseMatrix {
    n_out: usize,
    n_in: usize,
    elements: Elements,
    rows: AlignedBytes,
}

#[derive(Debug)]
enum Elements {
    Plain(DenseFormat),
    E4m3(GroupScales),
}

/// Scales of FP8 rows.
#[derive(Debug)]
struct GroupScales {
    /// Columns under one scale: a multiple of [`LANES`], or the whole row.
    group: usize,
    /// `[n_out, n_in.div_ceil(group)]`, each times [`e4m3::UNIT`].
    values: Vec<f32>,
}

impl DenseMatrix {
    /// Copies little-endian rows `[n_out, n_in]`.
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] if `bytes` is empty or not as long as the rows,
    /// [`KernelError::Host`] if the memory cannot be had.
    pub fn copy_from(
        arena: &mut Arena,
        n_out: usize,
        n_in: usize,
        format: DenseFormat,
        bytes: &[u8],
    ) -> Result<Self, KernelError> {
        check_shape(
            OP,
            "length of the rows",
            bytes.len(),
            n_out * n_in * format.bytes(),
        )?;
        let elements = Elements::Plain(format);
        Self::with_elements(arena, (n_out, n_in), elements, bytes)
    }

    /// Copies rows of FP8 codes (E4M3), `[n_out, n_in]`, with a scale for each `group` columns of a
    /// row: `scales: [n_out, n_in.div_ceil(group)]`. `group` is a multiple of 16, or at least `n_in`.
    /// NaN's codes are read as ±480.
    ///
    /// # Errors
    ///
    /// As [`Self::copy_from`], and [`KernelError::Shape`] for another group or number of scales.
    pub fn copy_e4m3(
        arena: &mut Arena,
        (n_out, n_in): (usize, usize),
        codes: &[u8],
        group: usize,
        scales: &[f32],
    ) -> Result<Self, KernelError> {
        check_shape(OP, "length of the rows", codes.len(), n_out * n_in)?;
        if group == 0 || (group < n_in && !group.is_multiple_of(LANES)) {
            return Err(KernelError::Shape {
                op: OP,
                what: "columns of a scale",
                found: group,
                expected: format!("a multiple of {LANES}, or the whole row"),
            });
        }
        let n_scales = n_out * n_in.div_ceil(group);
        check_shape(OP, "number of scales", scales.len(), n_scales)?;
        let elements = Elements::E4m3(GroupScales {
            group: group.min(n_in),
            values: scales.iter().map(|scale| scale * e4m3::UNIT).collect(),
        });
        Self::with_elements(arena, (n_out, n_in), elements, codes)
    }

    fn with_elements(
        arena: &mut Arena,
        (n_out, n_in): (usize, usize),
        elements: Elements,
        bytes: &[u8],
    ) -> Result<Self, KernelError> {
        if bytes.is_empty() {
            return Err(KernelError::Shape {
                op: OP,
                what: "number of weights",
                found: 0,
                expected: "above 0".to_owned(),
            });
        }
        let mut rows = arena.zeroed(bytes.len())?;
        rows.as_mut_slice().copy_from_slice(bytes);
        Ok(Self {
            n_out,
            n_in,
            elements,
            rows,
        })
    }

    pub fn n_out(&self) -> usize {
        self.n_out
    }

    pub fn n_in(&self) -> usize {
        self.n_in
    }

    pub fn n_tiles(&self) -> usize {
        self.n_out.div_ceil(TILE_ROWS)
    }

    /// Bytes that one pass over the matrix reads.
    pub fn bytes(&self) -> usize {
        let scales = match &self.elements {
            Elements::Plain(_) => 0,
            Elements::E4m3(scales) => size_of_val(scales.values.as_slice()),
        };
        self.rows.as_slice().len() + scales
    }

    fn as_f32(&self) -> &[f32] {
        bytemuck::cast_slice(self.rows.as_slice())
    }

    fn as_u16(&self) -> &[u16] {
        self.rows.as_u16()
    }

    /// One row as f32, into `out: [n_in]`.
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] if `out` is not `n_in` long or there is no such row.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<(), KernelError> {
        check_shape(OP, "length of out", out.len(), self.n_in)?;
        if row >= self.n_out {
            return Err(KernelError::Shape {
                op: OP,
                what: "row",
                found: row,
                expected: format!("below {}", self.n_out),
            });
        }
        reference::read_row(self, row, out);
        Ok(())
    }
}

/// Computes the rows of `tiles` for all of `x: [n_tokens, n_in]`. Shapes were checked by
/// [`crate::linear`].
///
/// # Safety
/// No other thread touches these tiles' part of the output meanwhile.
pub(crate) unsafe fn run_tiles(
    isa: Isa,
    w: &DenseMatrix,
    x: &[f32],
    tiles: std::ops::Range<usize>,
    out: OutputView<'_>,
) {
    let rows = tiles.start * TILE_ROWS..(tiles.end * TILE_ROWS).min(w.n_out);
    for first in rows.clone().step_by(cpu::ROWS) {
        let n_rows = (rows.end - first).min(cpu::ROWS);
        for (block, x) in x.chunks(cpu::TOKENS * w.n_in).enumerate() {
            let mut values = [[0.0f32; cpu::ROWS]; cpu::TOKENS];
            cpu::block(isa, w, first, n_rows, x, &mut values);
            for (t, values) in values[..x.len() / w.n_in].iter().enumerate() {
                // SAFETY: these rows belong to this thread's tiles, by the caller's promise.
                unsafe { out.write(block * cpu::TOKENS + t, first, &values[..n_rows]) }
            }
        }
    }
}

#[cfg(test)]
mod tests;
