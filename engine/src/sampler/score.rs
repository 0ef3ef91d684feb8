//! Scores a known token, for example of a prompt.

use super::{SamplerError, argmax, log_sum_exp, rank};
use crate::request::ScoredToken;

/// Scores `token`, the successor of the tokens that produced `logits` (`[n_vocab]`, unmodified).
/// `n_top`: number of most likely tokens to report.
///
/// # Errors
///
/// [`SamplerError::UnknownToken`] if `token` is not in the vocabulary; [`SamplerError::Empty`],
/// [`SamplerError::NotFinite`] or [`SamplerError::AllMasked`] if the logits are none to choose
/// from.
pub fn score(logits: &[f32], token: u32, n_top: usize) -> Result<ScoredToken, SamplerError> {
    let best = argmax(logits)?;
    let n_vocab = logits.len();
    let Some(&logit) = logits.get(token as usize) else {
        return Err(SamplerError::UnknownToken { token, n_vocab });
    };
    let log_total = log_sum_exp(logits, logits[best]);
    let logprob = |logit: f32| (f64::from(logit) - log_total) as f32;
    let n_better = logits.iter().filter(|other| **other > logit).count();
    Ok(ScoredToken {
        token,
        logprob: logprob(logit),
        rank: n_better as u32 + 1,
        top_logprobs: rank::best(logits, n_top)
            .into_iter()
            .map(|ranked| (ranked.token, logprob(ranked.logit)))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::request::SamplingParams;
    use crate::sampler::SampleSpec;
    use crate::sampler::sample;

    const LOGITS: [f32; 6] = [1.0, 2.5, -0.5, 2.5, 0.0, -3.0];

    #[test]
    fn a_score_is_what_sampling_the_token_would_report() {
        let params = SamplingParams {
            n_logprobs: Some(3),
            ..SamplingParams::default()
        };
        for token in 0..LOGITS.len() as u32 {
            let params = SamplingParams {
                logit_bias: vec![(token, 100.0)],
                ..params.clone()
            };
            let spec = SampleSpec {
                params: Arc::new(params),
                output_index: 0,
                history: Vec::new(),
                n_prompt: 0,
            };
            let sampled = sample(&LOGITS, &spec, 0, &[]).expect("a token");
            let scored = score(&LOGITS, token, 3).expect("a score");
            assert_eq!(
                (sampled.token, sampled.logprob),
                (token, Some(scored.logprob))
            );
            assert_eq!(sampled.top_logprobs, scored.top_logprobs);
        }
    }

    #[test]
    fn ranks_count_the_tokens_that_are_likelier() {
        let ranks = (0..6).map(|token| score(&LOGITS, token, 0).expect("a score").rank);
        assert_eq!(ranks.collect::<Vec<_>>(), [3, 1, 5, 1, 4, 6]);
    }

    #[test]
    fn what_cannot_be_scored_is_an_error() {
        let nan = [0.0, f32::NAN];
        assert!(matches!(
            score(&nan, 0, 1),
            Err(SamplerError::NotFinite { token: 1, .. })
        ));
        let error = score(&LOGITS, 6, 1).expect_err("no such token");
        assert!(error.to_string().contains("6 tokens"), "{error}");
        // A token that the model excludes has log-probability -inf.
        let masked = [0.0, f32::NEG_INFINITY];
        let scored = score(&masked, 1, 2).expect("a score");
        assert_eq!((scored.logprob, scored.rank), (f32::NEG_INFINITY, 2));
    }
}
