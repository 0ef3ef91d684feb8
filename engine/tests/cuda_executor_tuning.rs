//! Kernels picked by timing against those that the rules pick, on small seeded checkpoints, and
//! the file that keeps the choices. Needs a GPU, and a binary with kernels for it:
//! `cargo test -p engine --test cuda_executor_tuning -- --ignored`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::executor::Executor;
use engine::executor::cuda::{
    AttentionBackend, CudaExecutor, CudaOptions, Element, GraphSizes, KvFormat, Sampler,
    TuningOptions,
};
use engine::kv::PageIdx;
use engine::model::config::Family;
use engine::request::{RequestId, SamplingParams};
use engine::sampler::SampleSpec;
use engine::source::ResolvedModel;
use engine::step::{PlanRow, StepPlan};
use engine::weights::ModelFiles;
use engine::weights::fixture::{self, FolderFormat};
use engine::weights::{self, Checkpoint, LoadFormat};

const VOCAB: usize = 320;
/// The order of summation differs, and `wgmma` rounds weights to fp16: as between GPU and CPU.
const TOLERANCE: f64 = 5e-3;

fn checkpoint(dir: &Path, family: Family, format: FolderFormat) -> Box<dyn Checkpoint> {
    fixture::write_folder(dir, &fixture::wide_config(family), format, 7, 1).expect("written");
    let model = ResolvedModel {
        requested: "fixture".to_owned(),
        display_name: "fixture".to_owned(),
        files: ModelFiles::Folder(dir.to_owned()),
        tokenizer_dir: None,
        sha256: String::new(),
    };
    weights::open(&model.files, LoadFormat::Auto, 0).expect("the fixture opens")
}

fn load(
    checkpoint: &dyn Checkpoint,
    graphs: GraphSizes,
    tuning: Option<(usize, &Path)>,
) -> CudaExecutor {
    let options = CudaOptions {
        ordinal: 0,
        card_profile: None,
        memory_limit_bytes: None,
        cpu_offload_bytes: 0,
        mem_fraction_static: 0.5,
        max_total_tokens: Some(8192),
        context_length: None,
        element: Element::F16,
        kv_format: KvFormat::F16,
        sampler: Sampler::Device,
        run_ahead: true,
        int8_activations: false,
        two_batch_overlap: false,
        n_draft_tokens: 0,
        attention_backend: AttentionBackend::Split,
        host_tier: None,
        n_kv_splits: 8,
        reduce_in_fp32: true,
        graphs,
        tuning: tuning.map(|(max_rows, cache_dir)| TuningOptions {
            max_rows,
            cache_dir: Some(cache_dir.to_owned()),
        }),
    };
    CudaExecutor::load(checkpoint, &options).expect("a GPU with kernels in this binary")
}

fn role(executor: &CudaExecutor, role: &str) -> Option<String> {
    let kernels = &executor.info().kernels;
    let found = kernels.iter().find(|(name, _)| name == role);
    found.map(|(_, kernel)| kernel.clone())
}

fn row(sequence: u32, tokens: Vec<u32>, start: usize, total: usize) -> PlanRow {
    PlanRow {
        n_drafts: 0,
        request: RequestId(u64::from(sequence)),
        tokens,
        start,
        pages: (0..total.div_ceil(16) as u32)
            .map(|i| PageIdx(sequence + 32 * i))
            .collect(),
        sample: None,
    }
}

fn tokens(n: usize, seed: usize) -> Vec<u32> {
    (0..n)
        .map(|i| ((i * 97 + seed * 31 + i * i) % VOCAB) as u32)
        .collect()
}

/// Logits of all tokens of one prompt, which is a pass of `n` rows.
fn prompt_logits(executor: &mut CudaExecutor, n: usize) -> Vec<f32> {
    let wanted: Vec<(usize, usize)> = (0..n).map(|i| (0, i)).collect();
    executor
        .forward_logits(&[row(0, tokens(n, n), 0, n)], &wanted)
        .expect("logits")
}

/// Logits of `n` sequences' second token: a decode pass of `n` rows.
fn decode_logits(executor: &mut CudaExecutor, n: usize) -> Vec<f32> {
    let context = 40;
    for i in 0..n {
        let prompt = row(i as u32, tokens(context, i), 0, context + 1);
        executor.forward_logits(&[prompt], &[]).expect("a prompt");
    }
    let rows: Vec<PlanRow> = (0..n)
        .map(|i| row(i as u32, tokens(1, i + 5), context, context + 1))
        .collect();
    let wanted: Vec<(usize, usize)> = (0..n).map(|i| (i, 0)).collect();
    executor.forward_logits(&rows, &wanted).expect("logits")
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

/// Greedy tokens of `n` sequences.
fn generate(executor: &mut CudaExecutor, n: usize, n_steps: usize) -> Vec<Vec<u32>> {
    let spec = SampleSpec {
        params: Arc::new(SamplingParams::default()),
        output_index: 0,
        history: Vec::new(),
        n_prompt: 0,
    };
    let (length, total) = (20, 20 + n_steps);
    let sampled = |row: PlanRow| PlanRow {
        sample: Some(spec.clone()),
        ..row
    };
    let rows = (0..n).map(|i| sampled(row(i as u32, tokens(length, i), 0, total)));
    let plan = StepPlan {
        rows: rows.collect(),
        n_steps: 1,
        ..StepPlan::default()
    };
    let first = executor.execute(&plan).expect("prompts");
    let mut made: Vec<Vec<u32>> = first
        .rows
        .iter()
        .map(|row| vec![row.tokens[0].token])
        .collect();
    let rows = (0..n).map(|i| sampled(row(i as u32, vec![made[i][0]], length, total)));
    let plan = StepPlan {
        rows: rows.collect(),
        n_steps: n_steps - 1,
        ..StepPlan::default()
    };
    let rest = executor.execute(&plan).expect("a burst");
    for (made, row) in made.iter_mut().zip(rest.rows) {
        made.extend(row.tokens.iter().map(|token| token.token));
    }
    made
}

fn kept_file(cache: &Path) -> PathBuf {
    let files = std::fs::read_dir(cache.join("tuning")).expect("the choices are kept");
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("an entry").path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn timed_kernels_compute_what_the_others_do() {
    for (family, format) in [
        (Family::Qwen3, FolderFormat::Awq { group_size: 128 }),
        (Family::Qwen2, FolderFormat::Awq { group_size: 32 }),
        (Family::Llama, FolderFormat::F16),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let checkpoint = checkpoint(&dir.path().join("model"), family, format);
        let mut plain = load(checkpoint.as_ref(), GraphSizes::Off, None);
        let tuning = Some((64, dir.path()));
        let mut tuned = load(checkpoint.as_ref(), GraphSizes::Off, tuning);
        println!("{family:?}: {:?}", tuned.info().kernels);
        for n in [1, 2, 7, 8, 9, 12, 16, 17, 20, 32, 50, 64] {
            let (found, expected) = (prompt_logits(&mut tuned, n), prompt_logits(&mut plain, n));
            let error = relative_error(&found, &expected);
            assert!(error < TOLERANCE, "{family:?}, prompt of {n}: {error:.2e}");
            if n > 31 {
                continue; // more sequences than this test has pages for
            }
            let (found, expected) = (decode_logits(&mut tuned, n), decode_logits(&mut plain, n));
            let error = relative_error(&found, &expected);
            assert!(error < TOLERANCE, "{family:?}, {n} rows: {error:.2e}");
        }
        // Every greedy token is, within the tolerance, the others' first choice as well.
        for (i, made) in generate(&mut tuned, 4, 40).iter().enumerate() {
            let all = [tokens(20, i), made.clone()].concat();
            let wanted: Vec<(usize, usize)> = (19..all.len() - 1).map(|t| (0, t)).collect();
            let rows = [row(0, all.clone(), 0, all.len())];
            let logits = plain.forward_logits(&rows, &wanted).expect("logits");
            for (logits, token) in logits.chunks_exact(VOCAB).zip(made) {
                let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let size = logits.iter().map(|l| l * l).sum::<f32>() / VOCAB as f32;
                let gap = (top - logits[*token as usize]) / size.sqrt();
                assert!(
                    gap < 0.05,
                    "{family:?}: token {token} is {gap} below the best"
                );
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn the_second_start_reads_the_choices_and_a_broken_file_is_replaced() {
    let dir = tempfile::tempdir().expect("a folder");
    let format = FolderFormat::Awq { group_size: 128 };
    let checkpoint = checkpoint(&dir.path().join("model"), Family::Qwen3, format);
    let cache = dir.path().join("cache");
    let start = || load(checkpoint.as_ref(), GraphSizes::Off, Some((20, &cache)));
    let choices = |executor: &CudaExecutor| {
        ["qkv", "o", "gate_up", "down", "lm_head"].map(|name| role(executor, name))
    };

    let mut first = start();
    let said = role(&first, "tuning").expect("tuning is in the record");
    assert!(said.ends_with("timed"), "{said}");
    assert!(said.starts_with("up to 20 rows: "), "{said}");
    let kept = std::fs::read_to_string(kept_file(&cache)).expect("readable");

    let mut second = start();
    let said = role(&second, "tuning").expect("tuning is in the record");
    assert!(said.ends_with("from cache"), "{said}");
    assert_eq!(choices(&second), choices(&first));
    for n in [1, 8, 16, 20] {
        let found = prompt_logits(&mut second, n);
        assert_eq!(
            found,
            prompt_logits(&mut first, n),
            "the same bits, {n} rows"
        );
    }
    let again = std::fs::read_to_string(kept_file(&cache)).expect("readable");
    assert_eq!(again, kept, "a start that times nothing writes nothing");

    std::fs::write(kept_file(&cache), &kept[..kept.len() / 2]).expect("written");
    let said = role(&start(), "tuning").expect("tuning is in the record");
    assert!(said.ends_with("timed"), "{said}");
    let said = role(&start(), "tuning").expect("tuning is in the record");
    assert!(said.ends_with("from cache"), "{said}");
    // Another limit is another file.
    let smaller = load(checkpoint.as_ref(), GraphSizes::Off, Some((2, &cache)));
    let said = role(&smaller, "tuning").expect("tuning is in the record");
    assert!(said.ends_with("timed"), "{said}");
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn batches_above_the_limit_run_as_without_tuning() {
    let dir = tempfile::tempdir().expect("a folder");
    let format = FolderFormat::Awq { group_size: 128 };
    let checkpoint = checkpoint(&dir.path().join("model"), Family::Qwen3, format);
    let mut plain = load(checkpoint.as_ref(), GraphSizes::Off, None);
    assert_eq!(role(&plain, "tuning"), None);
    let tuning = Some((8, dir.path()));
    let mut tuned = load(checkpoint.as_ref(), GraphSizes::Off, tuning);
    for n in [9, 16, 17, 64, 100] {
        let (found, expected) = (prompt_logits(&mut tuned, n), prompt_logits(&mut plain, n));
        assert!(found.iter().any(|logit| *logit != 0.0));
        // The head has up to 64 rows at a time, so that of the last rows of 100 has 36.
        assert_eq!(found, expected, "the same bits, {n} rows");
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn graphs_hold_the_timed_kernels() {
    let dir = tempfile::tempdir().expect("a folder");
    let format = FolderFormat::Awq { group_size: 128 };
    let checkpoint = checkpoint(&dir.path().join("model"), Family::Qwen3, format);
    let tuning = Some((16, dir.path()));
    let mut direct = load(checkpoint.as_ref(), GraphSizes::Off, tuning);
    let sizes = GraphSizes::Exactly(vec![4, 16]);
    let mut graphed = load(checkpoint.as_ref(), sizes, tuning);
    for n in [4, 16] {
        let expected = generate(&mut direct, n, 30);
        assert!(expected.iter().all(|made| made.len() == 30));
        assert_eq!(generate(&mut graphed, n, 30), expected, "{n} rows");
    }
}
