//! Whether a complete run's folder holds what the run wrote, and figures that can be.
//!
//! A folder that does not is left out of every report, with what is wrong in it. Checked are:
//!
//! - the folder's name against the manifest's `run_id` (a copy is no second run);
//! - the files against the digests that the runner wrote into `status.json` last. Runs of older
//!   versions have none, which is no fault;
//! - every row: whole, its times in order, no more output tokens than were asked for;
//! - the number of rows of each case against the workload in `config.resolved.toml`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use sha2::{Digest, Sha256};

use super::run_folder::Record;

/// Of a file's bytes, by the file's name.
pub type Digests = BTreeMap<String, String>;

/// What is wrong with the folder, in one line.
pub fn check(
    dir: &Path,
    run_id: &str,
    record: &Record,
    digests: Option<&Digests>,
) -> Result<(), String> {
    if record.manifest.run_id != run_id {
        return Err(format!(
            "a copy: its manifest is that of {}",
            record.manifest.run_id
        ));
    }
    for (name, wanted) in digests.into_iter().flatten() {
        check_digest(dir, name, wanted)?;
    }
    let counts = check_rows(dir)?;
    check_counts(&counts, &record.config.n_requests)?;
    let samples = dir.join("server_metrics.jsonl");
    if samples.exists() {
        each_line(&samples, |_: IgnoredAny| Ok(()))?;
    }
    Ok(())
}

fn check_digest(dir: &Path, name: &str, wanted: &str) -> Result<(), String> {
    if Path::new(name).components().count() != 1 || name == ".." {
        return Err(format!("status.json: `{name}` is no file of the folder"));
    }
    let digest = || -> io::Result<String> {
        let mut hash = Sha256::new();
        io::copy(&mut File::open(dir.join(name))?, &mut hash)?;
        Ok(format!("{:x}", hash.finalize()))
    };
    match digest() {
        Ok(found) if found == wanted => Ok(()),
        Ok(_) => Err(format!(
            "{name} is not what the run wrote: its sha256 is not that in status.json"
        )),
        Err(error) => Err(format!("{name}: {error}")),
    }
}

#[derive(Deserialize)]
struct Row {
    case: String,
    warmup: bool,
    max_tokens: f64,
    sent_s: Option<f64>,
    first_token_s: Option<f64>,
    end_s: Option<f64>,
    output_tokens: Option<f64>,
    error: Option<IgnoredAny>,
}

/// Rows of each case that are no warm-up.
fn check_rows(dir: &Path) -> Result<BTreeMap<String, u64>, String> {
    let mut counts = BTreeMap::new();
    each_line(&dir.join("requests.jsonl"), |row: Row| {
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

impl Row {
    fn check(&self) -> Result<(), String> {
        if let Some(n) = self.output_tokens.filter(|n| *n > self.max_tokens) {
            return Err(format!(
                "{n} output tokens, but {} were asked for",
                self.max_tokens
            ));
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

/// `wanted`: none where the record does not tell the workload.
fn check_counts(
    counts: &BTreeMap<String, u64>,
    wanted: &BTreeMap<String, u64>,
) -> Result<(), String> {
    for (case, n) in wanted {
        let found = counts.get(case).copied().unwrap_or_default();
        if found != *n {
            return Err(format!(
                "requests.jsonl has {found} rows of case {case}; the workload asked for {n}"
            ));
        }
    }
    Ok(())
}

/// Names the file and the line where something is wrong.
fn each_line<T: DeserializeOwned>(
    path: &Path,
    mut take: impl FnMut(T) -> Result<(), String>,
) -> Result<(), String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let file = File::open(path).map_err(|error| format!("{name}: {error}"))?;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let at = |problem: String| format!("{name}, line {number}: {problem}");
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

/// Requests of each case that is no warm-up, as a workload in `config.resolved.toml` asks for them.
pub fn requests_by_case(workload: &toml::Table) -> BTreeMap<String, u64> {
    let mut wanted = BTreeMap::new();
    let part = |name: &str| workload.get(name).and_then(toml::Value::as_table);
    let number = |table: &toml::Table, key: &str| -> Option<u64> {
        u64::try_from(table.get(key)?.as_integer()?).ok()
    };
    let list = |table: &toml::Table, key: &str| -> Vec<toml::Value> {
        let values = table.get(key).and_then(toml::Value::as_array);
        values.cloned().unwrap_or_default()
    };
    if let Some(latency) = part("latency")
        && let (Some(n), Some(tokens)) = (
            number(latency, "n_requests"),
            number(latency, "output_tokens"),
        )
    {
        wanted.insert(format!("latency-{tokens}"), n);
    }
    if let Some(ladder) = part("ladder")
        && let Some(n) = number(ladder, "n_requests")
    {
        wanted.extend(
            list(ladder, "output_tokens")
                .iter()
                .map(|tokens| (format!("ladder-{tokens}"), n)),
        );
    }
    if let Some(users) = part("users")
        && let Some(n_each) = number(users, "n_requests_per_user")
    {
        let counts = list(users, "n_users");
        let counts = counts
            .iter()
            .filter_map(|n| u64::try_from(n.as_integer()?).ok());
        wanted.extend(counts.map(|n| (format!("users-{n}"), n * n_each)));
    }
    if let Some(rate) = part("rate")
        && let Some(n) = number(rate, "n_requests")
    {
        let rates = list(rate, "rates_per_s");
        let rates = rates
            .iter()
            .filter_map(|r| r.as_float().or(r.as_integer().map(|n| n as f64)));
        wanted.extend(rates.map(|r| (format!("rate-{r}"), n)));
    }
    if let Some(models) = part("models")
        && let Some(n) = number(models, "n_requests")
    {
        for name in list(models, "names")
            .iter()
            .filter_map(|name| name.as_str())
        {
            for tokens in list(models, "output_tokens") {
                wanted.insert(format!("alone-{name}-{tokens}"), n);
                wanted.insert(format!("together-{name}-{tokens}"), n);
            }
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cases_of_a_workload_are_those_that_the_runner_makes() {
        let workload: toml::Table = r#"
            [warmup]
            n_requests = 2
            output_tokens = 4
            [latency]
            n_requests = 20
            output_tokens = 10
            [ladder]
            output_tokens = [10, 50]
            n_requests = 3
            [users]
            n_users = [1, 20]
            output_tokens = 10
            n_requests_per_user = 3
            [rate]
            rates_per_s = [0.5, 4.0]
            output_tokens = 10
            n_requests = 7
            [models]
            names = ["a/b"]
            output_tokens = [8]
            n_requests = 2
        "#
        .parse()
        .unwrap();
        let wanted: Vec<(String, u64)> = requests_by_case(&workload).into_iter().collect();
        let named = |name: &str, n| (name.to_owned(), n);
        assert_eq!(
            wanted,
            [
                named("alone-a/b-8", 2),
                named("ladder-10", 3),
                named("ladder-50", 3),
                named("latency-10", 20),
                named("rate-0.5", 7),
                named("rate-4", 7),
                named("together-a/b-8", 2),
                named("users-1", 3),
                named("users-20", 60),
            ]
        );
    }

    fn rows(text: &str) -> Result<BTreeMap<String, u64>, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("requests.jsonl"), text).unwrap();
        check_rows(dir.path())
    }

    #[test]
    fn rows_that_cannot_be_are_named_with_their_line() {
        let row = |output_tokens: &str, times: [f64; 3], error: &str| {
            format!(
                "{{\"case\":\"c\",\"warmup\":false,\"max_tokens\":10,\"sent_s\":{},\"first_token_s\":{},\"end_s\":{},\"output_tokens\":{output_tokens},\"error\":{error}}}\n",
                times[0], times[1], times[2]
            )
        };
        let good = row("10", [1.0, 2.0, 3.0], "null");
        assert_eq!(rows(&good), Ok(BTreeMap::from([("c".to_owned(), 1)])));
        // A request that failed has no figures to judge.
        let failed = row("0", [1.0, 2.0, 1.5], "\"reset\"");
        assert_eq!(rows(&(failed + &good)).unwrap()["c"], 2);
        for (bad, problem) in [
            (
                row("9223372036854775808", [1.0, 2.0, 3.0], "null"),
                "output tokens, but 10 were asked for",
            ),
            (row("11", [1.0, 2.0, 3.0], "null"), "11 output tokens"),
            (row("10", [1.0, 0.5, 3.0], "null"), "not in order"),
            ("{\"case\":\"c\",\"warm".to_owned(), "EOF"),
            ("\n".to_owned(), "EOF"),
        ] {
            let found = rows(&(good.clone() + &bad)).unwrap_err();
            assert!(
                found.starts_with("requests.jsonl, line 2: ") && found.contains(problem),
                "{found}"
            );
        }
    }
}
