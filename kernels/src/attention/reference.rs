//! The plain version: gather, softmax in f64, weighted sum.

use half::f16;

use super::{KvPages, PAGE_TOKENS, Sequence};

/// `q: [n_tokens, n_q_heads, head_dim]` → the same shape; tokens of no sequence stay zero.
pub fn forward(kv: &KvPages, sequences: &[Sequence<'_>], q: &[f32]) -> Vec<f32> {
    let shape = kv.shape;
    let (head_dim, group) = (shape.head_dim, shape.n_q_heads / shape.n_kv_heads);
    let read = |bits: u16| f64::from(f16::from_bits(bits).to_f32());
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
                        let keys = kv.key_page(page, kv_head);
                        let dot: f64 = (0..head_dim)
                            .map(|d| f64::from(q[d]) * read(keys[d * PAGE_TOKENS + slot]))
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
                            weights[t] * read(kv.value_page(page, kv_head)[slot * head_dim + d])
                        })
                        .sum();
                    out[start + d] = (value / total) as f32;
                }
            }
        }
    }
    out
}
