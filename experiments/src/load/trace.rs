//! Traces: when requests came to the servers, how long they were, and what they had in common.
//!
//! The form is that of Mooncake's published traces, a JSON object a line: `timestamp` in milliseconds,
//! `input_length` and `output_length` in tokens, and `hash_ids`, a number for each block of 512 input
//! tokens: the same number is the same block after the same beginning. Without `hash_ids` nothing is
//! common to two requests. The texts themselves are in no trace: token ids are drawn for the blocks.
//!
//! Source: Qin et al., "Mooncake: Trading More Storage for Less Computation" (FAST 2025).

use std::collections::HashMap;

use rand::Rng;
use serde::Deserialize;

use crate::load::prompts::{TOKEN_IDS, case_rng};

/// Input tokens of one hash id.
const BLOCK_TOKENS: usize = 512;
const MOST_TOKENS: u32 = 1_000_000;
const MOST_REQUESTS: usize = 100_000;

/// One line.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TraceRequest {
    /// Milliseconds.
    timestamp: f64,
    input_length: u32,
    pub output_length: u32,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

impl TraceRequest {
    /// Seconds after the trace's zero.
    pub fn at_s(&self) -> f64 {
        self.timestamp / 1e3
    }
}

/// All requests in the order of their times.
///
/// # Errors
///
/// The first line that is no request of a trace, and why.
pub fn parse(text: &str) -> Result<Vec<TraceRequest>, (usize, String)> {
    let mut requests: Vec<TraceRequest> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let refused = |problem: String| Err((index + 1, problem));
        let request: TraceRequest =
            serde_json::from_str(line).map_err(|error| (index + 1, error.to_string()))?;
        let (input, output) = (request.input_length, request.output_length);
        for (name, n) in [("input_length", input), ("output_length", output)] {
            if n == 0 || n > MOST_TOKENS {
                return refused(format!("{name} {n}: 1 to {MOST_TOKENS} tokens"));
            }
        }
        let least_s = requests.last().map_or(0.0, TraceRequest::at_s);
        if !request.timestamp.is_finite() || request.at_s() < least_s {
            let at = request.timestamp;
            return refused(format!("timestamp {at}: at least that of the line before"));
        }
        let n_blocks = (input as usize).div_ceil(BLOCK_TOKENS);
        if !request.hash_ids.is_empty() && request.hash_ids.len() != n_blocks {
            let n = request.hash_ids.len();
            return refused(format!(
                "{n} hash_ids: {n_blocks} blocks of {BLOCK_TOKENS} tokens in input_length {input}"
            ));
        }
        if requests.len() == MOST_REQUESTS {
            return refused(format!("a trace has at most {MOST_REQUESTS} requests"));
        }
        requests.push(request);
    }
    Ok(requests)
}

/// The token ids of the first `n` requests: equal where their blocks are.
pub fn draw_ids(requests: &[TraceRequest], seed: u64, case: &str, n: usize) -> Vec<Vec<u32>> {
    let mut blocks: HashMap<u64, Vec<u32>> = HashMap::new();
    let draw = |name: &str, n: usize| -> Vec<u32> {
        let mut rng = case_rng(seed, name);
        (0..n).map(|_| rng.random_range(TOKEN_IDS)).collect()
    };
    let ids_of = |(index, request): (usize, &TraceRequest)| {
        let n_tokens = request.input_length as usize;
        if request.hash_ids.is_empty() {
            return draw(&format!("{case} request {index}"), n_tokens);
        }
        let mut ids = Vec::with_capacity(n_tokens);
        for &hash in &request.hash_ids {
            let block = blocks
                .entry(hash)
                .or_insert_with(|| draw(&format!("{case} block {hash}"), BLOCK_TOKENS));
            let n_left = n_tokens - ids.len();
            ids.extend_from_slice(&block[..n_left.min(BLOCK_TOKENS)]);
        }
        ids
    };
    requests.iter().enumerate().take(n).map(ids_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: &str = r#"{"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [1, 2]}
{"timestamp": 1500, "input_length": 1100, "output_length": 9, "hash_ids": [1, 2, 3]}

{"timestamp": 1500, "input_length": 30, "output_length": 1}"#;

    #[test]
    fn blocks_of_one_number_are_the_same_tokens() {
        let requests = parse(THREE).expect("a trace");
        assert_eq!(requests.len(), 3);
        assert!((requests[1].at_s() - 1.5).abs() < f64::EPSILON);
        let ids = draw_ids(&requests, 7, "trace-1x", 3);
        let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
        assert_eq!(lengths, [700, 1100, 30]);
        assert_eq!(ids[0], ids[1][..700]);
        assert_ne!(ids[1][..512], ids[1][512..1024]);
        assert!(ids.iter().flatten().all(|id| TOKEN_IDS.contains(id)));
        // Another case finds nothing of this one in a cache.
        assert_ne!(ids[0], draw_ids(&requests, 7, "trace-2x", 1)[0]);
    }

    #[test]
    fn what_is_no_request_is_named_with_its_line_and_limit() {
        let refused = |text: &str| parse(text).expect_err("refused");
        let line = |t: f64, n: u32, m: u32, ids: &str| {
            format!(
                r#"{{"timestamp": {t}, "input_length": {n}, "output_length": {m}, "hash_ids": {ids}}}"#
            )
        };
        let (at, why) = refused(&line(0.0, 0, 1, "[]"));
        assert_eq!(
            (at, why.as_str()),
            (1, "input_length 0: 1 to 1000000 tokens")
        );
        let (at, why) = refused(&[line(9.0, 1, 1, "[]"), line(8.0, 1, 1, "[]")].join("\n"));
        assert_eq!(at, 2);
        assert!(why.contains("timestamp 8"), "{why}");
        let (_, why) = refused(&line(0.0, 513, 1, "[4]"));
        assert!(why.contains("1 hash_ids: 2 blocks of 512 tokens"), "{why}");
        assert!(refused("{}").1.contains("timestamp"));
    }
}
