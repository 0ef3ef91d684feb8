//! The CUDA executor against the CPU's on small seeded checkpoints, and against itself with
//! graphs, bursts and chunks. Needs a GPU, and a binary with kernels for it:
//! `cargo test -p engine --test cuda_executor -- --ignored`.

#[path = "cuda_executor/backends.rs"]
mod backends;
#[path = "cuda_executor/drafts.rs"]
mod drafts;
#[path = "cuda_executor/host_tier.rs"]
mod host_tier;
#[path = "cuda_executor/int8.rs"]
mod int8;
#[path = "cuda_executor/many_models.rs"]
mod many_models;
#[path = "cuda_executor/moe.rs"]
mod moe;
#[path = "cuda_executor/offload.rs"]
mod offload;
#[path = "cuda_executor/own_bits.rs"]
mod own_bits;
#[path = "cuda_executor/row_errors.rs"]
mod row_errors;
#[path = "cuda_executor/run_ahead.rs"]
mod run_ahead;
#[path = "cuda_executor/sampling.rs"]
mod sampling;
#[path = "cuda_executor/scoring.rs"]
mod scoring;
#[path = "cuda_executor/service.rs"]
mod service;
#[path = "cuda_executor/two_batches.rs"]
mod two_batches;

use std::sync::Arc;

use engine::executor::Executor;
use engine::executor::cpu::{ActivationType, CpuExecutor, CpuOptions};
use engine::executor::cuda::{
    AttentionBackend, CudaExecutor, CudaOptions, Element, GraphSizes, KvFormat, Sampler,
};
use engine::kv::PageIdx;
use engine::model::config::Family;
use engine::request::{RequestId, SamplingParams};
use engine::sampler::SampleSpec;
use engine::source::ResolvedModel;
use engine::step::{PlanRow, StepPlan};
use engine::weights::ModelFiles;
use engine::weights::fixture::{self, FolderFormat};
use engine::weights::{self, Checkpoint, ElementFormat, LoadFormat};

const VOCAB: u32 = 320;

fn open(files: ModelFiles) -> Box<dyn Checkpoint> {
    let model = ResolvedModel {
        requested: "fixture".to_owned(),
        display_name: "fixture".to_owned(),
        files,
        tokenizer_dir: None,
        sha256: String::new(),
    };
    weights::open(&model.files, LoadFormat::Auto, 0).expect("the fixture opens")
}

fn awq(dir: &std::path::Path, family: Family, group_size: usize) -> Box<dyn Checkpoint> {
    let config = fixture::wide_config(family);
    let format = FolderFormat::Awq { group_size };
    fixture::write_folder(dir, &config, format, 7, 1).expect("written");
    open(ModelFiles::Folder(dir.to_owned()))
}

fn gguf(dir: &std::path::Path, family: Family, format: ElementFormat) -> Box<dyn Checkpoint> {
    let path = dir.join("model.gguf");
    fixture::write_gguf(&path, &fixture::wide_config(family), format, 7, &[]).expect("written");
    open(ModelFiles::Gguf(path))
}

/// 16-bit matrices in a safetensors folder.
fn folder(dir: &std::path::Path, family: Family, format: FolderFormat) -> Box<dyn Checkpoint> {
    let config = fixture::wide_config(family);
    fixture::write_folder(dir, &config, format, 7, 1).expect("written");
    open(ModelFiles::Folder(dir.to_owned()))
}

fn options() -> CudaOptions {
    CudaOptions {
        ordinal: 0,
        card_profile: None,
        memory_limit_bytes: None,
        cpu_offload_bytes: 0,
        mem_fraction_static: 0.5,
        max_total_tokens: Some(8192),
        context_length: None,
        element: Element::F16,
        kv_format: KvFormat::F16,
        attention_backend: AttentionBackend::Split,
        host_tier: None,
        n_kv_splits: 8,
        reduce_in_fp32: true,
        graphs: GraphSizes::Off,
        sampler: Sampler::Device,
        run_ahead: true,
        int8_activations: false,
        two_batch_overlap: false,
        n_draft_tokens: 0,
        tuning: None,
    }
}

fn load(checkpoint: &dyn Checkpoint, options: &CudaOptions) -> CudaExecutor {
    CudaExecutor::load(checkpoint, options).expect("a GPU with kernels in this binary")
}

fn cuda(
    element: Element,
    checkpoint: &dyn Checkpoint,
    kv_format: KvFormat,
    graphs: GraphSizes,
) -> CudaExecutor {
    let options = CudaOptions {
        element,
        kv_format,
        graphs,
        ..options()
    };
    load(checkpoint, &options)
}

fn cpu(checkpoint: &dyn Checkpoint) -> CpuExecutor {
    let options = CpuOptions {
        n_threads: 2,
        kv_pool_tokens: 8192,
        activations: ActivationType::F32,
        ..CpuOptions::default()
    };
    CpuExecutor::load(checkpoint, options).expect("the CPU executor")
}

fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32)
        .map(|i| (i * 97 + seed * 31 + i * i) % VOCAB)
        .collect()
}

/// Pages in a scrambled order, so that confusing one with its neighbour shows. Eight sequences take
/// turns; of more than eight, each has at most 14 pages.
fn pages(sequence: u32, n_tokens: usize) -> Vec<PageIdx> {
    let (group, lane) = (sequence / 8, sequence % 8);
    (0..n_tokens.div_ceil(16) as u32)
        .map(|i| PageIdx(lane + 8 * ((i ^ 1) + 14 * group)))
        .collect()
}

fn row(sequence: u32, tokens: &[u32], start: usize, total: usize) -> PlanRow {
    PlanRow {
        n_drafts: 0,
        request: RequestId(u64::from(sequence)),
        tokens: tokens.to_vec(),
        start,
        pages: pages(sequence, total),
        sample: None,
    }
}

fn greedy(output_index: usize) -> SampleSpec {
    SampleSpec {
        params: Arc::new(SamplingParams::default()),
        output_index,
        history: Vec::new(),
        n_prompt: 0,
    }
}

/// ‖found − expected‖ / ‖expected‖
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let error: f64 = found
        .iter()
        .zip(expected)
        .map(|(f, e)| square(f64::from(*f) - f64::from(*e)))
        .sum();
    let norm: f64 = expected.iter().map(|e| square(f64::from(*e))).sum();
    assert!(norm > 0.0, "all logits are zero");
    (error / norm).sqrt()
}

type Logits<'a> = &'a mut dyn FnMut(&[PlanRow], &[(usize, usize)]) -> Vec<f32>;

/// Ragged prompts, then a second piece of each: prefixes in pages, page borders, several passes.
fn logits_of(run: Logits<'_>) -> Vec<f32> {
    let lengths = [(1, 1), (17, 3), (70, 33), (16, 16)];
    let mut all = Vec::new();
    for piece in 0..2 {
        let rows: Vec<PlanRow> = lengths
            .iter()
            .enumerate()
            .map(|(i, (first, second))| {
                let every = tokens(first + second, i as u32);
                let (start, end) = if piece == 0 {
                    (0, *first)
                } else {
                    (*first, first + second)
                };
                row(i as u32, &every[start..end], start, first + second)
            })
            .collect();
        let wanted: Vec<(usize, usize)> = rows
            .iter()
            .enumerate()
            .flat_map(|(r, row)| (0..row.tokens.len()).map(move |t| (r, t)))
            .collect();
        all.extend(run(&rows, &wanted));
    }
    all
}

fn compare(checkpoint: &dyn Checkpoint, kv_format: KvFormat, limit: f64, what: &str) {
    compare_in(Element::F16, checkpoint, kv_format, limit, what);
}

fn compare_in(
    element: Element,
    checkpoint: &dyn Checkpoint,
    kv_format: KvFormat,
    limit: f64,
    what: &str,
) {
    let mut on_cpu = cpu(checkpoint);
    let expected = logits_of(&mut |rows, wanted| on_cpu.forward_logits(rows, wanted).expect("cpu"));
    let mut on_card = cuda(element, checkpoint, kv_format, GraphSizes::Off);
    let found = logits_of(&mut |rows, wanted| on_card.forward_logits(rows, wanted).expect("cuda"));
    let error = relative_error(&found, &expected);
    println!("{what}: relative error {error:.2e} (limit {limit:.0e})");
    assert!(error < limit, "{what}: {error} is not below {limit}");
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn logits_are_the_cpu_executors() {
    for (family, group_size) in [
        (Family::Qwen3, 128),
        (Family::Qwen2, 64),
        (Family::Llama, 32),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let checkpoint = awq(dir.path(), family, group_size);
        compare(
            checkpoint.as_ref(),
            KvFormat::F16,
            5e-3,
            &format!("{family:?} AWQ {group_size}"),
        );
        compare(
            checkpoint.as_ref(),
            KvFormat::Fp8E4m3,
            1e-1,
            &format!("{family:?} AWQ FP8 KV"),
        );
    }
    for format in [ElementFormat::F16, ElementFormat::Q4_0, ElementFormat::Q8_0] {
        let dir = tempfile::tempdir().expect("a folder");
        let checkpoint = gguf(dir.path(), Family::Llama, format);
        compare(
            checkpoint.as_ref(),
            KvFormat::F16,
            5e-3,
            &format!("Llama GGUF {format}"),
        );
    }
}

/// For logits in bf16, which has three bits fewer than fp16: eight times that limit.
const BF16_LIMIT: f64 = 4e-2;
/// With e4m3 KV, whose own rounding is coarser than either element's.
const FP8_KV_LIMIT: f64 = 1e-1;

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn logits_in_bf16_are_the_cpu_executors() {
    let compare = |checkpoint: &dyn Checkpoint, what: &str| {
        for (kv_format, limit) in [
            (KvFormat::Bf16, BF16_LIMIT),
            (KvFormat::Fp8E4m3, FP8_KV_LIMIT),
        ] {
            let what = format!("{what} in bf16, {kv_format:?} KV");
            compare_in(Element::Bf16, checkpoint, kv_format, limit, &what);
        }
    };
    for (family, group_size) in [
        (Family::Qwen3, 128),
        (Family::Qwen2, 64),
        (Family::Llama, 32),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let checkpoint = awq(dir.path(), family, group_size);
        compare(checkpoint.as_ref(), &format!("{family:?} AWQ {group_size}"));
        let dir = tempfile::tempdir().expect("a folder");
        let checkpoint = folder(dir.path(), family, FolderFormat::BF16);
        compare(checkpoint.as_ref(), &format!("{family:?} BF16"));
    }
    for format in [ElementFormat::F16, ElementFormat::Q4_0, ElementFormat::Q8_0] {
        let dir = tempfile::tempdir().expect("a folder");
        let checkpoint = gguf(dir.path(), Family::Llama, format);
        compare(checkpoint.as_ref(), &format!("Llama GGUF {format}"));
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn kv_pages_of_the_other_element_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = folder(dir.path(), Family::Llama, FolderFormat::BF16);
    for (element, kv_format, expected) in [
        (
            Element::F16,
            KvFormat::Bf16,
            "KV pages of Bf16 beside f16 activations",
        ),
        (
            Element::Bf16,
            KvFormat::F16,
            "KV pages of F16 beside bf16 activations",
        ),
    ] {
        let options = CudaOptions {
            element,
            kv_format,
            ..options()
        };
        let refused = CudaExecutor::load(checkpoint.as_ref(), &options).err();
        let message = refused.expect("refused").to_string();
        assert!(message.contains(expected), "{message}");
    }
}

/// Prefill of `n` sequences, then `steps` greedy tokens in bursts of `n_steps`.
fn generate(executor: &mut CudaExecutor, n: u32, steps: usize, n_steps: usize) -> Vec<Vec<u32>> {
    generate_in_bursts(executor, n, steps, &[(n_steps, 0)])
}

/// As [`generate`], in bursts of these `(n_steps, lookahead_steps)` over and over.
fn generate_in_bursts(
    executor: &mut CudaExecutor,
    n: u32,
    steps: usize,
    bursts: &[(usize, usize)],
) -> Vec<Vec<u32>> {
    let mut bursts = bursts.iter().cycle();
    let total = 200;
    let mut made: Vec<Vec<u32>> = Vec::new();
    let lengths: Vec<usize> = (0..n as usize).map(|i| 5 + 13 * i % 60).collect();
    let plan = StepPlan {
        rows: (0..n)
            .map(|i| PlanRow {
                sample: Some(greedy(0)),
                ..row(i, &tokens(lengths[i as usize], i), 0, total)
            })
            .collect(),
        n_steps: 1,
        ..StepPlan::default()
    };
    let output = executor.execute(&plan).expect("prefill");
    made.extend(output.rows.iter().map(|row| vec![row.tokens[0].token]));
    while made[0].len() < steps {
        let (n_steps, lookahead_steps) = *bursts.next().expect("a burst");
        let n_steps = n_steps.min(steps - made[0].len());
        let rows = (0..n as usize).map(|i| {
            let start = lengths[i] + made[i].len() - 1;
            let last = [*made[i].last().expect("a token")];
            PlanRow {
                sample: Some(greedy(made[i].len())),
                ..row(i as u32, &last, start, total)
            }
        });
        let plan = StepPlan {
            rows: rows.collect(),
            n_steps,
            lookahead_steps,
            ..StepPlan::default()
        };
        let output = executor.execute(&plan).expect("decode");
        for (made, row) in made.iter_mut().zip(output.rows) {
            made.extend(row.tokens.iter().map(|token| token.token));
        }
    }
    made
}

/// Small enough for a tool that checks every access to shared memory. The prompts have 23 rows, a
/// decode step two.
#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn a_few_small_steps_make_the_same_tokens_twice() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    let mut executor = cuda(
        Element::F16,
        checkpoint.as_ref(),
        KvFormat::F16,
        GraphSizes::Off,
    );
    let once = generate(&mut executor, 2, 3, 1);
    assert_eq!(generate(&mut executor, 2, 3, 2), once);
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn greedy_tokens_do_not_depend_on_graphs_bursts_or_the_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    let awq = checkpoint.as_ref();
    greedy_tokens_agree(Element::F16, awq, KvFormat::F16, 5);
    greedy_tokens_agree(Element::Bf16, awq, KvFormat::Bf16, 4);
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = folder(dir.path(), Family::Qwen2, FolderFormat::BF16);
    greedy_tokens_agree(Element::Bf16, checkpoint.as_ref(), KvFormat::Fp8E4m3, 4);
}

/// With graphs of 1, 4 and 8 rows: `n` sequences fill one or are padded to it.
fn greedy_tokens_agree(element: Element, checkpoint: &dyn Checkpoint, kv_format: KvFormat, n: u32) {
    let mut plain = cuda(element, checkpoint, kv_format, GraphSizes::Off);
    let expected = generate(&mut plain, n, 60, 1);
    assert!(expected.iter().all(|tokens| tokens.len() == 60));
    assert_ne!(expected[0], expected[1]);
    assert_eq!(generate(&mut plain, n, 60, 1), expected, "a second run");
    assert_eq!(
        generate(&mut plain, n, 60, 7),
        expected,
        "bursts without graphs"
    );
    let sizes = GraphSizes::Exactly(vec![1, 4, 8]);
    let mut graphed = cuda(element, checkpoint, kv_format, sizes);
    assert_eq!(generate(&mut graphed, n, 60, 1), expected, "graphs");
    assert_eq!(
        generate(&mut graphed, n, 60, 16),
        expected,
        "graphs in bursts"
    );
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn a_pool_that_does_not_fit_is_refused_with_the_arithmetic() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    let options = CudaOptions {
        memory_limit_bytes: Some(1 << 30),
        max_total_tokens: Some(1 << 24),
        reduce_in_fp32: false,
        ..options()
    };
    let refused = CudaExecutor::load(checkpoint.as_ref(), &options)
        .err()
        .expect("too large");
    let message = refused.to_string();
    assert!(message.contains("16777216 asked"), "{message}");
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn a_model_that_does_not_fit_is_refused_before_anything_is_allocated() {
    // About 20 GB of dummy weights on a GPU limited to 4.
    let config = weights::preset::find("qwen3-32b-awq")
        .expect("a preset")
        .config;
    let format = weights::synthetic::SyntheticFormat::Awq { group_size: 128 };
    let checkpoint = weights::synthetic::SyntheticCheckpoint::new(config, format, 0);
    let options = CudaOptions {
        memory_limit_bytes: Some(4 << 30),
        max_total_tokens: None,
        ..options()
    };
    let device = gpu::Device::open(0).expect("a GPU");
    let before = device.memory_bytes().expect("memory").0;
    let started = std::time::Instant::now();
    let refused = CudaExecutor::load(&checkpoint, &options).err();
    assert!(started.elapsed().as_secs() < 5, "weights were made first");
    let message = refused.expect("too large").to_string();
    for part in [
        "4.000 GiB of device memory",
        "--mem-fraction-static 0.5",
        "workspace",
        "at least one page",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let after = device.memory_bytes().expect("memory").0;
    assert!(
        before.saturating_sub(after) < 64 << 20,
        "{before} → {after} bytes free"
    );
}
