//! Chats with shared prefixes, in an order that is mixed and always the same.

use serde_json::json;

use super::load::Ask;

/// The engines' name for their model; one that serves a single model answers to any.
pub const MODEL: &str = "tiny";
pub const N_PREFIXES: usize = 12;
/// Steps that visit all prefixes: coprime to their number.
const STEPS: [usize; 4] = [5, 7, 11, 1];
const N_PREFIX_WORDS: usize = 260;
const WORDS: [&str; 20] = [
    "river", "stone", "light", "paper", "water", "garden", "letter", "window", "morning", "bridge",
    "music", "forest", "market", "winter", "summer", "station", "table", "mountain", "island",
    "story",
];

/// The i-th request: every other round is streamed.
pub fn ask(i: usize, n_tokens: u32, key: &str) -> Ask {
    let prefix = prefix_of(i);
    let stream = (i / N_PREFIXES) % 2 == 1;
    let session = format!("prefix {prefix}");
    chat(&prefix_text(prefix), &session, n_tokens, stream, key)
}

/// A chat whose prefix is `system`, of one session.
pub fn chat(system: &str, session: &str, n_tokens: u32, stream: bool, key: &str) -> Ask {
    let mut body = json!({
        "model": MODEL,
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": "What does it say?"},
        ],
        "max_tokens": n_tokens,
        "temperature": 0,
        "ignore_eos": true,
    });
    if stream {
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
    }
    Ask {
        path: "/v1/chat/completions",
        body,
        headers: vec![
            ("authorization", format!("Bearer {key}")),
            // Envoy and vllm-router, then Dynamo and LiteLLM.
            ("x-session-id", session.to_owned()),
            ("x-dynamo-session-id", session.to_owned()),
            ("x-litellm-session-id", session.to_owned()),
        ],
    }
}

/// Each prefix once in each round, in another order.
fn prefix_of(i: usize) -> usize {
    let (round, place) = (i / N_PREFIXES, i % N_PREFIXES);
    (place * STEPS[round % STEPS.len()] + round * 3) % N_PREFIXES
}

/// A few hundred tokens that differ from the first one on.
fn prefix_text(prefix: usize) -> String {
    let mut text = format!("{} {prefix} is the manual.", WORDS[prefix]);
    let mut state = prefix as u32 + 1;
    for _ in 0..N_PREFIX_WORDS {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push(' ');
        text.push_str(WORDS[(state >> 16) as usize % WORDS.len()]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_has_every_prefix_once() {
        for round in 0..8 {
            let mut all: Vec<usize> = (0..N_PREFIXES)
                .map(|place| prefix_of(round * N_PREFIXES + place))
                .collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..N_PREFIXES), "round {round}");
        }
        assert_ne!(prefix_of(1), prefix_of(N_PREFIXES + 1), "another order");
    }

    #[test]
    fn prefixes_differ_and_stay_the_same() {
        assert_eq!(prefix_text(3), prefix_text(3));
        let first = |prefix| prefix_text(prefix).split(' ').next().map(str::to_owned);
        assert_ne!(first(3), first(4));
    }

    #[test]
    fn a_stream_asks_for_its_usage() {
        let streamed = ask(N_PREFIXES, 3, "k");
        assert_eq!(streamed.body["stream_options"]["include_usage"], true);
        assert_eq!(streamed.body["max_tokens"], 3);
        assert!(ask(0, 3, "k").body["stream"].is_null());
    }
}
