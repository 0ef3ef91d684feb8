//! Up to [`QUERIES`] queries process the pages of one KV head together.
//!
//! Scores: tokens are along the lanes, so one dimension of 16 tokens is one load and each query
//! adds `q[d] * keys[d]`; no horizontal sum is needed. Pages are processed in chunks of
//! [`CHUNK_PAGES`]; after each, the running maximum, sum and output are updated.

use host::pool::DisjointMut;

use super::pages::{F16, Fp8E4m3, KvElement};
use super::{KvFormat, KvPages, MAX_HEAD_DIM, PAGE_TOKENS, Sequence, Unit};
use crate::isa::Isa;
use crate::lanes::{LANES, Lanes, at, at_mut, exp, for_isa};

/// Queries of a unit: with one vector of scores each they fit the registers.
pub(super) const QUERIES: usize = 8;
const CHUNK_PAGES: usize = 8;
const CHUNK_TOKENS: usize = CHUNK_PAGES * PAGE_TOKENS;

/// # Safety
/// No other thread touches the output of this unit's queries meanwhile.
pub(super) unsafe fn run_unit(
    isa: Isa,
    kv: &KvPages,
    sequence: Sequence<'_>,
    unit: Unit,
    q: &[f32],
    out: &DisjointMut<'_, f32>,
) {
    let shape = kv.shape();
    let (head_dim, group) = (shape.head_dim, shape.n_q_heads / shape.n_kv_heads);
    let mut queries = [[0.0f32; MAX_HEAD_DIM]; QUERIES];
    let mut results = [[0.0f32; MAX_HEAD_DIM]; QUERIES];
    let mut lengths = [0usize; QUERIES];
    let mut starts = [0usize; QUERIES];
    let scale = 1.0 / (head_dim as f32).sqrt();
    for i in 0..unit.n_queries {
        let (token, head) = (
            (unit.first_query + i) / group,
            (unit.first_query + i) % group,
        );
        lengths[i] = sequence.start + token + 1;
        starts[i] =
            ((sequence.first + token) * shape.n_q_heads + unit.kv_head * group + head) * head_dim;
        for (to, from) in queries[i].iter_mut().zip(&q[starts[i]..][..head_dim]) {
            *to = from * scale;
        }
    }
    let (queries, results, lengths) = (&queries, &mut results, &lengths[..unit.n_queries]);
    let (pages, kv_head) = (sequence.pages, unit.kv_head);
    if unit.n_queries == 1 {
        for_isa!(isa, attend_one(
            kv: &KvPages,
            pages: &[u32],
            kv_head: usize,
            lengths: &[usize],
            queries: &[[f32; MAX_HEAD_DIM]; QUERIES],
            results: &mut [[f32; MAX_HEAD_DIM]; QUERIES],
        ));
    } else {
        for_isa!(isa, attend_many(
            kv: &KvPages,
            pages: &[u32],
            kv_head: usize,
            lengths: &[usize],
            queries: &[[f32; MAX_HEAD_DIM]; QUERIES],
            results: &mut [[f32; MAX_HEAD_DIM]; QUERIES],
        ));
    }
    for i in 0..unit.n_queries {
        // SAFETY: only this unit writes this query's output, as the caller promises.
        let out = unsafe { out.slice(starts[i], head_dim) };
        out.copy_from_slice(&results[i][..head_dim]);
    }
}

#[inline(always)]
fn attend_one<L: Lanes>(
    kv: &KvPages,
    pages: &[u32],
    kv_head: usize,
    lengths: &[usize],
    queries: &[[f32; MAX_HEAD_DIM]; QUERIES],
    results: &mut [[f32; MAX_HEAD_DIM]; QUERIES],
) {
    attend_in_format::<L, 1>(kv, pages, kv_head, lengths, queries, results);
}

#[inline(always)]
fn attend_many<L: Lanes>(
    kv: &KvPages,
    pages: &[u32],
    kv_head: usize,
    lengths: &[usize],
    queries: &[[f32; MAX_HEAD_DIM]; QUERIES],
    results: &mut [[f32; MAX_HEAD_DIM]; QUERIES],
) {
    attend_in_format::<L, QUERIES>(kv, pages, kv_head, lengths, queries, results);
}

#[inline(always)]
fn attend_in_format<L: Lanes, const N: usize>(
    kv: &KvPages,
    pages: &[u32],
    kv_head: usize,
    lengths: &[usize],
    queries: &[[f32; MAX_HEAD_DIM]; QUERIES],
    results: &mut [[f32; MAX_HEAD_DIM]; QUERIES],
) {
    match kv.format() {
        KvFormat::F16 => attend::<L, F16, N>(kv, pages, kv_head, lengths, queries, results),
        KvFormat::Fp8E4m3 => {
            attend::<L, Fp8E4m3, N>(kv, pages, kv_head, lengths, queries, results);
        }
    }
}

/// `lengths`: how many tokens each query sees, rising; unused queries see none.
#[inline(always)]
fn attend<L: Lanes, E: KvElement, const N: usize>(
    kv: &KvPages,
    pages: &[u32],
    kv_head: usize,
    lengths: &[usize],
    queries: &[[f32; MAX_HEAD_DIM]; QUERIES],
    results: &mut [[f32; MAX_HEAD_DIM]; QUERIES],
) {
    let head_dim = kv.shape().head_dim;
    let longest = lengths[lengths.len() - 1];
    let mut largest = [f32::NEG_INFINITY; N];
    let mut sums = [0.0f32; N];
    let mut scores = [[0.0f32; CHUNK_TOKENS]; N];
    for chunk_start in (0..longest).step_by(CHUNK_TOKENS) {
        let n_pages = (longest - chunk_start)
            .div_ceil(PAGE_TOKENS)
            .min(CHUNK_PAGES);
        let chunk_pages = &pages[chunk_start / PAGE_TOKENS..][..n_pages];
        let mut p = 0;
        // A single query is one chain of dependent additions for each page; processing four pages
        // at once hides the latency.
        while N == 1 && p + 4 <= n_pages {
            score_pages::<L, E, N, 4>(kv, chunk_pages, p, kv_head, queries, &mut scores);
            p += 4;
        }
        while p < n_pages {
            score_pages::<L, E, N, 1>(kv, chunk_pages, p, kv_head, queries, &mut scores);
            p += 1;
        }
        let mut rescale = [1.0f32; N];
        for (i, length) in lengths.iter().enumerate() {
            let seen = length
                .saturating_sub(chunk_start)
                .min(n_pages * PAGE_TOKENS);
            scores[i][seen..n_pages * PAGE_TOKENS].fill(f32::NEG_INFINITY);
            if seen == 0 {
                scores[i][..n_pages * PAGE_TOKENS].fill(0.0);
                continue;
            }
            // Only pages that the query sees count, so that a longer neighbour changes nothing.
            let end = seen.next_multiple_of(PAGE_TOKENS);
            let mut top = L::splat(f32::NEG_INFINITY);
            for k in (0..end).step_by(LANES) {
                top = top.max(L::load(at(&scores[i], k)));
            }
            let new_largest = largest[i].max(top.largest());
            rescale[i] = if largest[i] == f32::NEG_INFINITY {
                0.0
            } else {
                (largest[i] - new_largest).exp()
            };
            largest[i] = new_largest;
            let mut sum = L::splat(0.0);
            for k in (0..end).step_by(LANES) {
                let weight = exp(L::load(at(&scores[i], k)).sub(L::splat(new_largest)));
                weight.store(at_mut(&mut scores[i], k));
                sum = sum.add(weight);
            }
            // A masked score has become a number around 1e-38; set it to zero.
            if seen < end {
                let masked = &mut scores[i][seen..end];
                masked.fill(0.0);
                sum = L::splat(0.0);
                for k in (0..end).step_by(LANES) {
                    sum = sum.add(L::load(at(&scores[i], k)));
                }
            }
            scores[i][end..n_pages * PAGE_TOKENS].fill(0.0);
            sums[i] = sums[i] * rescale[i] + sum.sum();
        }
        if E::IS_SCALED {
            scale_weights::<L, N>(kv, chunk_pages, kv_head, &mut scores);
        }
        let mut d = 0;
        while N == 1 && d + 4 * LANES <= head_dim {
            add_values::<L, E, N, 4>(kv, chunk_pages, d, kv_head, &rescale, &scores, results);
            d += 4 * LANES;
        }
        while d < head_dim {
            add_values::<L, E, N, 1>(kv, chunk_pages, d, kv_head, &rescale, &scores, results);
            d += LANES;
        }
    }
    for i in 0..lengths.len() {
        let inverse = 1.0 / sums[i];
        results[i][..head_dim]
            .iter_mut()
            .for_each(|x| *x *= inverse);
    }
}

/// Scores of `P` pages from number `first` of the chunk on.
#[inline(always)]
fn score_pages<L: Lanes, E: KvElement, const N: usize, const P: usize>(
    kv: &KvPages,
    chunk_pages: &[u32],
    first: usize,
    kv_head: usize,
    queries: &[[f32; MAX_HEAD_DIM]; QUERIES],
    scores: &mut [[f32; CHUNK_TOKENS]; N],
) {
    let keys: [&[E::Bits]; P] =
        std::array::from_fn(|p| kv.key_page::<E>(chunk_pages[first + p] as usize, kv_head));
    let mut dots = [[L::splat(0.0); N]; P];
    for d in 0..kv.shape().head_dim {
        for p in 0..P {
            let key: L = E::load(at(keys[p], d * PAGE_TOKENS));
            for i in 0..N {
                dots[p][i] = key.mul_add(L::splat(queries[i][d]), dots[p][i]);
            }
        }
    }
    for p in 0..P {
        if E::IS_SCALED {
            let scales = L::load_bf16(kv.key_scales(chunk_pages[first + p] as usize, kv_head));
            for dot in &mut dots[p] {
                *dot = dot.mul(scales);
            }
        }
        for i in 0..N {
            dots[p][i].store(at_mut(&mut scores[i], (first + p) * PAGE_TOKENS));
        }
    }
}

/// Multiplies the chunk's weights with the scales of the values that they are for.
#[inline(always)]
fn scale_weights<L: Lanes, const N: usize>(
    kv: &KvPages,
    chunk_pages: &[u32],
    kv_head: usize,
    scores: &mut [[f32; CHUNK_TOKENS]; N],
) {
    for (p, page) in chunk_pages.iter().enumerate() {
        let scales = L::load_bf16(kv.value_scales(*page as usize, kv_head));
        for scores in scores.iter_mut() {
            let weights = at_mut(scores, p * PAGE_TOKENS);
            L::load(weights).mul(scales).store(weights);
        }
    }
}

/// Rescales `C` vectors of each result from dimension `first` on and adds the chunk's values.
#[inline(always)]
fn add_values<L: Lanes, E: KvElement, const N: usize, const C: usize>(
    kv: &KvPages,
    chunk_pages: &[u32],
    first: usize,
    kv_head: usize,
    rescale: &[f32; N],
    scores: &[[f32; CHUNK_TOKENS]; N],
    results: &mut [[f32; MAX_HEAD_DIM]; QUERIES],
) {
    let head_dim = kv.shape().head_dim;
    let mut totals = [[L::splat(0.0); C]; N];
    for i in 0..N {
        for c in 0..C {
            let before = L::load(at(&results[i], first + c * LANES));
            totals[i][c] = before.mul(L::splat(rescale[i]));
        }
    }
    for (p, page) in chunk_pages.iter().enumerate() {
        let values = kv.value_page::<E>(*page as usize, kv_head);
        for t in 0..PAGE_TOKENS {
            let mut row = [L::splat(0.0); C];
            for c in 0..C {
                row[c] = E::load(at(values, t * head_dim + first + c * LANES));
            }
            for i in 0..N {
                let weight = L::splat(scores[i][p * PAGE_TOKENS + t]);
                for c in 0..C {
                    totals[i][c] = row[c].mul_add(weight, totals[i][c]);
                }
            }
        }
    }
    for i in 0..N {
        for c in 0..C {
            totals[i][c].store(at_mut(&mut results[i], first + c * LANES));
        }
    }
}
