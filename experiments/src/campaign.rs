//! `experiments run`: several experiments, several replicates each, one record per run; and what
//! all commands that measure share: a campaign is opened, then runs in rounds.
//!
//! Replicates are interleaved (replicate 0 of every arm, then replicate 1 of every arm), so
//! that a machine that warms up or slows down does so for all arms alike.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use records::run_folder;
use records::status::RunStatus;
use records::store::Store;

use crate::environment;
use crate::interrupts::Interrupts;
use crate::loadgen::BaseUrl;
use crate::measurement_lock::MeasurementLock;
use crate::prompts::PromptSet;
use crate::provenance::Sources;
use crate::repository::Repository;
use crate::runner::{
    Campaign, RunEnd, ServerSource, UNREACHABLE_LIMIT, campaign_id, run_replicate,
};
use crate::sealing;
use crate::served_model::model_name;
use crate::server_process::{ServerConfig, ServerProcess};
use crate::spec::{Experiment, Overrides};
use crate::supervise::Ending;
use crate::terminal::{note, say};

/// Environment variable that holds the key for `--base-url`.
const API_KEY: &str = "OPENAI_API_KEY";

#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Experiments, with or without their number: balanced-v2, 03-balanced-v2
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// A small workload that ends within two minutes; the record says so
    #[arg(long)]
    pub quick: bool,
    /// Model to serve instead of the experiment's: a path, a hub id, `synthetic:<preset>`; with
    /// --base-url, which of the server's models to ask
    #[arg(long)]
    pub model: Option<String>,
    /// Server starts per experiment
    #[arg(long, value_name = "N")]
    pub replicates: Option<u32>,
    /// Measure a server that runs already (its key from OPENAI_API_KEY) and start none
    #[arg(long, value_name = "URL", conflicts_with_all = ["engine_bin", "engine_flags"])]
    pub base_url: Option<String>,
    #[command(flatten)]
    pub serving: ServingArgs,
    /// Extra engine flags, laid over the experiment's
    #[arg(last = true, value_name = "FLAGS")]
    pub engine_flags: Vec<String>,
}

/// What every command that measures asks for.
#[derive(Debug, Clone, Args)]
pub struct ServingArgs {
    /// Engine binary [default: `engine` beside this program]
    #[arg(long, value_name = "PATH")]
    pub engine_bin: Option<PathBuf>,
    /// Folder that takes the run folders, and holds those to compare with [default: data/runs]
    #[arg(long, value_name = "PATH")]
    pub runs_dir: Option<PathBuf>,
    /// How long a server may take to load its model
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub start_limit_s: u64,
    /// Wait for another measurement on this machine to end, instead of refusing
    #[arg(long)]
    pub wait: bool,
    /// Record from sources that are not those of a commit; the difference is kept, and the record
    /// marked wherever it is shown
    #[arg(long)]
    pub allow_dirty: bool,
    /// Make a campaign folder of the runs when they have ended (the recipes say so); not of those in a
    /// folder that was typed
    #[arg(long, hide = true)]
    pub seal: bool,
}

impl ServingArgs {
    /// Where runs are looked for.
    pub fn store(&self, repository: &Repository) -> Store {
        repository.store(self.runs_dir.as_deref())
    }
}

/// An experiment and the prompts it draws.
#[derive(Debug, Clone)]
pub struct Arm {
    pub experiment: Experiment,
    pub prompts: PromptSet,
}

impl Arm {
    pub fn new(repository: &Repository, experiment: Experiment) -> Result<Self> {
        let prompts = PromptSet::load(&repository.prompts_dir(), &experiment.workload.prompts)?;
        Ok(Self {
            experiment,
            prompts,
        })
    }
}

/// How the campaign ended, for the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CampaignEnd {
    Complete,
    SomeFailed,
    Interrupted,
}

impl CampaignEnd {
    pub fn of(ends: &[RunEnd]) -> Self {
        if ends.iter().any(|end| end.interrupted) {
            Self::Interrupted
        } else if ends.iter().any(|end| end.status != RunStatus::Complete) {
            Self::SomeFailed
        } else {
            Self::Complete
        }
    }
}

pub async fn run(args: &RunArgs, repository: Repository) -> Result<CampaignEnd> {
    let mut interrupts = Interrupts::catch().context("signals cannot be caught")?;
    let overrides = Overrides {
        quick: args.quick,
        model: args.model.clone(),
        replicates: args.replicates,
        extra_flags: args.engine_flags.clone(),
    };
    let mut arms: Vec<Arm> = Vec::new();
    for name in &args.names {
        let experiment = Experiment::load(&repository.experiments_dir(), name, &overrides)?;
        if arms
            .iter()
            .any(|arm| arm.experiment.name == experiment.name)
        {
            bail!(
                "{} is named twice; use --replicates to run it more often",
                experiment.name
            );
        }
        arms.push(Arm::new(&repository, experiment)?);
    }
    let source = match &args.base_url {
        Some(url) => external_server(url, args.model.clone())?,
        None => server_source(args.serving.engine_bin.as_deref())?,
    };
    let Some(campaign) = open(&args.serving, source, &arms, repository, &mut interrupts).await?
    else {
        return Ok(CampaignEnd::Interrupted);
    };
    let ends = run_rounds(&campaign, arms, &mut interrupts, |_, _| Vec::new()).await?;
    say!("{}", table_of(&campaign, &ends));
    campaign.close()?;
    Ok(CampaignEnd::of(&ends))
}

/// Takes the lock, labels killed runs, fetches the models and notes what all runs share. `None`:
/// interrupted.
pub async fn open(
    serving: &ServingArgs,
    source: ServerSource,
    arms: &[Arm],
    repository: Repository,
    interrupts: &mut Interrupts,
) -> Result<Option<Campaign>> {
    let mut campaign = describe(serving, source, repository)?;
    let end = prepare(&mut campaign, serving.wait, arms, interrupts).await?;
    Ok((end != CampaignEnd::Interrupted).then_some(campaign))
}

/// What all runs share. Nothing is started or written.
pub fn describe(
    serving: &ServingArgs,
    source: ServerSource,
    repository: Repository,
) -> Result<Campaign> {
    let own = std::env::current_exe().context("the path of this program")?;
    let engine = match &source {
        ServerSource::Engine { binary, .. } => Some(binary.as_path()),
        ServerSource::External { .. } => None,
    };
    let folder = engine
        .unwrap_or(own.as_path())
        .parent()
        .unwrap_or(Path::new("."));
    Ok(Campaign {
        id: campaign_id(),
        sources: Sources::of(&repository.root, folder, engine)?,
        allow_dirty: serving.allow_dirty,
        environment: environment::read().context("the machine cannot be described")?,
        start_limit: Duration::from_secs(serving.start_limit_s),
        runs_dir: serving
            .runs_dir
            .clone()
            .unwrap_or_else(|| repository.runs_dir()),
        seal: serving.seal && serving.runs_dir.is_none(),
        store: serving.store(&repository),
        repository,
        source,
        lock: None,
    })
}

/// Refuses changed sources and a second measurement at the same time (or waits for its end), labels
/// killed runs and seals their campaigns, fetches the models or finds the server.
pub async fn prepare(
    campaign: &mut Campaign,
    wait: bool,
    arms: &[Arm],
    interrupts: &mut Interrupts,
) -> Result<CampaignEnd> {
    check_sources(campaign)?;
    campaign.lock = MeasurementLock::take(wait, interrupts).await?;
    if campaign.lock.is_none() {
        return Ok(CampaignEnd::Interrupted);
    }
    if let ServerSource::External { base_url, model } = &campaign.source {
        let found = async {
            base_url
                .probe(UNREACHABLE_LIMIT)
                .await
                .context("with --base-url no server is started; start it, then call again")?;
            match model {
                Some(wanted) => model_name(base_url, Some(wanted)).await.map(drop),
                None => Ok(()),
            }
        };
        tokio::select! {
            found = found => found?,
            name = interrupts.next() => {
                note!("interrupted ({name})");
                return Ok(CampaignEnd::Interrupted);
            }
        }
    }
    for run_id in run_folder::finalise_killed(&campaign.runs_dir)? {
        note!(
            "{run_id}: labelled failed, {}",
            run_folder::REASON_RUNNER_KILLED
        );
    }
    if campaign.seal {
        sealing::seal_all(&campaign.repository)?;
    }
    if let ServerSource::Engine { binary, supervisor } = &campaign.source {
        let mut models: Vec<&str> = arms
            .iter()
            .flat_map(|arm| arm.experiment.sources())
            .collect();
        models.dedup();
        for model in models {
            let fetch = vec![
                binary.to_string_lossy().into_owned(),
                "fetch".into(),
                model.into(),
            ];
            let config = ServerConfig {
                supervisor: supervisor.clone(),
                command: fetch,
                log: None,
                run_folder: None,
            };
            if fetch_model(&config, model, interrupts).await? == CampaignEnd::Interrupted {
                return Ok(CampaignEnd::Interrupted);
            }
        }
    }
    Ok(CampaignEnd::Complete)
}

/// Replicate 0 of every arm, then replicate 1 of every arm, and so on, until the last one or an
/// interruption. Every other round runs backwards: what a place in the round does to a start (cold
/// caches, heat) is not one arm's alone. `after_each` names the arms that have no further start.
pub async fn run_rounds(
    campaign: &Campaign,
    mut arms: Vec<Arm>,
    interrupts: &mut Interrupts,
    mut after_each: impl FnMut(&Experiment, &RunEnd) -> Vec<String>,
) -> Result<Vec<RunEnd>> {
    let mut ends: Vec<RunEnd> = Vec::new();
    for replicate in 0.. {
        arms.retain(|arm| replicate < arm.experiment.replicates);
        if arms.is_empty() {
            break;
        }
        let mut dropped: Vec<String> = Vec::new();
        for Arm {
            experiment,
            prompts,
        } in order_of(&arms, replicate)
        {
            if dropped.contains(&experiment.name) {
                continue;
            }
            let end = run_replicate(campaign, experiment, prompts, replicate, interrupts).await?;
            if let (RunStatus::Failed, Some(reason)) = (end.status, &end.reason) {
                note!("{} failed: {reason}", experiment.name);
            }
            dropped.extend(after_each(experiment, &end));
            let interrupted = end.interrupted;
            ends.push(end);
            if interrupted {
                return Ok(ends);
            }
        }
        arms.retain(|arm| !dropped.contains(&arm.experiment.name));
    }
    Ok(ends)
}

fn order_of<T>(arms: &[T], replicate: u32) -> Vec<&T> {
    let mut order: Vec<&T> = arms.iter().collect();
    if replicate % 2 == 1 {
        order.reverse();
    }
    order
}

/// Fetches before the first server start, so that no start time contains a download.
async fn fetch_model(
    config: &ServerConfig,
    model: &str,
    interrupts: &mut Interrupts,
) -> Result<CampaignEnd> {
    // No bar of our own: the engine shows the download's on the same terminal.
    note!("model {model}: fetch");
    let mut fetch = ServerProcess::start(config)?;
    let exit = async {
        loop {
            if let Some(ending) = fetch.exited() {
                return ending.clone();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        ending = exit => {
            match ending {
                Ending::Success => note!("model {model}: here"),
                Ending::Failure(how) if model == DEFAULT_MODEL => note!(
                    "WARNING: the default model cannot be fetched ({how}); the server falls back to a synthetic one"
                ),
                Ending::Failure(how) => bail!("the model {model} cannot be fetched ({how})"),
            }
            Ok(CampaignEnd::Complete)
        }
        name = interrupts.next() => {
            note!("interrupted ({name})");
            Ok(CampaignEnd::Interrupted)
        }
    }
}

/// The model for which the engine has a fallback.
const DEFAULT_MODEL: &str = "default";

/// The server at `url`, of whose models `model` is asked, or else the first.
fn external_server(url: &str, model: Option<String>) -> Result<ServerSource> {
    let api_key = std::env::var(API_KEY).ok().filter(|key| !key.is_empty());
    Ok(ServerSource::External {
        base_url: BaseUrl::parse(url, api_key)?,
        model,
    })
}

/// `engine_bin`, or else the engine beside this program.
pub fn server_source(engine_bin: Option<&Path>) -> Result<ServerSource> {
    let supervisor = std::env::current_exe().context("the path of this program")?;
    let binary = match engine_bin {
        Some(path) => path.to_path_buf(),
        None => supervisor.with_file_name("engine"),
    };
    if !binary.is_file() {
        bail!(
            "no engine binary at {}; `cargo xtask exp` builds it, `--engine-bin` names another",
            binary.display()
        );
    }
    let binary = binary
        .canonicalize()
        .with_context(|| format!("engine binary {}", binary.display()))?;
    Ok(ServerSource::Engine { binary, supervisor })
}

/// Changed sources are recorded only where they are allowed; that there is no git is said.
fn check_sources(campaign: &Campaign) -> Result<()> {
    let sources = &campaign.sources;
    match sources.refusal() {
        Some(refusal) if !campaign.allow_dirty => bail!(refusal),
        Some(_) => note!(
            "WARNING: the sources differ from the commit in {} file(s); the difference is kept with the runs, which are marked",
            sources.git.changed.len()
        ),
        None if sources.git.commit.is_none() => note!(
            "the sources are under no git repository: their sha256 is recorded in place of a commit"
        ),
        None => {}
    }
    Ok(())
}

/// How each run ended, a line each.
pub fn table_of(campaign: &Campaign, ends: &[RunEnd]) -> String {
    let mut lines = vec![format!("campaign {}", campaign.id)];
    lines.extend(ends.iter().map(|end| {
        let status = end.status.word();
        let reason = end
            .reason
            .as_deref()
            .and_then(|reason| reason.lines().next())
            .unwrap_or_default();
        format!(
            "  {status:<9} {} {reason}",
            campaign.repository.relative(&end.dir).display()
        )
    }));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_arm_has_one_place_in_all_rounds() {
        let order = |replicate| order_of(&['a', 'b', 'c'], replicate);
        assert_eq!(order(0), [&'a', &'b', &'c']);
        assert_eq!(order(1), [&'c', &'b', &'a']);
        assert_eq!(order(2), order(0));
    }
}
