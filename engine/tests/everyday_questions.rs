//! What 8-bit activations change in the answers to everyday questions: SmolLM2-135M answers 50 of
//! them greedily with f32 activations, and both types then predict each token of those answers.

use std::path::PathBuf;

use engine::executor::cpu::{ActivationType, CpuExecutor, CpuOptions};
use engine::kv::{PAGE_TOKENS, PageIdx};
use engine::request::RequestId;
use engine::source::{DEFAULT_CPU_MODEL, ModelSource, default_cache_dir, resolve};
use engine::step::PlanRow;
use engine::text::{ChatInput, ChatTemplate, Tokenizer};
use engine::weights::ModelFiles;
use engine::weights::{Checkpoint, LoadFormat, open};
use serde_json::json;

/// Tokens of each answer that are compared.
const ANSWER_TOKENS: usize = 10;
const PAGES_PER_QUESTION: usize = 12;

struct Model {
    path: PathBuf,
    vocab: usize,
    checkpoint: Box<dyn Checkpoint>,
}

fn questions() -> Vec<&'static str> {
    include_str!("data/everyday_questions.txt")
        .lines()
        .collect()
}

fn open_model() -> Model {
    let cache = default_cache_dir().expect("a cache folder");
    let source = ModelSource::parse(DEFAULT_CPU_MODEL).expect("model source");
    let model = resolve(&source, &cache, &|_| ()).expect("SmolLM2 in the model cache");
    let checkpoint = open(&model.files, LoadFormat::Auto, 0).expect("checkpoint");
    let vocab = checkpoint.config().vocab;
    let ModelFiles::Gguf(path) = model.files else {
        panic!("SmolLM2 is one GGUF file");
    };
    Model {
        path,
        vocab,
        checkpoint,
    }
}

fn executor(model: &Model, n_questions: usize, activations: ActivationType) -> CpuExecutor {
    let options = CpuOptions {
        n_threads: 2,
        kv_pool_tokens: n_questions * PAGES_PER_QUESTION * PAGE_TOKENS,
        activations,
        ..CpuOptions::default()
    };
    CpuExecutor::load(&*model.checkpoint, options).expect("executor")
}

fn prompts(model: &Model, questions: &[&str]) -> Vec<Vec<u32>> {
    let tokenizer = Tokenizer::from_gguf(&model.path).expect("tokenizer");
    let template = ChatTemplate::from_gguf(&model.path).expect("chat template");
    let prompt = |question: &&str| {
        let messages = [json!({"role": "user", "content": question})];
        let input = ChatInput {
            messages: &messages,
            tools: None,
            add_generation_prompt: true,
            extra: serde_json::Map::new(),
        };
        let text = template.render(&input).expect("rendered");
        tokenizer.encode(&text, false).expect("ids")
    };
    questions.iter().map(prompt).collect()
}

fn row(question: usize, tokens: Vec<u32>, start: usize) -> PlanRow {
    let first = question * PAGES_PER_QUESTION;
    PlanRow {
        n_drafts: 0,
        request: RequestId(question as u64 + 1),
        tokens,
        start,
        pages: (first..first + PAGES_PER_QUESTION)
            .map(|page| PageIdx(page as u32))
            .collect(),
        sample: None,
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

fn most_likely(values: &[f64]) -> usize {
    (0..values.len())
        .max_by(|a, b| values[*a].total_cmp(&values[*b]))
        .expect("a vocabulary")
}

/// Measured over 24 tokens of each answer: mean KL divergence 0.0017 and the most likely token equal
/// in 97.2 % of the places, where llama.cpp's own 8-bit activations have 0.0033 and 96.5 %. The
/// most likely token only ever differed where f32 had its first two within 0.2 of each other.
#[test]
fn int8_activations_change_a_token_only_at_a_near_tie() {
    let questions = questions();
    assert_eq!(questions.len(), 50);
    let model = open_model();
    let mut f32 = executor(&model, questions.len(), ActivationType::F32);
    let mut int8 = executor(&model, questions.len(), ActivationType::Int8);
    let prompts = prompts(&model, &questions);
    let mut inputs: Vec<(Vec<u32>, usize)> =
        prompts.iter().map(|prompt| (prompt.clone(), 0)).collect();
    let (mut divergences, mut n_equal, mut widest_lost) = (Vec::new(), 0usize, 0.0f64);
    for _ in 0..ANSWER_TOKENS {
        let rows: Vec<PlanRow> = inputs
            .iter()
            .enumerate()
            .map(|(question, (tokens, start))| row(question, tokens.clone(), *start))
            .collect();
        let wanted: Vec<(usize, usize)> = rows
            .iter()
            .enumerate()
            .map(|(i, row)| (i, row.tokens.len() - 1))
            .collect();
        let expected = f32.forward_logits(&rows, &wanted).expect("logits");
        let found = int8.forward_logits(&rows, &wanted).expect("logits");
        let vocab = model.vocab;
        let pairs = expected.chunks_exact(vocab).zip(found.chunks_exact(vocab));
        for ((tokens, start), (expected, found)) in inputs.iter_mut().zip(pairs) {
            let expected = log_probabilities(expected);
            let found = log_probabilities(found);
            let divergence: f64 = expected
                .iter()
                .zip(&found)
                .map(|(e, f)| e.exp() * (e - f))
                .sum();
            divergences.push(divergence);
            let (best, chosen) = (most_likely(&expected), most_likely(&found));
            n_equal += usize::from(best == chosen);
            widest_lost = widest_lost.max(expected[best] - expected[chosen]);
            *start += tokens.len();
            *tokens = vec![best as u32];
        }
    }
    let n = divergences.len();
    let mean = divergences.iter().sum::<f64>() / n as f64;
    let share = n_equal as f64 / n as f64;
    println!(
        "mean KL divergence {mean:.5}, most likely token equal in {:.1} % of {n} places, \
         widest lead lost {widest_lost:.3}",
        100.0 * share
    );
    assert!(mean <= 0.003, "mean KL divergence {mean}");
    assert!(share >= 0.95, "most likely token equal in {share}");
    assert!(widest_lost <= 0.35, "a lead of {widest_lost} was lost");
}

/// The first question is such a near tie: f32 gives the right answer's first token 15 %, a wrong
/// one's 14 %. With one term of 8 bits in the inputs of q, k and v the default answered wrongly.
#[test]
fn the_default_knows_the_capital_of_france() {
    let question = questions()[0];
    assert_eq!(question, "What is the capital of France?");
    let model = open_model();
    let tokenizer = Tokenizer::from_gguf(&model.path).expect("tokenizer");
    for activations in [ActivationType::default(), ActivationType::F32] {
        let mut executor = executor(&model, 1, activations);
        let mut tokens = prompts(&model, &[question]).remove(0);
        let (mut start, mut answer) = (0, Vec::new());
        for _ in 0..ANSWER_TOKENS {
            let n = tokens.len();
            let rows = [row(0, tokens, start)];
            let logits = executor.forward_logits(&rows, &[(0, n - 1)]);
            let best = most_likely(&log_probabilities(&logits.expect("logits"))) as u32;
            answer.push(best);
            start += n;
            tokens = vec![best];
        }
        let answer = tokenizer.decode(&answer, true);
        assert!(answer.contains("Paris"), "{}: {answer}", activations.name());
    }
}
