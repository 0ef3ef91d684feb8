//! The program under a long mixed load on the CPU executor: two models, whole and streamed
//! responses, clients that disconnect at random times, bad input, and models that are suspended and
//! unloaded meanwhile. No request is lost or answered twice, no page leaks, memory stays at the
//! level after the first thousand, and greedy texts equal those of single runs.
//!
//! A short one is among the tests; `cargo xtask soak --requests 100000` runs the long one.

mod requests;
mod switches;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use engine::model::config::Family;
use engine::weights::fixture::FolderFormat;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use self::requests::{COMPLETIONS, prompt};
use crate::client;
use crate::fixture::assert_empties;
use crate::flags::fixture::Model;
use crate::program::Program;

const ADMIN_KEY: &str = "adm1n";
const N_CLIENTS: usize = 16;
/// Greedy requests to each model whose text is known.
const N_KNOWN: usize = 24;
/// Memory is measured from here on: pools and caches are warm.
const N_WARM_UP: usize = 1000;
const MAX_GROWTH: f64 = 0.05;
/// Readings whose median is a level, and the requests of each.
const N_READINGS: usize = 11;
const ROUND: usize = 500;
/// Seed unless `SOAK_SEED` is set.
const SEED: u64 = 7;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_soak() {
    let figures = run(400, SEED).await;
    println!("{figures:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes as long as it is told to: cargo xtask soak"]
async fn soak() {
    let n_requests = number("SOAK_REQUESTS", 100_000) as usize;
    let seed = number("SOAK_SEED", SEED);
    assert!(n_requests > 4 * N_WARM_UP, "fewer show no growth");
    println!("SOAK_REQUESTS={n_requests} SOAK_SEED={seed}");
    let figures = run(n_requests, seed).await;
    println!("{figures:?}");
    let (warm, last) = figures.levels();
    let growth = last / warm - 1.0;
    println!(
        "memory {warm:.1} MiB after {N_WARM_UP} requests, {last:.1} at the end: {:+.1} %",
        growth * 100.0
    );
    assert!(growth <= MAX_GROWTH, "{:?}", figures.resident_mib);
}

/// Of the environment.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| {
        text.parse()
            .unwrap_or_else(|error| panic!("{name} is {text:?}: {error}"))
    })
}

#[derive(Debug, Default)]
#[expect(dead_code, reason = "printed")]
struct Figures {
    n_requests: usize,
    elapsed_s: f64,
    n_answered: usize,
    n_streamed: usize,
    n_abandoned: usize,
    /// Invalid requests.
    n_refused: usize,
    /// Their model was sleeping, unloaded, or loading.
    n_turned_away: usize,
    n_known_texts: usize,
    n_sleeps: usize,
    n_unloads: usize,
    /// Except for those of a model at the moment it was unloaded.
    n_preemptions: usize,
    /// After the warm-up and after every round.
    resident_mib: Vec<f64>,
}

impl Figures {
    /// Medians of the first and of the last rounds: memory that the allocator has not returned yet
    /// varies from one second to the next by more than the expected leak, more so while models are
    /// loaded and unloaded.
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

/// Shared by all clients.
struct Soak {
    program: Program,
    seed: u64,
    known: Vec<Known>,
    /// The request that is sent next, and the one at which the round ends.
    next: AtomicUsize,
    end: AtomicUsize,
    seen_ids: Mutex<HashSet<String>>,
    counts: Counts,
}

/// A greedy request, with its model's name, and its text.
struct Known {
    body: Value,
    text: String,
}

#[derive(Default)]
struct Counts {
    answered: AtomicUsize,
    streamed: AtomicUsize,
    abandoned: AtomicUsize,
    refused: AtomicUsize,
    turned_away: AtomicUsize,
    known_texts: AtomicUsize,
    sleeps: AtomicUsize,
    unloads: AtomicUsize,
    /// Of engines that have ended.
    preemptions: AtomicUsize,
}

const MODELS: [&str; 2] = ["x", "y"];

async fn run(n_requests: usize, seed: u64) -> Figures {
    let models = [Model::f16(), Model::new(Family::Llama, FolderFormat::F16)];
    // Pools that sixteen clients overfill, so that sequences are preempted.
    let mut line = format!(
        "--port 0 --device cpu --n-threads 1 --max-total-tokens 320 --max-running-requests 8 \
         --max-stop-strings 4 --decode-log-interval 100000 --admin-api-key {ADMIN_KEY}"
    );
    for (name, model) in MODELS.iter().zip(&models) {
        let path = model.path().display().to_string();
        line.extend([" --model-path ", &path, " --served-model-name ", name]);
    }
    let program = Program::start(&line, &[]).await;
    let soak = Arc::new(Soak {
        known: known(&program).await,
        program,
        seed,
        next: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        seen_ids: Mutex::default(),
        counts: Counts::default(),
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
        let switching = Arc::clone(&soak);
        clients.spawn(async move { switching.switch_models().await });
        while let Some(client) = clients.join_next().await {
            client.expect("no client failed");
        }
        resident_mib.push(soak.resident_mib_when_empty().await);
    }
    let n_preemptions = soak.metric("vllm:num_preemptions_total").await as usize;
    let count = |counter: &AtomicUsize| counter.load(Ordering::Acquire);
    let figures = Figures {
        n_requests,
        elapsed_s: begun.elapsed().as_secs_f64(),
        n_answered: count(&soak.counts.answered),
        n_streamed: count(&soak.counts.streamed),
        n_abandoned: count(&soak.counts.abandoned),
        n_refused: count(&soak.counts.refused),
        n_turned_away: count(&soak.counts.turned_away),
        n_known_texts: count(&soak.counts.known_texts),
        n_sleeps: count(&soak.counts.sleeps),
        n_unloads: count(&soak.counts.unloads),
        n_preemptions: count(&soak.counts.preemptions) + n_preemptions,
        resident_mib,
    };
    let n_ended = figures.n_answered + figures.n_abandoned + figures.n_refused;
    assert_eq!(
        n_ended + figures.n_turned_away,
        n_requests,
        "none is lost: {figures:?}"
    );
    assert!(
        figures.n_known_texts > n_requests / 4 && figures.n_abandoned > 0,
        "{figures:?}"
    );
    assert!(
        figures.n_sleeps > 0 && figures.n_unloads > 0,
        "no model was switched: {figures:?}"
    );
    assert!(
        figures.n_preemptions > 0,
        "the pools were too large: {figures:?}"
    );
    figures
}

/// Each model's responses when it is otherwise idle.
async fn known(program: &Program) -> Vec<Known> {
    let mut known = Vec::new();
    for model in MODELS {
        for i in 0..N_KNOWN {
            let body = json!({
                "model": model, "prompt": prompt(i, 1 + i * 5 % 40), "max_tokens": 1 + i * 7 % 60,
                "temperature": 0, "ignore_eos": true,
            });
            let answer = client::post(program.address, COMPLETIONS, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let text = answer.json()["choices"][0]["text"]
                .as_str()
                .expect("a text")
                .to_owned();
            known.push(Known { body, text });
        }
    }
    let (of_first, of_second) = known.split_at(N_KNOWN);
    let differ = of_first
        .iter()
        .zip(of_second)
        .any(|(first, second)| first.text != second.text);
    assert!(differ, "two models");
    known
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
    async fn metric(&self, series: &str) -> f64 {
        client::metric(self.program.address, series).await
    }

    /// Memory of the process, once nothing runs and no page is in use.
    async fn resident_mib_when_empty(&self) -> f64 {
        assert_empties(self.program.address).await;
        assert_eq!(
            self.metric("engine_failed_total").await.to_bits(),
            0,
            "a request failed"
        );
        self.metric("process_resident_memory_bytes").await / 1_048_576.0
    }
}
