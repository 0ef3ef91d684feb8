//! `gate = gate / (1 + e^-gate) * up`, the middle of a SwiGLU block.

pub mod cuda;
pub mod reference;

use host::pool::{DisjointMut, WorkerPool};

use crate::KernelError;
use crate::error::check_shape;
use crate::isa::Isa;
use crate::lanes::{LANES, Lanes, at, at_mut, exp, for_isa, padded};

/// Elements a thread must have for a parallel region to pay.
const MIN_ELEMENTS: usize = 8192;

/// `gate, up: [n]`; the result replaces `gate`.
///
/// # Errors
///
/// [`KernelError::Shape`] if `up` is not as long as `gate`; [`KernelError::Host`] if a worker
/// thread panicked.
pub fn in_place(
    pool: &mut WorkerPool,
    isa: Isa,
    gate: &mut [f32],
    up: &[f32],
) -> Result<(), KernelError> {
    check_shape("silu_mul", "length of up", up.len(), gate.len())?;
    let n = gate.len();
    let gate = DisjointMut::new(gate);
    pool.for_ranges(n, MIN_ELEMENTS, &|range| {
        // SAFETY: ranges of different threads do not overlap.
        let gate = unsafe { gate.slice(range.start, range.len()) };
        let up = &up[range];
        for_isa!(isa, multiply(gate: &mut [f32], up: &[f32]));
    })?;
    Ok(())
}

#[inline(always)]
fn silu<L: Lanes>(gate: L, up: L) -> L {
    let one = L::splat(1.0);
    gate.div(exp(L::splat(0.0).sub(gate)).add(one)).mul(up)
}

#[inline(always)]
fn multiply<L: Lanes>(gate: &mut [f32], up: &[f32]) {
    let whole = gate.len() / LANES * LANES;
    for k in (0..whole).step_by(LANES) {
        silu(L::load(at(gate, k)), L::load(at(up, k))).store(at_mut(gate, k));
    }
    if whole < gate.len() {
        let mut out = [0.0; LANES];
        silu(
            L::load(&padded(gate, whole, 0.0)),
            L::load(&padded(up, whole, 0.0)),
        )
        .store(&mut out);
        let tail = &mut gate[whole..];
        tail.copy_from_slice(&out[..tail.len()]);
    }
}

#[cfg(test)]
mod tests;
