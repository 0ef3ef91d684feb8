//! The response format of `/generate`: SGLang's objects of text, ids and `meta_info`.

use std::time::Instant;

use serde_json::{Value, json};

use crate::request::SampledToken;
use crate::server::response::answer::{AnswerFormat, FinishedChoice, SharedModel};
use crate::server::response::choice::{ChoiceEnd, Piece};

/// The prompt that a choice belongs to.
pub struct Origin {
    pub id: String,
    pub n_prompt: usize,
}

/// What the response includes besides text and ids.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// Number of most likely tokens besides the chosen one; `None`: no log-probabilities.
    pub n_logprobs: Option<usize>,
    /// Whether log-probabilities include their token's text.
    pub with_texts: bool,
}

pub struct GenerateFormat {
    model: SharedModel,
    origins: Vec<Origin>,
    choices_per_prompt: usize,
    is_list: bool,
    shown: Shown,
    started: Instant,
    /// The output so far, one for each choice.
    sums: Vec<Sum>,
}

#[derive(Default, Clone)]
struct Sum {
    text: String,
    tokens: Vec<SampledToken>,
}

impl GenerateFormat {
    pub fn new(
        model: SharedModel,
        origins: Vec<Origin>,
        choices_per_prompt: usize,
        is_list: bool,
        shown: Shown,
        started: Instant,
    ) -> Self {
        let n_choices = origins.len() * choices_per_prompt;
        Self {
            model,
            origins,
            choices_per_prompt,
            is_list,
            shown,
            started,
            sums: vec![Sum::default(); n_choices],
        }
    }

    fn origin(&self, index: usize) -> &Origin {
        &self.origins[index / self.choices_per_prompt]
    }

    /// A choice with its output so far.
    fn object(&self, index: usize, end: Option<&ChoiceEnd>) -> Value {
        let sum = &self.sums[index];
        let origin = self.origin(index);
        let ids: Vec<u32> = sum.tokens.iter().map(|sampled| sampled.token).collect();
        let mut about = json!({
            "id": origin.id,
            "finish_reason": end.map(|end| finish_reason(end, &ids)),
            "prompt_tokens": origin.n_prompt,
            "weight_version": "default",
            "completion_tokens": ids.len(),
        });
        if let Some(end) = end {
            about["cached_tokens"] = json!(end.usage.cached_tokens);
            about["e2e_latency"] = json!(self.started.elapsed().as_secs_f64());
        }
        if let Some(n_top) = self.shown.n_logprobs {
            about["input_token_logprobs"] = json!([]);
            about["output_token_logprobs"] = sum
                .tokens
                .iter()
                .map(|sampled| self.triple(sampled.logprob, sampled.token))
                .collect();
            if n_top > 0 {
                about["input_top_logprobs"] = json!([]);
                let top = |sampled: &SampledToken| -> Value {
                    let most_likely = sampled.top_logprobs.iter();
                    most_likely
                        .map(|&(id, logprob)| self.triple(Some(logprob), id))
                        .collect()
                };
                about["output_top_logprobs"] = sum.tokens.iter().map(top).collect();
            }
        }
        json!({"text": sum.text, "output_ids": ids, "meta_info": about})
    }

    /// Log-probability, id, text.
    fn triple(&self, logprob: Option<f32>, id: u32) -> Value {
        let text = self.shown.with_texts.then(|| {
            let bytes = self.model.tokenizer.token_bytes(id);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        json!([logprob, id, text])
    }
}

fn finish_reason(end: &ChoiceEnd, ids: &[u32]) -> Value {
    match end.finish_reason {
        "length" => json!({"type": "length", "length": ids.len()}),
        "abort" => json!({"type": "abort", "message": "aborted"}),
        kind if end.stop_reason.is_null() => json!({"type": kind, "matched": ids.last()}),
        kind => json!({"type": kind, "matched": end.stop_reason}),
    }
}

impl AnswerFormat for GenerateFormat {
    fn id(&self, index: usize) -> &str {
        &self.origin(index).id
    }

    fn opening(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn chunks(&mut self, index: usize, piece: &Piece) -> Vec<Value> {
        if let Some(sum) = self.sums.get_mut(index) {
            sum.text.push_str(&piece.text);
            sum.tokens.extend(piece.tokens.iter().cloned());
        }
        let mut object = self.object(index, piece.end.as_ref());
        if self.is_list {
            object["index"] = json!(index);
        }
        vec![object]
    }

    /// Every event carries its token counts.
    fn closing(&mut self, _usage: Value) -> Vec<Value> {
        Vec::new()
    }

    fn whole(&mut self, choices: Vec<FinishedChoice>, _usage: Value) -> Value {
        let mut objects: Vec<Value> = Vec::with_capacity(choices.len());
        for (index, choice) in choices.into_iter().enumerate() {
            let FinishedChoice { text, tokens, end } = choice;
            self.sums[index] = Sum { text, tokens };
            objects.push(self.object(index, Some(&end)));
        }
        match objects.pop() {
            Some(only) if !self.is_list => only,
            last => objects.into_iter().chain(last).collect(),
        }
    }
}
