//! `experiments export`: a run in the forms that other programs read.
//!
//! JSON has the keys of `vllm bench serve --save-detailed`, one file a case, since such a file is one
//! load. CSV and Parquet have one row a request, with its times worked out. Records stay as they
//! are; an export can be made again at any time and is overwritten.

mod request_csv;
mod vllm_result;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use records::integrity::{self, Vouched};

use crate::commands::reports_program::{ReportsProgram, runs_arguments};
use crate::spec::repository::Repository;
use crate::terminal::note;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One file a case, with the keys of `vllm bench serve`
    Json,
    /// One row a request
    Csv,
    /// The same as a Parquet file, through `reports`
    Parquet,
}

#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// Run: its id, a part of it that fits one run only, campaign#arm/round, or its folder
    #[arg(value_name = "RUN")]
    pub run: String,
    #[arg(long, value_enum)]
    pub format: Format,
    /// Only this case
    #[arg(long, value_name = "CASE")]
    pub case: Option<String>,
    /// Folder that takes the files
    #[arg(long, value_name = "PATH", default_value = "target/export")]
    pub out: PathBuf,
    /// Program that writes Parquet [default: `reports` beside this program]
    #[arg(long, value_name = "PATH")]
    pub reports_bin: Option<PathBuf>,
    /// Folder of runs and campaigns [default: data/runs and data/campaigns]
    #[arg(long, value_name = "PATH")]
    pub runs_dir: Option<PathBuf>,
}

/// Writes the files; returns their paths, a line each.
pub fn export(args: &ExportArgs, repository: &Repository) -> Result<String> {
    let store = repository.store(args.runs_dir.as_deref());
    let run = store.find(&args.run)?;
    let manifest = run.manifest()?;
    if run.is_complete() {
        match integrity::check(&run) {
            Ok(Vouched::ByDigests) => {}
            Ok(Vouched::ByRows) => note!(
                "WARNING: {} has no digests (an older version recorded it): its rows are as many as they should be, and no more is known",
                manifest.run_id
            ),
            Err(problem) => bail!(
                "{} is broken and not exported: {problem}",
                run.place().display()
            ),
        }
    } else {
        note!(
            "WARNING: {} did not complete; what it had measured is exported",
            manifest.run_id
        );
    }
    let workload = run
        .config()?
        .workload
        .with_context(|| format!("{} has no workload", manifest.run_id))?;
    let mut rows = run.rows()?;
    let mut cases = workload.cases();
    cases.retain(|case| !case.warmup);
    if let Some(wanted) = &args.case {
        let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        if !names.contains(&wanted.as_str()) {
            bail!(
                "{} has no case {wanted}; there are: {}",
                manifest.run_id,
                names.join(", ")
            );
        }
        cases.retain(|case| case.name == *wanted);
        rows.retain(|row| row.case == *wanted);
    }
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let run_id = &manifest.run_id;
    let mut written = Vec::new();
    match args.format {
        Format::Json => {
            for case in &cases {
                let result =
                    vllm_result::of_case(&manifest, case, &rows, workload.goodput.as_ref());
                let text = serde_json::to_string_pretty(&result)?;
                let path = args.out.join(file_name(run_id, &case.name, "json"));
                written.push(write(&path, &text)?);
            }
        }
        Format::Parquet => {
            let path = args.out.join(file_name(run_id, "requests", "parquet"));
            let mut words: Vec<OsString> = vec![
                "parquet".into(),
                run_id.into(),
                "--out".into(),
                path.clone().into(),
            ];
            match run.folder() {
                // It may lie anywhere.
                Some(folder) => words[1] = folder.into(),
                None => words.extend(runs_arguments(&store)),
            }
            if let Some(case) = &args.case {
                words.extend(["--case".into(), case.into()]);
            }
            ReportsProgram::find(args.reports_bin.as_deref())?.run(&words)?;
            written.push(path.display().to_string());
        }
        Format::Csv => {
            let path = args.out.join(file_name(run_id, "requests", "csv"));
            written.push(write(&path, &request_csv::table(&rows))?);
        }
    }
    Ok(written.join("\n") + "\n")
}

/// Of names that may be a model's (`Qwen/Qwen3`) or come from a foreign folder: no part of it leads
/// elsewhere.
fn file_name(run_id: &str, what: &str, ending: &str) -> String {
    format!("{run_id}.{what}.{ending}")
        .trim_start_matches('.')
        .replace(['/', '\\', ':'], "-")
}

fn write(path: &Path, text: &str) -> Result<String> {
    fs::write(path, text).with_context(|| path.display().to_string())?;
    Ok(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_nowhere_else() {
        for (run_id, what, name) in [
            ("r1", "users-2", "r1.users-2.json"),
            ("r1", "alone-Qwen/Qwen3-8", "r1.alone-Qwen-Qwen3-8.json"),
            ("../../up", "users-2", "-..-up.users-2.json"),
            ("/abs/r1", "users-2", "-abs-r1.users-2.json"),
        ] {
            assert_eq!(file_name(run_id, what, "json"), name);
        }
    }
}
