//! `experiments export`: a run in the forms that other programs read.
//!
//! JSON has the keys of `vllm bench serve --save-detailed`, one file a case, since such a file is one
//! load. CSV has one row a request, with its times worked out. Records stay as they are; an export can be
//! made again at any time and is overwritten. Parquet, which takes a library of its own, is written by the
//! program that has it (`cargo xtask export <run> --format parquet`).

mod request_csv;
mod vllm_result;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use records::export::{self, file_name};

use crate::spec::repository::Repository;
use crate::terminal::note;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One file a case, with the keys of `vllm bench serve`
    Json,
    /// One row a request
    Csv,
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
    #[arg(long, value_name = "PATH", default_value = export::FOLDER)]
    pub out: PathBuf,
    /// Folder of runs and campaigns [default: data/runs and data/campaigns]
    #[arg(long, value_name = "PATH")]
    pub runs_dir: Option<PathBuf>,
}

/// Writes the files; returns their paths, a line each.
pub fn export(args: &ExportArgs, repository: &Repository) -> Result<String> {
    let store = repository.store(args.runs_dir.as_deref());
    let run = store.find(&args.run)?;
    let manifest = run.manifest()?;
    if let Some(remark) = export::remark(&run)? {
        note!("WARNING: {remark}");
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
        Format::Csv => {
            let path = args.out.join(file_name(run_id, "requests", "csv"));
            written.push(write(&path, &request_csv::table(&rows))?);
        }
    }
    Ok(written.join("\n") + "\n")
}

fn write(path: &Path, text: &str) -> Result<String> {
    fs::write(path, text).with_context(|| path.display().to_string())?;
    Ok(path.display().to_string())
}
