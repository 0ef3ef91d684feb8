//! `experiments against`: every measured run on a card, played on its simulation.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use records::rows::RequestRow;
use records::run_folder;
use records::store::{Store, StoredRun};
use serde::Deserialize;

use super::compared::{ComparedCase, compare};
use super::table::render;
use super::{Gpu, engine_binary, play};
use crate::record::recorded::RecordedRun;
use crate::spec::repository::Repository;
use crate::spec::workload::ApiEndpoint;
use crate::terminal::note;

/// The figures of all cases, and what is rendered of them.
pub const COMPARED: &str = "compared.jsonl";
pub const TABLE: &str = "table.md";

#[derive(Debug, Clone, Args)]
pub struct AgainstArgs {
    /// Runs (ids, parts of them, or folders), with --since besides those it finds [default: every
    /// complete run on the card in data/campaigns, data/runs and data/bench]
    #[arg(value_name = "RUN")]
    pub runs: Vec<String>,
    /// Runs that began then or later, as the beginning of a run id: older ones are of another engine
    #[arg(long, value_name = "UTC")]
    pub since: Option<String>,
    /// The card, a file of data/cards
    #[arg(long)]
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
    let store = repository.store(None);
    let mut runs: Vec<StoredRun> = args
        .runs
        .iter()
        .map(|typed| store.find(typed))
        .collect::<Result<_, _>>()?;
    if args.runs.is_empty() || args.since.is_some() {
        let since = args.since.as_deref().unwrap_or_default();
        runs.extend(runs_on(
            repository,
            &card_name(repository, &args.gpu)?,
            since,
        )?);
    }
    // Oldest first.
    runs.sort_by(|a, b| a.run_id.cmp(&b.run_id));
    runs.dedup_by(|a, b| a.run_id == b.run_id);
    let mut cases = Vec::new();
    for run in &runs {
        match compared_cases(run, &args.gpu, &engine, repository, &store) {
            Ok(of_run) => cases.extend(of_run),
            Err(error) => note!(
                "left out: {}: {error:#}",
                repository.relative(&run.place()).display()
            ),
        }
    }
    if cases.is_empty() {
        bail!("{} runs, none of which can be simulated", runs.len());
    }
    let table = render(&cases);
    if let Some(out) = &args.out {
        write(out, &cases, &table)?;
    }
    Ok(table)
}

/// The cases that a folder's `compared.jsonl` holds, which may lie compressed.
pub fn read_compared(dir: &Path) -> Result<Vec<ComparedCase>> {
    let path = dir.join(COMPARED);
    let text = records::text_file::read(&path).with_context(|| path.display().to_string())?;
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
fn card_name(repository: &Repository, gpu: &Gpu) -> Result<String> {
    #[derive(Deserialize)]
    struct CardFile {
        rates: Rates,
    }
    #[derive(Deserialize)]
    struct Rates {
        name: String,
    }
    let path = gpu.path(repository)?;
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let file: CardFile = toml::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(file.rates.name)
}

/// Complete runs of experiments as they are.
fn runs_on(repository: &Repository, card: &str, since: &str) -> Result<Vec<StoredRun>> {
    let mut runs = recorded_runs(repository)?;
    runs.retain(|run| {
        run.run_id.as_str() >= since
            && run.is_complete()
            && run
                .manifest()
                .is_ok_and(|m| m.derived.is_none() && m.is_ours())
            && gpu_of(run).as_deref() == Some(card)
    });
    Ok(runs)
}

/// The runs of the store, and those among the raw figures below `data/bench`.
pub(super) fn recorded_runs(repository: &Repository) -> Result<Vec<StoredRun>> {
    let mut runs = repository.store(None).all()?;
    for bench in run_folder::run_folders(&repository.bench_dir())? {
        for inner in run_folder::run_folders(&bench)? {
            runs.extend(Store::from(inner).all()?);
        }
    }
    runs.retain(|run| run.manifest().is_ok());
    Ok(runs)
}

fn gpu_of(run: &StoredRun) -> Option<String> {
    run.environment().ok()?.gpu.map(|gpu| gpu.name)
}

fn compared_cases(
    stored: &StoredRun,
    gpu: &Gpu,
    engine: &Path,
    repository: &Repository,
    store: &Store,
) -> Result<Vec<ComparedCase>> {
    let run = RecordedRun::read(store, stored)?;
    let experiment = run.experiment(1)?;
    if experiment.workload.endpoint != ApiEndpoint::Completions || !experiment.models.is_empty() {
        bail!("a simulation plays completions of one model");
    }
    let manifest = &run.manifest;
    let measured = stored.rows()?;
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
            device: gpu_of(stored).unwrap_or_default(),
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
