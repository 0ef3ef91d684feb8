//! `experiments notes`: what came of each experiment, for its notes: what the last rendered reports say of
//! it, and the figures of its newest starts on each machine. From `data/campaigns` and `verdicts.json`
//! alone, so a test can hold the notes to them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};
use clap::Args;
use records::manifest::Manifest;
use records::store::{Store, StoredRun};
use records::verdicts::{Judged, JudgedMetric, LastVerdicts};

use super::last_verdicts;
use super::marked::with_block;
use crate::record::statistics::percentile;
use crate::record::summary::CaseSummary;
use crate::spec::repository::Repository;
use crate::spec::workload::heaviest_case;
use crate::spec::{experiment_names, full_name};

/// Before the block in `notes.md`.
pub const BEGIN: &str = "<!-- result: written by `cargo xtask notes --write` -->";
/// The block of an experiment that was never run.
pub const NOTHING: &str = "No campaign is recorded.";

#[derive(Debug, Clone, Args)]
pub struct NotesArgs {
    /// Experiments, with or without their number [default: all]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Put the blocks into the experiments' notes.md
    #[arg(long)]
    pub write: bool,
}

/// Returns the blocks, each under its experiment's name.
pub fn notes(args: &NotesArgs, repository: &Repository) -> Result<String> {
    let dir = repository.experiments_dir();
    let names = if args.names.is_empty() {
        experiment_names(&dir)?
    } else {
        let typed = args.names.iter().map(|name| full_name(&dir, name));
        typed.collect::<Result<_, _>>()?
    };
    let results = Results::read(repository)?;
    let mut text = String::new();
    for name in names {
        let block = results.block(&name)?;
        if args.write {
            let path = dir.join(&name).join("notes.md");
            let old = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let new = with_block(&old, BEGIN, &block)
                .with_context(|| format!("{} has no block {BEGIN} …", path.display()))?;
            if new != old {
                fs::write(&path, new).with_context(|| path.display().to_string())?;
            }
        }
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{name}\n\n{block}\n");
    }
    Ok(text)
}

/// The starts of one campaign on one machine, with one model and the same extra flags.
#[derive(Default)]
struct Starts {
    complete: Vec<StoredRun>,
    n_failed: usize,
}

/// By experiment; by machine, model and extra flags; by campaign, whose ids sort by time.
type ByPlace = BTreeMap<String, BTreeMap<String, BTreeMap<String, Starts>>>;

struct Results {
    verdicts: LastVerdicts,
    starts: ByPlace,
}

impl Results {
    fn read(repository: &Repository) -> Result<Self> {
        let mut starts = ByPlace::new();
        // What is not sealed is not in the repository.
        for run in Store::from(repository.campaigns_dir()).all()? {
            let manifest = run.manifest()?;
            if !is_of_experiment(&manifest) {
                continue;
            }
            let place = place_of(&run, &manifest)?;
            let places = starts.entry(manifest.experiment).or_default();
            let campaigns = places.entry(place).or_default();
            let of_campaign = campaigns.entry(manifest.campaign).or_default();
            if run.is_complete() {
                of_campaign.complete.push(run);
            } else {
                of_campaign.n_failed += 1;
            }
        }
        Ok(Self {
            verdicts: last_verdicts::read(&repository.verdicts_file())?,
            starts,
        })
    }

    fn block(&self, experiment: &str) -> Result<String> {
        let mut parts = Vec::new();
        let judged = self.verdicts.experiments.iter();
        let lines: Vec<String> = judged
            .filter_map(|judged| line_of(judged, experiment))
            .collect();
        if !lines.is_empty() {
            parts.push(lines.join("\n"));
        }
        if let Some(places) = self.starts.get(experiment) {
            parts.push(table_of(places)?);
        }
        Ok(if parts.is_empty() {
            NOTHING.into()
        } else {
            parts.join("\n\n")
        })
    }
}

/// Not an arm of `ablate` or a candidate of `tune`, not a try, not another engine's server.
fn is_of_experiment(manifest: &Manifest) -> bool {
    manifest.derived.is_none() && !manifest.quick && manifest.is_ours()
}

fn place_of(run: &StoredRun, manifest: &Manifest) -> Result<String> {
    let mut place = format!("{}, {}", run.environment()?.device(), manifest.model.used);
    if !manifest.extra_flags.is_empty() {
        let _ = write!(place, ", `{}`", manifest.extra_flags.join(" "));
    }
    Ok(place)
}

/// What the reports say of the experiment, or of another against it.
fn line_of(judged: &Judged, experiment: &str) -> Option<String> {
    let mut basis = format!(
        "{} start{}",
        judged.n_starts,
        if judged.n_starts == 1 { "" } else { "s" }
    );
    for campaign in &judged.campaigns {
        let _ = write!(basis, ", `{campaign}`");
    }
    let where_from = format!("{} ({basis})", judged.group);
    if judged.experiment == experiment {
        let verdicts: Vec<String> = judged.verdicts.iter().map(verdict_of).collect();
        let against = &judged.against;
        let verdicts = verdicts.join("; ");
        return Some(format!(
            "- Against `{against}`, {where_from}; plus is better: {verdicts}."
        ));
    }
    (judged.against == experiment)
        .then(|| format!("- Reference of `{}`, {where_from}.", judged.experiment))
}

/// The verdict first; the change is an estimate even where nothing is decided.
fn verdict_of(judged: &JudgedMetric) -> String {
    let mut text = format!("{} ({}) {}", judged.metric, judged.case, judged.verdict);
    if let Some(change) = judged.improvement_percent {
        let _ = write!(text, ", {change:+.1} %");
    }
    if let Some((low, high)) = judged.interval_percent {
        let _ = write!(text, " [{low:+.1}, {high:+.1}]");
    }
    text
}

fn table_of(places: &BTreeMap<String, BTreeMap<String, Starts>>) -> Result<String> {
    let mut text = String::from(
        "| newest campaign | date | where | starts | case | output tok/s | TTFT p50 ms | latency p50 ms |\n|---|---|---|---|---|---|---|---|",
    );
    for (place, campaigns) in places {
        let newest = campaigns.iter().rev();
        let complete = newest
            .clone()
            .find(|(_, starts)| !starts.complete.is_empty());
        let Some((campaign, starts)) = complete.or_else(|| newest.clone().next()) else {
            continue;
        };
        let date = date_of(campaign).unwrap_or_else(|| "–".into());
        let n_starts = starts.complete.len() + starts.n_failed;
        let mut state = format!("{} of {n_starts}", starts.complete.len());
        if let Some(remark) = starts.complete.iter().find_map(|run| run.source().remark()) {
            let _ = write!(state, ", {remark}");
        }
        let figures = Figures::of(&starts.complete)?;
        let _ = write!(
            text,
            "\n| `{campaign}` | {date} | {place} | {state} | {} |",
            figures.cells()
        );
    }
    Ok(text)
}

/// `2026-11-26` of `20261126T023546Z_81581acb`.
fn date_of(campaign: &str) -> Option<String> {
    let (year, month, day) = (campaign.get(..4)?, campaign.get(4..6)?, campaign.get(6..8)?);
    Some(format!("{year}-{month}-{day}"))
}

/// Medians over the starts, of the case with the most load.
#[derive(Default)]
struct Figures {
    case: Option<String>,
    output_tok_per_s: Option<f64>,
    ttft_ms: Option<f64>,
    latency_ms: Option<f64>,
}

impl Figures {
    fn of(starts: &[StoredRun]) -> Result<Self> {
        let Some(first) = starts.first() else {
            return Ok(Self::default());
        };
        let Some(case) = first.config()?.workload.as_ref().and_then(heaviest_case) else {
            return Ok(Self::default());
        };
        let mut summaries = Vec::new();
        for run in starts {
            let rows = run.rows()?;
            let of_case = rows
                .iter()
                .filter(|row| row.case == case.name && !row.warmup);
            let of_case: Vec<_> = of_case.collect();
            if !of_case.is_empty() {
                summaries.push(CaseSummary::of(&case, &of_case, None));
            }
        }
        let median = |value: fn(&CaseSummary) -> Option<f64>| {
            percentile(
                &summaries.iter().filter_map(value).collect::<Vec<_>>(),
                50.0,
            )
        };
        Ok(Self {
            output_tok_per_s: median(|summary| Some(summary.output_throughput())),
            ttft_ms: median(|summary| Some(summary.ttft_ms?.median)),
            latency_ms: median(|summary| Some(summary.e2el_ms?.median)),
            case: Some(case.name),
        })
    }

    fn cells(&self) -> String {
        let number = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.1}"));
        [
            self.case.clone().unwrap_or_else(|| "–".into()),
            number(self.output_tok_per_s),
            number(self.ttft_ms),
            number(self.latency_ms),
        ]
        .join(" | ")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_notes_have_what_the_records_say() {
        let repository = Repository {
            root: Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
        };
        let dir = repository.experiments_dir();
        let results = Results::read(&repository).expect("records");
        let mut n_with_figures = 0;
        for name in experiment_names(&dir).expect("names") {
            let notes = fs::read_to_string(dir.join(&name).join("notes.md")).expect("notes");
            let block = results.block(&name).expect("a block");
            n_with_figures += usize::from(block != NOTHING);
            assert!(
                with_block(&notes, BEGIN, &block) == Some(notes),
                "{name}/notes.md: `cargo xtask notes --write` writes what the records say:\n{block}"
            );
        }
        assert!(n_with_figures > 0, "no campaign is recorded");
    }

    fn judged() -> Judged {
        Judged {
            experiment: "02-b".into(),
            group: "card · model".into(),
            against: "01-a".into(),
            campaigns: vec!["20260102T000000Z_c".into()],
            n_starts: 8,
            verdicts: vec![
                JudgedMetric {
                    metric: "latency".into(),
                    case: "latency-10".into(),
                    verdict: "faster".into(),
                    improvement_percent: Some(7.38),
                    interval_percent: Some((5.0, 9.04)),
                },
                JudgedMetric {
                    metric: "ttft".into(),
                    case: "latency-10".into(),
                    verdict: "undecided".into(),
                    improvement_percent: None,
                    interval_percent: None,
                },
            ],
        }
    }

    #[test]
    fn a_verdict_stands_in_the_notes_of_both() {
        assert_eq!(
            line_of(&judged(), "02-b").as_deref(),
            Some(
                "- Against `01-a`, card · model (8 starts, `20260102T000000Z_c`); plus is better: latency (latency-10) faster, +7.4 % [+5.0, +9.0]; ttft (latency-10) undecided."
            )
        );
        assert_eq!(
            line_of(&judged(), "01-a").as_deref(),
            Some("- Reference of `02-b`, card · model (8 starts, `20260102T000000Z_c`).")
        );
        assert_eq!(line_of(&judged(), "03-c"), None);
    }

    #[test]
    fn a_campaigns_id_begins_with_its_day() {
        assert_eq!(
            date_of("20261126T023546Z_81581acb").as_deref(),
            Some("2026-11-26")
        );
        assert_eq!(date_of("2026"), None);
    }
}
