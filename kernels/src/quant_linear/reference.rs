//! The plain version: dequantise each weight, multiply, add up in f64.

use super::{Offset, QuantMatrix, TILE_ROWS, Tile};
use crate::KernelError;

/// Scale and minimum of one row of a group, out of its `scales`.
pub(super) fn scale_and_min(scales: &[u8], offset: Offset, lane: usize) -> (f32, f32) {
    let scale = Tile::scale(scales, lane);
    let stored = || Tile::scale(scales, TILE_ROWS + lane);
    let min = match offset {
        Offset::Zero(zero) => -f32::from(zero) * scale,
        Offset::Min => stored(),
        Offset::GroupZero => -stored() * scale,
    };
    (scale, min)
}

/// `y: [n_tokens, n_out]` for `x: [n_tokens, n_in]`.
///
/// # Errors
///
/// Those of [`QuantMatrix::dequantize_row`], none of which a matrix that was packed can give.
pub fn forward(w: &QuantMatrix, x: &[f32]) -> Result<Vec<f32>, KernelError> {
    let n_tokens = x.len() / w.n_in();
    let mut y = vec![0.0; n_tokens * w.n_out()];
    let mut row = vec![0.0; w.n_in()];
    for n in 0..w.n_out() {
        w.dequantize_row(n, &mut row)?;
        for (t, x) in x.chunks_exact(w.n_in()).enumerate() {
            let dot: f64 = row
                .iter()
                .zip(x)
                .map(|(w, x)| f64::from(*w) * f64::from(*x))
                .sum();
            y[t * w.n_out() + n] = dot as f32;
        }
    }
    Ok(y)
}
