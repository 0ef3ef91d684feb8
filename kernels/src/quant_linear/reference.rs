//! The plain version: dequantise each weight, multiply, add up in f64.

use super::{Offset, QuantMatrix, TILE_ROWS, f16_bits_to_f32};
use crate::KernelError;

/// Scale and minimum of one group of one row of a tile.
pub(super) fn scale_and_min(
    scales: &[u16],
    offset: Offset,
    group: usize,
    lane: usize,
) -> (f32, f32) {
    match offset {
        Offset::Zero(zero) => {
            let scale = f16_bits_to_f32(scales[group * TILE_ROWS + lane]);
            (scale, -f32::from(zero) * scale)
        }
        Offset::Min | Offset::GroupZero => {
            let pair = &scales[group * TILE_ROWS * 2..][..TILE_ROWS * 2];
            let (scale, stored) = (
                f16_bits_to_f32(pair[lane]),
                f16_bits_to_f32(pair[TILE_ROWS + lane]),
            );
            (
                scale,
                if offset == Offset::Min {
                    stored
                } else {
                    -stored * scale
                },
            )
        }
    }
}

/// `y: [n_tokens, n_out]` for `x: [n_tokens, n_in]`.
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
