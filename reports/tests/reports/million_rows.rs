//! A million request rows: under 5 seconds and 2 GB, from run folders to rendered reports.
//!
//! Not part of the ordinary tests, because it is about the release build:
//! `cargo test --release -p reports --test reports -- million_rows --ignored --nocapture`

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Instant;

use reports::lang::Lang;
use reports::load;
use reports::render::REPORTS;
use reports::render::assemble::build;
use reports::stats::rng::SplitMix64;
use reports::stats::verdict::VerdictConfig;

const N_RUNS: usize = 20;
const ROWS_PER_RUN: usize = 50_000;
const TOKENS_PER_ROW: usize = 10;
const LIMIT_S: f64 = 5.0;
const LIMIT_BYTES: u64 = 2_000_000_000;

#[test]
#[ignore = "takes a release build to mean anything"]
fn a_million_rows_become_reports_within_the_limits() {
    let dir = tempfile::tempdir().unwrap();
    write_runs(dir.path());
    let start = Instant::now();
    let records = load::load(dir.path(), &dir.path().join("none"), |_| true).unwrap();
    let loaded_s = start.elapsed().as_secs_f64();
    let context = build(&records, VerdictConfig::default(), Lang::Ko).unwrap();
    let n_bytes: usize = REPORTS
        .iter()
        .map(|report| report.render(&context).unwrap().len())
        .sum();
    let total_s = start.elapsed().as_secs_f64();
    let peak_bytes = peak_memory_bytes();
    println!(
        "{} rows of {TOKENS_PER_ROW} tokens: loaded in {loaded_s:.2} s, {n_bytes} bytes of reports after {total_s:.2} s, peak memory {:.0} MB",
        N_RUNS * ROWS_PER_RUN,
        peak_bytes as f64 / 1e6
    );
    let n_rows: u32 = records.cases.iter().map(|c| c.n_requests).sum();
    assert_eq!(n_rows as usize, N_RUNS * ROWS_PER_RUN);
    assert!(total_s < LIMIT_S, "{total_s} s");
    assert!(peak_bytes < LIMIT_BYTES, "{peak_bytes} bytes");
}

/// Copies of one run of the fixed data set, two configurations, with rows of their own.
fn write_runs(dir: &Path) {
    let fixed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/runs");
    let source = |experiment: &str| {
        let mut found: Vec<_> = fs::read_dir(&fixed)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|run| run.to_string_lossy().contains(experiment))
            .filter(|run| run.to_string_lossy().contains("20260115T09"))
            .collect();
        found.sort();
        found.swap_remove(0)
    };
    let sources = [source("01-baseline"), source("03-balanced-v2")];
    let mut rng = SplitMix64::new(1);
    for i in 0..N_RUNS {
        let run = dir.join(format!("20260115T09{i:02}00Z_run_fixture_{i:08x}"));
        fs::create_dir(&run).unwrap();
        for entry in fs::read_dir(&sources[i % 2]).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, run.join(path.file_name().unwrap())).unwrap();
        }
        fs::write(run.join("requests.jsonl"), rows(&mut rng)).unwrap();
        let manifest = run.join("manifest.json");
        let text = fs::read_to_string(&manifest).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["run_id"] = run.file_name().unwrap().to_string_lossy().into();
        fs::write(&manifest, value.to_string()).unwrap();
    }
}

fn rows(rng: &mut SplitMix64) -> String {
    let mut text = String::new();
    let mut clock_s = 0.0;
    for index in 0..ROWS_PER_RUN {
        let first = clock_s + 0.05 + rng.below(1000) as f64 * 1e-5;
        let gap = 0.008 + rng.below(1000) as f64 * 1e-6;
        let tokens: Vec<String> = (0..TOKENS_PER_ROW)
            .map(|t| format!("{:.9}", first + t as f64 * gap))
            .collect();
        let end = first + TOKENS_PER_ROW as f64 * gap;
        writeln!(
            text,
            r#"{{"case":"latency-10","phase":"latency","warmup":false,"index":{index},"user":0,"n_users":1,"rate_per_s":null,"prompt_id":"ko-{}","max_tokens":{TOKENS_PER_ROW},"scheduled_s":{clock_s:.9},"sent_s":{clock_s:.9},"first_token_s":{first:.9},"token_s":[{}],"end_s":{end:.9},"prompt_tokens":48,"output_tokens":{TOKENS_PER_ROW},"cached_tokens":0,"finish_reason":"length","error":null}}"#,
            index % 20,
            tokens.join(",")
        )
        .unwrap();
        clock_s = end;
    }
    text
}

/// The highest resident size of this process so far.
fn peak_memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}
