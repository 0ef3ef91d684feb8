//! `experiments calibrate`: measured steps of a recorded run, as the lines that `data/cards/*.toml`
//! wants. What a step took is seen in the tokens' arrival: a prompt alone on an idle server gives a
//! prefill step, tokens of n requests that arrive together give a decode step of n rows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;

use crate::loadgen::RequestRow;
use crate::record::{self, Manifest};
use crate::recorded::read_rows;
use crate::statistics::{mean, percentile};

/// Tokens of one step arrive within this time of each other.
const TOGETHER_S: f64 = 0.002;
/// Fewer gaps than this are the edges of a case, not its steady state.
const MIN_GAPS: usize = 40;

#[derive(Debug, Clone, Args)]
pub struct CalibrateArgs {
    /// Run folders; one decode step at a time, no cached prefixes
    #[arg(required = true, value_name = "RUN_FOLDER")]
    pub runs: Vec<PathBuf>,
}

pub fn calibrate(args: &CalibrateArgs) -> Result<String> {
    let mut rows = Vec::new();
    let mut text = String::from("# From");
    for dir in &args.runs {
        let manifest: Manifest = record::read_json(&dir.join(record::MANIFEST))?;
        // Writing into a String cannot fail.
        let _ = write!(text, " {}", manifest.run_id);
        let of_run = read_rows(dir)?;
        refuse_cached(dir, &of_run)?;
        rows.extend(of_run);
    }
    text.push_str("\ndecode = [\n");
    for (n_rows, gaps) in decode_gaps(&rows) {
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
    for (tokens, ttft_ms) in prefill_times(&rows) {
        if let Some(ms) = percentile(&ttft_ms, 50.0) {
            let _ = writeln!(text, "    {{ tokens = {tokens}, ms = {ms:.3} }},");
        }
    }
    text.push_str("]\n");
    Ok(text)
}

/// A cached prompt is computed in less than its length says.
fn refuse_cached(dir: &Path, rows: &[RequestRow]) -> Result<()> {
    if let Some(row) = rows.iter().find(|row| row.cached_tokens.unwrap_or(0) > 0) {
        bail!(
            "{}: request {} of {} had {} cached tokens; a calibration needs runs without",
            dir.display(),
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

/// Gaps by the number of requests whose tokens arrived together.
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
    gaps.retain(|_, gaps| gaps.len() >= MIN_GAPS);
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
