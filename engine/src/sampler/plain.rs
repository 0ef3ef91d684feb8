//! The same choice in the simplest way: for a draw, every probability is computed, the whole
//! vocabulary is sorted, and each filter cuts the sorted list. It runs on the CPU with
//! `--sampling-backend host`, and tests compare the other implementation with it.

use super::rank::Ranked;
use super::{SampleSpec, SamplerError, adjust, argmax, check, log_sum_exp, philox};
use crate::request::{SampledToken, SamplingParams};

/// As [`super::sample`].
///
/// # Errors
///
/// As [`super::sample`].
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
    let best = argmax(&adjusted)?;
    let token = if params.temperature == 0.0 {
        best as u32
    } else {
        let output_index = spec.output_index as u64 + step_in_call as u64;
        let u = philox::uniform(params.seed, output_index);
        draw(&sorted(&adjusted), params, u)
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
    let top = sorted(logits).into_iter().take(n_logprobs);
    Ok(SampledToken {
        token,
        logprob: Some(logprob(logits[token as usize])),
        top_logprobs: top.map(|r| (r.token, logprob(r.logit))).collect(),
    })
}

/// All tokens, the best first.
fn sorted(logits: &[f32]) -> Vec<Ranked> {
    let mut all: Vec<Ranked> = logits
        .iter()
        .zip(0..)
        .map(|(logit, token)| Ranked {
            logit: *logit,
            token,
        })
        .collect();
    all.sort_unstable();
    all
}

/// Draws from the tokens that top-k, top-p and min-p keep; `u` is in `[0, 1)`.
fn draw(by_rank: &[Ranked], params: &SamplingParams, u: f64) -> u32 {
    let best = by_rank[0];
    let inverse_temperature = 1.0 / params.temperature;
    let weight = |r: &Ranked| {
        let distance = r.logit - best.logit;
        if distance == 0.0 {
            1.0
        } else {
            (distance * inverse_temperature).exp()
        }
    };
    let n_top = match params.top_k {
        0 => by_rank.len(),
        k => k.min(by_rank.len()),
    };
    let mut kept: Vec<(u32, f32)> = by_rank[..n_top]
        .iter()
        .map(|r| (r.token, weight(r)))
        .filter(|(_, weight)| *weight > 0.0)
        .collect();
    if params.top_p < 1.0 {
        let total: f64 = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let target = f64::from(params.top_p) * total;
        let mut passed = 0.0;
        let n = kept.iter().position(|(_, weight)| {
            passed += f64::from(*weight);
            passed >= target
        });
        kept.truncate(n.map_or(kept.len(), |n| n + 1));
    }
    kept.retain(|(_, weight)| *weight >= params.min_p);
    kept.sort_unstable_by_key(|(token, _)| *token);
    let total: f64 = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let mut passed = 0.0;
    let passes = |(_, weight): &&(u32, f32)| {
        passed += f64::from(*weight);
        passed > u * total
    };
    let drawn = kept.iter().find(passes).or(kept.last());
    drawn.map_or(best.token, |(token, _)| *token)
}
