//! What spans say, in the names of OpenTelemetry's GenAI conventions and of vLLM.

use opentelemetry::{Array, KeyValue, StringValue, Value};

use crate::request::Usage;

/// What a request asked for, and what model serves it.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestFacts {
    pub model: String,
    pub n: usize,
    pub max_tokens: usize,
    pub temperature: f32,
    pub top_p: f32,
}

impl RequestFacts {
    pub(super) fn attributes(&self) -> Vec<KeyValue> {
        vec![
            KeyValue::new("gen_ai.request.model", self.model.clone()),
            KeyValue::new("gen_ai.response.model", self.model.clone()),
            KeyValue::new("gen_ai.request.n", self.n as i64),
            KeyValue::new("gen_ai.request.max_tokens", self.max_tokens as i64),
            KeyValue::new("gen_ai.request.temperature", f64::from(self.temperature)),
            KeyValue::new("gen_ai.request.top_p", f64::from(self.top_p)),
        ]
    }
}

/// Under the present names and those that vLLM writes.
pub(super) fn of_usage(usage: Usage) -> Vec<KeyValue> {
    let prompt = usage.prompt_tokens as i64;
    let completion = usage.completion_tokens as i64;
    vec![
        KeyValue::new("gen_ai.usage.input_tokens", prompt),
        KeyValue::new("gen_ai.usage.prompt_tokens", prompt),
        KeyValue::new("gen_ai.usage.output_tokens", completion),
        KeyValue::new("gen_ai.usage.completion_tokens", completion),
        KeyValue::new(
            "gen_ai.usage.cache_read.input_tokens",
            usage.cached_tokens as i64,
        ),
    ]
}

pub(super) fn finish_reasons(reasons: &[&'static str]) -> KeyValue {
    let reasons = reasons.iter().map(|reason| StringValue::from(*reason));
    let reasons = Value::Array(Array::String(reasons.collect()));
    KeyValue::new("gen_ai.response.finish_reasons", reasons)
}
