//! The requests, and the expected responses.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::{MODELS, Soak};
use crate::client::{self, Answer};

pub const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Errors of a model that is not ready.
const AWAY: [&str; 6] = [
    "model_asleep",
    "model_waking",
    "model_unloading",
    "model_unloaded",
    "model_loading",
    "shutting_down",
];
/// Pause before a refused client retries.
const PATIENCE: Duration = Duration::from_millis(20);

impl Soak {
    pub async fn send_all(&self) {
        loop {
            let end = self.end.load(Ordering::Acquire);
            let below_end = |i| (i < end).then_some(i + 1);
            let (set, read) = (Ordering::AcqRel, Ordering::Acquire);
            let Ok(i) = self.next.fetch_update(set, read, below_end) else {
                return;
            };
            // What is sent depends on its number alone, so a failure can be sent again.
            let mut rng = StdRng::seed_from_u64(self.seed.wrapping_add(i as u64));
            tokio::time::timeout(Duration::from_mins(1), self.send(&mut rng))
                .await
                .unwrap_or_else(|_| panic!("request {i} is not answered"));
        }
    }

    async fn send(&self, rng: &mut StdRng) {
        match rng.random_range(0..100) {
            0..40 => self.known_text(rng, false).await,
            40..60 => self.known_text(rng, true).await,
            60..75 => self.go_away(rng, true).await,
            75..80 => self.go_away(rng, false).await,
            80..90 => self.bad_input(rng).await,
            90..95 => self.several_choices(rng).await,
            _ => self.chat(rng).await,
        }
    }

    /// The response, unless the model is not ready.
    async fn answer(&self, path: &str, body: &Value) -> Option<Answer> {
        let answer = client::post(self.program.address, path, body).await;
        if !is_away(&answer) {
            assert_eq!(answer.status, 200, "{}", answer.text());
            return Some(answer);
        }
        count(&self.counts.turned_away);
        tokio::time::sleep(PATIENCE).await;
        None
    }

    /// Every response has a unique id.
    fn check_id(&self, answer: &Value) {
        let id = answer["id"].as_str().expect("an id").to_owned();
        let mut seen = self.seen_ids.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(seen.insert(id), "answered twice: {answer}");
    }

    async fn known_text(&self, rng: &mut StdRng, stream: bool) {
        let known = &self.known[rng.random_range(0..self.known.len())];
        let mut body = known.body.clone();
        if stream {
            body["stream"] = true.into();
            body["stream_options"] = json!({"include_usage": true});
        }
        let Some(answer) = self.answer(COMPLETIONS, &body).await else {
            return;
        };
        if stream {
            let chunks = answer.chunks();
            self.check_id(&chunks[0]);
            assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
            let texts = chunks
                .iter()
                .filter_map(|chunk| chunk["choices"][0]["text"].as_str());
            assert_eq!(texts.collect::<String>(), known.text);
            let last = &chunks[chunks.len() - 1];
            assert_eq!(last["usage"]["completion_tokens"], body["max_tokens"]);
            count(&self.counts.streamed);
        } else {
            let answer = answer.json();
            self.check_id(&answer);
            assert_eq!(answer["choices"][0]["text"], known.text.as_str());
            assert_eq!(answer["usage"]["completion_tokens"], body["max_tokens"]);
        }
        count(&self.counts.known_texts);
        count(&self.counts.answered);
    }

    async fn go_away(&self, rng: &mut StdRng, stream: bool) {
        let body = json!({
            "model": model(rng),
            "prompt": prompt(rng.random_range(0..10), 10 * rng.random_range(1..10)),
            "max_tokens": 200, "stream": stream, "ignore_eos": true,
        });
        let body = body.to_string();
        let address = self.program.address;
        let mut connection = client::open(address, "POST", COMPLETIONS, &[], body.as_bytes()).await;
        if stream && rng.random_bool(0.5) {
            // All of it, where the model is away.
            let mut some = Vec::new();
            let mut part = (&mut connection).take(rng.random_range(1..2000));
            part.read_to_end(&mut some).await.expect("an answer begins");
            assert!(!some.is_empty(), "nothing came");
        } else {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..30))).await;
        }
        drop(connection);
        count(&self.counts.abandoned);
    }

    async fn bad_input(&self, rng: &mut StdRng) {
        let model = model(rng);
        let (path, body, status) = match rng.random_range(0..6) {
            0 => (COMPLETIONS, "{\"prompt\": ".to_owned(), 400),
            1 => (
                COMPLETIONS,
                json!({"model": model, "prompt": "x".repeat(3000)}).to_string(),
                400,
            ),
            2 => (
                COMPLETIONS,
                json!({"model": model, "prompt": "x", "stop": ["1", "2", "3", "4", "5"]})
                    .to_string(),
                400,
            ),
            3 => (
                CHAT,
                json!({"model": model, "messages": [{"role": 5}]}).to_string(),
                400,
            ),
            4 => (
                CHAT,
                json!({"model": "no-such", "messages": []}).to_string(),
                404,
            ),
            _ => ("/nowhere", String::new(), 404),
        };
        let answer = client::send(self.program.address, "POST", path, &[], body.as_bytes()).await;
        if is_away(&answer) {
            count(&self.counts.turned_away);
            return;
        }
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.json()["error"]["code"].is_string());
        count(&self.counts.refused);
    }

    async fn several_choices(&self, rng: &mut StdRng) {
        let seed: u32 = rng.random_range(0..1000);
        let body = json!({
            "model": model(rng), "prompt": prompt(seed as usize % 20, 9), "max_tokens": 12, "n": 2,
            "seed": seed, "temperature": 1.0, "ignore_eos": true, "logprobs": 2,
        });
        let Some(answer) = self.answer(COMPLETIONS, &body).await else {
            return;
        };
        let answer = answer.json();
        self.check_id(&answer);
        let indices: Vec<_> = (0..2)
            .map(|i| answer["choices"][i]["index"].clone())
            .collect();
        assert_eq!(indices, [json!(0), json!(1)]);
        assert_eq!(answer["usage"]["completion_tokens"], 24);
        count(&self.counts.answered);
    }

    async fn chat(&self, rng: &mut StdRng) {
        let body = json!({
            "model": model(rng),
            "messages": [{"role": "user", "content": prompt(rng.random_range(0..20), 20)}],
            "max_tokens": rng.random_range(1..30),
        });
        let Some(answer) = self.answer(CHAT, &body).await else {
            return;
        };
        self.check_id(&answer.json());
        count(&self.counts.answered);
    }
}

fn model(rng: &mut StdRng) -> &'static str {
    MODELS[rng.random_range(0..MODELS.len())]
}

fn is_away(answer: &Answer) -> bool {
    answer.status == 503 && {
        let code = answer.json()["error"]["code"].clone();
        AWAY.iter().any(|away| code == *away)
    }
}

fn count(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::AcqRel);
}

/// `n_bytes` letters, which are as many tokens.
pub fn prompt(seed: usize, n_bytes: usize) -> String {
    (0..n_bytes)
        .map(|i| char::from(b'a' + ((seed + i * (seed / 26 + 1)) % 26) as u8))
        .collect()
}
