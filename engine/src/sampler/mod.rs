//! Chooses the next token from one row of logits, on the CPU. The reference for the GPU's sampler;
//! [`plain`] makes the same choice in the simplest way.
//!
//! Order, as in vLLM and Hugging Face: grammar and request exclusions → logit bias → repetition,
//! presence and frequency penalties → temperature → top-k → top-p → min-p → draw. Each filter works
//! on what the previous one kept: top-p counts probability among the top k, min-p compares with the
//! most likely token. Among equal logits the lower id ranks first, so top-k keeps exactly k tokens
//! and greedy takes the lowest.
//!
//! The draw goes through the kept tokens by ascending id until the sum of their weights exceeds u
//! times the total, with u from [`philox::uniform`] of (seed, output index): there is no state, so
//! neither the batch nor the chunking of steps can change a text.
//!
//! Log-probabilities are computed from the model's logits, before bias and penalties.
//!
//! Cost: greedy without penalties is one pass without allocation; the whole vocabulary is sorted
//! only if top-p needs most of it.

#![expect(
    clippy::float_cmp,
    reason = "equal logits and parameters at their neutral value are exactly equal"
)]

pub mod philox;
pub mod plain;
mod rank;
mod score;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use crate::request::ranges::{self, OutOfRange};
use crate::request::{SampledToken, SamplingParams};
use rank::{Cutoff, Ranked};
pub use score::score;

/// What a row asks of the sampler.
#[derive(Debug, Clone)]
pub struct SampleSpec {
    pub params: Arc<SamplingParams>,
    /// Index of the first output token of this step: the position in the random stream.
    pub output_index: usize,
    /// Prompt and output tokens so far if `params.needs_history()`; otherwise empty.
    pub history: Vec<u32>,
    /// Number of prompt tokens in `history`.
    pub n_prompt: usize,
}

impl SampleSpec {
    /// Whether the allowed tokens depend on the previous one.
    pub fn is_guided(&self) -> bool {
        self.params.guide.is_some()
    }
}

/// Invalid inputs. They end the request of their row; nothing panics.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplerError {
    #[error("there are no logits to sample from")]
    Empty,
    #[error("logit of token {token} is {value}; the model's output is broken")]
    NotFinite { token: usize, value: f32 },
    #[error("every logit is -inf: no token can be chosen")]
    AllMasked,
    #[error(transparent)]
    Parameter(#[from] OutOfRange),
    #[error("logit_bias names token {token}, the vocabulary has {n_vocab} tokens")]
    BiasToken { token: u32, n_vocab: usize },
    #[error("the prompt has token {token}, the vocabulary has {n_vocab} tokens")]
    UnknownToken { token: u32, n_vocab: usize },
}

/// Chooses one token.
///
/// `logits`: `[n_vocab]` f32, of the row's last token; -inf masks a token, NaN and +inf are errors.
/// `step_in_call` is the number of tokens that this call of the executor has already generated for
/// the row, and `extra_history` has them (if penalties need history).
///
/// ```
/// use std::sync::Arc;
///
/// use engine::sampler::SampleSpec;
/// use engine::request::SamplingParams;
/// use engine::sampler::sample;
///
/// let spec = |params| SampleSpec {
///     params: Arc::new(params),
///     output_index: 0,
///     history: Vec::new(),
///     n_prompt: 0,
/// };
/// let logits = [0.5, 2.0, -1.0];
/// let greedy = sample(&logits, &spec(SamplingParams::default()), 0, &[])?;
/// assert_eq!(greedy.token, 1);
///
/// // The draw depends on the seed and the position alone.
/// let drawn = SamplingParams { temperature: 1.0, seed: 7, ..SamplingParams::default() };
/// let first = sample(&logits, &spec(drawn.clone()), 0, &[])?;
/// assert_eq!(first, sample(&logits, &spec(drawn), 0, &[])?);
/// assert!(sample(&[f32::NAN], &spec(SamplingParams::default()), 0, &[]).is_err());
/// # Ok::<(), engine::sampler::SamplerError>(())
/// ```
///
/// # Errors
///
/// If the logits are broken or all masked, or a parameter lies outside its range.
pub fn sample(
    logits: &[f32],
    spec: &SampleSpec,
    step_in_call: usize,
    extra_history: &[u32],
) -> Result<SampledToken, SamplerError> {
    let params = &*spec.params;
    check(params)?;
    let raw_best = argmax(logits)?;
    let adjusted = adjust(logits, spec, step_in_call, extra_history)?;
    let best = match &adjusted {
        Cow::Borrowed(_) => raw_best,
        Cow::Owned(adjusted) => argmax(adjusted)?,
    };
    let token = if params.temperature == 0.0 {
        best as u32
    } else {
        let output_index = spec.output_index as u64 + step_in_call as u64;
        draw(
            &adjusted,
            best,
            params,
            philox::uniform(params.seed, output_index),
        )
    };
    let Some(n_logprobs) = params.n_logprobs else {
        return Ok(SampledToken {
            token,
            logprob: None,
            top_logprobs: Vec::new(),
        });
    };
    let log_total = log_sum_exp(logits, logits[raw_best]);
    let logprob = |logit: f32| (f64::from(logit) - log_total) as f32;
    Ok(SampledToken {
        token,
        logprob: Some(logprob(logits[token as usize])),
        top_logprobs: rank::best(logits, n_logprobs)
            .into_iter()
            .map(|ranked| (ranked.token, logprob(ranked.logit)))
            .collect(),
    })
}

/// Refuses parameters outside their ranges.
pub(crate) fn check(params: &SamplingParams) -> Result<(), SamplerError> {
    Ok(ranges::check(params)?)
}

/// Refuses biases of tokens outside the vocabulary.
pub(crate) fn check_bias(params: &SamplingParams, n_vocab: usize) -> Result<(), SamplerError> {
    let unknown = |(token, _): &&(u32, f32)| *token as usize >= n_vocab;
    match params.logit_bias.iter().find(unknown) {
        Some(&(token, _)) => Err(SamplerError::BiasToken { token, n_vocab }),
        None => Ok(()),
    }
}

/// Index of the largest logit, the lowest among equals. One vectorised pass: whole blocks are
/// reduced, and only a block that exceeds the best so far is searched.
fn argmax(logits: &[f32]) -> Result<usize, SamplerError> {
    const BLOCK: usize = 512;
    if logits.is_empty() {
        return Err(SamplerError::Empty);
    }
    let mut best = (0, f32::NEG_INFINITY);
    for (block_idx, block) in logits.chunks(BLOCK).enumerate() {
        let mut lanes = [f32::NEG_INFINITY; 16];
        let mut broken = [false; 16];
        for part in block.chunks(16) {
            for (lane, &logit) in part.iter().enumerate() {
                broken[lane] |= logit.is_nan() || logit == f32::INFINITY;
                lanes[lane] = if logit > lanes[lane] {
                    logit
                } else {
                    lanes[lane]
                };
            }
        }
        if broken.contains(&true) {
            let is_broken = |x: &f32| x.is_nan() || *x == f32::INFINITY;
            let idx = block.iter().position(is_broken).unwrap_or(0);
            return Err(SamplerError::NotFinite {
                token: block_idx * BLOCK + idx,
                value: block[idx],
            });
        }
        let block_best = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
        if block_best > best.1 {
            let idx = block.iter().position(|x| *x == block_best).unwrap_or(0);
            best = (block_idx * BLOCK + idx, block_best);
        }
    }
    if best.1 == f32::NEG_INFINITY {
        Err(SamplerError::AllMasked)
    } else {
        Ok(best.0)
    }
}

/// Applies grammar, exclusions, bias and penalties; borrows if there are none.
pub(crate) fn adjust<'a>(
    logits: &'a [f32],
    spec: &SampleSpec,
    step_in_call: usize,
    extra_history: &[u32],
) -> Result<Cow<'a, [f32]>, SamplerError> {
    let params = &*spec.params;
    let output_index = spec.output_index + step_in_call;
    let guide = params.guide.as_ref();
    let mask = guide.and_then(|guide| guide.mask(output_index));
    let exclusions = &params.exclusions;
    let excludes = exclusions.apply_at(output_index);
    let is_untouched = mask.is_none() && params.logit_bias.is_empty() && !params.needs_history();
    if is_untouched && !excludes {
        return Ok(Cow::Borrowed(logits));
    }
    check_bias(params, logits.len())?;
    let mut adjusted = logits.to_vec();
    if let Some(mask) = mask {
        mask.apply(&mut adjusted);
    }
    let (prompt, output) = spec.history.split_at(spec.n_prompt.min(spec.history.len()));
    if excludes {
        let output = [output, extra_history].concat();
        exclusions.mask(&mut adjusted, output_index, &output);
    }
    for (token, bias) in &params.logit_bias {
        adjusted[*token as usize] += bias;
    }
    if !params.has_penalties() {
        return Ok(Cow::Owned(adjusted));
    }
    // Token → number of occurrences in the output; prompt tokens count only for the repetition
    // penalty.
    let mut n_generated: HashMap<u32, u32> = prompt.iter().map(|token| (*token, 0)).collect();
    for token in output.iter().chain(extra_history) {
        *n_generated.entry(*token).or_default() += 1;
    }
    for (token, n) in n_generated {
        let Some(logit) = adjusted.get_mut(token as usize) else {
            continue;
        };
        if *logit > 0.0 {
            *logit /= params.repetition_penalty;
        } else {
            *logit *= params.repetition_penalty;
        }
        if n > 0 {
            *logit -= params.presence_penalty + params.frequency_penalty * n as f32;
        }
    }
    Ok(Cow::Owned(adjusted))
}

/// Draws from `logits`, whose largest is at `best`; `u` is in `[0, 1)`.
fn draw(logits: &[f32], best: usize, params: &SamplingParams, u: f64) -> u32 {
    let largest = logits[best];
    let inverse_temperature = 1.0 / params.temperature;
    // Relative to the most likely token, whose weight is 1, so that no temperature can overflow.
    let weight = |logit: f32| -> f32 {
        let distance = logit - largest;
        if distance == 0.0 {
            1.0
        } else {
            (distance * inverse_temperature).exp()
        }
    };
    let cutoff = cutoff(logits, params, weight);
    let kept = |token: usize, logit: f32| -> f64 {
        let weight = weight(logit);
        let is_kept = cutoff.keeps(Ranked {
            logit,
            token: token as u32,
        }) && weight >= params.min_p;
        if is_kept { f64::from(weight) } else { 0.0 }
    };
    let total: f64 = logits
        .iter()
        .enumerate()
        .map(|(token, logit)| kept(token, *logit))
        .sum();
    let target = u * total;
    let mut passed = 0.0;
    let mut last = best;
    for (token, logit) in logits.iter().enumerate() {
        let weight = kept(token, *logit);
        if weight > 0.0 {
            passed += weight;
            last = token;
            if passed > target {
                break;
            }
        }
    }
    // Only rounding can leave the loop without a break; the remainder belongs to the last kept
    // token.
    last as u32
}

/// The last token, by rank, that top-k and top-p keep.
fn cutoff(logits: &[f32], params: &SamplingParams, weight: impl Fn(f32) -> f32) -> Cutoff {
    let has_top_k = params.top_k > 0 && params.top_k < logits.len();
    if !has_top_k && params.top_p >= 1.0 {
        return Cutoff::None;
    }
    let mut candidates: Vec<Ranked> = logits
        .iter()
        .enumerate()
        .filter(|(_, logit)| weight(**logit) > 0.0)
        .map(|(token, logit)| Ranked {
            logit: *logit,
            token: token as u32,
        })
        .collect();
    if has_top_k {
        rank::truncate_to_best(&mut candidates, params.top_k);
    }
    if params.top_p >= 1.0 {
        return rank::last(&candidates);
    }
    let total: f64 = candidates.iter().map(|c| f64::from(weight(c.logit))).sum();
    rank::nucleus(&mut candidates, f64::from(params.top_p) * total, |c| {
        f64::from(weight(c.logit))
    })
}

/// ln Σ exp(logit), in f64.
fn log_sum_exp(logits: &[f32], largest: f32) -> f64 {
    let total: f64 = logits
        .iter()
        .map(|logit| f64::from((logit - largest).exp()))
        .sum();
    f64::from(largest) + total.ln()
}

#[cfg(test)]
mod tests;
