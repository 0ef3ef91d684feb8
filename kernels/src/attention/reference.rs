//! The reference: gather, softmax in f64, weighted sum. It is also used where speed does not
//! matter: [`forward_on`] spreads the queries over threads.

use half::{bf16, f16};
use host::pool::WorkerPool;

use super::pages::{F16, Fp8E4m3};
use super::{KvFormat, KvPages, OP, PAGE_TOKENS, Sequence, check_below};
use crate::KernelError;
use crate::error::check_shape;
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

/// `q: [n_tokens, n_q_heads, head_dim]` → the same shape; tokens outside all sequences stay zero.
pub fn forward(kv: &KvPages, sequences: &[Sequence<'_>], q: &[f32]) -> Vec<f32> {
    let (shape, mut out) = (kv.shape(), vec![0.0; q.len()]);
    for sequence in sequences {
        for token in 0..sequence.n_tokens {
            for head in 0..shape.n_q_heads {
                let at = ((sequence.first + token) * shape.n_q_heads + head) * shape.head_dim;
                let range = at..at + shape.head_dim;
                attend(
                    kv,
                    *sequence,
                    token,
                    head,
                    &q[range.clone()],
                    &mut out[range],
                );
            }
        }
    }
    out
}

/// As [`forward`], into `out`, on all threads of `pool`.
///
/// # Errors
///
/// If `q` and `out` differ in length or are too short for the sequences, or a sequence has too
/// few pages or one that does not exist; [`KernelError::Host`] if a worker thread panicked.
pub fn forward_on(
    pool: &mut WorkerPool,
    kv: &KvPages,
    sequences: &[Sequence<'_>],
    q: &[f32],
    out: &mut [f32],
) -> Result<(), KernelError> {
    let shape = kv.shape();
    let width = shape.n_q_heads * shape.head_dim;
    check_shape(OP, "length of out", out.len(), q.len())?;
    let mut rows: Vec<Option<&mut [f32]>> = out.chunks_exact_mut(width).map(Some).collect();
    let mut work = Vec::with_capacity(rows.len());
    for sequence in sequences {
        let n_pages = (sequence.start + sequence.n_tokens).div_ceil(PAGE_TOKENS);
        check_below("pages of the context", n_pages, sequence.pages.len() + 1)?;
        for page in sequence.pages {
            check_below("page", *page as usize, kv.n_pages())?;
        }
        for token in 0..sequence.n_tokens {
            check_below(
                "tokens of the sequences",
                sequence.first + token,
                rows.len(),
            )?;
            // A token of two sequences belongs to the first one.
            if let Some(row) = rows[sequence.first + token].take() {
                work.push((*sequence, token, row));
            }
        }
    }
    pool.for_each_mut(&mut work, &|_, (sequence, token, row)| {
        let q = &q[(sequence.first + *token) * width..][..width];
        let heads = row.chunks_exact_mut(shape.head_dim);
        for (head, (q, out)) in q.chunks_exact(shape.head_dim).zip(heads).enumerate() {
            attend(kv, *sequence, *token, head, q, out);
        }
    })?;
    Ok(())
}

/// One head of one token of a sequence: `q, out: [head_dim]`.
fn attend(
    kv: &KvPages,
    sequence: Sequence<'_>,
    token: usize,
    head: usize,
    q: &[f32],
    out: &mut [f32],
) {
    let shape = kv.shape();
    let kv_head = head / (shape.n_q_heads / shape.n_kv_heads);
    let n_seen = sequence.start + token + 1;
    let place = |t: usize| (sequence.pages[t / PAGE_TOKENS] as usize, t % PAGE_TOKENS);
    let scores: Vec<f64> = (0..n_seen)
        .map(|t| {
            let (page, slot) = place(t);
            let products = q.iter().enumerate();
            let dot: f64 = products
                .map(|(d, q)| f64::from(*q) * key(kv, page, kv_head, d, slot))
                .sum();
            dot / (shape.head_dim as f64).sqrt()
        })
        .collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    for (d, out) in out.iter_mut().enumerate() {
        let sum: f64 = weights
            .iter()
            .enumerate()
            .map(|(t, weight)| {
                let (page, slot) = place(t);
                weight * value(kv, page, kv_head, d, slot)
            })
            .sum();
        *out = (sum / total) as f32;
    }
}
