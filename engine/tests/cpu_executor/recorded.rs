//! Recorded answers of checkpoints, and an executor's answers beside them.

use std::path::Path;

use engine::executor::cpu::{ActivationType, CpuExecutor};
use engine::kv::PageIdx;
use engine::step::PlanRow;
use engine::weights::Checkpoint;
use engine::weights::safetensors::SafetensorsCheckpoint;
use flate2::read::GzDecoder;
use kernels::Isa;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{executor, options, row};

/// f32 arithmetic with KV in 16 bits.
const TOLERANCE: f64 = 2e-3;
/// Mean difference of log-probabilities with activations in 8 bits: three times what was seen. Zero
/// points that are off by one in a single matrix move it by 0.45 and more.
const INT8_TOLERANCE: f64 = 0.06;

/// A recorded file of tests/data.
pub(super) fn recorded(packed: &[u8]) -> Record {
    serde_json::from_reader(GzDecoder::new(packed)).expect("a record")
}

#[derive(Deserialize)]
pub(super) struct Record {
    pub seed: u64,
    pub prompts: Vec<Vec<u32>>,
    pub cases: std::collections::BTreeMap<String, Case>,
}

#[derive(Deserialize)]
pub(super) struct Case {
    /// SHA-256 of names and bytes of all tensors, by name.
    pub digest: String,
    /// One for each prompt.
    pub sequences: Vec<Answer>,
}

#[derive(Deserialize)]
pub(super) struct Answer {
    positions: Vec<usize>,
    top_ids: Vec<Vec<u32>>,
    top_log_probs: Vec<Vec<f64>>,
    greedy: Vec<u32>,
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
pub(super) fn alone(executor: &mut CpuExecutor, prompt: &[u32], answer: &Answer) -> Vec<f32> {
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
    let shortest = prompts.iter().min_by_key(|prompt| prompt.len());
    let beside = shortest.expect("a prompt");
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
            let rows = [row(beside, 0, 60), own];
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

/// Every case's checkpoint, which `write` makes in a folder: the tensors are those that the answers
/// were recorded of, and so are the executor's answers.
pub(super) fn check_written(record: &Record, write: impl Fn(&str, &Path)) {
    for (name, case) in &record.cases {
        let dir = tempfile::tempdir().expect("a folder");
        write(name, dir.path());
        assert_eq!(
            digest(dir.path()),
            case.digest,
            "{name}: other tensors than recorded"
        );
        let checkpoint = SafetensorsCheckpoint::open(dir.path()).expect(name);
        check_within(name, record, case, &checkpoint, TOLERANCE);
    }
}

/// `tolerance`: of the largest difference of log-probabilities with activations in f32.
pub(super) fn check_within(
    name: &str,
    record: &Record,
    case: &Case,
    checkpoint: &dyn Checkpoint,
    tolerance: f64,
) {
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
                found.worst <= tolerance,
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
