//! `experiments calibrate`: measured steps of a recorded run, as the lines that `data/cards/*.toml`
//! wants. What a step took is seen in the tokens' arrival: a prompt alone on an idle server gives a
//! prefill step, tokens of n requests that arrive together give a decode step of n rows.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Result, bail};
use clap::Args;
use records::rows::RequestRow;
use records::store::Store;

use crate::record::statistics::{mean, percentile};

/// Tokens of one step arrive within this time of each other.
const TOGETHER_S: f64 = 0.002;
/// Fewer gaps than this are the edges of a case, not its steady state.
const MIN_GAPS: usize = 40;

#[derive(Debug, Clone, Args)]
pub struct CalibrateArgs {
    /// Runs, by their ids or folders; one decode step at a time, no cached prefixes
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<String>,
}

pub fn calibrate(args: &CalibrateArgs, store: &Store) -> Result<String> {
    let mut gaps: BTreeMap<usize, Vec<Gap>> = BTreeMap::new();
    let mut times: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    let mut text = String::from("# From");
    for typed in &args.runs {
        let run = store.find(typed)?;
        let manifest = run.manifest()?;
        // Writing into a String cannot fail.
        let _ = write!(text, " {}", manifest.run_id);
        let of_run = run.rows()?;
        refuse_cached(&manifest.run_id, &of_run)?;
        // Every run has a clock of its own, so steps are told apart in each by itself.
        for (n_rows, of_step) in decode_gaps(&of_run) {
            gaps.entry(n_rows).or_default().extend(of_step);
        }
        for (tokens, of_prompt) in prefill_times(&of_run) {
            times.entry(tokens).or_default().extend(of_prompt);
        }
    }
    gaps.retain(|_, gaps| gaps.len() >= MIN_GAPS);
    text.push_str("\ndecode = [\n");
    for (n_rows, gaps) in gaps {
        let of = |value: fn(&Gap) -> f64| gaps.iter().map(value).collect::<Vec<f64>>();
        let (Some(ms), Some(context_tokens)) = (
            percentile(&of(|gap| gap.ms), 50.0),
            mean(&of(|gap| gap.context_tokens)),
        ) else {
            continue;
        };
        let _ = writeln!(
            text,
            "    {{ rows = {n_rows}, context_tokens = {context_tokens:.1}, ms = {ms:.3} }},"
        );
    }
    text.push_str("]\nprefill = [\n");
    for (tokens, ttft_ms) in times {
        if let Some(ms) = percentile(&ttft_ms, 50.0) {
            let _ = writeln!(text, "    {{ tokens = {tokens}, ms = {ms:.3} }},");
        }
    }
    text.push_str("]\n");
    Ok(text)
}

/// A cached prompt is computed in less than its length says.
fn refuse_cached(run_id: &str, rows: &[RequestRow]) -> Result<()> {
    if let Some(row) = rows.iter().find(|row| row.cached_tokens.unwrap_or(0) > 0) {
        bail!(
            "{}: request {} of {} had {} cached tokens; a calibration needs runs without",
            run_id,
            row.index,
            row.case,
            row.cached_tokens.unwrap_or(0)
        );
    }
    Ok(())
}

/// Between two tokens of a request.
struct Gap {
    ms: f64,
    context_tokens: f64,
}

/// Gaps of one run by the number of requests whose tokens arrived together.
fn decode_gaps(rows: &[RequestRow]) -> BTreeMap<usize, Vec<Gap>> {
    let mut by_case: BTreeMap<&str, Vec<&RequestRow>> = BTreeMap::new();
    for row in rows.iter().filter(|row| !row.warmup && row.error.is_none()) {
        by_case.entry(&row.case).or_default().push(row);
    }
    let mut gaps: BTreeMap<usize, Vec<Gap>> = BTreeMap::new();
    for rows in by_case.values() {
        let mut all_s: Vec<f64> = rows.iter().flat_map(|row| row.token_s.clone()).collect();
        all_s.sort_by(f64::total_cmp);
        for row in rows {
            for (i, pair) in row.token_s.windows(2).enumerate() {
                let from = all_s.partition_point(|s| *s < pair[1] - TOGETHER_S);
                let to = all_s.partition_point(|s| *s <= pair[1] + TOGETHER_S);
                gaps.entry(to - from).or_default().push(Gap {
                    ms: (pair[1] - pair[0]) * 1e3,
                    context_tokens: row.prompt_tokens.unwrap_or(0) as f64 + (i + 1) as f64,
                });
            }
        }
    }
    gaps
}

/// Times to the first token of requests that had the server to themselves, by prompt tokens.
fn prefill_times(rows: &[RequestRow]) -> BTreeMap<u64, Vec<f64>> {
    let mut times: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    let alone = |row: &&RequestRow| !row.warmup && row.n_users == Some(1) && row.error.is_none();
    for row in rows.iter().filter(alone) {
        if let (Some(tokens), Some(sent_s), Some(first_s)) =
            (row.prompt_tokens, row.sent_s, row.first_token_s)
        {
            times
                .entry(tokens)
                .or_default()
                .push((first_s - sent_s) * 1e3);
        }
    }
    times
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    /// One request of 50 tokens, one every 10 ms; each run's clock begins at 0.
    fn write_run(dir: &Path, run_id: &str) -> PathBuf {
        let run = dir.join(run_id);
        fs::create_dir(&run).expect("made");
        let manifest = serde_json::json!({
            "schema_version": 1, "run_id": run_id, "campaign": "c", "experiment": "e", "replicate": 0,
            "quick": false, "git": {"commit": null, "dirty": null},
            "sha256": {"cargo_lock": null, "engine_binary": null, "kernels": null, "model": null, "prompts": null},
            "model": {"requested": "m", "used": "m", "fallback_reason": null, "format": null},
            "seed": 1, "command": [], "extra_flags": [], "base_url": null,
            "started_utc": "2026-01-01T00:00:00Z",
        });
        fs::write(run.join(records::MANIFEST), manifest.to_string()).expect("written");
        let token_s: Vec<f64> = (1..=50).map(|i| 0.01 * f64::from(i)).collect();
        let row = serde_json::json!({
            "case": "latency-50", "phase": "latency", "warmup": false, "index": 0, "user": 0, "n_users": 1,
            "rate_per_s": null, "prompt_id": "p", "max_tokens": 50, "scheduled_s": 0.0, "sent_s": 0.0,
            "first_token_s": token_s[0], "token_s": token_s, "end_s": 0.5, "prompt_tokens": 7,
            "output_tokens": 50, "cached_tokens": 0, "finish_reason": "length", "error": null,
        });
        fs::write(run.join(records::REQUESTS), format!("{row}\n")).expect("written");
        run
    }

    #[test]
    fn tokens_of_two_runs_are_of_no_common_step() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let runs = ["a", "b"].map(|run_id| write_run(dir.path(), run_id));
        let runs = runs.map(|run| run.to_string_lossy().into_owned());
        let args = CalibrateArgs {
            runs: runs.to_vec(),
        };
        let text = calibrate(&args, &Store::from(dir.path())).expect("calibrated");
        assert!(
            text.contains("{ rows = 1, context_tokens = 32.0, ms = 10.000 }"),
            "{text}"
        );
        assert!(!text.contains("rows = 2"), "{text}");
        assert!(text.contains("{ tokens = 7, ms = 10.000 }"), "{text}");
    }
}
