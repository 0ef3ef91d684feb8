//! `experiments against`: every measured run on a card, played on its simulation.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use super::compared::{ComparedCase, compare};
use super::table::render;
use super::{Gpu, engine_binary, play};
use crate::loadgen::RequestRow;
use crate::record::{self, Manifest, RunStatus, Status};
use crate::recorded::{RecordedRun, read_rows};
use crate::repository::Repository;
use crate::terminal::note;
use crate::workload::ApiEndpoint;

/// The figures of all cases, and what is rendered of them.
pub const COMPARED: &str = "compared.jsonl";
pub const TABLE: &str = "table.md";

#[derive(Debug, Clone, Args)]
pub struct AgainstArgs {
    /// Run folders, with --since besides those it finds [default: every complete run on the card
    /// below data/runs and data/bench]
    #[arg(value_name = "RUN_FOLDER")]
    pub runs: Vec<PathBuf>,
    /// Runs that began then or later, as the beginning of a run id: older ones are of another engine
    #[arg(long, value_name = "UTC")]
    pub since: Option<String>,
    /// The card, see data/cards
    #[arg(long, value_enum)]
    pub gpu: Gpu,
    /// Folder that takes compared.jsonl and table.md
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Engine binary [default: `engine` beside this program]
    #[arg(long, value_name = "PATH")]
    pub engine_bin: Option<PathBuf>,
}

/// The table; runs that cannot be played are named on standard error with the reason.
pub fn against(args: &AgainstArgs, repository: &Repository) -> Result<String> {
    let engine = engine_binary(args.engine_bin.as_deref())?;
    let mut dirs = args.runs.clone();
    if args.runs.is_empty() || args.since.is_some() {
        let since = args.since.as_deref().unwrap_or_default();
        dirs.extend(runs_on(
            repository,
            &card_name(repository, args.gpu)?,
            since,
        )?);
    }
    // Oldest first.
    let name = |dir: &PathBuf| dir.file_name().map(OsStr::to_os_string);
    dirs.sort_by_key(name);
    dirs.dedup_by_key(|dir| name(dir));
    let mut cases = Vec::new();
    for dir in &dirs {
        match compared_cases(dir, args.gpu, &engine, repository) {
            Ok(of_run) => cases.extend(of_run),
            Err(error) => note!(
                "left out: {}: {error:#}",
                repository.relative(dir).display()
            ),
        }
    }
    if cases.is_empty() {
        bail!("{} runs, none of which can be simulated", dirs.len());
    }
    let table = render(&cases);
    if let Some(out) = &args.out {
        write(out, &cases, &table)?;
    }
    Ok(table)
}

/// The cases that a folder's `compared.jsonl` holds.
pub fn read_compared(dir: &Path) -> Result<Vec<ComparedCase>> {
    let path = dir.join(COMPARED);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    text.lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .with_context(|| path.display().to_string())
}

fn write(out: &Path, cases: &[ComparedCase], table: &str) -> Result<()> {
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let mut lines = String::new();
    for case in cases {
        // Writing into a String cannot fail.
        let _ = writeln!(lines, "{}", serde_json::to_string(case)?);
    }
    for (name, text) in [(COMPARED, lines.as_str()), (TABLE, table)] {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// What the card is called by its driver.
fn card_name(repository: &Repository, gpu: Gpu) -> Result<String> {
    #[derive(Deserialize)]
    struct CardFile {
        rates: Rates,
    }
    #[derive(Deserialize)]
    struct Rates {
        name: String,
    }
    let path = repository.cards_dir().join(gpu.file());
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let file: CardFile = toml::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(file.rates.name)
}

/// Complete runs of experiments as they are.
fn runs_on(repository: &Repository, card: &str, since: &str) -> Result<Vec<PathBuf>> {
    let dirs = recorded_folders(repository)?
        .into_iter()
        .filter(|dir| {
            let is_later = dir
                .file_name()
                .is_some_and(|name| name.to_string_lossy().as_ref() >= since);
            let status = record::read_json::<Status>(&dir.join(record::STATUS));
            let manifest = record::read_json::<Manifest>(&dir.join(record::MANIFEST));
            is_later
                && status.is_ok_and(|status| status.status == RunStatus::Complete)
                && manifest.is_ok_and(|m| m.derived.is_none() && m.base_url.is_none())
                && gpu_of(dir).as_deref() == Some(card)
        })
        .collect();
    Ok(dirs)
}

/// Run folders below `data/runs`, and those among the raw figures below `data/bench`.
pub(super) fn recorded_folders(repository: &Repository) -> Result<Vec<PathBuf>> {
    let mut dirs = record::run_folders(&repository.runs_dir())?;
    for bench in record::run_folders(&repository.bench_dir())? {
        for inner in record::run_folders(&bench)? {
            dirs.extend(record::run_folders(&inner)?);
        }
    }
    dirs.retain(|dir| dir.join(record::MANIFEST).is_file());
    Ok(dirs)
}

fn gpu_of(dir: &Path) -> Option<String> {
    let environment: crate::environment::Environment =
        record::read_json(&dir.join(record::ENVIRONMENT)).ok()?;
    environment.gpu.map(|gpu| gpu.name)
}

fn compared_cases(
    dir: &Path,
    gpu: Gpu,
    engine: &Path,
    repository: &Repository,
) -> Result<Vec<ComparedCase>> {
    let typed = dir.to_str().context("the folder's name is not UTF-8")?;
    let run = RecordedRun::read(&repository.runs_dir(), typed)?;
    let experiment = run.experiment(1)?;
    if experiment.workload.endpoint != ApiEndpoint::Completions || !experiment.models.is_empty() {
        bail!("a simulation plays completions of one model");
    }
    let manifest = &run.manifest;
    let measured = read_rows(dir)?;
    let played = play(&experiment, manifest.seed, gpu, engine, repository)?;
    let mut cases = Vec::new();
    for case in experiment
        .workload
        .cases()
        .iter()
        .filter(|case| !case.warmup)
    {
        let of_case = |rows: &'_ [RequestRow]| -> Vec<RequestRow> {
            let is_of = |row: &&RequestRow| row.case == case.name && !row.warmup;
            rows.iter().filter(is_of).cloned().collect()
        };
        let (measured, simulated) = (of_case(&measured), of_case(&played.rows));
        let prompt_tokens =
            |rows: &[RequestRow]| rows.iter().filter_map(|row| row.prompt_tokens).sum::<u64>();
        if prompt_tokens(&measured) != prompt_tokens(&simulated) {
            bail!(
                "{}: {} prompt tokens then, {} now: the prompts have changed",
                case.name,
                prompt_tokens(&measured),
                prompt_tokens(&simulated)
            );
        }
        cases.push(ComparedCase {
            run_id: manifest.run_id.clone(),
            experiment: manifest.experiment.clone(),
            extra_flags: manifest.extra_flags.clone(),
            model: manifest.model.used.clone(),
            device: gpu_of(dir).unwrap_or_default(),
            simulated_device: played.device.clone(),
            is_fitted_on: played.fitted_on.contains(&manifest.run_id),
            case: case.name.clone(),
            n_requests: measured.len(),
            figures: compare(
                &measured.iter().collect::<Vec<_>>(),
                &simulated.iter().collect::<Vec<_>>(),
            ),
        });
    }
    Ok(cases)
}
