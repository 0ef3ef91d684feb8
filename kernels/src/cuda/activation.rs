//! The layout of an activation matrix in device memory.

use gpu::CudaError;

use super::shape::ShapeCheck;
use super::{Element, ElementView};

/// Values of k that are contiguous in a tiled matrix.
const TILE_K: usize = 64;
/// Rows of a tiled matrix are a multiple of this, so that a tile of any kernel stays inside.
pub const TILE_ROWS: usize = 128;

/// Plain rows, or the tiles that `stream_linear/wgmma.cu` reads (`cuda/tiled.cuh`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowLayout {
    /// Row r starts at r * stride.
    Plain { stride: usize },
    /// `[columns / 64][rows][64]`, the 64 in the packed weights' order of k and swizzled.
    Tiled { rows: usize },
}

/// An activation matrix that a kernel reads or writes.
#[derive(Debug, Clone, Copy)]
pub struct Activation<'a> {
    pub view: ElementView<'a>,
    pub layout: RowLayout,
}

/// A layout in the kernels' parameters.
pub(crate) struct ActivationStrides {
    pub stride: i32,
    pub tile_rows: i32,
}

impl RowLayout {
    /// Offset of value `k` of a row. As `activation_at` of tiled.cuh.
    pub const fn offset(self, row: usize, k: usize) -> usize {
        match self {
            Self::Plain { stride } => row * stride + k,
            Self::Tiled { rows } => {
                let slot = (k & 0x21) | ((k & 0x18) >> 2) | ((k & 4) << 2) | ((k & 2) << 2);
                (k / TILE_K * rows + row) * TILE_K + (slot ^ ((row & 7) << 3))
            }
        }
    }
}

impl<'a> Activation<'a> {
    pub fn plain(view: impl Into<ElementView<'a>>, stride: usize) -> Self {
        let view = view.into();
        let layout = RowLayout::Plain { stride };
        Self { view, layout }
    }

    pub fn tiled(view: impl Into<ElementView<'a>>, rows: usize) -> Self {
        let view = view.into();
        let layout = RowLayout::Tiled { rows };
        Self { view, layout }
    }

    /// Checks that `n_rows` rows of `width` values are inside the view; the kernel reads words of
    /// `word_bytes` and computes in `element`.
    pub(crate) fn place(
        &self,
        check: ShapeCheck,
        what: &'static str,
        element: Element,
        n_rows: usize,
        width: usize,
        word_bytes: usize,
    ) -> Result<ActivationStrides, CudaError> {
        let words = check.element(what, self.view, element)?;
        match self.layout {
            RowLayout::Plain { stride } => {
                check.multiple(what, stride, word_bytes / 2)?;
                check.rows(what, words, n_rows, stride, width)?;
                check.aligned(what, words, word_bytes)?;
                Ok(ActivationStrides {
                    stride: check.int(what, stride)?,
                    tile_rows: 0,
                })
            }
            RowLayout::Tiled { rows } => {
                check.multiple(what, rows, TILE_ROWS)?;
                check.at_most(what, n_rows, rows)?;
                let len = rows.saturating_mul(width.next_multiple_of(TILE_K));
                check.at_least(what, words.len(), len)?;
                check.aligned(what, words, 128)?;
                Ok(ActivationStrides {
                    stride: 0,
                    tile_rows: check.int(what, rows)?,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_a_tiled_matrix_has_a_place_of_its_own() {
        let (rows, columns) = (128, 192);
        let layout = RowLayout::Tiled { rows };
        let mut seen = vec![false; rows * columns];
        for row in 0..rows {
            for k in 0..columns {
                let at = layout.offset(row, k);
                assert!(!seen[at], "row {row}, k {k}");
                seen[at] = true;
                // Pairs stay together.
                assert_eq!(layout.offset(row, k & !1) + k % 2, at);
            }
        }
        // Row 0 is not swizzled; the lane's second pair of k is eight values further on.
        assert_eq!(layout.offset(0, 2), 8);
        assert_eq!(layout.offset(1, 0), 64 + 8);
    }
}
