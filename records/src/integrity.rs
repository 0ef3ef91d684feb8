//! Checks that the record of a complete run still contains what the run wrote, with plausible
//! figures.
//!
//! The last write of a run is `status.json`, with the digests of all other files, and the last
//! write of a campaign folder is `digests.json`. So later changes, truncation and mix-ups are
//! detected. Runs of older versions have no digests of their own; for all runs, the rows are also
//! checked against the workload.

use std::collections::BTreeMap;
use std::io::BufRead;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::digests::{digest_of_bytes, is_file_name};
use crate::rows::implausible_usage;
use crate::store::StoredRun;
use crate::workload::Case;
use crate::{REQUESTS, SERVER_METRICS, STATUS};

/// The evidence for an intact record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vouched {
    /// The digests of its runner or of its campaign.
    ByDigests,
    /// Only the number of its rows: older versions wrote no digests.
    ByRows,
}

/// What is wrong with the record of a complete run, in one line.
///
/// # Errors
///
/// The first fault found: a campaign's file, a digest, the manifest's run id, a request row, the
/// number of rows of a case, or a sample of the server that cannot be read.
pub fn check(run: &StoredRun) -> Result<Vouched, String> {
    if let Some(campaign) = run.campaign() {
        campaign.check()?;
    }
    let status = run
        .status()
        .map_err(|error| error.to_string())?
        .ok_or_else(|| format!("{STATUS}: No such file"))?;
    let manifest = run.manifest().map_err(|error| error.to_string())?;
    if manifest.run_id != run.run_id {
        return Err(format!(
            "a copy: its manifest is that of {}",
            manifest.run_id
        ));
    }
    for (name, wanted) in status.sha256.iter().flatten() {
        check_digest(run, name, wanted)?;
    }
    let counts = check_rows(run)?;
    let config = run.config().map_err(|error| error.to_string())?;
    if let Some(workload) = config.workload {
        check_counts(&counts, &workload.cases())?;
    }
    each_line(run, SERVER_METRICS, false, |_: IgnoredAny| Ok(()))?;
    // A campaign's digests cover what was sealed, which is the only form an old record ever had.
    Ok(match status.sha256 {
        Some(_) => Vouched::ByDigests,
        None => Vouched::ByRows,
    })
}

fn check_digest(run: &StoredRun, name: &str, wanted: &str) -> Result<(), String> {
    if !is_file_name(name) {
        return Err(format!("{STATUS}: `{name}` is no file of the folder"));
    }
    match run.read(name) {
        Ok(Some(bytes)) if digest_of_bytes(&bytes) == wanted => Ok(()),
        Ok(Some(_)) => Err(format!(
            "{name} is not what the run wrote: its sha256 is not that in {STATUS}"
        )),
        Ok(None) => Err(format!("{name}: No such file")),
        Err(error) => Err(error.to_string()),
    }
}

/// The checked fields of a row.
#[derive(Deserialize)]
struct Row {
    case: String,
    warmup: bool,
    max_tokens: u32,
    sent_s: Option<f64>,
    first_token_s: Option<f64>,
    end_s: Option<f64>,
    #[serde(default)]
    prompt_tokens: Option<u64>,
    output_tokens: Option<u64>,
    #[serde(default)]
    cached_tokens: Option<u64>,
    error: Option<IgnoredAny>,
}

impl Row {
    fn check(&self) -> Result<(), String> {
        if let Some(problem) = implausible_usage(
            self.max_tokens,
            self.prompt_tokens,
            self.output_tokens,
            self.cached_tokens,
        ) {
            return Err(problem);
        }
        let times: Vec<f64> = [self.sent_s, self.first_token_s, self.end_s]
            .into_iter()
            .flatten()
            .collect();
        if times.windows(2).any(|pair| pair[0] > pair[1]) {
            return Err("its times are not in order: sent_s, first_token_s, end_s".into());
        }
        Ok(())
    }
}

/// Number of rows of each case, without warm-up.
fn check_rows(run: &StoredRun) -> Result<BTreeMap<String, u64>, String> {
    let mut counts = BTreeMap::new();
    each_line(run, REQUESTS, true, |row: Row| {
        if row.error.is_none() {
            row.check()?;
        }
        if !row.warmup {
            *counts.entry(row.case).or_default() += 1;
        }
        Ok(())
    })?;
    Ok(counts)
}

fn check_counts(counts: &BTreeMap<String, u64>, cases: &[Case]) -> Result<(), String> {
    for case in cases.iter().filter(|case| !case.warmup) {
        let found = counts.get(&case.name).copied().unwrap_or_default();
        let asked = u64::from(case.n_requests);
        let goes_on = case.least_s.is_some();
        if found < asked || (found > asked && !goes_on) {
            return Err(format!(
                "{REQUESTS} has {found} rows of case {}; the workload asked for {}",
                case.name, case.n_requests
            ));
        }
    }
    Ok(())
}

/// An error names the file and the line.
fn each_line<T: DeserializeOwned>(
    run: &StoredRun,
    file: &str,
    needed: bool,
    mut take: impl FnMut(T) -> Result<(), String>,
) -> Result<(), String> {
    let mut reader = match run.open(file).map_err(|error| error.to_string())? {
        Some(reader) => reader,
        None if needed => return Err(format!("{file}: No such file")),
        None => return Ok(()),
    };
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let at = |problem: String| format!("{file}, line {number}: {problem}");
        let n_read = reader
            .read_until(b'\n', &mut line)
            .map_err(|error| at(error.to_string()))?;
        if n_read == 0 {
            break;
        }
        let row = serde_json::from_slice(&line).map_err(|error| at(error.to_string()))?;
        take(row).map_err(at)?;
    }
    Ok(())
}
