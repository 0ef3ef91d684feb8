//! `experiments run`: several experiments, several replicates each, one record per run.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use records::manifest::{Derived, OURS, Side};

use crate::engines::{self, Asked, Choice, Engine};
use crate::load::BaseUrl;
use crate::run::campaign::{self, Arm, CampaignEnd, ServerSource, ServingArgs, server_source};
use crate::run::interrupts::Interrupts;
use crate::run::rounds::{run_rounds, table_of};
use crate::spec::repository::Repository;
use crate::spec::{Experiment, Overrides};
use crate::terminal::say;

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
    /// Engines, each an arm of every experiment: ours, vllm, sglang, llama.cpp; with @ and a preset:
    /// vllm@enforce-eager, sglang@documents
    #[arg(long, value_name = "ENGINES", value_delimiter = ',', default_value = OURS, conflicts_with = "base_url")]
    pub engine: Vec<String>,
    /// Where an engine is, if not on PATH: a Python environment, a kit folder for PYTHONPATH, a
    /// program: vllm=/opt/vllm
    #[arg(long, value_name = "ENGINE=PLACE", conflicts_with = "base_url")]
    pub engine_path: Vec<String>,
    /// Model files for one engine in place of the experiment's: llama.cpp=/models/x.gguf
    #[arg(long, value_name = "ENGINE=PATH", conflicts_with = "base_url")]
    pub engine_model: Vec<String>,
    /// In place of the experiment's cases, search the highest load at which a share of the requests
    /// meets limits: ttft_ms=200,tpot_ms=20,share=0.95; load=open (requests a second) or closed (users)
    #[arg(long, value_name = "LIMITS", conflicts_with = "a_a")]
    pub slo: Option<String>,
    /// Run the same configuration as two arms: how many verdicts are false
    #[arg(long = "a-a")]
    pub a_a: bool,
    /// Folder of the experiments [default: experiments]
    #[arg(long, value_name = "PATH")]
    pub experiments_dir: Option<PathBuf>,
    #[command(flatten)]
    pub serving: ServingArgs,
    /// Extra engine flags that override the experiment's
    #[arg(last = true, value_name = "FLAGS")]
    pub engine_flags: Vec<String>,
}

pub async fn run(args: &RunArgs, repository: Repository) -> Result<CampaignEnd> {
    let mut interrupts = Interrupts::catch().context("signals cannot be caught")?;
    let overrides = Overrides {
        quick: args.quick,
        model: args.model.clone(),
        replicates: args.replicates,
        slo: args.slo.clone(),
        extra_flags: args.engine_flags.clone(),
    };
    let engines = engines::choices(&Asked {
        engines: args.engine.clone(),
        places: args.engine_path.clone(),
        models: args.engine_model.clone(),
    })?;
    let own_dir = repository.experiments_dir();
    let experiments_dir = args.experiments_dir.as_deref().unwrap_or(&own_dir);
    let mut arms: Vec<Arm> = Vec::new();
    for name in &args.names {
        let experiment = Experiment::load(experiments_dir, name, &overrides)?;
        if arms
            .iter()
            .any(|arm| arm.experiment.name == experiment.name)
        {
            bail!(
                "{} is named twice; use --replicates to run it more often",
                experiment.name
            );
        }
        for engine in &engines {
            let (experiment, engine) = match engine {
                None => (experiment.clone(), Engine::Ours),
                Some(choice) => {
                    refuse_without_files(&experiment, choice)?;
                    let (experiment, engine) = choice.take(&experiment)?;
                    (experiment, Engine::Other(Box::new(engine)))
                }
            };
            for experiment in derived(experiment, args) {
                arms.push(Arm::of(&repository, experiment, engine.clone())?);
            }
        }
    }
    let source = match &args.base_url {
        Some(url) => external_server(url, args.model.clone())?,
        None => server_source(args.serving.engine_bin.as_deref())?,
    };
    let Some(campaign) = campaign::open(
        &args.serving,
        source,
        &mut arms,
        repository,
        &mut interrupts,
    )
    .await?
    else {
        return Ok(CampaignEnd::Interrupted);
    };
    let ends = run_rounds(&campaign, arms, &mut interrupts, |_, _| Vec::new()).await?;
    say!("{}", table_of(&campaign, &ends));
    campaign.close()?;
    Ok(CampaignEnd::of(&ends))
}

/// What of an experiment is run: itself, its search, or itself twice.
fn derived(experiment: Experiment, args: &RunArgs) -> Vec<Experiment> {
    let parent = experiment.name.clone();
    if args.slo.is_some() {
        return vec![Experiment {
            derived: Some(Derived::Slo { parent }),
            ..experiment
        }];
    }
    if !args.a_a {
        return vec![experiment];
    }
    let side = |side: Side| Experiment {
        name: format!("{parent}-{}", side.word()),
        // Neither is what others are compared with.
        baseline: false,
        focus: false,
        derived: Some(Derived::AA {
            parent: parent.clone(),
            side,
        }),
        ..experiment.clone()
    };
    vec![side(Side::A), side(Side::B)]
}

/// A synthetic model is made by our engine as it starts.
fn refuse_without_files(experiment: &Experiment, choice: &Choice) -> Result<()> {
    let model = &experiment.model;
    if model.starts_with("synthetic:") && choice.model.is_none() {
        bail!(
            "{model} has no files that {} could read, and figures of other weights compare with nothing; write it once, `cargo xtask model {model} --write FOLDER`, and give all engines --model FOLDER",
            choice.shown()
        );
    }
    Ok(())
}

/// The server at `url`, of whose models `model` is asked, or else the first.
fn external_server(url: &str, model: Option<String>) -> Result<ServerSource> {
    let api_key = std::env::var(API_KEY).ok().filter(|key| !key.is_empty());
    Ok(ServerSource::External {
        base_url: BaseUrl::parse(url, api_key)?,
        model,
    })
}
