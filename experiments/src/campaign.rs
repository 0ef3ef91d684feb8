//! `experiments run`: several experiments, several replicates each, one record per run.
//!
//! Replicates are interleaved (replicate 0 of every arm, then replicate 1 of every arm), so
//! that a machine that warms up or slows down does so for all arms alike.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::environment::Environment;
use crate::interrupts::Interrupts;
use crate::loadgen::BaseUrl;
use crate::prompts::PromptSet;
use crate::provenance::{self, GitState};
use crate::record::{self, Hashes, RunStatus};
use crate::repository::Repository;
use crate::runner::{Campaign, RunEnd, ServerSource, campaign_id, run_replicate};
use crate::server_process::{ServerConfig, ServerProcess};
use crate::spec::{Experiment, Overrides};

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
    /// Model to serve instead of the experiment's: a path, a hub id, synthetic:<preset>
    #[arg(long)]
    pub model: Option<String>,
    /// Server starts per experiment
    #[arg(long, value_name = "N")]
    pub replicates: Option<u32>,
    /// Measure a server that runs already (its key from OPENAI_API_KEY) and start none
    #[arg(long, value_name = "URL", conflicts_with_all = ["engine_bin", "model", "engine_flags"])]
    pub base_url: Option<String>,
    /// Engine binary [default: `engine` beside this program]
    #[arg(long, value_name = "PATH")]
    pub engine_bin: Option<PathBuf>,
    /// Folder that takes the run folders [default: data/runs]
    #[arg(long, value_name = "PATH")]
    pub runs_dir: Option<PathBuf>,
    /// How long a server may take to load its model
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub start_limit_s: u64,
    /// Extra engine flags, laid over the experiment's
    #[arg(last = true, value_name = "FLAGS")]
    pub engine_flags: Vec<String>,
}

/// How the campaign ended, for the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CampaignEnd {
    Complete,
    SomeFailed,
    Interrupted,
}

pub async fn run(args: &RunArgs, repository: Repository) -> Result<CampaignEnd> {
    let mut interrupts = Interrupts::catch().context("signals cannot be caught")?;
    let overrides = Overrides {
        quick: args.quick,
        model: args.model.clone(),
        replicates: args.replicates,
        extra_flags: args.engine_flags.clone(),
    };
    let mut arms = Vec::new();
    for name in &args.names {
        let experiment = Experiment::load(&repository.experiments_dir(), name, &overrides)?;
        if arms
            .iter()
            .any(|(arm, _): &(Experiment, PromptSet)| arm.name == experiment.name)
        {
            bail!(
                "{} is named twice; use --replicates to run it more often",
                experiment.name
            );
        }
        let prompts = PromptSet::load(&repository.prompts_dir(), &experiment.workload.prompts)?;
        arms.push((experiment, prompts));
    }

    let runs_dir = args
        .runs_dir
        .clone()
        .unwrap_or_else(|| repository.runs_dir());
    for run_id in record::finalise_killed(&runs_dir)? {
        eprintln!(
            "{run_id}: labelled failed, {}",
            record::REASON_RUNNER_KILLED
        );
    }
    let source = server_source(args)?;
    if let ServerSource::Engine { binary, supervisor } = &source {
        let mut models: Vec<&str> = arms.iter().map(|(arm, _)| arm.model.as_str()).collect();
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
            if fetch_model(&config, model, &mut interrupts).await? == CampaignEnd::Interrupted {
                return Ok(CampaignEnd::Interrupted);
            }
        }
    }
    let campaign = Campaign {
        id: campaign_id(),
        hashes: hashes(&repository, &source),
        git: GitState::of(&repository.root),
        environment: Environment::read().context("the machine cannot be described")?,
        start_limit: Duration::from_secs(args.start_limit_s),
        repository,
        runs_dir,
        source,
    };

    let most = arms
        .iter()
        .map(|(arm, _)| arm.replicates)
        .max()
        .unwrap_or(0);
    let mut ends: Vec<RunEnd> = Vec::new();
    'campaign: for replicate in 0..most {
        for (arm, prompts) in arms.iter().filter(|(arm, _)| replicate < arm.replicates) {
            let end = run_replicate(&campaign, arm, prompts, replicate, &mut interrupts).await?;
            if let (RunStatus::Failed, Some(reason)) = (end.status, &end.reason) {
                eprintln!("{} failed: {reason}", arm.name);
            }
            let interrupted = end.interrupted;
            ends.push(end);
            if interrupted {
                break 'campaign;
            }
        }
    }
    println!("{}", table_of(&campaign, &ends));
    Ok(if ends.iter().any(|end| end.interrupted) {
        CampaignEnd::Interrupted
    } else if ends.iter().any(|end| end.status != RunStatus::Complete) {
        CampaignEnd::SomeFailed
    } else {
        CampaignEnd::Complete
    })
}

/// Fetches before the first server start, so that no start time contains a download.
async fn fetch_model(
    config: &ServerConfig,
    model: &str,
    interrupts: &mut Interrupts,
) -> Result<CampaignEnd> {
    // No bar of our own: the engine shows the download's on the same terminal.
    eprintln!("model {model}: fetch");
    let mut fetch = ServerProcess::start(config)?;
    let exit = async {
        loop {
            if let Some(how) = fetch.exited() {
                return how.to_string();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        how = exit => {
            if how == SUCCESS {
                eprintln!("model {model}: here");
            } else if model == DEFAULT_MODEL {
                eprintln!("WARNING: the default model cannot be fetched ({how}); the server falls back to a synthetic one");
            } else {
                bail!("the model {model} cannot be fetched ({how})");
            }
            Ok(CampaignEnd::Complete)
        }
        name = interrupts.next() => {
            eprintln!("interrupted ({name})");
            Ok(CampaignEnd::Interrupted)
        }
    }
}

/// The model for which the engine has a fallback.
const DEFAULT_MODEL: &str = "default";

/// How `std::process::ExitStatus` prints a command that succeeded.
const SUCCESS: &str = "exit status: 0";

fn server_source(args: &RunArgs) -> Result<ServerSource> {
    if let Some(url) = &args.base_url {
        let api_key = std::env::var(API_KEY).ok().filter(|key| !key.is_empty());
        return Ok(ServerSource::External(BaseUrl::parse(url, api_key)?));
    }
    let supervisor = std::env::current_exe().context("the path of this program")?;
    let binary = match &args.engine_bin {
        Some(path) => path.clone(),
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

fn hashes(repository: &Repository, source: &ServerSource) -> Hashes {
    let file = |path: PathBuf| provenance::sha256_of_file(&path).ok();
    Hashes {
        cargo_lock: file(repository.root.join("Cargo.lock")),
        engine_binary: match source {
            ServerSource::Engine { binary, .. } => file(binary.clone()),
            ServerSource::External(_) => None,
        },
        kernels: provenance::sha256_of_sources(&repository.root.join("kernels").join("src")).ok(),
        model: None,
        prompts: None,
    }
}

fn table_of(campaign: &Campaign, ends: &[RunEnd]) -> String {
    let mut lines = vec![format!("campaign {}", campaign.id)];
    lines.extend(ends.iter().map(|end| {
        let status = match end.status {
            RunStatus::Complete => "complete",
            RunStatus::Failed => "failed",
            RunStatus::Running => "running",
        };
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
