//! A seeded two-layer model: the GPU's logits against the CPU executor's, and its tokens with
//! captured graphs against those without.

use std::sync::Arc;

use ::gpu::{CardProfile, Stream};

use super::checks::{Checks, relative_error};
use crate::executor::cpu::{ActivationType, CpuExecutor, CpuOptions};
use crate::executor::cuda::{
    AttentionBackend, CudaExecutor, CudaOptions, Element, GraphSizes, KvFormat, Sampler,
};
use crate::executor::{Executor, ExecutorError};
use crate::kv::{PAGE_TOKENS, PageIdx};
use crate::model::config::{Family, ModelConfig, RopeConfig, RopeScaling};
use crate::request::{RequestId, SamplingParams};
use crate::sampler::SampleSpec;
use crate::step::{PlanRow, StepPlan};
use crate::weights::synthetic::{SyntheticCheckpoint, SyntheticFormat};

pub const SEED: u64 = 7;
/// As the GPU tests have them.
const LIMIT_F16: f64 = 5e-3;
const LIMIT_BF16: f64 = 4e-2;
const LIMIT_FP8_KV: f64 = 1e-1;
/// x in 8 bits costs 0.3 to 0.7 % of each projection's output.
const LIMIT_INT8: f64 = 6e-2;
/// Prompt tokens of the sequences, and of a second piece of each.
const PIECES: [(usize, usize); 4] = [(1, 1), (17, 3), (300, 33), (16, 16)];
const PAGES_EACH: usize = 32;
const N_DECODED: usize = 24;
const KV_POOL_TOKENS: usize = 4096;

/// Two layers, AWQ in groups of 128.
pub fn checkpoint(
    hidden: usize,
    intermediate: usize,
    head_dim: usize,
    vocab: usize,
) -> SyntheticCheckpoint {
    let config = ModelConfig {
        family: Family::Qwen3,
        n_layers: 2,
        hidden,
        intermediate,
        n_q_heads: hidden / 64,
        n_kv_heads: hidden / 128,
        head_dim,
        vocab,
        context_length: 1024,
        rms_norm_eps: 1e-6,
        rope: RopeConfig {
            theta: 10_000.0,
            scaling: RopeScaling::None,
        },
        tied_embeddings: false,
        qkv_bias: false,
        o_bias: false,
        qk_norm: true,
        eos_token_ids: vec![2],
        bos_token_id: Some(1),
        experts: None,
    };
    SyntheticCheckpoint::new(config, SyntheticFormat::Awq { group_size: 128 }, SEED).made_on_host()
}

pub fn tokens(n: usize, seed: usize, vocab: usize) -> Vec<u32> {
    (0..n)
        .map(|i| ((i * 97 + seed * 31 + i * i) % vocab) as u32)
        .collect()
}

/// Tokens of sequence `sequence` on its own pages, in scrambled order.
pub fn row(sequence: usize, tokens: &[u32], start: usize) -> PlanRow {
    let n_pages = PAGES_EACH.min((start + tokens.len() + N_DECODED).div_ceil(PAGE_TOKENS) + 1);
    let n_even = n_pages & !1;
    PlanRow {
        request: RequestId(sequence as u64),
        tokens: tokens.to_vec(),
        n_drafts: 0,
        start,
        pages: (0..n_even)
            .map(|i| PageIdx((sequence * PAGES_EACH + (i ^ 1)) as u32))
            .collect(),
        sample: None,
    }
}

pub fn check(stream: &Stream, checks: &mut Checks) {
    let profile = stream.device().properties().profile;
    let checkpoint = checkpoint(1024, 3072, 128, 4096);
    let expected = match on_cpu(&checkpoint) {
        Ok(logits) => logits,
        Err(message) => {
            checks.fail("two-layer model", "on the CPU", message);
            return;
        }
    };
    let cases = [
        ("f16", Element::F16, KvFormat::F16, false, LIMIT_F16),
        ("bf16", Element::Bf16, KvFormat::Bf16, false, LIMIT_BF16),
        (
            "f16, e4m3 KV",
            Element::F16,
            KvFormat::Fp8E4m3,
            false,
            LIMIT_FP8_KV,
        ),
        (
            "int8 activations",
            Element::F16,
            KvFormat::F16,
            true,
            LIMIT_INT8,
        ),
    ];
    for (name, element, kv_format, int8_activations, limit) in cases {
        let options = CudaOptions {
            element,
            int8_activations,
            kv_format,
            ..options(profile)
        };
        let case = format!("logits in {name} against the CPU's");
        checks.run("two-layer model", case, limit, || {
            let mut executor = loaded(&checkpoint, &options)?;
            let run =
                |rows: &[PlanRow], wanted: &[(usize, usize)]| executor.forward_logits(rows, wanted);
            let found = logits(run).map_err(|error| error.to_string())?;
            let expected = expected.iter().map(|logit| f64::from(*logit));
            Ok::<_, String>(relative_error(found, expected))
        });
    }
    checks.run(
        "two-layer model",
        "tokens with graphs against those without",
        0.0,
        || {
            let sizes = GraphSizes::Exactly(vec![4]);
            let with = CudaOptions {
                graphs: sizes,
                ..options(profile)
            };
            let found = decoded(&mut loaded(&checkpoint, &with)?)?;
            let expected = decoded(&mut loaded(&checkpoint, &options(profile))?)?;
            let n_other = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
            Ok::<_, String>(n_other as f64 / expected.len() as f64)
        },
    );
}

fn options(card_profile: Option<CardProfile>) -> CudaOptions {
    CudaOptions {
        ordinal: 0,
        card_profile,
        memory_limit_bytes: None,
        cpu_offload_bytes: 0,
        mem_fraction_static: 0.5,
        max_total_tokens: Some(KV_POOL_TOKENS),
        context_length: None,
        element: Element::F16,
        int8_activations: false,
        kv_format: KvFormat::F16,
        attention_backend: AttentionBackend::Split,
        host_tier: None,
        n_kv_splits: 8,
        reduce_in_fp32: true,
        graphs: GraphSizes::Off,
        tuning: None,
        sampler: Sampler::Device,
        run_ahead: true,
        two_batch_overlap: false,
        n_draft_tokens: 0,
    }
}

fn loaded(checkpoint: &SyntheticCheckpoint, options: &CudaOptions) -> Result<CudaExecutor, String> {
    CudaExecutor::load(checkpoint, options).map_err(|error| error.to_string())
}

fn on_cpu(checkpoint: &SyntheticCheckpoint) -> Result<Vec<f32>, String> {
    let options = CpuOptions {
        kv_pool_tokens: KV_POOL_TOKENS,
        activations: ActivationType::F32,
        ..CpuOptions::default()
    };
    let mut executor = CpuExecutor::load(checkpoint, options).map_err(|error| error.to_string())?;
    logits(|rows, wanted| executor.forward_logits(rows, wanted)).map_err(|error| error.to_string())
}

/// Ragged prompts, then a second piece of each, then one token of each: prefixes in pages, page
/// borders, decode rows.
fn logits(
    mut run: impl FnMut(&[PlanRow], &[(usize, usize)]) -> Result<Vec<f32>, ExecutorError>,
) -> Result<Vec<f32>, ExecutorError> {
    let mut all = Vec::new();
    for piece in 0..3 {
        let rows: Vec<PlanRow> = PIECES
            .iter()
            .enumerate()
            .map(|(i, (first, second))| {
                let every = tokens(first + second + 1, i, 4096);
                let (start, end) = match piece {
                    0 => (0, *first),
                    1 => (*first, first + second),
                    _ => (first + second, first + second + 1),
                };
                row(i, &every[start..end], start)
            })
            .collect();
        let wanted: Vec<(usize, usize)> = rows
            .iter()
            .enumerate()
            .map(|(i, row)| (i, row.tokens.len() - 1))
            .collect();
        all.extend(run(&rows, &wanted)?);
    }
    Ok(all)
}

/// Greedy tokens of four sequences.
fn decoded(executor: &mut CudaExecutor) -> Result<Vec<u32>, String> {
    let greedy = |row: PlanRow, output_index: usize| PlanRow {
        sample: Some(SampleSpec {
            params: Arc::new(SamplingParams::default()),
            output_index,
            history: Vec::new(),
            n_prompt: 0,
        }),
        ..row
    };
    let lengths = PIECES.map(|(first, _)| first);
    let mut rows: Vec<PlanRow> = lengths
        .iter()
        .enumerate()
        .map(|(i, n)| greedy(row(i, &tokens(*n, i, 4096), 0), 0))
        .collect();
    let mut all = Vec::new();
    for step in 0..N_DECODED {
        let plan = StepPlan {
            rows,
            n_steps: 1,
            ..StepPlan::default()
        };
        let output = executor.execute(&plan).map_err(|error| error.to_string())?;
        rows = Vec::new();
        for (i, (made, n)) in output.rows.iter().zip(lengths).enumerate() {
            if let Some(error) = &made.error {
                return Err(format!("sequence {i}: {error}"));
            }
            let token = made.tokens.last().map_or(0, |token| token.token);
            all.push(token);
            rows.push(greedy(row(i, &[token], n + step), step + 1));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::checkpoint;
    use crate::weights::Checkpoint;

    /// A GPU would fill in weights of its own, and agree with no one.
    #[test]
    fn executors_get_the_same_weights() {
        assert_eq!(checkpoint(256, 512, 64, 320).dummy_seed(), None);
    }
}
