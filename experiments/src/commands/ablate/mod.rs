//! `experiments ablate`: which flag of a configuration does what.
//!
//! One campaign over all arms ([`arms`]), interleaved by rounds. The table of effects is made afterwards,
//! by another program, from the records alone, so that it can be made again; here is no statistics.
//! Arms of flags that do nothing on this machine are not run ([`idle`]).

pub mod arms;
pub mod idle;

use anyhow::{Context, Result};
use clap::Args;
use records::run_folder;
use records::verdicts::{ALPHA, starts_needed};
use serde_json::Value;

use crate::commands::ablate::arms::{Baseline, arms_of};
use crate::commands::ablate::idle::IdleArms;
use crate::commands::ended::EndedArgs;
use crate::run::campaign::{self, Arm, CampaignEnd, ServingArgs};
use crate::run::interrupts::Interrupts;
use crate::run::replicate::RunEnd;
use crate::run::rounds;
use crate::run::served_model::inactive_flags;
use crate::spec::flags::Flags;
use crate::spec::repository::Repository;
use crate::spec::{Experiment, Overrides};
use crate::terminal::say;

/// They give one effect together, that of all flags; every other arm gives one.
const N_REFERENCES: usize = 2;

#[derive(Debug, Clone, Args)]
pub struct AblateArgs {
    /// Experiment whose flags are told apart, with or without its number
    #[arg(value_name = "NAME")]
    pub name: String,
    /// A small workload; the record says so
    #[arg(long)]
    pub quick: bool,
    /// Model to serve instead of the experiment's: a path, a hub id, `synthetic:<preset>`
    #[arg(long)]
    pub model: Option<String>,
    /// Server starts per arm [default: what a verdict on that number of arms needs; with --quick the
    /// experiment's own]
    #[arg(long, value_name = "N")]
    pub replicates: Option<u32>,
    /// Only these flags, separated by commas
    #[arg(
        long,
        value_name = "FLAG,…",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub only: Vec<String>,
    /// Print the arms and run nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub serving: ServingArgs,
    #[command(flatten)]
    pub ended: EndedArgs,
    /// Extra engine flags that override those of every arm
    #[arg(last = true, value_name = "FLAGS")]
    pub engine_flags: Vec<String>,
}

pub async fn ablate(args: &AblateArgs, repository: Repository) -> Result<CampaignEnd> {
    let (full, baseline) = both_ends(args, &repository)?;
    let only: Vec<String> = args
        .only
        .iter()
        .map(|flag| flag.trim_start_matches("--").to_string())
        .collect();
    let mut arms = arms_of(&full, &baseline, &only)?;
    if args.replicates.is_none() && !args.quick {
        // Each arm with its reference, and the references with each other.
        let n_pairs = arms.len() - N_REFERENCES + 1;
        let needed = starts_needed(n_pairs, ALPHA) as u32;
        for arm in &mut arms {
            arm.replicates = arm.replicates.max(needed);
        }
    }
    say!("{}", listed(&full, &baseline, &arms).trim_end());
    if args.dry_run {
        say!(
            "flags that are inactive on this machine are known once the references have started; their arms are not run"
        );
        return Ok(CampaignEnd::Complete);
    }

    let mut interrupts = Interrupts::catch().context("signals cannot be caught")?;
    let source = campaign::server_source(args.serving.engine_bin.as_deref())?;
    let mut to_run: Vec<Arm> = arms
        .iter()
        .map(|arm| Arm::new(&repository, arm.clone()))
        .collect::<Result<_>>()?;
    let Some(campaign) = campaign::open(
        &args.serving,
        source,
        &mut to_run,
        repository,
        &mut interrupts,
    )
    .await?
    else {
        return Ok(CampaignEnd::Interrupted);
    };
    let mut idle = IdleArms::new(&arms, &full, &baseline);
    let ends = rounds::run_rounds(&campaign, to_run, &mut interrupts, |arm, end| {
        let Some(inactive) = inactive_of(end) else {
            return Vec::new();
        };
        idle.learn(arm, inactive)
    })
    .await?;
    say!("{}", rounds::table_of(&campaign, &ends));
    for (arm, reason) in &idle.given_up {
        say!("  inactive  {arm}: {reason}");
    }
    let end = CampaignEnd::of(&ends);
    if end != CampaignEnd::Interrupted {
        args.ended.tell(&campaign.id, "ablation")?;
    }
    campaign.close()?;
    Ok(end)
}

fn both_ends(args: &AblateArgs, repository: &Repository) -> Result<(Experiment, Baseline)> {
    let overrides = Overrides {
        quick: args.quick,
        model: args.model.clone(),
        replicates: args.replicates,
        slo: None,
        extra_flags: args.engine_flags.clone(),
    };
    let dir = repository.experiments_dir();
    let full = Experiment::load(&dir, &args.name, &overrides)?;
    let root = full.lineage.last().filter(|root| **root != full.name);
    let baseline = match root {
        Some(root) => {
            let root = Experiment::load(&dir, root, &overrides)?;
            Baseline {
                name: Some(root.name),
                flags: root.flags,
            }
        }
        None => Baseline {
            name: None,
            flags: Flags::parse(&args.engine_flags)?,
        },
    };
    Ok((full, baseline))
}

fn listed(full: &Experiment, baseline: &Baseline, arms: &[Experiment]) -> String {
    let mut lines = vec![format!(
        "{} against {}: {} arms, {} starts each",
        full.name,
        baseline.shown(),
        arms.len(),
        full.replicates
            .max(arms.first().map_or(0, |arm| arm.replicates)),
    )];
    let width = arms.iter().map(|arm| arm.name.len()).max().unwrap_or(0);
    lines.extend(
        arms.iter()
            .map(|arm| format!("  {:<width$}  {}", arm.name, arm.title)),
    );
    lines.join("\n") + "\n"
}

/// `None` where the run did not get as far as asking the server.
fn inactive_of(end: &RunEnd) -> Option<idle::Inactive> {
    let info: Value = run_folder::read_json(&end.dir.join(records::SERVER_INFO)).ok()?;
    Some(inactive_flags(&info))
}
