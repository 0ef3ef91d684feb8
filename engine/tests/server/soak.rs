//! The program under a long mixed load on the CPU executor: whole and streamed answers, clients that
//! go away at random times, bad input. None is lost, none answered twice, no page leaks, memory
//! stays where it was after the first thousand, and greedy texts are those of single runs.
//!
//! A short one is among the tests; `cargo xtask soak --requests 100000` runs the long one.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use crate::client::{self, Answer};
use crate::flags::model::Model;
use crate::program::Program;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const N_CLIENTS: usize = 16;
/// Greedy requests whose text is known.
const N_KNOWN: usize = 24;
/// Memory is measured from here on: pools and caches are warm.
const N_WARM_UP: usize = 1000;
const MAX_GROWTH: f64 = 0.05;
/// Rounds that a level is the median of, and the requests of each.
const N_READINGS: usize = 11;
const ROUND: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_soak() {
    let figures = run(400).await;
    println!("{figures:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes as long as it is told to: cargo xtask soak"]
async fn soak() {
    let n_requests = std::env::var("SOAK_REQUESTS").map_or(100_000, |text| {
        text.parse().expect("SOAK_REQUESTS is a number")
    });
    assert!(n_requests > 4 * N_WARM_UP, "fewer show no growth");
    let figures = run(n_requests).await;
    println!("{figures:?}");
    let (warm, last) = figures.levels();
    let growth = last / warm - 1.0;
    println!(
        "memory {warm:.1} MiB after {N_WARM_UP} requests, {last:.1} at the end: {:+.1} %",
        growth * 100.0
    );
    assert!(growth.abs() <= MAX_GROWTH, "{:?}", figures.resident_mib);
}

#[derive(Debug, Default)]
#[expect(dead_code, reason = "printed")]
struct Figures {
    n_requests: usize,
    elapsed_s: f64,
    n_answered: usize,
    n_streamed: usize,
    n_abandoned: usize,
    n_refused: usize,
    n_known_texts: usize,
    /// After the warm-up and after every round.
    resident_mib: Vec<f64>,
}

impl Figures {
    /// Medians of the first and of the last rounds: what the allocator has not given back yet
    /// differs from one moment to the next by more than what is looked for.
    fn levels(&self) -> (f64, f64) {
        let median = |readings: &[f64]| {
            let mut sorted = readings.to_vec();
            sorted.sort_by(f64::total_cmp);
            sorted[sorted.len() / 2]
        };
        let n = self.resident_mib.len();
        let of_a_level = N_READINGS.min(n);
        (
            median(&self.resident_mib[..of_a_level]),
            median(&self.resident_mib[n - of_a_level..]),
        )
    }
}

/// What all clients share.
struct Soak {
    program: Program,
    known: Vec<(Value, String)>,
    next: AtomicUsize,
    end: AtomicUsize,
    seen_ids: Mutex<HashSet<String>>,
    n_answered: AtomicUsize,
    n_streamed: AtomicUsize,
    n_abandoned: AtomicUsize,
    n_refused: AtomicUsize,
    n_known_texts: AtomicUsize,
}

async fn run(n_requests: usize) -> Figures {
    let model = Model::f16();
    // A pool that sixteen clients overfill, so that sequences are preempted.
    let flags =
        "--port 0 --max-running-requests 8 --max-stop-strings 4 --decode-log-interval 100000";
    let program = Program::start(&model.line(flags), &[]).await;
    let mut known = Vec::new();
    for i in 0..N_KNOWN {
        let body = json!({
            "prompt": prompt(i, 1 + i * 5 % 40), "max_tokens": 1 + i * 7 % 60,
            "temperature": 0, "ignore_eos": true,
        });
        let answer = client::post(program.address, COMPLETIONS, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let text = answer.json()["choices"][0]["text"]
            .as_str()
            .expect("a text")
            .to_owned();
        known.push((body, text));
    }
    let soak = Arc::new(Soak {
        program,
        known,
        next: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        seen_ids: Mutex::default(),
        n_answered: AtomicUsize::new(0),
        n_streamed: AtomicUsize::new(0),
        n_abandoned: AtomicUsize::new(0),
        n_refused: AtomicUsize::new(0),
        n_known_texts: AtomicUsize::new(0),
    });
    let begun = Instant::now();
    let mut resident_mib = Vec::new();
    for end in rounds(n_requests) {
        soak.end.store(end, Ordering::Release);
        let mut clients = JoinSet::new();
        for _ in 0..N_CLIENTS {
            let soak = Arc::clone(&soak);
            clients.spawn(async move { soak.send_all().await });
        }
        while let Some(client) = clients.join_next().await {
            client.expect("no client failed");
        }
        resident_mib.push(soak.resident_mib_when_empty().await);
    }
    let count = |counter: &AtomicUsize| counter.load(Ordering::Acquire);
    let figures = Figures {
        n_requests,
        elapsed_s: begun.elapsed().as_secs_f64(),
        n_answered: count(&soak.n_answered),
        n_streamed: count(&soak.n_streamed),
        n_abandoned: count(&soak.n_abandoned),
        n_refused: count(&soak.n_refused),
        n_known_texts: count(&soak.n_known_texts),
        resident_mib,
    };
    assert_eq!(
        figures.n_answered + figures.n_abandoned + figures.n_refused,
        n_requests,
        "none is lost: {figures:?}"
    );
    assert!(figures.n_known_texts > n_requests / 4 && figures.n_abandoned > 0);
    figures
}

/// Ends of the rounds: one for the warm-up, short ones for a level, ten long ones, short ones
/// again.
fn rounds(n_requests: usize) -> Vec<usize> {
    let warm_up = N_WARM_UP.min(n_requests / 4);
    let short = ROUND.min(n_requests / 50);
    let (first_end, last_begin) = (
        warm_up + (N_READINGS - 1) * short,
        n_requests - (N_READINGS - 1) * short,
    );
    let mut ends: Vec<usize> = (0..N_READINGS).map(|i| warm_up + i * short).collect();
    ends.extend((1..=10).map(|i| first_end + (last_begin - first_end) * i / 10));
    ends.extend((1..N_READINGS).map(|i| last_begin + i * short));
    ends
}

impl Soak {
    async fn send_all(&self) {
        loop {
            let i = self.next.fetch_add(1, Ordering::AcqRel);
            if i >= self.end.load(Ordering::Acquire) {
                // For the next round.
                self.next.fetch_sub(1, Ordering::AcqRel);
                return;
            }
            let mut rng = StdRng::seed_from_u64(rand::rng().random());
            let sending = self.send(&mut rng);
            tokio::time::timeout(Duration::from_mins(1), sending)
                .await
                .expect("every request is answered");
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

    async fn post(&self, path: &str, body: &Value) -> Answer {
        client::post(self.program.address, path, body).await
    }

    /// An answer has an id that no other one has.
    fn check_id(&self, answer: &Value) {
        let id = answer["id"].as_str().expect("an id").to_owned();
        let mut seen = self.seen_ids.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(seen.insert(id), "answered twice: {answer}");
    }

    async fn known_text(&self, rng: &mut StdRng, stream: bool) {
        let (body, text) = &self.known[rng.random_range(0..self.known.len())];
        let mut body = body.clone();
        if stream {
            body["stream"] = true.into();
            body["stream_options"] = json!({"include_usage": true});
            let chunks = self.post(COMPLETIONS, &body).await.chunks();
            self.check_id(&chunks[0]);
            assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
            let texts = chunks
                .iter()
                .filter_map(|chunk| chunk["choices"][0]["text"].as_str());
            assert_eq!(texts.collect::<String>(), *text);
            let last = &chunks[chunks.len() - 1];
            assert_eq!(last["usage"]["completion_tokens"], body["max_tokens"]);
            self.n_streamed.fetch_add(1, Ordering::AcqRel);
        } else {
            let answer = self.post(COMPLETIONS, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let answer = answer.json();
            self.check_id(&answer);
            assert_eq!(answer["choices"][0]["text"], text.as_str());
            assert_eq!(answer["usage"]["completion_tokens"], body["max_tokens"]);
        }
        self.n_known_texts.fetch_add(1, Ordering::AcqRel);
        self.n_answered.fetch_add(1, Ordering::AcqRel);
    }

    async fn go_away(&self, rng: &mut StdRng, stream: bool) {
        let body = json!({
            "prompt": prompt(rng.random_range(0..10), 10 * rng.random_range(1..10)),
            "max_tokens": 200, "stream": stream, "ignore_eos": true,
        });
        let body = body.to_string();
        let address = self.program.address;
        let mut connection = client::open(address, "POST", COMPLETIONS, &[], body.as_bytes()).await;
        if stream && rng.random_bool(0.5) {
            let mut some = vec![0; rng.random_range(1..2000)];
            connection
                .read_exact(&mut some)
                .await
                .expect("it is longer than that");
        } else {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..30))).await;
        }
        drop(connection);
        self.n_abandoned.fetch_add(1, Ordering::AcqRel);
    }

    async fn bad_input(&self, rng: &mut StdRng) {
        let (path, body, status) = match rng.random_range(0..6) {
            0 => (COMPLETIONS, "{\"prompt\": ".to_owned(), 400),
            1 => (
                COMPLETIONS,
                json!({"prompt": "x".repeat(3000)}).to_string(),
                400,
            ),
            2 => (
                COMPLETIONS,
                json!({"prompt": "x", "stop": ["1", "2", "3", "4", "5"]}).to_string(),
                400,
            ),
            3 => (CHAT, json!({"messages": [{"role": 5}]}).to_string(), 400),
            4 => (
                CHAT,
                json!({"model": "no-such", "messages": []}).to_string(),
                404,
            ),
            _ => ("/nowhere", String::new(), 404),
        };
        let answer = client::send(self.program.address, "POST", path, &[], body.as_bytes()).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.json()["error"]["code"].is_string());
        self.n_refused.fetch_add(1, Ordering::AcqRel);
    }

    async fn several_choices(&self, rng: &mut StdRng) {
        let seed: u32 = rng.random_range(0..1000);
        let body = json!({
            "prompt": prompt(seed as usize % 20, 9), "max_tokens": 12, "n": 2, "seed": seed,
            "temperature": 1.0, "ignore_eos": true, "logprobs": 2,
        });
        let answer = self.post(COMPLETIONS, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = answer.json();
        self.check_id(&answer);
        let indices: Vec<_> = (0..2)
            .map(|i| answer["choices"][i]["index"].clone())
            .collect();
        assert_eq!(indices, [json!(0), json!(1)]);
        assert_eq!(answer["usage"]["completion_tokens"], 24);
        self.n_answered.fetch_add(1, Ordering::AcqRel);
    }

    async fn chat(&self, rng: &mut StdRng) {
        let body = json!({
            "messages": [{"role": "user", "content": prompt(rng.random_range(0..20), 20)}],
            "max_tokens": rng.random_range(1..30),
        });
        let answer = self.post(CHAT, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        self.check_id(&answer.json());
        self.n_answered.fetch_add(1, Ordering::AcqRel);
    }

    async fn metric(&self, name: &str) -> f64 {
        let answer = client::get(self.program.address, "/metrics").await;
        let line = answer.text().lines().find(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        let value = line.and_then(|line| line.rsplit(' ').next());
        value
            .and_then(|value| value.parse().ok())
            .expect("a metric")
    }

    /// Memory of the process, once nothing runs and no page is in use.
    async fn resident_mib_when_empty(&self) -> f64 {
        let begun = Instant::now();
        loop {
            let busy = self.metric("vllm:num_requests_running").await
                + self.metric("vllm:num_requests_waiting").await
                + self.metric("engine_kv_pages_used").await;
            if busy == 0.0 {
                break;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "requests or pages are left"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(
            self.metric("engine_failed_total").await.to_bits(),
            0,
            "a request failed"
        );
        self.metric("process_resident_memory_bytes").await / 1_048_576.0
    }
}

/// `n_bytes` letters, which are as many tokens. Callers choose among few, which the warm-up has all
/// seen: the tokenizer remembers up to ten thousand words, tens of megabytes where words are as
/// long as these, and would fill its memory during the whole of the run.
fn prompt(seed: usize, n_bytes: usize) -> String {
    (0..n_bytes)
        .map(|i| char::from(b'a' + ((seed + i * (seed / 26 + 1)) % 26) as u8))
        .collect()
}
