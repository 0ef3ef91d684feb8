//! The plain version: sums in f64.

use half::{bf16, f16};

use super::{DenseFormat, DenseMatrix, Elements, GroupScales};
use crate::lanes::e4m3;

/// Row `row` as f32.
pub(super) fn read_row(w: &DenseMatrix, row: usize, out: &mut [f32]) {
    let start = row * w.n_in;
    match &w.elements {
        Elements::E4m3(scales) => {
            let codes = &w.rows.as_slice()[start..][..w.n_in];
            read_e4m3(scales, row, codes, out);
        }
        Elements::Plain(DenseFormat::F32) => out.copy_from_slice(&w.as_f32()[start..][..w.n_in]),
        Elements::Plain(DenseFormat::F16) => {
            for (out, bits) in out.iter_mut().zip(&w.as_u16()[start..]) {
                *out = f16::from_bits(*bits).to_f32();
            }
        }
        Elements::Plain(DenseFormat::BF16) => {
            for (out, bits) in out.iter_mut().zip(&w.as_u16()[start..]) {
                *out = bf16::from_bits(*bits).to_f32();
            }
        }
    }
}

fn read_e4m3(scales: &GroupScales, row: usize, codes: &[u8], out: &mut [f32]) {
    let n_groups = codes.len().div_ceil(scales.group);
    for (g, (codes, out)) in codes
        .chunks(scales.group)
        .zip(out.chunks_mut(scales.group))
        .enumerate()
    {
        let scale = scales.values[row * n_groups + g];
        for (out, code) in out.iter_mut().zip(codes) {
            *out = e4m3::to_f32(*code) / e4m3::UNIT * scale;
        }
    }
}

/// `y: [n_tokens, n_out]` for `x: [n_tokens, n_in]`.
pub fn forward(w: &DenseMatrix, x: &[f32]) -> Vec<f32> {
    let n_tokens = x.len() / w.n_in;
    let mut y = vec![0.0; n_tokens * w.n_out];
    let mut row = vec![0.0; w.n_in];
    for n in 0..w.n_out {
        read_row(w, n, &mut row);
        for (t, x) in x.chunks_exact(w.n_in).enumerate() {
            let dot: f64 = row
                .iter()
                .zip(x)
                .map(|(w, x)| f64::from(*w) * f64::from(*x))
                .sum();
            y[t * w.n_out + n] = dot as f32;
        }
    }
    y
}
