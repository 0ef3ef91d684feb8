//! A plain forward pass in f64, one token after the other: what the executors are compared with.
//! For small models without biases: it is as slow as it is short.

use crate::model::config::ModelConfig;
use crate::weights::{Checkpoint, MatrixId, VectorId, WeightError};

/// Logits of every token, `[n_tokens][vocab]`.
pub fn logits(checkpoint: &dyn Checkpoint, tokens: &[u32]) -> Result<Vec<f64>, WeightError> {
    let config = checkpoint.config();
    let matrix = |id| -> Result<Vec<f32>, WeightError> { checkpoint.matrix(id)?.to_f32() };
    let embedding = matrix(MatrixId::Embedding)?;
    let mut rows: Vec<Vec<f64>> = tokens
        .iter()
        .map(|token| {
            let row = &embedding[*token as usize * config.hidden..][..config.hidden];
            row.iter().map(|v| f64::from(*v)).collect()
        })
        .collect();
    for layer in 0..config.n_layers {
        attend(checkpoint, config, layer, &mut rows)?;
        let norm = checkpoint.vector(VectorId::MlpNorm(layer))?;
        let (gate, up) = (matrix(MatrixId::Gate(layer))?, matrix(MatrixId::Up(layer))?);
        let down = matrix(MatrixId::Down(layer))?;
        for h in &mut rows {
            let x = normed(h, &norm, config.rms_norm_eps);
            let gated: Vec<f64> = times(&gate, &x)
                .into_iter()
                .zip(times(&up, &x))
                .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
                .collect();
            add(h, &times(&down, &gated));
        }
    }
    let norm = checkpoint.vector(VectorId::FinalNorm)?;
    let head = matrix(MatrixId::LmHead)?;
    Ok(rows
        .iter()
        .flat_map(|h| times(&head, &normed(h, &norm, config.rms_norm_eps)))
        .collect())
}

fn attend(
    checkpoint: &dyn Checkpoint,
    config: &ModelConfig,
    layer: usize,
    rows: &mut [Vec<f64>],
) -> Result<(), WeightError> {
    let matrix = |id| -> Result<Vec<f32>, WeightError> { checkpoint.matrix(id)?.to_f32() };
    let norm = checkpoint.vector(VectorId::AttnNorm(layer))?;
    let (wq, wk) = (matrix(MatrixId::Q(layer))?, matrix(MatrixId::K(layer))?);
    let (wv, wo) = (matrix(MatrixId::V(layer))?, matrix(MatrixId::O(layer))?);
    let head_norms = if config.qk_norm {
        let q = checkpoint.vector(VectorId::QNorm(layer))?;
        Some([q, checkpoint.vector(VectorId::KNorm(layer))?])
    } else {
        None
    };
    let (head_dim, group) = (config.head_dim, config.n_q_heads / config.n_kv_heads);
    let prepared = |mut x: Vec<f64>, position: usize, norm: Option<&Vec<f32>>| {
        for head in x.chunks_exact_mut(head_dim) {
            if let Some(norm) = norm {
                let whole = normed(head, norm, config.rms_norm_eps);
                head.copy_from_slice(&whole);
            }
            rotate(head, position, f64::from(config.rope.theta));
        }
        x
    };
    let (mut keys, mut values): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
    for (position, h) in rows.iter_mut().enumerate() {
        let x = normed(h, &norm, config.rms_norm_eps);
        let of = |i: usize| head_norms.as_ref().map(|norms| &norms[i]);
        let q = prepared(times(&wq, &x), position, of(0));
        keys.push(prepared(times(&wk, &x), position, of(1)));
        values.push(times(&wv, &x));
        let mut out = vec![0.0; q.len()];
        let heads = q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
        for (head, (q, out)) in heads.enumerate() {
            let at = head / group * head_dim;
            let scores: Vec<f64> = keys
                .iter()
                .map(|k| dot(q, &k[at..at + head_dim]) / (head_dim as f64).sqrt())
                .collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (weight, v) in weights.iter().zip(&values) {
                for (out, v) in out.iter_mut().zip(&v[at..at + head_dim]) {
                    *out += weight / total * v;
                }
            }
        }
        add(h, &times(&wo, &out));
    }
    Ok(())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// W x of a row-major W.
fn times(w: &[f32], x: &[f64]) -> Vec<f64> {
    w.chunks_exact(x.len())
        .map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum())
        .collect()
}

fn add(to: &mut [f64], what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(to, what)| *to += what);
}

fn normed(x: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let inverse = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter()
        .zip(weight)
        .map(|(x, w)| x * inverse * f64::from(*w))
        .collect()
}

/// Half-split: dimension i is rotated with i + head_dim / 2.
fn rotate(head: &mut [f64], position: usize, theta: f64) {
    let half = head.len() / 2;
    let (first, second) = head.split_at_mut(half);
    for (i, (a, b)) in first.iter_mut().zip(second).enumerate() {
        let angle = position as f64 * theta.powf(-(i as f64) / half as f64);
        let (sin, cos) = angle.sin_cos();
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
