//! One run folder: who ran what, where, and how it ended.
//!
//! Small files are plain serde; the request rows are [`super::requests`]' business.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::integrity::{self, Digests};
use super::sorted_folders;
use crate::ReportError;

const SCHEMA_VERSION: u32 = 1;

#[derive(Debug, Clone, Deserialize)]
pub struct Manifest {
    pub schema_version: u32,
    pub run_id: String,
    pub campaign: String,
    pub experiment: String,
    pub replicate: u32,
    #[serde(default)]
    pub quick: bool,
    pub git: Git,
    /// Hashes by name; null where there was nothing to hash.
    #[serde(default)]
    pub sha256: BTreeMap<String, Option<String>>,
    pub model: Model,
    #[serde(default)]
    pub seed: Option<u64>,
    /// Flags typed behind `--` on the command line of the experiment, as separate words.
    #[serde(default)]
    pub extra_flags: Vec<String>,
    /// Base URL of a server that the experiment did not start (another engine), if any.
    #[serde(default)]
    pub base_url: Option<String>,
    /// Set where the flags are not those of the experiment's own file.
    #[serde(default)]
    pub derived: Option<Derived>,
    pub started_utc: String,
}

/// What a run that is none of a numbered experiment was made from, and by which recipe.
#[derive(Debug, Clone, Deserialize)]
pub struct Derived {
    /// `ablation`, `tuning`, `reproduction`.
    pub by: String,
    pub parent: String,
    /// The experiment at the other end of an ablation; none: the engine's defaults.
    #[serde(default)]
    pub baseline: Option<String>,
    /// `full`, `baseline`, `off`, `on`.
    #[serde(default)]
    pub direction: Option<String>,
    #[serde(default)]
    pub flag: Option<String>,
    #[serde(default)]
    pub of_run: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Git {
    #[serde(default)]
    pub commit: Option<String>,
    #[serde(default)]
    pub dirty: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Model {
    pub requested: String,
    pub used: String,
    #[serde(default)]
    pub fallback_reason: Option<String>,
    #[serde(default)]
    pub format: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Environment {
    pub host: String,
    pub os: String,
    #[serde(default)]
    pub kernel: Option<String>,
    pub cpu: Cpu,
    pub memory_bytes: u64,
    #[serde(default)]
    pub gpu: Option<Gpu>,
    #[serde(default)]
    pub rustc: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Cpu {
    pub model: String,
    pub n_cores: u32,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Gpu {
    pub name: String,
    #[serde(default)]
    pub driver: Option<String>,
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    #[serde(default)]
    pub power_limit_w: Option<f64>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Complete,
    Failed {
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
    pub dir: PathBuf,
    /// The folder's name.
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

#[derive(Debug, Clone)]
pub struct Record {
    pub manifest: Manifest,
    pub environment: Environment,
    pub config: RunConfig,
    pub server: ServerInfo,
}

/// `config.resolved.toml`, as far as reports show it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunConfig {
    /// Flags as typed behind `engine serve`, one a line: `--schedule-policy lof`.
    pub flags: Vec<String>,
    pub replicates: Option<u32>,
    /// Models that the server was to have with names and flags of their own; none: one model.
    pub n_models: usize,
    /// Of each case that is no warm-up; empty where the workload is not recorded.
    pub n_requests: BTreeMap<String, u64>,
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

/// All run folders below `dir`, sorted by name. Folders are read side by side.
pub fn read_all(dir: &Path) -> Result<Vec<RunFolder>, ReportError> {
    let folders = sorted_folders(dir)?;
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = folders.len().div_ceil(n_threads).max(1);
    std::thread::scope(|scope| {
        let readers: Vec<_> = folders
            .chunks(share)
            .map(|folders| {
                scope.spawn(|| {
                    let runs = folders.iter().map(|path| read_one(path));
                    runs.collect::<Vec<_>>()
                })
            })
            .collect();
        let mut all = Vec::new();
        for reader in readers {
            let runs = reader.join();
            all.extend(runs.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        Ok(all)
    })
}

fn read_one(dir: &Path) -> RunFolder {
    let run_id = dir
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let (mut outcome, remark, finished_utc, digests) = read_outcome(dir);
    // What a failed or killed run left behind may be cut off anywhere: list it, use nothing.
    let (record, record_problem) = match read_record(dir) {
        Ok(record) => (Some(record), None),
        Err(problem) => (None, Some(problem.to_string())),
    };
    if outcome == Outcome::Complete {
        let checked = match (&record, &record_problem) {
            (Some(record), _) => integrity::check(dir, &run_id, record, digests.as_ref()),
            (None, problem) => Err(problem.clone().unwrap_or_default()),
        };
        if let Err(reason) = checked {
            outcome = Outcome::Broken { reason };
        }
    }
    RunFolder {
        dir: dir.to_owned(),
        run_id,
        outcome,
        remark,
        finished_utc,
        record,
        record_problem,
    }
}

/// How it ended, what it remarks if it is complete, when it ended, and what its files were then.
type Ending = (Outcome, Option<String>, Option<String>, Option<Digests>);

fn read_outcome(dir: &Path) -> Ending {
    #[derive(Deserialize)]
    struct StatusFile {
        status: String,
        #[serde(default)]
        reason: Option<String>,
        #[serde(default)]
        finished_utc: Option<String>,
        #[serde(default)]
        sha256: Option<Digests>,
    }
    let path = dir.join("status.json");
    let failed = |problem: &dyn std::fmt::Display| {
        let reason = format!("status.json: {problem}");
        (Outcome::Failed { reason }, None, None, None)
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return (Outcome::Killed, None, None, None);
        }
        Err(e) => return failed(&e),
    };
    let ending: StatusFile = match serde_json::from_str(&text) {
        Ok(ending) => ending,
        Err(e) => return failed(&e),
    };
    let (outcome, remark) = match ending.status.as_str() {
        "complete" => (Outcome::Complete, ending.reason),
        "running" => (Outcome::Killed, None),
        other => {
            let reason = ending.reason.unwrap_or_else(|| other.to_owned());
            (Outcome::Failed { reason }, None)
        }
    };
    (outcome, remark, ending.finished_utc, ending.sha256)
}

fn read_record(dir: &Path) -> Result<Record, ReportError> {
    let path = dir.join("manifest.json");
    let manifest: Manifest = read_json(&path)?;
    if manifest.schema_version != SCHEMA_VERSION {
        return Err(ReportError::SchemaVersion {
            path,
            found: manifest.schema_version,
            supported: SCHEMA_VERSION,
        });
    }
    if humantime::parse_rfc3339_weak(&manifest.started_utc).is_err() {
        return Err(ReportError::Record {
            message: format!("started_utc {:?} is no time", manifest.started_utc),
            path,
        });
    }
    Ok(Record {
        manifest,
        environment: read_json(&dir.join("environment.json"))?,
        config: read_config(&dir.join("config.resolved.toml"))?,
        server: read_server_info(&dir.join("server_info.json"))?,
    })
}

fn read_if_there(path: &Path) -> Result<Option<String>, ReportError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ReportError::io(path, e)),
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ReportError> {
    let text = fs::read_to_string(path).map_err(|e| ReportError::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| ReportError::Record {
        path: path.to_owned(),
        message: e.to_string(),
    })
}

fn read_config(path: &Path) -> Result<RunConfig, ReportError> {
    let text = fs::read_to_string(path).map_err(|e| ReportError::io(path, e))?;
    let record_error = |message: String| ReportError::Record {
        path: path.to_owned(),
        message,
    };
    let table: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| record_error(e.to_string()))?;
    let typed = match table.get("flags") {
        None => Vec::new(),
        Some(toml::Value::Array(words)) => words.iter().map(plain_text).collect(),
        Some(other) => {
            return Err(record_error(format!(
                "`flags` is a {}, not a list",
                other.type_str()
            )));
        }
    };
    let replicates = table
        .get("replicates")
        .and_then(toml::Value::as_integer)
        .and_then(|n| u32::try_from(n).ok());
    let models = table.get("models").and_then(toml::Value::as_array);
    Ok(RunConfig {
        flags: flags_one_a_line(&typed),
        replicates,
        n_models: models.map_or(0, Vec::len),
        n_requests: table
            .get("workload")
            .and_then(toml::Value::as_table)
            .map(integrity::requests_by_case)
            .unwrap_or_default(),
    })
}

fn plain_text(value: &toml::Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
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

fn read_server_info(path: &Path) -> Result<ServerInfo, ReportError> {
    let Some(text) = read_if_there(path)? else {
        return Ok(ServerInfo::default());
    };
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| ReportError::Record {
            path: path.to_owned(),
            message: e.to_string(),
        })?;
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
        source: text("/model/used"),
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
    let config = server_info.get("model")?.get("config")?;
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
        let runs = read_all(dir.path()).unwrap();
        assert_eq!(runs[0].outcome, Outcome::Killed);
        assert!(runs[0].record.is_none() && runs[0].record_problem.is_some());
        fs::write(run.join("status.json"), r#"{"status":"complete"}"#).unwrap();
        let runs = read_all(dir.path()).unwrap();
        assert!(
            matches!(&runs[0].outcome, Outcome::Broken { reason } if reason.contains("manifest.json")),
            "{:?}",
            runs[0].outcome
        );
    }
}
