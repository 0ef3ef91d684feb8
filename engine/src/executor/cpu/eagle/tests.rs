//! Against the head in f64, row by row and without a cache, fed the target's own states.

use std::path::Path;
use std::sync::Arc;

use kernels::Isa;
use kernels::attention::KvFormat;

use super::super::forward::RowView;
use super::super::{ActivationType, CpuExecutor, CpuOptions};
use crate::executor::{DraftAsk, Executor};
use crate::kv::PageIdx;
use crate::model::config::{Family, ModelConfig};
use crate::request::{RequestId, SamplingParams};
use crate::sampler::SampleSpec;
use crate::step::{PlanRow, StepPlan};
use crate::weights::Checkpoint;
use crate::weights::eagle_head::{EagleHead, HeadMatrix, HeadNorm};
use crate::weights::fixture::eagle::{HeadShape, write_head};
use crate::weights::fixture::{reference, tiny_config};
use crate::weights::{MatrixId, WeightError};

const N_DRAFTS: usize = 5;

fn target_config() -> ModelConfig {
    ModelConfig {
        n_layers: 8,
        ..tiny_config(Family::Qwen3)
    }
}

fn narrow() -> HeadShape {
    HeadShape {
        hidden: 48,
        n_q_heads: 3,
        n_kv_heads: 1,
        has_embedding: true,
        draft_vocab: 320,
        layer_ids: Some([1, 3, 5]),
        ..HeadShape::like(&target_config())
    }
}

fn usual() -> HeadShape {
    HeadShape {
        layer_ids: None,
        ..HeadShape::like(&target_config())
    }
}

fn options(max_pass_tokens: usize) -> CpuOptions {
    CpuOptions {
        n_threads: 2,
        kv_pool_tokens: 2048,
        kv_format: KvFormat::F16,
        isa: Some(Isa::detect()),
        activations: ActivationType::F32,
        max_pass_tokens,
        ..CpuOptions::default()
    }
}

fn with_head(dir: &Path, shape: HeadShape, max_pass_tokens: usize) -> (CpuExecutor, EagleHead) {
    let config = target_config();
    write_head(dir, &config, shape, 5).expect("written");
    let head = EagleHead::open(dir).expect("a head");
    let checkpoint = reference(&config, 3);
    let mut executor = CpuExecutor::load(&checkpoint, options(max_pass_tokens)).expect("loaded");
    executor
        .add_draft_head(&head)
        .expect("a head of this model");
    (executor, head)
}

fn text(n: usize) -> Vec<u32> {
    (0..n as u32)
        .map(|i| (i * i * 7 + i * 3 + 11) % 320)
        .collect()
}

fn pages(first: u32) -> Vec<PageIdx> {
    (first..first + 8).map(PageIdx).collect()
}

fn row(id: u64, tokens: &[u32], start: usize, samples: bool) -> PlanRow {
    PlanRow {
        request: RequestId(id),
        tokens: tokens.to_vec(),
        n_drafts: 0,
        start,
        pages: pages(id as u32 * 8),
        sample: samples.then(|| greedy(start + tokens.len())),
    }
}

fn greedy(n_prompt: usize) -> SampleSpec {
    SampleSpec {
        params: Arc::new(SamplingParams::default()),
        output_index: 0,
        history: Vec::new(),
        n_prompt,
    }
}

fn execute(executor: &mut CpuExecutor, rows: Vec<PlanRow>) -> Vec<Vec<u32>> {
    let plan = StepPlan {
        rows,
        n_steps: 1,
        ..StepPlan::default()
    };
    let output = executor.execute(&plan).expect("a step");
    let tokens = |row: &crate::step::RowOutput| row.tokens.iter().map(|t| t.token).collect();
    output.rows.iter().map(tokens).collect()
}

/// Drafts after `tokens`, of which the pages hold as many as are computed.
fn drafts(executor: &mut CpuExecutor, id: u64, tokens: &[u32]) -> Vec<u32> {
    let pages = pages(id as u32 * 8);
    let ask = DraftAsk {
        request: RequestId(id),
        tokens,
        pages: &pages[..(tokens.len() - 1).div_ceil(16)],
        n_drafts: N_DRAFTS,
    };
    executor.draft(&[ask]).expect("drafts").remove(0)
}

/// The head in f64: everything computed anew for every guess.
struct Plain<'a> {
    head: &'a EagleHead,
    embedding: Vec<f32>,
}

impl<'a> Plain<'a> {
    fn new(head: &'a EagleHead) -> Result<Self, WeightError> {
        let embedding = if head.has_embedding() {
            head.matrix(HeadMatrix::Embedding)?.to_f32()?
        } else {
            reference(&target_config(), 3)
                .matrix(MatrixId::Embedding)?
                .to_f32()?
        };
        Ok(Self { head, embedding })
    }

    fn times(&self, id: HeadMatrix, x: &[f64]) -> Vec<f64> {
        let matrix = self.head.matrix(id).expect("there");
        let weights = matrix.to_f32().expect("floats");
        let rows = weights.chunks_exact(x.len());
        rows.map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum())
            .collect()
    }

    fn norm(&self, id: HeadNorm, x: &[f64]) -> Vec<f64> {
        let weights = self.head.norm(id).expect("there");
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(self.head.config.layer.rms_norm_eps)).sqrt();
        x.iter()
            .zip(weights)
            .map(|(x, w)| x * scale * f64::from(w))
            .collect()
    }

    /// q, k and v of a row, with the first two turned.
    fn heads(&self, token: u32, h: &[f64], position: usize) -> [Vec<f64>; 3] {
        let c = &self.head.config.layer;
        let embedded = &self.embedding[token as usize * c.hidden..][..c.hidden];
        let embedded: Vec<f64> = embedded.iter().map(|e| f64::from(*e)).collect();
        let mut x = self.norm(HeadNorm::Input, &embedded);
        x.extend(self.norm(HeadNorm::Hidden, h));
        let mut heads = [HeadMatrix::Q, HeadMatrix::K, HeadMatrix::V].map(|id| self.times(id, &x));
        for part in &mut heads[..2] {
            for head in part.chunks_exact_mut(c.head_dim) {
                let half = c.head_dim / 2;
                for i in 0..half {
                    let exponent = -2.0 * i as f64 / c.head_dim as f64;
                    let angle = position as f64 * f64::from(c.rope.theta).powf(exponent);
                    let (a, b) = (head[i], head[i + half]);
                    head[i] = a * angle.cos() - b * angle.sin();
                    head[i + half] = b * angle.cos() + a * angle.sin();
                }
            }
        }
        heads
    }

    /// The output of the last row.
    fn output(&self, rows: &[(u32, Vec<f64>)]) -> Vec<f64> {
        let c = &self.head.config.layer;
        let heads: Vec<[Vec<f64>; 3]> = rows
            .iter()
            .enumerate()
            .map(|(position, (token, h))| self.heads(*token, h, position))
            .collect();
        let group = c.n_q_heads / c.n_kv_heads;
        let of = |part: &[f64], head: usize| part[head * c.head_dim..][..c.head_dim].to_vec();
        let mut attended = Vec::new();
        for q_head in 0..c.n_q_heads {
            let q = of(&heads[rows.len() - 1][0], q_head);
            let scores: Vec<f64> = heads
                .iter()
                .map(|[_, k, _]| {
                    let k = of(k, q_head / group);
                    let dot: f64 = q.iter().zip(&k).map(|(q, k)| q * k).sum();
                    (dot / (c.head_dim as f64).sqrt()).exp()
                })
                .collect();
            let total: f64 = scores.iter().sum();
            let mut mixed = vec![0.0; c.head_dim];
            for (score, [_, _, v]) in scores.iter().zip(&heads) {
                for (mixed, v) in mixed.iter_mut().zip(of(v, q_head / group)) {
                    *mixed += score / total * v;
                }
            }
            attended.extend(mixed);
        }
        let added =
            |a: &[f64], b: Vec<f64>| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f64>>();
        let u = added(
            &rows[rows.len() - 1].1,
            self.times(HeadMatrix::O, &attended),
        );
        let h = self.norm(HeadNorm::PostAttention, &u);
        let up = self.times(HeadMatrix::Up, &h);
        let gate = self.times(HeadMatrix::Gate, &h);
        let silu = |g: f64| g / (1.0 + (-g).exp());
        let inner: Vec<f64> = gate
            .into_iter()
            .zip(up)
            .map(|(g, up)| silu(g) * up)
            .collect();
        added(&u, self.times(HeadMatrix::Down, &inner))
    }

    /// Guesses after `tokens`, with the target's states at all of their positions but the last. Ends
    /// where two tokens are so close that arithmetic decides.
    fn drafts(&self, tokens: &[u32], states: &[f32]) -> Vec<u32> {
        let width = states.len() / (tokens.len() - 1);
        let mut rows: Vec<(u32, Vec<f64>)> = states
            .chunks_exact(width)
            .zip(&tokens[1..])
            .map(|(states, next)| {
                let states: Vec<f64> = states.iter().map(|s| f64::from(*s)).collect();
                (*next, self.times(HeadMatrix::Fc, &states))
            })
            .collect();
        let to_target = self.head.tokens().expect("d2t");
        let mut drafts = Vec::new();
        while drafts.len() < N_DRAFTS {
            let y = self.output(&rows);
            let logits = self.times(HeadMatrix::LmHead, &self.norm(HeadNorm::Final, &y));
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            if logits[order[0]] - logits[order[1]] < 2e-3 {
                break;
            }
            let token = to_target[order[0]];
            drafts.push(token);
            rows.push((token, y));
        }
        drafts
    }
}

/// The target's states at these tokens, computed apart from any head's work.
fn states_of(shape: HeadShape, tokens: &[u32]) -> Vec<f32> {
    let dir = tempfile::tempdir().expect("a folder");
    let (mut executor, _) = with_head(dir.path(), shape, 256);
    let pages = pages(0);
    let view = RowView {
        tokens,
        start: 0,
        pages: &pages,
    };
    let run = executor.forward.run(&mut executor.pool, &[view], &[]);
    run.expect("a pass");
    executor.forward.states().to_vec()
}

#[test]
fn states_are_what_enters_the_layers() {
    let tokens = text(21);
    let states = states_of(usual(), &tokens);
    let hidden = target_config().hidden;
    assert_eq!(states.len(), tokens.len() * 3 * hidden);
    for (at, n_layers) in [2, 4, 5].into_iter().enumerate() {
        // A model that ends there: its stream is what would enter the next layer.
        let config = ModelConfig {
            n_layers,
            ..target_config()
        };
        let mut shorter = CpuExecutor::load(&reference(&config, 3), options(256)).expect("loaded");
        shorter.forward.keep_inputs(&[n_layers]);
        let pages = pages(0);
        let view = RowView {
            tokens: &tokens,
            start: 0,
            pages: &pages,
        };
        let run = shorter.forward.run(&mut shorter.pool, &[view], &[]);
        run.expect("a pass");
        let found = states
            .chunks_exact(3 * hidden)
            .map(|all| &all[at * hidden..][..hidden]);
        let expected = shorter.forward.states().chunks_exact(hidden);
        assert!(found.eq(expected), "before layer {n_layers}");
    }
}

/// What the head guesses after the text and the target's next token, however the text was cut into
/// passes, and again when some guesses were right.
#[test]
fn guesses_are_those_of_the_head_in_f64() {
    let mut n_compared = 0;
    for shape in [usual(), narrow()] {
        for (n_prompt, chunks) in [
            (2, vec![2]),
            (17, vec![17]),
            (40, vec![9, 16, 15]),
            (40, vec![40]),
        ] {
            let dir = tempfile::tempdir().expect("a folder");
            let (mut executor, head) = with_head(dir.path(), shape, 7);
            let plain = Plain::new(&head).expect("an embedding");
            let mut tokens = text(n_prompt);
            let mut start = 0;
            for n in chunks {
                let samples = start + n == n_prompt;
                let made = execute(
                    &mut executor,
                    vec![row(1, &tokens[start..start + n], start, samples)],
                );
                start += n;
                if samples {
                    tokens.extend(&made[0]);
                }
            }
            for n_right in [0, 2, 1, N_DRAFTS, 0] {
                let states = states_of(shape, &tokens[..tokens.len() - 1]);
                let expected = plain.drafts(&tokens, &states);
                let found = drafts(&mut executor, 1, &tokens);
                assert_eq!(found.len(), N_DRAFTS);
                assert_eq!(found[..expected.len()], expected, "after {tokens:?}");
                n_compared += expected.len();
                // A step as if `n_right` had been right: the text goes on with them, and a wrong one
                // has been in the pages.
                let known = tokens.len() - 1;
                let mut fed = vec![tokens[known]];
                fed.extend(&found[..n_right]);
                let wrong = (found[n_right.min(N_DRAFTS - 1)] + 1) % 320;
                let seen = Accepted {
                    fed: &fed,
                    wrong,
                    start: known,
                };
                tokens.extend(&found[..n_right]);
                tokens.push(seen.run(&mut executor));
            }
        }
    }
    assert!(n_compared > 120, "{n_compared}");
}

/// A pass of accepted tokens and a wrong draft after them.
struct Accepted<'a> {
    fed: &'a [u32],
    wrong: u32,
    start: usize,
}

impl Accepted<'_> {
    /// Returns the token after the accepted ones: any, since what matters is that the head sees it.
    fn run(&self, executor: &mut CpuExecutor) -> u32 {
        let mut tokens = self.fed.to_vec();
        tokens.push(self.wrong);
        let plan = row(1, &tokens, self.start, false);
        let view = RowView::of(&plan);
        executor
            .forward
            .run(&mut executor.pool, &[view], &[])
            .expect("a pass");
        executor
            .observe([(&plan, view, self.fed.len())])
            .expect("seen");
        (self.wrong + 5) % 320
    }
}

#[test]
fn requests_guess_together_what_they_guess_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let texts: Vec<Vec<u32>> = (0..4).map(|i| text(40)[i * 3..].to_vec()).collect();
    let (mut executor, _) = with_head(dir.path(), usual(), 256);
    let rows = texts
        .iter()
        .enumerate()
        .map(|(id, text)| row(id as u64, text, 0, true));
    let made = execute(&mut executor, rows.collect());
    let texts: Vec<Vec<u32>> = texts
        .into_iter()
        .zip(made)
        .map(|(t, made)| [t, made].concat())
        .collect();
    let tables: Vec<Vec<PageIdx>> = (0..4).map(|id| pages(id * 8)).collect();
    let asks: Vec<DraftAsk<'_>> = texts
        .iter()
        .zip(&tables)
        .enumerate()
        .map(|(id, (tokens, pages))| DraftAsk {
            request: RequestId(id as u64),
            tokens,
            pages,
            n_drafts: [5, 1, 0, 3][id],
        })
        .collect();
    let together = executor.draft(&asks).expect("drafts");
    for (id, (tokens, found)) in texts.iter().zip(&together).enumerate() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut alone, _) = with_head(dir.path(), usual(), 256);
        let prompt = &tokens[..tokens.len() - 1];
        execute(&mut alone, vec![row(id as u64, prompt, 0, true)]);
        let expected = drafts(&mut alone, id as u64, tokens);
        assert_eq!(*found, expected[..[5, 1, 0, 3][id]]);
    }
}

#[test]
fn a_request_that_was_never_computed_has_no_guesses() {
    let dir = tempfile::tempdir().expect("a folder");
    let (mut executor, _) = with_head(dir.path(), usual(), 256);
    assert!(drafts(&mut executor, 1, &text(9)).is_empty());
    execute(&mut executor, vec![row(1, &text(9), 0, true)]);
    // Two tokens further than its last pass.
    assert!(drafts(&mut executor, 1, &text(11)).is_empty());
    assert_eq!(drafts(&mut executor, 1, &text(10)).len(), N_DRAFTS);
}

#[test]
fn a_head_of_another_model_is_refused_with_both_sizes() {
    let dir = tempfile::tempdir().expect("a folder");
    let other = ModelConfig {
        vocab: 336,
        ..target_config()
    };
    write_head(dir.path(), &other, HeadShape::like(&other), 5).expect("written");
    let head = EagleHead::open(dir.path()).expect("a head");
    let mut executor =
        CpuExecutor::load(&reference(&target_config(), 3), options(256)).expect("loaded");
    let error = executor
        .add_draft_head(&head)
        .expect_err("refused")
        .to_string();
    assert!(
        error.contains("vocab_size is 336") && error.contains("320"),
        "{error}"
    );
}
