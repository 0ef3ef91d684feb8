//! A block of dot products: each weight that is loaded and widened is used for several tokens.

use super::{DenseFormat, DenseMatrix};
use crate::isa::Isa;
use crate::lanes::{LANES, Lanes, at, for_isa, padded};

pub(super) const ROWS: usize = 4;
pub(super) const TOKENS: usize = 4;

/// `out[t][r] = W[first + r] · x[t]` for the tokens in `x: [n, n_in]`, `n <= TOKENS`.
pub(super) fn block(
    isa: Isa,
    w: &DenseMatrix,
    first: usize,
    n_rows: usize,
    x: &[f32],
    out: &mut [[f32; ROWS]; TOKENS],
) {
    for_isa!(isa, by_format(
        w: &DenseMatrix,
        first: usize,
        n_rows: usize,
        x: &[f32],
        out: &mut [[f32; ROWS]; TOKENS],
    ));
}

/// A stored weight type, sixteen at a time.
trait Element: Copy + Default {
    fn load<L: Lanes>(x: &[Self; LANES]) -> L;
}

impl Element for f32 {
    #[inline(always)]
    fn load<L: Lanes>(x: &[Self; LANES]) -> L {
        L::load(x)
    }
}

#[derive(Clone, Copy, Default, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(transparent)]
struct Half(u16);

#[derive(Clone, Copy, Default, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(transparent)]
struct Brain(u16);

impl Element for Half {
    #[inline(always)]
    fn load<L: Lanes>(x: &[Self; LANES]) -> L {
        L::load_f16(bytemuck::cast_ref(x))
    }
}

impl Element for Brain {
    #[inline(always)]
    fn load<L: Lanes>(x: &[Self; LANES]) -> L {
        L::load_bf16(bytemuck::cast_ref(x))
    }
}

#[inline(always)]
fn by_format<L: Lanes>(
    w: &DenseMatrix,
    first: usize,
    n_rows: usize,
    x: &[f32],
    out: &mut [[f32; ROWS]; TOKENS],
) {
    let (start, end) = (first * w.n_in, (first + n_rows) * w.n_in);
    match w.format {
        DenseFormat::F32 => by_shape::<L, f32>(&w.as_f32()[start..end], w.n_in, x, out),
        DenseFormat::F16 => {
            by_shape::<L, Half>(
                bytemuck::cast_slice(&w.as_u16()[start..end]),
                w.n_in,
                x,
                out,
            );
        }
        DenseFormat::BF16 => {
            by_shape::<L, Brain>(
                bytemuck::cast_slice(&w.as_u16()[start..end]),
                w.n_in,
                x,
                out,
            );
        }
    }
}

#[inline(always)]
fn by_shape<L: Lanes, E: Element>(
    w: &[E],
    n_in: usize,
    x: &[f32],
    out: &mut [[f32; ROWS]; TOKENS],
) {
    let full_rows = w.len() == ROWS * n_in;
    match (full_rows, x.len() / n_in) {
        (true, TOKENS) => dots::<L, E, ROWS, TOKENS>(w, n_in, x, out),
        (true, n_tokens) => {
            for t in 0..n_tokens {
                let one = &mut [[0.0; ROWS]; TOKENS];
                dots::<L, E, ROWS, 1>(w, n_in, &x[t * n_in..][..n_in], one);
                out[t] = one[0];
            }
        }
        (false, n_tokens) => {
            for (r, w) in w.chunks_exact(n_in).enumerate() {
                for t in 0..n_tokens {
                    let one = &mut [[0.0; ROWS]; TOKENS];
                    dots::<L, E, 1, 1>(w, n_in, &x[t * n_in..][..n_in], one);
                    out[t][r] = one[0][0];
                }
            }
        }
    }
}

#[inline(always)]
fn dots<L: Lanes, E: Element, const R: usize, const T: usize>(
    w: &[E],
    n_in: usize,
    x: &[f32],
    out: &mut [[f32; ROWS]; TOKENS],
) {
    let mut sums = [[L::splat(0.0); R]; T];
    let whole = n_in / LANES * LANES;
    for k in (0..whole).step_by(LANES) {
        let mut weights = [L::splat(0.0); R];
        for r in 0..R {
            weights[r] = E::load(at(w, r * n_in + k));
        }
        for t in 0..T {
            let x = L::load(at(x, t * n_in + k));
            for r in 0..R {
                sums[t][r] = weights[r].mul_add(x, sums[t][r]);
            }
        }
    }
    if whole < n_in {
        for t in 0..T {
            let x = L::load(&padded(&x[..(t + 1) * n_in], t * n_in + whole, 0.0));
            for r in 0..R {
                let weights: L = E::load(&padded(
                    &w[..(r + 1) * n_in],
                    r * n_in + whole,
                    E::default(),
                ));
                sums[t][r] = weights.mul_add(x, sums[t][r]);
            }
        }
    }
    for t in 0..T {
        for r in 0..R {
            out[t][r] = sums[t][r].sum();
        }
    }
}
