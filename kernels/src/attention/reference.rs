//! The plain version: gather, softmax in f64, weighted sum.

use half::{bf16, f16};

use super::pages::{F16, Fp8E4m3};
use super::{KvFormat, KvPages, PAGE_TOKENS, Sequence};
use crate::lanes::e4m3;

fn read(page: &[u16], index: usize) -> f64 {
    f64::from(f16::from_bits(page[index]).to_f32())
}

fn read_scaled(page: &[u8], index: usize, scales: &[u16; PAGE_TOKENS], slot: usize) -> f64 {
    let value = e4m3::to_f32(page[index]) / e4m3::UNIT;
    f64::from(value) * f64::from(bf16::from_bits(scales[slot]).to_f32())
}

pub(super) fn key(kv: &KvPages, page: usize, kv_head: usize, d: usize, slot: usize) -> f64 {
    let index = d * PAGE_TOKENS + slot;
    match kv.format() {
        KvFormat::F16 => read(kv.key_page::<F16>(page, kv_head), index),
        KvFormat::Fp8E4m3 => read_scaled(
            kv.key_page::<Fp8E4m3>(page, kv_head),
            index,
            kv.key_scales(page, kv_head),
            slot,
        ),
    }
}

pub(super) fn value(kv: &KvPages, page: usize, kv_head: usize, d: usize, slot: usize) -> f64 {
    let index = slot * kv.shape().head_dim + d;
    match kv.format() {
        KvFormat::F16 => read(kv.value_page::<F16>(page, kv_head), index),
        KvFormat::Fp8E4m3 => read_scaled(
            kv.value_page::<Fp8E4m3>(page, kv_head),
            index,
            kv.value_scales(page, kv_head),
            slot,
        ),
    }
}

/// `q: [n_tokens, n_q_heads, head_dim]` → the same shape; tokens of no sequence stay zero.
pub fn forward(kv: &KvPages, sequences: &[Sequence<'_>], q: &[f32]) -> Vec<f32> {
    let shape = kv.shape();
    let (head_dim, group) = (shape.head_dim, shape.n_q_heads / shape.n_kv_heads);
    let mut out = vec![0.0; q.len()];
    for sequence in sequences {
        for token in 0..sequence.n_tokens {
            for head in 0..shape.n_q_heads {
                let kv_head = head / group;
                let start = ((sequence.first + token) * shape.n_q_heads + head) * head_dim;
                let q = &q[start..][..head_dim];
                let n_seen = sequence.start + token + 1;
                let place = |t: usize| (sequence.pages[t / PAGE_TOKENS] as usize, t % PAGE_TOKENS);
                let scores: Vec<f64> = (0..n_seen)
                    .map(|t| {
                        let (page, slot) = place(t);
                        let dot: f64 = (0..head_dim)
                            .map(|d| f64::from(q[d]) * key(kv, page, kv_head, d, slot))
                            .sum();
                        dot / (head_dim as f64).sqrt()
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..head_dim {
                    let value: f64 = (0..n_seen)
                        .map(|t| {
                            let (page, slot) = place(t);
                            weights[t] * value(kv, page, kv_head, d, slot)
                        })
                        .sum();
                    out[start + d] = (value / total) as f32;
                }
            }
        }
    }
    out
}
