//! A block of dot products: each weight that is loaded and widened is used for several tokens.

use super::{DenseFormat, DenseMatrix, Elements};
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

#[derive(Clone, Copy, Default, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(transparent)]
struct E4m3(u8);

impl Element for E4m3 {
    #[inline(always)]
    fn load<L: Lanes>(x: &[Self; LANES]) -> L {
        L::load_e4m3(bytemuck::cast_ref(x))
    }
}

/// Scales of some rows, `[rows, n_groups]`; the whole row is a group if there are none.
#[derive(Clone, Copy)]
struct Scales<'a> {
    group: usize,
    n_groups: usize,
    values: Option<&'a [f32]>,
}

impl<'a> Scales<'a> {
    /// Those of row `r` and `n` following ones.
    #[inline(always)]
    fn rows(self, r: usize, n: usize) -> Self {
        let of_rows = |values: &'a [f32]| &values[r * self.n_groups..][..n * self.n_groups];
        Self {
            values: self.values.map(of_rows),
            ..self
        }
    }

    /// `weights[r]` times the scale of group `g` of row `r`.
    #[inline(always)]
    fn apply<L: Lanes, const R: usize>(self, g: usize, weights: &mut [L; R]) {
        if let Some(values) = self.values {
            for r in 0..R {
                weights[r] = weights[r].mul(L::splat(values[r * self.n_groups + g]));
            }
        }
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
    let plain = Scales {
        group: w.n_in,
        n_groups: 1,
        values: None,
    };
    match &w.elements {
        Elements::Plain(DenseFormat::F32) => {
            by_shape::<L, f32>(&w.as_f32()[start..end], w.n_in, plain, x, out);
        }
        Elements::Plain(DenseFormat::F16) => {
            let rows: &[Half] = bytemuck::cast_slice(&w.as_u16()[start..end]);
            by_shape::<L, Half>(rows, w.n_in, plain, x, out);
        }
        Elements::Plain(DenseFormat::BF16) => {
            let rows: &[Brain] = bytemuck::cast_slice(&w.as_u16()[start..end]);
            by_shape::<L, Brain>(rows, w.n_in, plain, x, out);
        }
        Elements::E4m3(scales) => {
            let rows: &[E4m3] = bytemuck::cast_slice(&w.rows.as_slice()[start..end]);
            let scales = Scales {
                group: scales.group,
                n_groups: w.n_in.div_ceil(scales.group),
                values: Some(&scales.values),
            };
            let scales = scales.rows(first, n_rows);
            by_shape::<L, E4m3>(rows, w.n_in, scales, x, out);
        }
    }
}

#[inline(always)]
fn by_shape<L: Lanes, E: Element>(
    w: &[E],
    n_in: usize,
    scales: Scales<'_>,
    x: &[f32],
    out: &mut [[f32; ROWS]; TOKENS],
) {
    let full_rows = w.len() == ROWS * n_in;
    match (full_rows, x.len() / n_in) {
        (true, TOKENS) => dots::<L, E, ROWS, TOKENS>(w, n_in, scales, x, out),
        (true, n_tokens) => {
            for t in 0..n_tokens {
                let one = &mut [[0.0; ROWS]; TOKENS];
                dots::<L, E, ROWS, 1>(w, n_in, scales, &x[t * n_in..][..n_in], one);
                out[t] = one[0];
            }
        }
        (false, n_tokens) => {
            for (r, w) in w.chunks_exact(n_in).enumerate() {
                let scales = scales.rows(r, 1);
                for t in 0..n_tokens {
                    let one = &mut [[0.0; ROWS]; TOKENS];
                    dots::<L, E, 1, 1>(w, n_in, scales, &x[t * n_in..][..n_in], one);
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
    scales: Scales<'_>,
    x: &[f32],
    out: &mut [[f32; ROWS]; TOKENS],
) {
    let mut sums = [[L::splat(0.0); R]; T];
    let whole = n_in / LANES * LANES;
    for g in 0..scales.n_groups {
        let first = g * scales.group;
        for k in (first..whole.min(first + scales.group)).step_by(LANES) {
            let mut weights = [L::splat(0.0); R];
            for r in 0..R {
                weights[r] = E::load(at(w, r * n_in + k));
            }
            scales.apply(g, &mut weights);
            for t in 0..T {
                let x = L::load(at(x, t * n_in + k));
                for r in 0..R {
                    sums[t][r] = weights[r].mul_add(x, sums[t][r]);
                }
            }
        }
    }
    if whole < n_in {
        let mut weights = [L::splat(0.0); R];
        for r in 0..R {
            let row = &w[..(r + 1) * n_in];
            weights[r] = E::load(&padded(row, r * n_in + whole, E::default()));
        }
        scales.apply(whole / scales.group, &mut weights);
        for t in 0..T {
            let x = L::load(&padded(&x[..(t + 1) * n_in], t * n_in + whole, 0.0));
            for r in 0..R {
                sums[t][r] = weights[r].mul_add(x, sums[t][r]);
            }
        }
    }
    for t in 0..T {
        for r in 0..R {
            out[t][r] = sums[t][r].sum();
        }
    }
}
