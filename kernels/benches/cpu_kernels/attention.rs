//! Attention over 512 tokens with the shape of SmolLM2-135M.

use kernels::attention::{
    AttentionPlan, AttentionShape, KvFormat, KvPages, PAGE_TOKENS, Sequence, forward,
};

use crate::measure::{Bench, BenchError, Products, Work};

pub fn all(bench: &mut Bench) -> Result<(), BenchError> {
    let shape = AttentionShape {
        n_q_heads: 9,
        n_kv_heads: 3,
        head_dim: 64,
    };
    for (case, start, n_tokens, format) in [
        ("decode", 511, 1usize, KvFormat::F16),
        ("decode fp8", 511, 1, KvFormat::Fp8E4m3),
        ("prefill", 256, 256, KvFormat::F16),
        ("prefill fp8", 256, 256, KvFormat::Fp8E4m3),
    ] {
        let n_pages = (start + n_tokens).div_ceil(PAGE_TOKENS);
        let kv = KvPages::new(shape, n_pages, format)?;
        let pages: Vec<u32> = (0..n_pages as u32).collect();
        let sequences = [Sequence {
            first: 0,
            n_tokens,
            start,
            pages: &pages,
        }];
        let mut plan = AttentionPlan::default();
        plan.prepare(shape, &sequences, bench.pool.n_threads())?;
        let q = vec![0.1; n_tokens * shape.n_q_heads * shape.head_dim];
        let mut out = vec![0.0; q.len()];
        let n_seen: usize = (0..n_tokens).map(|t| start + t + 1).sum();
        let work = Work {
            bytes: kv.bytes(),
            products: 2 * n_seen * shape.n_q_heads * shape.head_dim,
            kind: Products::F32,
        };
        bench.case("attention", case, work, |pool, isa| {
            forward(pool, isa, &kv, &plan, &sequences, &q, &mut out)
        })?;
    }
    Ok(())
}
