//! One run: who ran what, where, and how it ended.
//!
//! Small files are plain serde; the request rows are [`super::requests`]' business.

use std::collections::BTreeMap;
use std::io::BufRead;

use records::config::ResolvedConfig;
use records::environment::Environment;
use records::integrity;
use records::manifest::Manifest;
use records::slo::SloOutcome;
use records::source::Source;
use records::status::{RunStatus, Status};
use records::store::{Store, StoredRun};
use records::workload::{Limits, SloSearch};

use crate::ReportError;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Complete,
    Failed {
        reason: String,
    },
    /// Its answers were not those of the reference engine, so it was not measured.
    Wrong {
        reason: String,
    },
    /// No `status.json`, or one that still says `running`.
    Killed,
    /// It says that it is complete, but the folder does not hold what the run wrote.
    Broken {
        reason: String,
    },
}

#[derive(Debug, Clone)]
pub struct RunFolder {
    /// Its files, wherever they are.
    pub files: StoredRun,
    pub run_id: String,
    pub outcome: Outcome,
    /// What a complete run says against itself: requests that failed, or answers of another length.
    pub remark: Option<String>,
    /// When `status.json` was written last, RFC 3339.
    pub finished_utc: Option<String>,
    /// Present for every complete run; a run killed early or a broken folder may lack it.
    pub record: Option<Record>,
    /// Why the record could not be read, if it could not.
    pub record_problem: Option<String>,
}

/// What `read` makes of each run, in their order; read on all threads.
pub(super) fn read_side_by_side<T: Send>(
    runs: &[&RunFolder],
    read: impl Fn(&RunFolder) -> Result<T, ReportError> + Sync,
) -> Result<Vec<T>, ReportError> {
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = runs.len().div_ceil(n_threads).max(1);
    let of_shares: Vec<Vec<Result<T, ReportError>>> = std::thread::scope(|scope| {
        let readers: Vec<_> = runs
            .chunks(share)
            .map(|runs| scope.spawn(|| runs.iter().map(|run| read(run)).collect()))
            .collect();
        readers
            .into_iter()
            .map(|reader| {
                reader
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    of_shares.into_iter().flatten().collect()
}

/// Calls `take` with every line of a run's file; returns whether there is such a file. Why `take` refuses
/// a line is told with the file and the line's number.
pub(super) fn for_each_line(
    run: &RunFolder,
    file: &str,
    mut take: impl FnMut(&str) -> Result<(), String>,
) -> Result<bool, ReportError> {
    let path = || run.files.place().join(file);
    let Some(mut reader) = run.files.open(file)? else {
        return Ok(false);
    };
    let (mut line, mut number) = (String::new(), 0);
    while reader
        .read_line(&mut line)
        .map_err(|error| ReportError::io(path(), error))?
        > 0
    {
        number += 1;
        take(&line).map_err(|message| ReportError::Record {
            path: path(),
            message: format!("line {number}: {message}"),
        })?;
        line.clear();
    }
    Ok(true)
}

#[derive(Debug, Clone)]
pub struct Record {
    pub manifest: Manifest,
    /// How far the sources of what ran can be found again.
    pub source: Source,
    pub environment: Environment,
    pub config: RunConfig,
    pub server: ServerInfo,
    /// Of a run whose workload has an SLO search.
    pub slo: Option<SloOutcome>,
}

/// `config.resolved.toml`, as far as reports show it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunConfig {
    /// Flags as typed after `engine serve`, one on each line: `--schedule-policy lof`.
    pub flags: Vec<String>,
    pub replicates: Option<u32>,
    /// Models that the server was to have with names and flags of their own; none: one model.
    pub n_models: usize,
    /// Of each case that is no warm-up; empty where the workload is not recorded.
    pub n_requests: BTreeMap<String, u64>,
    /// A closed loop goes on until it has lasted this long.
    pub measured_s: Option<f64>,
    /// What a request must meet to count towards goodput: of an SLO search its limits.
    pub limits: Option<Limits>,
    pub slo: Option<SloSearch>,
}

/// `server_info.json`, as far as reports show it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerInfo {
    pub executor: Option<String>,
    pub device: Option<String>,
    /// Role and the kernel selected for it.
    pub kernels: Vec<(String, String)>,
    /// Flag and why it has no effect there.
    pub inactive_flags: Vec<(String, String)>,
    pub kv_pool_tokens: Option<u64>,
    /// All weights in memory.
    pub weight_bytes: Option<u64>,
    /// Those that a step looks up rows of instead of reading whole: an embedding table of its own
    /// (fp16), where the output matrix is another one.
    pub lookup_bytes: Option<u64>,
    /// Of a server with several; empty for one with one.
    pub models: Vec<ModelInfo>,
}

/// One of a server's models, as the server described it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelInfo {
    /// What requests call it.
    pub name: String,
    /// Where it came from.
    pub source: Option<String>,
    /// `--mem-fraction-static` and `--device-memory-limit`, where they were typed.
    pub mem_fraction: Option<f64>,
    pub memory_limit_bytes: Option<u64>,
    pub max_sequence_tokens: Option<u64>,
    pub weight_bytes: Option<u64>,
    pub kv_pool_bytes: Option<u64>,
    pub kv_pool_tokens: Option<u64>,
}

impl RunFolder {
    /// From the first thing recorded to the last; none for a run that did not end by itself.
    pub fn duration_s(&self) -> Option<f64> {
        let started = &self.record.as_ref()?.manifest.started_utc;
        let [started, finished] =
            [started, self.finished_utc.as_ref()?].map(|utc| humantime::parse_rfc3339(utc).ok());
        let duration = finished?.duration_since(started?).ok()?;
        Some(duration.as_secs_f64()).filter(|seconds| *seconds > 0.0)
    }
}

/// All runs, sorted by id. They are read side by side.
///
/// # Errors
///
/// [`ReportError::Stored`] if the runs cannot be listed. A run that cannot be read is not an
/// error; its outcome says so.
pub fn read_all(store: &Store) -> Result<Vec<RunFolder>, ReportError> {
    let runs = store.all()?;
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = runs.len().div_ceil(n_threads).max(1);
    std::thread::scope(|scope| {
        let readers: Vec<_> = runs
            .chunks(share)
            .map(|runs| scope.spawn(|| runs.iter().map(read_one).collect::<Vec<_>>()))
            .collect();
        let mut all = Vec::new();
        for reader in readers {
            let runs = reader.join();
            all.extend(runs.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        Ok(all)
    })
}

fn read_one(run: &StoredRun) -> RunFolder {
    let (mut outcome, status) = read_outcome(run);
    // What a failed or killed run left may be cut off anywhere: list it, use nothing.
    let (record, record_problem) = match read_record(run) {
        Ok(record) => (Some(record), None),
        Err(problem) => (None, Some(problem.to_string())),
    };
    if outcome == Outcome::Complete {
        let checked = match &record_problem {
            None => integrity::check(run).map(drop),
            Some(problem) => Err(problem.clone()),
        };
        if let Err(reason) = checked {
            outcome = Outcome::Broken { reason };
        }
    }
    let is_complete = |status: &&Status| status.status == RunStatus::Complete;
    RunFolder {
        files: run.clone(),
        run_id: run.run_id.clone(),
        outcome,
        remark: status
            .as_ref()
            .filter(is_complete)
            .and_then(|status| status.reason.clone()),
        finished_utc: status.and_then(|status| status.finished_utc),
        record,
        record_problem,
    }
}

fn read_outcome(run: &StoredRun) -> (Outcome, Option<Status>) {
    let status = match run.status() {
        Ok(Some(status)) => status,
        Ok(None) => return (Outcome::Killed, None),
        Err(problem) => {
            let reason = problem.to_string();
            return (Outcome::Failed { reason }, None);
        }
    };
    let outcome = match status.status {
        RunStatus::Complete => Outcome::Complete,
        RunStatus::Running => Outcome::Killed,
        RunStatus::Failed => Outcome::Failed {
            reason: status.reason.clone().unwrap_or_else(|| "failed".to_owned()),
        },
        RunStatus::Wrong => Outcome::Wrong {
            reason: status.reason.clone().unwrap_or_else(|| "wrong".to_owned()),
        },
    };
    (outcome, Some(status))
}

fn read_record(run: &StoredRun) -> Result<Record, ReportError> {
    let manifest = run.manifest()?;
    if humantime::parse_rfc3339_weak(&manifest.started_utc).is_err() {
        return Err(ReportError::Record {
            message: format!("started_utc {:?} is no time", manifest.started_utc),
            path: run.place().join(records::MANIFEST),
        });
    }
    Ok(Record {
        manifest,
        source: run.source(),
        environment: run.environment()?,
        config: config_of(run.config()?),
        server: read_server_info(run)?,
        slo: match run.read(records::SLO)? {
            Some(_) => Some(run.json(records::SLO)?),
            None => None,
        },
    })
}

fn config_of(config: ResolvedConfig) -> RunConfig {
    let cases = config
        .workload
        .iter()
        .flat_map(records::workload::Workload::cases);
    let workload = config.workload.as_ref();
    let slo = workload.and_then(|w| w.slo.clone());
    RunConfig {
        measured_s: workload.and_then(|w| w.measured_s),
        limits: slo
            .as_ref()
            .map(SloSearch::limits)
            .or_else(|| workload.and_then(|w| w.goodput.clone()))
            .filter(|limits| *limits != Limits::default()),
        slo,
        flags: flags_one_a_line(&config.flags),
        replicates: config.replicates,
        n_models: config.models.len(),
        n_requests: cases
            .filter(|case| !case.warmup)
            .map(|case| (case.name, u64::from(case.n_requests)))
            .collect(),
    }
}

/// Joins `--flag value value` that came as separate words: every word without dashes belongs to
/// the flag before it.
pub fn flags_one_a_line(words: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if !word.starts_with("--") => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.clone()),
        }
    }
    lines
}

fn read_server_info(run: &StoredRun) -> Result<ServerInfo, ReportError> {
    if run.read(records::SERVER_INFO)?.is_none() {
        return Ok(ServerInfo::default());
    }
    let value: serde_json::Value = run.json(records::SERVER_INFO)?;
    let executor = value.get("executor").unwrap_or(&value);
    let text_of = |key: &str| {
        executor
            .get(key)
            .and_then(serde_json::Value::as_str)
            .map(str::to_owned)
    };
    Ok(ServerInfo {
        executor: text_of("name").or_else(|| executor.as_str().map(str::to_owned)),
        device: text_of("device"),
        kernels: pairs(executor.get("kernels").or_else(|| value.get("kernels"))),
        inactive_flags: pairs(
            executor
                .get("inactive_flags")
                .or_else(|| value.get("inactive_flags")),
        ),
        kv_pool_tokens: executor
            .get("kv_pool_tokens")
            .or_else(|| value.get("kv_pool_tokens"))
            .and_then(serde_json::Value::as_u64),
        weight_bytes: executor
            .get("weight_bytes")
            .and_then(serde_json::Value::as_u64),
        lookup_bytes: lookup_bytes(&value),
        models: value
            .get("models")
            .and_then(serde_json::Value::as_array)
            .map(|models| models.iter().map(model_info).collect())
            .unwrap_or_default(),
    })
}

fn model_info(info: &serde_json::Value) -> ModelInfo {
    let number = |path: &str| info.pointer(path).and_then(serde_json::Value::as_u64);
    let text = |path: &str| {
        let text = info.pointer(path).and_then(serde_json::Value::as_str);
        text.map(str::to_owned)
    };
    ModelInfo {
        name: text("/served_model_names/0").unwrap_or_default(),
        source: text("/loaded_model/used").or_else(|| text("/model/used")),
        mem_fraction: info
            .pointer("/flags/typed/--mem-fraction-static")
            .and_then(serde_json::Value::as_f64),
        memory_limit_bytes: number("/flags/typed/--device-memory-limit"),
        max_sequence_tokens: number("/max_sequence_tokens"),
        weight_bytes: number("/executor/weight_bytes"),
        kv_pool_bytes: number("/executor/kv_pool_bytes"),
        kv_pool_tokens: number("/executor/kv_pool_tokens"),
    }
}

fn lookup_bytes(server_info: &serde_json::Value) -> Option<u64> {
    const BYTES_PER_WEIGHT: u64 = 2;
    // Records of earlier versions have it under `model`.
    let model = server_info.get("loaded_model");
    let model = model.or_else(|| server_info.get("model"));
    let config = model?.get("config")?;
    let size = |key: &str| config.get(key).and_then(serde_json::Value::as_u64);
    let tied = config.get("tied_embeddings")?.as_bool()?;
    let table = size("vocab")? * size("hidden")? * BYTES_PER_WEIGHT;
    Some(if tied { 0 } else { table })
}

/// `[["a", "b"]]`, `{"a": "b"}` and `[{"flag": "a", "reason": "b"}]` all mean the same pairs.
fn pairs(value: Option<&serde_json::Value>) -> Vec<(String, String)> {
    use serde_json::Value;
    let text = |v: Option<&Value>| match v {
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    match value {
        Some(Value::Object(map)) => map
            .iter()
            .map(|(k, v)| (k.clone(), text(Some(v))))
            .collect(),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| match item {
                Value::Array(pair) => (text(pair.first()), text(pair.get(1))),
                Value::Object(map) => {
                    let mut values = map.values();
                    (text(values.next()), text(values.next()))
                }
                other => (text(Some(other)), String::new()),
            })
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn flags_keep_their_values() {
        let words: Vec<String> = ["--cuda-graph-bs", "1", "2", "4", "--enable-mixed-chunk"]
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            flags_one_a_line(&words),
            ["--cuda-graph-bs 1 2 4", "--enable-mixed-chunk"]
        );
    }

    #[test]
    fn pairs_come_in_three_spellings() {
        let want = vec![("--a".to_owned(), "why".to_owned())];
        for text in [
            r#"[["--a","why"]]"#,
            r#"{"--a":"why"}"#,
            r#"[{"flag":"--a","reason":"why"}]"#,
        ] {
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(pairs(Some(&value)), want, "{text}");
        }
    }

    #[test]
    fn a_folder_without_status_is_a_killed_run() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("20260101T000000Z_x_h_00000000");
        fs::create_dir(&run).unwrap();
        fs::write(run.join("manifest.json"), "{ cut off").unwrap();
        let runs = read_all(&Store::from(dir.path())).unwrap();
        assert_eq!(runs[0].outcome, Outcome::Killed);
        assert!(runs[0].record.is_none() && runs[0].record_problem.is_some());
        fs::write(run.join("status.json"), r#"{"status":"complete"}"#).unwrap();
        let runs = read_all(&Store::from(dir.path())).unwrap();
        assert!(
            matches!(&runs[0].outcome, Outcome::Broken { reason } if reason.contains("manifest.json")),
            "{:?}",
            runs[0].outcome
        );
    }
}
