//! `data/bench/*_llama_cpp`: this engine and another one, one after the other on one machine, without
//! a server. `samples.jsonl`, which may lie compressed, has a row a round, case and side.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::ReportError;

const ENDING: &str = "_llama_cpp";
const OURS: &str = "ours";

/// One folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Bench {
    /// The folder's name, which begins with the time.
    pub folder: String,
    pub cpu: String,
    pub n_cores: u32,
    /// File that the cases are about that name no model.
    pub model_file: String,
    pub commit: Option<String>,
    /// What the other engine is called, and where it came from.
    pub other: String,
    pub version: String,
    /// Values by case, in the order of the file.
    pub cases: Vec<BenchCase>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct BenchCase {
    pub case: String,
    /// `tok/s` or `s`.
    pub unit: String,
    /// This engine and the other one, by round.
    pub rounds: BTreeMap<u32, (f64, f64)>,
}

#[derive(Deserialize)]
struct Environment {
    cpu: Cpu,
    n_cores: u32,
    model: ModelFile,
    git: Git,
    llama_cpp: Archive,
}

#[derive(Deserialize)]
struct Cpu {
    model: String,
}

#[derive(Deserialize)]
struct ModelFile {
    file: String,
}

#[derive(Deserialize)]
struct Git {
    commit: Option<String>,
}

#[derive(Deserialize)]
struct Archive {
    archive: String,
}

#[derive(Deserialize)]
struct Sample {
    round: u32,
    case: String,
    side: String,
    unit: String,
    value: f64,
}

/// All of them, the oldest first; none where there is no such folder.
///
/// # Errors
///
/// If a folder's `environment.json` or `samples.jsonl` cannot be read ([`ReportError::Io`]) or
/// has other contents ([`ReportError::Record`]).
pub fn read_all(dir: &Path) -> Result<Vec<Bench>, ReportError> {
    let mut names: Vec<String> = match fs::read_dir(dir) {
        Ok(entries) => entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.ends_with(ENDING))
            .collect(),
        Err(_) => Vec::new(),
    };
    names.sort();
    names
        .iter()
        .map(|name| read(&dir.join(name), name))
        .collect()
}

fn read(folder: &Path, name: &str) -> Result<Bench, ReportError> {
    let text = |file: &str| {
        let path = folder.join(file);
        records::text_file::read(&path).map_err(|e| ReportError::io(path, e))
    };
    let problem = |file: &str, e: serde_json::Error| ReportError::Record {
        path: folder.join(file),
        message: e.to_string(),
    };
    let environment: Environment = serde_json::from_str(&text("environment.json")?)
        .map_err(|e| problem("environment.json", e))?;
    let mut cases: Vec<BenchCase> = Vec::new();
    let mut halves: BTreeMap<(String, u32), (Option<f64>, Option<f64>)> = BTreeMap::new();
    let mut other = String::new();
    for line in text("samples.jsonl")?.lines() {
        let sample: Sample = serde_json::from_str(line).map_err(|e| problem("samples.jsonl", e))?;
        if !cases.iter().any(|c| c.case == sample.case) {
            cases.push(BenchCase {
                case: sample.case.clone(),
                unit: sample.unit,
                rounds: BTreeMap::new(),
            });
        }
        let half = halves.entry((sample.case, sample.round)).or_default();
        if sample.side == OURS {
            half.0 = Some(sample.value);
        } else {
            half.1 = Some(sample.value);
            other = sample.side;
        }
    }
    for case in &mut cases {
        for ((name, round), half) in &halves {
            if let ((Some(ours), Some(theirs)), true) = (half, *name == case.case) {
                case.rounds.insert(*round, (*ours, *theirs));
            }
        }
    }
    Ok(Bench {
        folder: name.to_owned(),
        cpu: environment.cpu.model,
        n_cores: environment.n_cores,
        model_file: environment.model.file,
        commit: environment.git.commit,
        other,
        version: environment.llama_cpp.archive,
        cases,
    })
}
