//! `y = x / sqrt(mean(x²) + eps) * weight`, along rows: whole hidden states, or single heads.

pub mod cuda;
pub mod deferred;
pub mod reference;

use host::pool::{DisjointMut, WorkerPool};

use crate::KernelError;
use crate::error::check_shape;
use crate::isa::Isa;
use crate::lanes::{LANES, Lanes, at, at_mut, for_isa};

const OP: &str = "rms_norm";
/// Elements a thread must have for a parallel region to pay.
const MIN_ELEMENTS: usize = 8192;

/// `x, y: [n_rows, n]`, `weight: [n]`.
///
/// # Errors
///
/// [`KernelError::Shape`] if `weight` is empty, `x` is no whole number of rows or `y` has
/// another length; [`KernelError::Host`] if a worker thread panicked.
pub fn forward(
    pool: &mut WorkerPool,
    isa: Isa,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    y: &mut [f32],
) -> Result<(), KernelError> {
    let n = weight.len();
    check_row(n)?;
    check_shape(OP, "length of y", y.len(), x.len())?;
    check_shape(OP, "remainder of x by n", x.len() % n, 0)?;
    let y = DisjointMut::new(y);
    pool.for_ranges(x.len() / n, MIN_ELEMENTS.div_ceil(n), &|rows| {
        // SAFETY: row ranges of different threads do not overlap.
        let y = unsafe { y.slice(rows.start * n, rows.len() * n) };
        y.copy_from_slice(&x[rows.start * n..rows.end * n]);
        for_isa!(isa, normalize_rows(y: &mut [f32], weight: &[f32], eps: f32));
    })?;
    Ok(())
}

/// Normalises `x: [n_rows, n]` in place.
///
/// # Errors
///
/// [`KernelError::Shape`] if `weight` is empty or `x` is no whole number of rows;
/// [`KernelError::Host`] if a worker thread panicked.
pub fn in_place(
    pool: &mut WorkerPool,
    isa: Isa,
    x: &mut [f32],
    weight: &[f32],
    eps: f32,
) -> Result<(), KernelError> {
    let n = weight.len();
    check_row(n)?;
    check_shape(OP, "remainder of x by n", x.len() % n, 0)?;
    let n_rows = x.len() / n;
    let x = DisjointMut::new(x);
    pool.for_ranges(n_rows, MIN_ELEMENTS.div_ceil(n), &|rows| {
        // SAFETY: row ranges of different threads do not overlap.
        let x = unsafe { x.slice(rows.start * n, rows.len() * n) };
        for_isa!(isa, normalize_rows(x: &mut [f32], weight: &[f32], eps: f32));
    })?;
    Ok(())
}

fn check_row(n: usize) -> Result<(), KernelError> {
    if n > 0 {
        return Ok(());
    }
    Err(KernelError::Shape {
        op: OP,
        what: "n",
        found: 0,
        expected: "above 0".to_owned(),
    })
}

#[inline(always)]
fn normalize_rows<L: Lanes>(x: &mut [f32], weight: &[f32], eps: f32) {
    let n = weight.len();
    let whole = n / LANES * LANES;
    for row in x.chunks_exact_mut(n) {
        let mut squares = L::splat(0.0);
        for k in (0..whole).step_by(LANES) {
            let v = L::load(at(row, k));
            squares = v.mul_add(v, squares);
        }
        let tail: f32 = row[whole..].iter().map(|v| v * v).sum();
        let inverse = 1.0 / ((squares.sum() + tail) / n as f32 + eps).sqrt();
        for k in (0..whole).step_by(LANES) {
            let v = L::load(at(row, k))
                .mul(L::splat(inverse))
                .mul(L::load(at(weight, k)));
            v.store(at_mut(row, k));
        }
        for (v, w) in row[whole..].iter_mut().zip(&weight[whole..]) {
            *v = *v * inverse * w;
        }
    }
}

#[cfg(test)]
mod tests;
