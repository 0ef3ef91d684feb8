//! The CPU executor on small seeded checkpoints: against candle-transformers, against
//! dequantised twins, and against itself under every way of cutting a batch and of sharing KV.

mod against_candle;
mod against_twin;
mod backends;
mod formats_table;
mod gguf_blocks;
mod invariance;
mod moe;
mod packed;
mod prefix_reuse;
mod recorded;
mod refusals;
mod row_errors;
mod scaled;
mod scoring;
mod speculation;
mod written;

use engine::executor::cpu::{ActivationType, CpuExecutor, CpuOptions};
use engine::kv::PageIdx;
use engine::request::RequestId;
use engine::step::PlanRow;
use engine::weights::Checkpoint;
use kernels::Isa;

fn executor(checkpoint: &dyn Checkpoint, options: CpuOptions) -> CpuExecutor {
    CpuExecutor::load(checkpoint, options).expect("executor")
}

fn options(activations: ActivationType, isa: Isa) -> CpuOptions {
    CpuOptions {
        n_threads: 2,
        kv_pool_tokens: 2048,
        isa: Some(isa),
        activations,
        ..CpuOptions::default()
    }
}

fn tokens(n: usize, seed: u32, vocab: usize) -> Vec<u32> {
    (0..n as u32)
        .map(|i| (i * 97 + seed * 31 + i * i) % vocab as u32)
        .collect()
}

/// A row without sampling on pages `first_page ..`.
fn row(tokens: &[u32], start: usize, first_page: u32) -> PlanRow {
    let n_pages = (start + tokens.len()).div_ceil(16) as u32;
    PlanRow {
        n_drafts: 0,
        request: RequestId(u64::from(first_page)),
        tokens: tokens.to_vec(),
        start,
        pages: (first_page..first_page + n_pages).map(PageIdx).collect(),
        sample: None,
    }
}

/// Largest difference over the largest magnitude.
fn relative_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0f32, |m, e| m.max(e.abs()));
    assert!(scale > 0.0, "all logits are zero");
    found
        .iter()
        .zip(expected)
        .fold(0.0f32, |m, (f, e)| m.max((f - e).abs()))
        / scale
}
