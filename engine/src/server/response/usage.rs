//! Token usage: of a whole response, and of one choice so far.

use serde_json::{Value, json};

use crate::metrics::Metrics;
use crate::request::Usage;

/// Usage over all choices; a prompt shared by several choices counts once.
pub struct UsageSum {
    sum: Usage,
    choices_per_prompt: usize,
    /// One for each choice.
    n_prompt: Vec<usize>,
    /// One for each choice, so far.
    n_output: Vec<usize>,
    pub n_ended: usize,
}

impl UsageSum {
    pub fn new(n_prompt: Vec<usize>, choices_per_prompt: usize) -> Self {
        Self {
            sum: Usage::default(),
            choices_per_prompt,
            n_output: vec![0; n_prompt.len()],
            n_prompt,
            n_ended: 0,
        }
    }

    pub fn count(&mut self, index: usize, n_tokens: usize) {
        if let Some(n_output) = self.n_output.get_mut(index) {
            *n_output += n_tokens;
        }
    }

    /// One choice's usage so far, for streamed chunks that ask for it.
    pub fn so_far(&self, index: usize) -> Value {
        let of_choice = |counts: &[usize]| counts.get(index).copied().unwrap_or_default();
        let (n_prompt, n_output) = (of_choice(&self.n_prompt), of_choice(&self.n_output));
        json!({
            "prompt_tokens": n_prompt,
            "completion_tokens": n_output,
            "total_tokens": n_prompt + n_output,
        })
    }

    /// Records each prompt's `n` and its longest output, once all choices have ended.
    pub fn record(&self, metrics: &Metrics) {
        for outputs in self.n_output.chunks(self.choices_per_prompt.max(1)) {
            let longest = outputs.iter().copied().max().unwrap_or_default();
            metrics.n_choices.observe(outputs.len() as f64);
            metrics.n_longest.observe(longest as f64);
        }
    }

    pub fn add(&mut self, index: usize, usage: Usage) {
        self.n_ended += 1;
        if index.is_multiple_of(self.choices_per_prompt) {
            self.sum.prompt_tokens += usage.prompt_tokens;
            self.sum.cached_tokens += usage.cached_tokens;
        }
        self.sum.completion_tokens += usage.completion_tokens;
        self.sum.accepted_drafts += usage.accepted_drafts;
        self.sum.rejected_drafts += usage.rejected_drafts;
    }

    pub fn to_json(&self, n_reasoning: Option<usize>) -> Value {
        let Usage {
            prompt_tokens,
            completion_tokens,
            cached_tokens,
            accepted_drafts,
            rejected_drafts,
        } = self.sum;
        let mut usage = json!({
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        });
        if let Some(n_reasoning) = n_reasoning {
            usage["completion_tokens_details"] = json!({"reasoning_tokens": n_reasoning});
        }
        if accepted_drafts + rejected_drafts > 0 {
            let details = &mut usage["completion_tokens_details"];
            details["accepted_prediction_tokens"] = accepted_drafts.into();
            details["rejected_prediction_tokens"] = rejected_drafts.into();
        }
        usage
    }
}
