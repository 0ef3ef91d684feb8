//! Offline speed of an executor, without server, scheduler or text. Printed by `engine bench`.
//!
//! One measurement prefills `batch` prompts in one step and decodes them together. Each sequence
//! has its own pages, allocated one after the other.
//!
//! With drafts, a generator decides which are right, each with the same probability: what they cost
//! is that of real ones, what they would be is not known for random weights. The text means nothing
//! then, and the result says so.

use std::sync::Arc;
use std::time::Instant;

use crate::executor::simulated::SimulatedExecutor;
use crate::executor::{Executor, ExecutorError};
use crate::kv::{PAGE_TOKENS, PageIdx};
use crate::request::ranges::{self, OutOfRange};
use crate::request::{RequestId, SamplingParams};
use crate::sampler::{SampleSpec, philox};
use crate::speculation::MAX_DRAFTS;
use crate::step::{PlanRow, RowError, StepOutput, StepPlan};

#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct OfflineConfig {
    pub batch: usize,
    pub prompt_tokens: usize,
    /// At least 2: the first comes from the prefill.
    pub output_tokens: usize,
    /// Decode steps in one call of the executor.
    pub n_steps: usize,
    /// Drafts that are right by chance.
    pub synthetic: Option<SyntheticDrafts>,
    /// How every token is chosen.
    pub sampling: BenchSampling,
    /// Measurements; the figures are medians. A warm-up runs first and is discarded.
    pub repetitions: usize,
}

/// The parameters of [`SamplingParams`] with these names; the others are off. Sequence n has seed n.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct BenchSampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 keeps all tokens.
    pub top_k: usize,
    /// 1 keeps all tokens.
    pub top_p: f32,
}

impl Default for BenchSampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
        }
    }
}

impl BenchSampling {
    fn params(self, sequence: usize) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: sequence as u64,
            ..SamplingParams::default()
        }
    }
}

/// Drafts whose acceptance is drawn.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct SyntheticDrafts {
    /// Drafts of every row in every step.
    pub n_draft_tokens: usize,
    /// The probability that a draft is right if those before it are, from 0 to 1.
    pub acceptance: f64,
}

impl Default for OfflineConfig {
    fn default() -> Self {
        Self {
            batch: 1,
            prompt_tokens: 512,
            output_tokens: 128,
            n_steps: 1,
            synthetic: None,
            sampling: BenchSampling::default(),
            repetitions: 3,
        }
    }
}

/// Medians over the repetitions, and all samples.
#[derive(Debug, Clone, serde::Serialize)]
pub struct OfflineResult {
    #[serde(flatten)]
    pub config: OfflineConfig,
    pub device: String,
    pub prefill_tok_per_s: f64,
    /// For all sequences together.
    pub decode_tok_per_s: f64,
    /// Output tokens of a sequence in a decode step.
    pub tokens_per_step: f64,
    pub prefill_ms: Vec<f64>,
    pub decode_ms: Vec<f64>,
}

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("{name} is {value}; it must be {limit}")]
    Config {
        name: &'static str,
        value: usize,
        limit: String,
    },
    #[error("the synthetic acceptance is {0}; it must be from 0 to 1")]
    Acceptance(f64),
    #[error(transparent)]
    Sampling(#[from] OutOfRange),
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    #[error("sequence {sequence} got no token: {source}")]
    Row { sequence: usize, source: RowError },
}

impl OfflineConfig {
    fn check(&self, kv_pool_tokens: usize) -> Result<(), BenchError> {
        let at_least = |name, value: usize, limit: usize| {
            if value >= limit {
                return Ok(());
            }
            Err(BenchError::Config {
                name,
                value,
                limit: format!("at least {limit}"),
            })
        };
        at_least("batch", self.batch, 1)?;
        at_least("prompt length", self.prompt_tokens, 1)?;
        at_least("output length", self.output_tokens, 2)?;
        at_least("n_steps", self.n_steps, 1)?;
        at_least("repetitions", self.repetitions, 1)?;
        ranges::check(&self.sampling.params(0))?;
        if let Some(synthetic) = self.synthetic {
            let SyntheticDrafts {
                n_draft_tokens,
                acceptance,
            } = synthetic;
            if !(0.0..=1.0).contains(&acceptance) {
                return Err(BenchError::Acceptance(acceptance));
            }
            if !(1..=MAX_DRAFTS).contains(&n_draft_tokens) {
                return Err(BenchError::Config {
                    name: "number of drafts",
                    value: n_draft_tokens,
                    limit: format!("from 1 to {MAX_DRAFTS}"),
                });
            }
            if self.n_steps != 1 {
                return Err(BenchError::Config {
                    name: "n_steps",
                    value: self.n_steps,
                    limit: "1 with drafts".to_owned(),
                });
            }
        }
        let needed = self.pages_per_sequence() * PAGE_TOKENS * self.batch;
        if needed <= kv_pool_tokens {
            return Ok(());
        }
        let limit = format!("at most {kv_pool_tokens}, the KV pool");
        Err(BenchError::Config {
            name: "tokens of all sequences",
            value: needed,
            limit,
        })
    }

    fn pages_per_sequence(&self) -> usize {
        (self.prompt_tokens + self.output_tokens).div_ceil(PAGE_TOKENS)
    }
}

/// Measures; `vocab` bounds the generated prompt ids.
///
/// # Errors
///
/// [`BenchError::Config`] if a size is 0, fewer than two tokens are asked for, or batch and
/// tokens do not fit the KV pool; [`BenchError::Sampling`] if a parameter of sampling is out of its
/// range; [`BenchError::Executor`] if a step fails, [`BenchError::Row`]
/// if one of its rows does.
pub fn offline<E: Executor + ?Sized>(
    executor: &mut E,
    vocab: usize,
    config: OfflineConfig,
) -> Result<OfflineResult, BenchError> {
    let mut last = Instant::now();
    let mut since_last_ms = |_: &mut E| {
        let now = Instant::now();
        let elapsed = now - std::mem::replace(&mut last, now);
        elapsed.as_secs_f64() * 1e3
    };
    timed(executor, vocab, config, &mut since_last_ms)
}

/// As [`offline`], in the time of a simulated GPU.
///
/// # Errors
///
/// As [`offline`].
pub fn offline_simulated(
    executor: &mut SimulatedExecutor,
    vocab: usize,
    config: OfflineConfig,
) -> Result<OfflineResult, BenchError> {
    timed(executor, vocab, config, &mut |executor| {
        executor.take_elapsed().as_secs_f64() * 1e3
    })
}

/// `since_last_ms`: milliseconds since its last call.
fn timed<E: Executor + ?Sized>(
    executor: &mut E,
    vocab: usize,
    config: OfflineConfig,
    since_last_ms: &mut dyn FnMut(&mut E) -> f64,
) -> Result<OfflineResult, BenchError> {
    config.check(executor.info().kv_pool_tokens)?;
    let (mut prefill_ms, mut decode_ms) = (Vec::new(), Vec::new());
    let mut tokens_per_step = 0.0;
    for repetition in 0..=config.repetitions {
        let measured = measure_once(executor, vocab, config, since_last_ms)?;
        if repetition > 0 {
            prefill_ms.push(measured.prefill_ms);
            decode_ms.push(measured.decode_ms);
        }
        // The same draws each time.
        tokens_per_step = measured.tokens_per_step;
    }
    let n_prefilled = (config.batch * config.prompt_tokens) as f64;
    let n_decoded = (config.batch * (config.output_tokens - 1)) as f64;
    Ok(OfflineResult {
        config,
        device: executor.info().device.clone(),
        prefill_tok_per_s: n_prefilled / median(&prefill_ms) * 1e3,
        decode_tok_per_s: n_decoded / median(&decode_ms) * 1e3,
        tokens_per_step,
        prefill_ms,
        decode_ms,
    })
}

struct Measured {
    prefill_ms: f64,
    decode_ms: f64,
    tokens_per_step: f64,
}

fn measure_once<E: Executor + ?Sized>(
    executor: &mut E,
    vocab: usize,
    config: OfflineConfig,
    since_last_ms: &mut dyn FnMut(&mut E) -> f64,
) -> Result<Measured, BenchError> {
    let params: Vec<_> = (0..config.batch)
        .map(|sequence| Arc::new(config.sampling.params(sequence)))
        .collect();
    let n_pages = config.pages_per_sequence();
    let row = |sequence: usize, tokens: Vec<u32>, start: usize, output_index: usize| PlanRow {
        request: RequestId(sequence as u64),
        // A prompt's row is the first and has no drafts.
        n_drafts: if output_index > 0 {
            tokens.len() - 1
        } else {
            0
        },
        tokens,
        start,
        pages: (sequence * n_pages..(sequence + 1) * n_pages)
            .map(|page| PageIdx(page as u32))
            .collect(),
        sample: Some(SampleSpec {
            params: Arc::clone(&params[sequence]),
            output_index,
            history: Vec::new(),
            n_prompt: config.prompt_tokens,
        }),
    };
    let rows = (0..config.batch).map(|sequence| {
        let ids = (0..config.prompt_tokens).map(|i| ((i * 7919 + sequence * 31) % vocab) as u32);
        row(sequence, ids.collect(), 0, 0)
    });
    let plan = StepPlan {
        rows: rows.collect(),
        n_steps: 1,
        ..StepPlan::default()
    };
    since_last_ms(executor);
    let output = checked(executor.execute(&plan)?)?;
    let prefill_ms = since_last_ms(executor);

    let n_left = config.output_tokens - 1;
    let n_row_steps = if let Some(drafts) = config.synthetic {
        decode_drafts(executor, vocab, config, drafts, &row)?
    } else {
        decode_plainly(executor, config, output, &row)?;
        config.batch * n_left
    };
    Ok(Measured {
        prefill_ms,
        decode_ms: since_last_ms(executor),
        tokens_per_step: (config.batch * n_left) as f64 / n_row_steps as f64,
    })
}

/// A row of a sequence: its tokens, the position of the first, and its place in the output.
type MakeRow<'a> = &'a dyn Fn(usize, Vec<u32>, usize, usize) -> PlanRow;

fn decode_plainly<E: Executor + ?Sized>(
    executor: &mut E,
    config: OfflineConfig,
    mut output: StepOutput,
    row: MakeRow<'_>,
) -> Result<(), BenchError> {
    let mut n_made = 1;
    while n_made < config.output_tokens {
        let n_steps = config.n_steps.min(config.output_tokens - n_made);
        let start = config.prompt_tokens + n_made - 1;
        let rows = output.rows.iter().enumerate().map(|(sequence, made)| {
            let last = made.tokens.last().map_or(0, |token| token.token);
            row(sequence, vec![last], start, n_made)
        });
        let rows = rows.collect();
        n_made += n_steps;
        output = checked(executor.execute(&StepPlan {
            rows,
            n_steps,
            lookahead_steps: config.n_steps.min(config.output_tokens - n_made),
            ..StepPlan::default()
        })?)?;
    }
    Ok(())
}

/// Decodes with drafts that are right by chance, and returns the number of rows of all steps. A
/// sequence that has its tokens leaves the batch.
fn decode_drafts<E: Executor + ?Sized>(
    executor: &mut E,
    vocab: usize,
    config: OfflineConfig,
    drafts: SyntheticDrafts,
    row: MakeRow<'_>,
) -> Result<usize, BenchError> {
    let mut n_made = vec![1; config.batch];
    let mut n_rows = 0;
    let mut n_drawn = 0;
    loop {
        let going_on: Vec<usize> = (0..config.batch)
            .filter(|sequence| n_made[*sequence] < config.output_tokens)
            .collect();
        if going_on.is_empty() {
            return Ok(n_rows);
        }
        n_rows += going_on.len();
        let rows = going_on.iter().map(|sequence| {
            let n_made = n_made[*sequence];
            let n_drafts = drafts.n_draft_tokens.min(config.output_tokens - n_made - 1);
            let ids =
                (0..=n_drafts).map(|i| (((n_made + i) * 7919 + sequence * 31) % vocab) as u32);
            let start = config.prompt_tokens + n_made - 1;
            row(*sequence, ids.collect(), start, n_made)
        });
        let plan = StepPlan {
            rows: rows.collect(),
            n_steps: 1,
            ..StepPlan::default()
        };
        checked(executor.execute(&plan)?)?;
        for (sequence, row) in going_on.iter().zip(&plan.rows) {
            let mut n_right = 0;
            while n_right < row.n_drafts {
                n_drawn += 1;
                if philox::uniform(0, n_drawn) >= drafts.acceptance {
                    break;
                }
                n_right += 1;
            }
            n_made[*sequence] += n_right + 1;
        }
    }
}

/// A failed row must not be timed as if it had its tokens.
fn checked(output: StepOutput) -> Result<StepOutput, BenchError> {
    let failed = output.rows.iter().enumerate();
    let mut failed = failed.filter_map(|(i, row)| Some((i, row.error.clone()?)));
    match failed.next() {
        Some((sequence, source)) => Err(BenchError::Row { sequence, source }),
        None => Ok(output),
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        return f64::midpoint(sorted[middle - 1], sorted[middle]);
    }
    sorted[middle]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::mock::{MockConfig, MockExecutor};

    #[test]
    fn measures_and_refuses() {
        let mut executor = MockExecutor::new(MockConfig::default());
        let config = OfflineConfig {
            batch: 2,
            prompt_tokens: 5,
            output_tokens: 4,
            n_steps: 2,
            repetitions: 2,
            ..OfflineConfig::default()
        };
        let result = offline(&mut executor, 100, config).expect("bench");
        assert_eq!((result.prefill_ms.len(), result.decode_ms.len()), (2, 2));
        assert!(result.decode_tok_per_s > 0.0 && result.prefill_tok_per_s > 0.0);
        let json = serde_json::to_value(&result).expect("json");
        assert_eq!(json["prompt_tokens"], 5);
        for bad in [
            OfflineConfig { batch: 0, ..config },
            OfflineConfig {
                output_tokens: 1,
                ..config
            },
            OfflineConfig {
                prompt_tokens: 100_000_000,
                ..config
            },
        ] {
            assert!(offline(&mut executor, 100, bad).is_err());
        }
        assert_eq!(json["sampling"]["temperature"], 0.0);
        let sampling = BenchSampling {
            temperature: 0.5,
            top_p: 1.5,
            ..BenchSampling::default()
        };
        let refused = offline(&mut executor, 100, OfflineConfig { sampling, ..config });
        let message = refused.map_err(|error| error.to_string()).err();
        assert_eq!(
            message.as_deref(),
            Some("top_p is 1.5, but must be from 0 to 1")
        );
    }

    #[test]
    fn drafts_are_right_as_often_as_asked() {
        let mut executor = MockExecutor::new(MockConfig::default());
        let mut measured = |acceptance, n_draft_tokens| {
            let config = OfflineConfig {
                batch: 3,
                prompt_tokens: 5,
                output_tokens: 1001,
                repetitions: 1,
                synthetic: Some(SyntheticDrafts {
                    n_draft_tokens,
                    acceptance,
                }),
                ..OfflineConfig::default()
            };
            let result = offline(&mut executor, 100, config).map_err(|error| error.to_string())?;
            let json = serde_json::to_value(&result).expect("json");
            assert_eq!(
                json["synthetic"]["acceptance"], acceptance,
                "the record says so"
            );
            Ok::<f64, String>(result.tokens_per_step)
        };
        let near = |found: Result<f64, String>, expected: f64| {
            let found = found.expect("bench");
            assert!(
                (found - expected).abs() < 0.05 * expected,
                "{found}, not {expected}"
            );
        };
        near(measured(0.0, 3), 1.0);
        near(measured(1.0, 3), 4.0);
        near(measured(0.5, 3), 1.875);
        assert!(measured(1.1, 3).is_err() && measured(0.5, 0).is_err());
        assert!(measured(0.5, 32).is_err());
    }

    #[test]
    fn medians() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
    }
}
