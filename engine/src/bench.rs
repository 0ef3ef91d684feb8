//! Offline speed of an executor, without server, scheduler or text. Printed by `engine bench`.
//!
//! One measurement prefills `batch` prompts in one step and decodes them together. Each sequence
//! has its own pages, allocated one after the other.

use std::sync::Arc;
use std::time::Instant;

use crate::executor::simulated::SimulatedExecutor;
use crate::executor::{Executor, ExecutorError};
use crate::kv::{PAGE_TOKENS, PageIdx};
use crate::request::{RequestId, SamplingParams};
use crate::sampler::SampleSpec;
use crate::step::{PlanRow, RowError, StepOutput, StepPlan};

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct OfflineConfig {
    pub batch: usize,
    pub prompt_tokens: usize,
    /// At least 2: the first comes from the prefill.
    pub output_tokens: usize,
    /// Decode steps in one call of the executor.
    pub n_steps: usize,
    /// Measurements; the figures are medians. A warm-up runs first and is discarded.
    pub repetitions: usize,
}

impl Default for OfflineConfig {
    fn default() -> Self {
        Self {
            batch: 1,
            prompt_tokens: 512,
            output_tokens: 128,
            n_steps: 1,
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
/// tokens do not fit the KV pool; [`BenchError::Executor`] if a step fails, [`BenchError::Row`]
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
    for repetition in 0..=config.repetitions {
        let (prefill, decode) = measure_once(executor, vocab, config, since_last_ms)?;
        if repetition > 0 {
            prefill_ms.push(prefill);
            decode_ms.push(decode);
        }
    }
    let n_prefilled = (config.batch * config.prompt_tokens) as f64;
    let n_decoded = (config.batch * (config.output_tokens - 1)) as f64;
    Ok(OfflineResult {
        config,
        device: executor.info().device.clone(),
        prefill_tok_per_s: n_prefilled / median(&prefill_ms) * 1e3,
        decode_tok_per_s: n_decoded / median(&decode_ms) * 1e3,
        prefill_ms,
        decode_ms,
    })
}

/// Milliseconds of prefill and of decoding.
fn measure_once<E: Executor + ?Sized>(
    executor: &mut E,
    vocab: usize,
    config: OfflineConfig,
    since_last_ms: &mut dyn FnMut(&mut E) -> f64,
) -> Result<(f64, f64), BenchError> {
    let params = Arc::new(SamplingParams::default());
    let n_pages = config.pages_per_sequence();
    let row = |sequence: usize, tokens: Vec<u32>, start: usize, output_index: usize| PlanRow {
        request: RequestId(sequence as u64),
        tokens,
        start,
        pages: (sequence * n_pages..(sequence + 1) * n_pages)
            .map(|page| PageIdx(page as u32))
            .collect(),
        sample: Some(SampleSpec {
            params: Arc::clone(&params),
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
    let mut output = checked(executor.execute(&plan)?)?;
    let prefill_ms = since_last_ms(executor);

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
    Ok((prefill_ms, since_last_ms(executor)))
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
    }

    #[test]
    fn medians() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
    }
}
