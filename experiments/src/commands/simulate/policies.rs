//! `experiments policies`: what each scheduling policy does to an experiment's load, measured and
//! simulated, as the table in its notes. From the records alone: runs of the experiment with
//! `--schedule-policy` on top, and the newest comparison below `data/bench`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use records::rows::RequestRow;
use records::{run_folder, text_file};

use super::against::{COMPARED, read_compared, recorded_runs};
use super::compared::{ComparedCase, Figure};
use crate::commands::marked::with_block;
use crate::record::statistics::mean;
use crate::spec::repository::Repository;

const FLAG: &str = "--schedule-policy";
const BEGIN: &str = "<!-- written by `cargo xtask policies --write` -->";
/// What a policy is looked at for, with the table's words.
const FIGURES: [(Figure, &str); 3] = [
    (Figure::E2elMeanMs, "mean latency"),
    (Figure::E2elP99Ms, "p99 latency"),
    (Figure::TtftMaxMs, "longest wait for the first token"),
];

#[derive(Debug, Clone, Args)]
pub struct PoliciesArgs {
    /// The experiment whose runs are read
    #[arg(value_name = "NAME", default_value = "08-mixed-lengths")]
    pub name: String,
    /// Put the table into the experiment's notes.md
    #[arg(long)]
    pub write: bool,
}

pub fn policies(args: &PoliciesArgs, repository: &Repository) -> Result<String> {
    let table = table(&args.name, repository)?;
    if args.write {
        let path = notes(&args.name, repository);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let text = with_block(&text, BEGIN, &table)
            .with_context(|| format!("{} has no block {BEGIN} …", path.display()))?;
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(table)
}

fn notes(name: &str, repository: &Repository) -> PathBuf {
    repository.experiments_dir().join(name).join("notes.md")
}

/// Runs of one policy, all else being equal.
#[derive(Default)]
struct Runs {
    rows: Vec<Vec<RequestRow>>,
    simulated: Vec<ComparedCase>,
}

/// By machine, model and the other flags; then by policy.
type ByPolicy = BTreeMap<String, BTreeMap<String, Runs>>;

fn table(name: &str, repository: &Repository) -> Result<String> {
    let compared = newest_comparison(repository)?;
    let mut configurations = ByPolicy::new();
    for run in recorded_runs(repository)? {
        let manifest = run.manifest()?;
        let is_of = manifest.experiment == name
            && manifest.derived.is_none()
            && manifest.is_ours()
            && run.is_complete();
        let Some((policy, others)) = split_policy(&manifest.extra_flags).filter(|_| is_of) else {
            continue;
        };
        let quick = if manifest.quick { ", quick" } else { "" };
        let heading = format!(
            "{}, {}{quick}, `{}`",
            run.environment()?.device(),
            manifest.model.used,
            others.join(" ")
        );
        let runs = configurations
            .entry(heading)
            .or_default()
            .entry(policy)
            .or_default();
        let mut rows = run.rows()?;
        rows.retain(|row| !row.warmup);
        runs.rows.push(rows);
        let of_run = |case: &&ComparedCase| case.run_id == manifest.run_id;
        runs.simulated
            .extend(compared.iter().filter(of_run).cloned());
    }
    if configurations.is_empty() {
        bail!("no complete run of {name} has {FLAG} on top of its flags");
    }
    let tables: Vec<String> = configurations
        .iter()
        .map(|(heading, policies)| table_of(heading, policies))
        .collect();
    Ok(tables.join("\n"))
}

fn table_of(heading: &str, policies: &BTreeMap<String, Runs>) -> String {
    let mut text = format!("{heading}, times in ms:\n\n| policy | starts | requests |");
    // Writing into a String cannot fail.
    for (_, name) in FIGURES {
        let _ = write!(text, " {name} | simulated |");
    }
    let _ = writeln!(text, "\n|---|---|---|{}", "---|".repeat(2 * FIGURES.len()));
    for (policy, runs) in policies {
        let n_requests: usize = runs.rows.iter().map(Vec::len).sum();
        let _ = write!(text, "| {policy} | {} | {n_requests} |", runs.rows.len());
        for (figure, _) in FIGURES {
            let measured: Vec<f64> = runs
                .rows
                .iter()
                .filter_map(|rows| figure.of(&rows.iter().collect::<Vec<_>>()))
                .collect();
            let simulated: Vec<f64> = runs
                .simulated
                .iter()
                .filter_map(|case| case.get(figure).map(|found| found.simulated))
                .collect();
            for values in [measured, simulated] {
                let cell = mean(&values).map_or_else(|| "–".to_string(), |ms| format!("{ms:.0}"));
                let _ = write!(text, " {cell} |");
            }
        }
        text.push('\n');
    }
    text
}

/// The policy, and the flags beside it.
fn split_policy(flags: &[String]) -> Option<(String, Vec<String>)> {
    let at = flags.iter().position(|flag| flag == FLAG)?;
    let policy = flags.get(at + 1)?.clone();
    let others = flags[..at].iter().chain(&flags[at + 2..]);
    Some((policy, others.cloned().collect()))
}

fn newest_comparison(repository: &Repository) -> Result<Vec<ComparedCase>> {
    let mut dirs = run_folder::run_folders(&repository.bench_dir())?;
    dirs.retain(|dir| text_file::exists(&dir.join(COMPARED)));
    dirs.sort();
    dirs.last()
        .map_or_else(|| Ok(Vec::new()), |dir| read_compared(dir))
}

#[cfg(test)]
mod tests {
    use super::super::against::TABLE;
    use super::super::table::render;
    use std::path::Path;

    use super::*;

    fn repository() -> Repository {
        Repository {
            root: Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
        }
    }

    #[test]
    fn the_notes_have_what_the_records_say() {
        let repository = repository();
        let table = table("08-mixed-lengths", &repository).unwrap();
        let notes = fs::read_to_string(notes("08-mixed-lengths", &repository)).unwrap();
        assert_eq!(with_block(&notes, BEGIN, &table), Some(notes));
    }

    #[test]
    fn the_tables_of_comparisons_have_what_their_cases_say() {
        let dirs = run_folder::run_folders(&repository().bench_dir()).unwrap();
        let mut n_tables = 0;
        let is_compared = |dir: &&PathBuf| text_file::exists(&dir.join(COMPARED));
        for dir in dirs.iter().filter(is_compared) {
            let table = records::text_file::read(&dir.join(TABLE)).unwrap();
            assert!(
                render(&read_compared(dir).unwrap()) == table,
                "{}: not what {COMPARED} gives",
                dir.join(TABLE).display()
            );
            n_tables += 1;
        }
        assert!(n_tables > 0, "no comparison in data/bench");
    }

    #[test]
    fn the_policy_is_taken_out_of_the_flags() {
        let flags = |args: &[&str]| args.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            split_policy(&flags(&["--a", "1", FLAG, "lpm", "--b"])),
            Some(("lpm".to_string(), flags(&["--a", "1", "--b"])))
        );
        assert_eq!(split_policy(&flags(&["--a", "1"])), None);
    }
}
