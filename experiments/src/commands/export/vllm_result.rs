//! One case of a run under the keys of `vllm bench serve --save-result --save-detailed`.
//!
//! Times are in milliseconds in the figures, in seconds in the lists, which have an entry a request,
//! failed ones included, in the order sent. The definitions ([`crate::record::summary`]) are the same but
//! for the edges of a request: vLLM starts its clock before it connects, we do when the connection
//! stands; vLLM ends a request with the last chunk that carries a token, we do with the stream. So
//! our TTFT lacks the connection, and our end-to-end time and TPOT contain the closing chunks.
//! Keys of ours that vLLM does not know say which run it was.

use records::manifest::Manifest;
use records::rows::RequestRow;
use serde_json::{Map, Value, json};

use crate::record::summary::CaseSummary;
use crate::spec::workload::{Case, Limits};

pub fn of_case(
    manifest: &Manifest,
    case: &Case,
    rows: &[RequestRow],
    limits: Option<&Limits>,
) -> Value {
    let rows: Vec<&RequestRow> = rows
        .iter()
        .filter(|row| row.case == case.name && !row.warmup)
        .collect();
    let mut result = Map::new();
    let mut put = |key: &str, value: Value| result.insert(key.to_string(), value);
    put("date", json!(date(&manifest.started_utc)));
    put("backend", json!("openai"));
    put("label", json!(manifest.experiment));
    put("model_id", json!(manifest.model.used));
    put("tokenizer_id", Value::Null);
    put("burstiness", json!(1.0));
    put("run_id", json!(manifest.run_id));
    put("replicate", json!(manifest.replicate));
    if let Value::Object(figures) = CaseSummary::of(case, &rows, limits).to_json() {
        result.extend(figures);
    }
    let mut list = |key: &str, of: fn(&RequestRow) -> Value| {
        let values: Vec<Value> = rows.iter().map(|row| of(row)).collect();
        result.insert(key.to_string(), Value::Array(values));
    };
    list("input_lens", |row| json!(row.prompt_tokens.unwrap_or(0)));
    list("output_lens", |row| json!(row.output_tokens.unwrap_or(0)));
    list("ttfts", |row| {
        let ttft_s = row
            .first_token_s
            .zip(row.sent_s)
            .map(|(first, sent)| first - sent);
        json!(ttft_s.unwrap_or(0.0))
    });
    list("itls", |row| {
        let gaps_s: Vec<f64> = row
            .token_s
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .collect();
        json!(gaps_s)
    });
    list("errors", |row| json!(row.error.as_deref().unwrap_or("")));
    Value::Object(result)
}

/// `2026-11-24T14:35:35Z` → `20261124-143535`.
fn date(started_utc: &str) -> String {
    started_utc
        .chars()
        .filter_map(|c| match c {
            'T' => Some('-'),
            c if c.is_ascii_digit() => Some(c),
            _ => None,
        })
        .collect()
}
