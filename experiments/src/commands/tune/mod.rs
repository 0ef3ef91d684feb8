//! `experiments tune`: searches a configuration's flags and writes the winner down.
//!
//! Successive halving ([`mod@search`]) over the space that the experiment declares ([`space`]), within a
//! budget of time. The winner becomes the next numbered experiment with the search in its notes. It
//! is a hypothesis, not a verdict: the best of many looks better than it is, so the notes name the
//! command that measures it against its parent afresh.

pub(crate) mod evidence;
pub(crate) mod objective;
pub(crate) mod search;
pub mod space;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use records::manifest::Derived;
use records::run_folder;
use records::status::RunStatus;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::commands::new::draft::{Draft, Notes, free_name};
use crate::commands::tune::evidence::Evidence;
use crate::commands::tune::objective::{Goal, Objective};
use crate::commands::tune::search::{Measure, SearchConfig, Start, Stop, search};
use crate::commands::tune::space::TuneSpec;
use crate::run::campaign::{self, Arm, Campaign, CampaignEnd, ServingArgs};
use crate::run::interrupts::Interrupts;
use crate::run::replicate::{RunEnd, run_replicate};
use crate::run::rounds;
use crate::run::served_model::inactive_flags;
use crate::spec::flags::Flags;
use crate::spec::repository::Repository;
use crate::spec::{Experiment, Overrides, tune_table};
use crate::terminal::{note, say};

#[derive(Debug, Clone, Args)]
pub struct TuneArgs {
    /// Experiment to start from, with or without its number; its [tune] table says what may change
    #[arg(value_name = "NAME")]
    pub name: String,
    /// What is looked for, in the workload's case with most load
    #[arg(long, value_enum)]
    pub objective: Goal,
    /// No server start begins that could end later: 90s, 30m, 1h30m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub budget: Duration,
    /// Decides which candidates are drawn, and in which order [default: the experiment's seed]
    #[arg(long)]
    pub seed: Option<u64>,
    /// A small workload; the records say so
    #[arg(long)]
    pub quick: bool,
    /// Model to serve instead of the experiment's: a path, a hub id, `synthetic:<preset>`
    #[arg(long)]
    pub model: Option<String>,
    #[command(flatten)]
    pub serving: ServingArgs,
}

pub(crate) fn tune(
    args: &TuneArgs,
    repository: Repository,
    runtime: &Runtime,
) -> Result<CampaignEnd> {
    let overrides = Overrides {
        quick: args.quick,
        model: args.model.clone(),
        ..Overrides::default()
    };
    let dir = repository.experiments_dir();
    let incumbent = Experiment::load(&dir, &args.name, &overrides)?;
    let Some(table) = tune_table(&dir, &incumbent.name)? else {
        bail!(
            "experiments/{}/experiment.toml has no [tune] table that says which flags may change; experiments/03-balanced-v2 has one",
            incumbent.name
        );
    };
    let spec = TuneSpec::parse(table).with_context(|| incumbent.name.clone())?;
    let objective = Objective::of(args.objective, &incumbent)?;
    let seed = args.seed.unwrap_or(incumbent.seed);

    let _context = runtime.enter();
    let mut interrupts = Interrupts::catch().context("signals cannot be caught")?;
    let source = campaign::server_source(args.serving.engine_bin.as_deref())?;
    let mut arm = Arm::new(&repository, incumbent.clone())?;
    let opened = campaign::open(
        &args.serving,
        source,
        std::slice::from_mut(&mut arm),
        repository,
        &mut interrupts,
    );
    let Some(campaign) = runtime.block_on(opened)? else {
        return Ok(CampaignEnd::Interrupted);
    };
    let mut servers = Servers {
        runtime,
        campaign: &campaign,
        arm: &arm,
        spec: &spec,
        objective: &objective,
        seed,
        interrupts,
        began: Instant::now(),
        candidates: vec![incumbent.flags.clone()],
        ends: Vec::new(),
    };
    let config = SearchConfig {
        keep_one_in: spec.keep_one_in,
        most_starts: spec.most_starts,
        budget: args.budget,
    };
    let found = search(config, &mut servers)?;
    let took = servers.elapsed();
    say!("{}", rounds::table_of(&campaign, &servers.ends));
    let evidence = Evidence {
        found: &found,
        objective: &objective,
        candidates: &servers.candidates,
        campaign: &campaign.id,
        took,
        budget: args.budget,
        seed,
    };
    say!("{}", evidence.tables());
    campaign.close()?;
    if found.stop == Stop::Interrupted {
        return Ok(CampaignEnd::Interrupted);
    }
    match found.winner {
        None => bail!("no start was complete; nothing can be said"),
        Some(0) => say!(
            "{} itself is the best of what was measured; no experiment is written",
            incumbent.name
        ),
        Some(winner) => {
            let name = write_winner(&dir, &incumbent, &evidence, winner)?;
            say!(
                "written: experiments/{name}; whether it holds: cargo xtask exp {} {name}",
                incumbent.name
            );
        }
    }
    Ok(CampaignEnd::Complete)
}

fn write_winner(
    dir: &Path,
    incumbent: &Experiment,
    evidence: &Evidence<'_>,
    winner: usize,
) -> Result<String> {
    let parent = &incumbent.name;
    let base = parent
        .split_once('-')
        .map_or(parent.as_str(), |(_, name)| name);
    let word = evidence.objective.word();
    let name = free_name(dir, &format!("{base}-tuned-{word}"))?;
    let (set, removed) = Draft::flags_from(&incumbent.flags, &evidence.candidates[winner]);
    let (best, before) = evidence.medians();
    let title = evidence.objective.title();
    let small = if incumbent.quick {
        " The workload was the quick one."
    } else {
        ""
    };
    let draft = Draft {
        name,
        title: format!("The best {word} that a search over {parent} found"),
        parent: parent.clone(),
        set,
        removed,
        notes: Notes {
            hypothesis: format!(
                "With the model {}, another choice of flags gives a better {title} than `{parent}`.{small}",
                incumbent.model
            ),
            change: format!("Against `{parent}`: {}.", evidence.change_of(winner)),
            prediction: format!(
                "About the {best} that the search saw, against {before} of `{parent}`; rather less, since the best of many candidates owes part of its lead to chance."
            ),
            result: format!(
                "What the search saw, medians over server starts:\n\n{}",
                evidence.tables().trim_end()
            ),
            decision: format!(
                "Open until both have been measured afresh, side by side: `cargo xtask exp {parent} <this experiment>`."
            ),
        },
    };
    let (name, _) = draft.write(dir)?;
    Ok(name)
}

/// Candidates measured by starting servers.
struct Servers<'a> {
    runtime: &'a Runtime,
    campaign: &'a Campaign,
    arm: &'a Arm,
    spec: &'a TuneSpec,
    objective: &'a Objective,
    seed: u64,
    interrupts: Interrupts,
    began: Instant,
    /// The incumbent first.
    candidates: Vec<Flags>,
    ends: Vec<RunEnd>,
}

impl Measure for Servers<'_> {
    fn measure(&mut self, candidate: usize, rung: usize) -> Result<Start> {
        let parent = &self.arm.experiment;
        let number = candidate as u32;
        let name = format!("{}-candidate-{candidate:02}", parent.name);
        let n_before = self
            .ends
            .iter()
            .filter(|end| end.run_id.contains(&format!("_{name}_")))
            .count();
        let experiment = Experiment {
            lineage: std::iter::once(name.clone())
                .chain(parent.lineage.iter().cloned())
                .collect(),
            name,
            replicates: self.spec.most_starts as u32,
            flags: self.candidates[candidate].clone(),
            derived: Some(Derived::Tuning {
                parent: parent.name.clone(),
                candidate: number,
                rung: rung as u32,
            }),
            ..parent.clone()
        };
        let end = self.runtime.block_on(run_replicate(
            self.campaign,
            &Arm {
                experiment: experiment.clone(),
                ..self.arm.clone()
            },
            n_before as u32,
            &mut self.interrupts,
        ))?;
        if let (RunStatus::Failed, Some(reason)) = (end.status, &end.reason) {
            note!("{} failed: {reason}", experiment.name);
        }
        let score = (end.status == RunStatus::Complete)
            .then(|| run_folder::read_json::<Value>(&end.dir.join(records::SUMMARY)))
            .transpose()?
            .and_then(|summary| self.objective.score(&summary));
        let start = Start {
            run_id: end.run_id.clone(),
            score,
            interrupted: end.interrupted,
        };
        self.ends.push(end);
        Ok(start)
    }

    /// Draws them now, since the incumbent's server has said which flags do nothing here.
    fn n_challengers(&mut self) -> Result<usize> {
        let info = self.ends.first().and_then(|end| {
            run_folder::read_json::<Value>(&end.dir.join(records::SERVER_INFO)).ok()
        });
        let inactive: BTreeSet<String> = info
            .map(|info| inactive_flags(&info))
            .unwrap_or_default()
            .into_keys()
            .collect();
        let idle: Vec<&str> = self
            .spec
            .flags()
            .filter(|flag| inactive.contains(*flag))
            .collect();
        if !idle.is_empty() {
            say!(
                "without effect on this machine, not searched: {}",
                idle.join(", ")
            );
        }
        let incumbent = self.candidates[0].clone();
        self.candidates
            .extend(self.spec.draw(&incumbent, &inactive, self.seed));
        Ok(self.candidates.len() - 1)
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}
