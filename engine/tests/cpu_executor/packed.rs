//! 4-bit checkpoints of every format against recorded answers of the same tensors, which a plain
//! program computed in f64 (`tests/data/make_packed_checkpoints.py`).

use std::path::Path;

use engine::executor::Executor;
use engine::executor::cpu::{ActivationType, CpuExecutor, CpuOptions};
use engine::kv::PageIdx;
use engine::model::config::Family;
use engine::step::PlanRow;
use engine::weights::fixture::packed::{
    PackedFormat, PackedKind, packed_config, write_packed_folder,
};
use engine::weights::fixture::{FolderFormat, wide_config, write_folder, write_gguf};
use engine::weights::format::MatrixFormat;
use engine::weights::gguf::GgufCheckpoint;
use engine::weights::safetensors::SafetensorsCheckpoint;
use engine::weights::{Checkpoint, ElementFormat, MatrixId};
use kernels::Isa;
use kernels::stream_linear::Format;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{executor, options, row};

/// f32 arithmetic with KV in 16 bits.
const TOLERANCE: f64 = 2e-3;
/// Mean difference of log-probabilities with activations in 8 bits: three times what was seen. Zero
/// points that are off by one in a single matrix move it by 0.45 and more.
const INT8_TOLERANCE: f64 = 0.06;

#[derive(Deserialize)]
struct Record {
    seed: u64,
    prompts: Vec<Vec<u32>>,
    cases: std::collections::BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    /// SHA-256 of names and bytes of all tensors, by name.
    digest: String,
    /// One for each prompt.
    sequences: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    positions: Vec<usize>,
    top_ids: Vec<Vec<u32>>,
    top_log_probs: Vec<Vec<f64>>,
    greedy: Vec<u32>,
}

fn record() -> Record {
    serde_json::from_str(include_str!("../data/packed_checkpoints.json")).expect("a record")
}

fn case_named(name: &str) -> (Family, PackedFormat) {
    use Family::{Llama, Qwen2, Qwen3};
    use PackedKind::{AutoRoundAwq, AutoRoundGptq, AwqGemm, AwqGemv, Gptq, GptqV2, PackQuantized};
    let (family, kind, group_size, symmetric, act_order) = match name {
        "awq-gemm-g64-symmetric" => (Qwen3, AwqGemm, Some(64), true, false),
        "awq-gemv-g64" => (Llama, AwqGemv, Some(64), false, false),
        "gptq-g128" => (Qwen3, Gptq, Some(128), true, false),
        "gptq-g64-asymmetric" => (Qwen2, Gptq, Some(64), false, false),
        "gptq-v2-g32-asymmetric" => (Llama, GptqV2, Some(32), false, false),
        "gptq-row-asymmetric" => (Llama, Gptq, None, false, false),
        "gptq-g32-act-order" => (Qwen3, Gptq, Some(32), true, true),
        "autoround-gptq-g64" => (Qwen2, AutoRoundGptq, Some(64), true, false),
        "autoround-awq-g128" => (Llama, AutoRoundAwq, Some(128), true, false),
        "ct-g128" => (Qwen3, PackQuantized, Some(128), true, false),
        "ct-g32-asymmetric" => (Qwen2, PackQuantized, Some(32), false, false),
        "ct-row" => (Llama, PackQuantized, None, true, false),
        "ct-g64-act-order" => (Llama, PackQuantized, Some(64), false, true),
        other => panic!("the record has the case {other}, which is unknown here"),
    };
    let format = PackedFormat {
        kind,
        group_size,
        symmetric,
        act_order,
    };
    (family, format)
}

fn digest(dir: &Path) -> String {
    let bytes = std::fs::read(dir.join("model.safetensors")).expect("written");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("a file of tensors");
    let mut names = tensors.names();
    names.sort_unstable();
    let mut digest = Sha256::new();
    for name in names {
        digest.update(name);
        digest.update(tensors.tensor(name).expect("there").data());
    }
    format!("{:x}", digest.finalize())
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().fold(f32::MIN, |most, x| most.max(*x));
    let most = f64::from(most);
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - most).exp()).sum();
    let shift = most + sum.ln();
    logits.iter().map(|x| f64::from(*x) - shift).collect()
}

/// Differences of recorded log-probabilities: the largest and the mean.
struct Difference {
    worst: f64,
    mean: f64,
}

fn difference(answer: &Answer, vocab: usize, logits: &[f32]) -> Difference {
    let (mut worst, mut sum, mut n) = (0.0f64, 0.0, 0);
    assert_eq!(logits.len(), vocab * answer.positions.len());
    let positions = logits.chunks_exact(vocab).zip(&answer.top_ids);
    for ((logits, ids), expected) in positions.zip(&answer.top_log_probs) {
        let found = log_softmax(logits);
        for (id, expected) in ids.iter().zip(expected) {
            let off = (found[*id as usize] - expected).abs();
            assert!(off.is_finite());
            (worst, sum, n) = (worst.max(off), sum + off, n + 1);
        }
    }
    Difference {
        worst,
        mean: sum / f64::from(n),
    }
}

fn wanted(row: usize, answer: &Answer) -> Vec<(usize, usize)> {
    answer.positions.iter().map(|at| (row, *at)).collect()
}

/// Each prompt alone; returns the logits of its recorded positions.
fn alone(executor: &mut CpuExecutor, prompt: &[u32], answer: &Answer) -> Vec<f32> {
    let rows = [row(prompt, 0, 0)];
    executor
        .forward_logits(&rows, &wanted(0, answer))
        .expect("logits")
}

/// All prompts in one batch, and the longest in chunks beside another: the same bits.
fn check_batches(executor: &mut CpuExecutor, prompts: &[Vec<u32>], case: &Case, vocab: usize) {
    let each: Vec<Vec<f32>> = prompts
        .iter()
        .zip(&case.sequences)
        .map(|(prompt, answer)| alone(executor, prompt, answer))
        .collect();
    let rows: Vec<PlanRow> = prompts
        .iter()
        .enumerate()
        .map(|(i, prompt)| row(prompt, 0, 10 * i as u32))
        .collect();
    let all: Vec<(usize, usize)> = case
        .sequences
        .iter()
        .enumerate()
        .flat_map(|(i, answer)| wanted(i, answer))
        .collect();
    let together = executor.forward_logits(&rows, &all).expect("logits");
    assert_eq!(together, each.concat(), "a batch");

    let longest = prompts.last().expect("a prompt");
    let pages: Vec<PageIdx> = [40, 7, 33, 21, 9].map(PageIdx).to_vec();
    let last = &each.last().expect("logits")[..];
    let last = &last[last.len() - vocab..];
    for n_chunk in [1, 13, 32] {
        let mut found = Vec::new();
        for (i, chunk) in longest.chunks(n_chunk).enumerate() {
            let own = PlanRow {
                pages: pages.clone(),
                ..row(chunk, i * n_chunk, 0)
            };
            let rows = [row(&prompts[1], 0, 60), own];
            found = executor
                .forward_logits(&rows, &[(1, chunk.len() - 1)])
                .expect("logits");
        }
        assert_eq!(found, last, "chunks of {n_chunk}");
    }
}

fn greedy(executor: &mut CpuExecutor, prompt: &[u32], n: usize) -> Vec<u32> {
    let (mut tokens, mut start) = (prompt.to_vec(), 0);
    let mut made = Vec::new();
    while made.len() < n {
        let pages = (0..8).map(PageIdx).collect();
        let rows = [PlanRow {
            pages,
            ..row(&tokens, start, 0)
        }];
        let logits = executor
            .forward_logits(&rows, &[(0, tokens.len() - 1)])
            .expect("logits");
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        let best = best.expect("a vocabulary") as u32;
        start += tokens.len();
        tokens = vec![best];
        made.push(best);
    }
    made
}

fn check(name: &str, record: &Record, case: &Case, checkpoint: &dyn Checkpoint) {
    let vocab = checkpoint.config().vocab;
    for isa in Isa::available() {
        let what = format!("{name}, {}", isa.name());
        let mut exact = executor(checkpoint, options(ActivationType::F32, isa));
        let mut rounded = executor(checkpoint, options(ActivationType::Int8, isa));
        for (prompt, answer) in record.prompts.iter().zip(&case.sequences) {
            let n = prompt.len();
            let found = difference(answer, vocab, &alone(&mut exact, prompt, answer));
            let int8 = difference(answer, vocab, &alone(&mut rounded, prompt, answer));
            println!(
                "{what}, {n} tokens: {:.1e}, int8 mean {:.1e} worst {:.1e}",
                found.worst, int8.mean, int8.worst
            );
            assert!(
                found.worst <= TOLERANCE,
                "{what}, {n} tokens: {}",
                found.worst
            );
            assert!(
                int8.mean <= INT8_TOLERANCE,
                "{what}, {n} tokens: {}",
                int8.mean
            );
            let n_greedy = answer.greedy.len();
            assert_eq!(
                greedy(&mut exact, prompt, n_greedy),
                answer.greedy,
                "{what}"
            );
        }
        check_batches(&mut exact, &record.prompts, case, vocab);
        check_batches(&mut rounded, &record.prompts, case, vocab);
    }
}

#[test]
fn every_format_answers_as_recorded() {
    let record = record();
    assert!(record.cases.len() >= 13);
    for (name, case) in &record.cases {
        let (family, format) = case_named(name);
        let dir = tempfile::tempdir().expect("a folder");
        let config = packed_config(family);
        write_packed_folder(dir.path(), &config, format, record.seed).expect("written");
        assert_eq!(
            digest(dir.path()),
            case.digest,
            "{name}: other tensors than recorded"
        );
        let checkpoint = SafetensorsCheckpoint::open(dir.path()).expect(name);
        check(name, &record, case, &checkpoint);
    }
}

/// Threads and passes change no bit where columns are taken in another order, either.
#[test]
fn act_order_is_the_same_on_any_number_of_threads() {
    let record = record();
    let (family, format) = case_named("gptq-g32-act-order");
    let dir = tempfile::tempdir().expect("a folder");
    write_packed_folder(dir.path(), &packed_config(family), format, record.seed).expect("written");
    let checkpoint = SafetensorsCheckpoint::open(dir.path()).expect("opened");
    let case = &record.cases["gptq-g32-act-order"];
    let (prompt, answer) = (&record.prompts[2], &case.sequences[2]);
    let logits = |n_threads, max_pass_tokens| {
        let options = CpuOptions {
            n_threads,
            max_pass_tokens,
            ..options(ActivationType::Int8, Isa::detect())
        };
        let mut executor = executor(&checkpoint, options);
        assert!(executor.info().weight_bytes > 0);
        alone(&mut executor, prompt, answer)
    };
    let expected = logits(1, 512);
    assert_eq!(logits(3, 7), expected);
    assert_eq!(logits(2, 1), expected);
}

/// A line of the table: what loads where, asked of the loaders.
fn line(what: &str, named: &str, checkpoint: &dyn Checkpoint) -> String {
    let storage = checkpoint.storage(MatrixId::Q(0)).expect("there");
    let (on_cpu, on_gpu) = match storage.format {
        MatrixFormat::Awq { group_size } => {
            Format::awq(group_size).expect("a group of the GPU's kernels");
            let on_gpu = if storage.is_reordered {
                "refused"
            } else {
                "4 bits"
            };
            ("4 bits", on_gpu)
        }
        MatrixFormat::Rows(_) => ("as stored", "16 bits"),
    };
    // It loads, or the test ends here.
    executor(checkpoint, options(ActivationType::Int8, Isa::detect()));
    format!("| {what} | {named} | {on_cpu} | {on_gpu} |\n")
}

fn packed_line(what: &str, named: &str, cases: &[&str]) -> String {
    let mut lines = Vec::new();
    for case in cases {
        let (family, format) = case_named(case);
        let dir = tempfile::tempdir().expect("a folder");
        write_packed_folder(dir.path(), &packed_config(family), format, 1).expect("written");
        let checkpoint = SafetensorsCheckpoint::open(dir.path()).expect("opened");
        lines.push(line(what, named, &checkpoint));
    }
    lines.dedup();
    assert_eq!(lines.len(), 1, "{what}: {lines:?}");
    lines.concat()
}

#[test]
fn the_document_has_the_table_of_what_loads() {
    let mut table =
        String::from("| weights | named by | on the CPU | on a GPU |\n|---|---|---|---|\n");
    for (what, format) in [
        ("safetensors F32", FolderFormat::F32),
        ("safetensors F16", FolderFormat::F16),
        ("safetensors BF16", FolderFormat::BF16),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        write_folder(dir.path(), &wide_config(Family::Llama), format, 1, 1).expect("written");
        let checkpoint = SafetensorsCheckpoint::open(dir.path()).expect("opened");
        table += &line(what, "the tensors", &checkpoint);
    }
    for (what, named, cases) in [
        (
            "AWQ, `gemm` or `gemv`",
            "`awq`",
            &["awq-gemm-g64-symmetric", "awq-gemv-g64"][..],
        ),
        (
            "GPTQ, `gptq` or `gptq_v2`",
            "`gptq`",
            &["gptq-g128", "gptq-v2-g32-asymmetric", "gptq-row-asymmetric"],
        ),
        ("GPTQ with `desc_act`", "`gptq`", &["gptq-g32-act-order"]),
        (
            "AutoRound, packed as GPTQ or AWQ",
            "`auto-round`",
            &["autoround-gptq-g64", "autoround-awq-g128"],
        ),
        (
            "`pack-quantized` W4A16",
            "`compressed-tensors`",
            &["ct-g128", "ct-g32-asymmetric", "ct-row"],
        ),
        (
            "`pack-quantized` with `actorder: group`",
            "`compressed-tensors`",
            &["ct-g64-act-order"],
        ),
    ] {
        table += &packed_line(what, named, cases);
    }
    let dir = tempfile::tempdir().expect("a folder");
    for format in ElementFormat::ALL {
        let file = dir.path().join(format!("{format}.gguf"));
        write_gguf(&file, &wide_config(Family::Llama), format, 1, &[]).expect("written");
        let checkpoint = GgufCheckpoint::open(&file).expect("opened");
        table += &line(&format!("GGUF {format}"), "its header", &checkpoint);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/serving.md");
    let document = std::fs::read_to_string(path).expect("the document");
    assert!(
        document.contains(&table),
        "docs/serving.md lacks this:\n{table}"
    );
}
