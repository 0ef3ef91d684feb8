//! `promote MODEL CONFIG [--local | --gateway-admin HOST:PORT …]`: from a model and a configuration to
//! all requests, or back.
//!
//! The stages, each a line in the run folder's log: build, tests, answers and speed beside the deployed
//! configuration, the release folder, and a canary at the gateway: 5, 25 and 100 of 100 requests. A
//! stage that refuses ends the run; one of the canary's puts all requests back on the stable engines.
//!
//! `--local` starts the stable engine, the candidate, the gateway of `engine/deploy/gateway` and a load.
//! `--gateway-admin` uses engines, gateway and requests that are there.

mod canary;
mod configuration;
mod gates;
mod image;
mod journal;
mod local;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use duct::cmd;

use self::canary::{Canary, Cluster, Limits};
use self::configuration::Configuration;
use self::gates::Gates;
use self::journal::{Journal, Verdict};
use crate::cargo;
use crate::gateway::Admin;

/// The experiment whose workload the performance gate takes.
const WORKLOAD: &str = "01-baseline";

#[derive(Args)]
pub struct PromoteArgs {
    /// The model: a path, a hub id, `synthetic:<preset>`
    #[arg(value_name = "MODEL")]
    model: String,
    /// Its configuration: a file of `engine serve --config`, without model and keys
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
    /// The configuration that is deployed now [default: what the last promotion here left]
    #[arg(long, value_name = "FILE")]
    deployed: Option<PathBuf>,
    /// The model that is deployed now [default: MODEL]
    #[arg(long, value_name = "MODEL")]
    deployed_model: Option<String>,
    /// The canary is on this machine: engines, gateway and load are started and ended
    #[arg(long, conflicts_with = "gateway_admin")]
    local: bool,
    /// Envoy's admin interface, before engines that are there already
    #[arg(long, value_name = "HOST:PORT", requires_all = ["stable", "canary"])]
    gateway_admin: Option<String>,
    /// The stable engines of that gateway, for their metrics
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    stable: Vec<String>,
    /// Its candidate's engines
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    canary: Vec<String>,
    /// All stages before the canary; nothing is deployed
    #[arg(long)]
    dry_run: bool,
    /// Leave the tests out; only in a dry run
    #[arg(long, requires = "dry_run")]
    skip_tests: bool,
    /// Only the engine's tests over HTTP whose names contain this [default: all of them]
    #[arg(long, value_name = "NAME")]
    tests: Option<String>,
    /// An engine that has been built [default: build it in the release profile]
    #[arg(long, value_name = "PATH")]
    engine: Option<PathBuf>,
    /// Compare the answers with this file of `experiments answers --keep`, not with the deployed ones
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// The experiment whose workload the performance gate takes
    #[arg(long, value_name = "EXPERIMENT", default_value = WORKLOAD)]
    workload: String,
    /// That workload in full instead of its quick form
    #[arg(long)]
    full_workload: bool,
    /// Server starts of each side
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(7..=100))]
    replicates: u32,
    /// Changes of speed within ± this many per cent count as none
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    margin: f64,
    /// Requests of the canary in each of its steps
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(10..))]
    step_requests: u64,
    /// A difference of mean times below this says nothing
    #[arg(long, value_name = "MS", default_value_t = 10.0)]
    step_slack_ms: f64,
    /// How long a step waits for them
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    step_limit_s: u64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Promoted,
    RolledBack,
    Refused,
    DryRun,
}

impl Outcome {
    fn told(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled back",
            Self::Refused => "refused before the canary; nothing was changed",
            Self::DryRun => "passed; a dry run deploys nothing",
        }
    }

    fn code(self) -> ExitCode {
        match self {
            Self::Promoted | Self::DryRun => ExitCode::SUCCESS,
            Self::RolledBack | Self::Refused => ExitCode::FAILURE,
        }
    }
}

pub fn run(args: &PromoteArgs) -> Result<ExitCode> {
    if !args.dry_run && !args.local && args.gateway_admin.is_none() {
        bail!("name where the canary runs: --local, or --gateway-admin HOST:PORT; or --dry-run");
    }
    let folder = cargo::target_dir()?.join("promote");
    let deployed_file = match &args.deployed {
        Some(file) => file.clone(),
        None => folder.join("deployed.toml"),
    };
    if !deployed_file.is_file() {
        bail!(
            "{} is not there; --deployed FILE names the configuration that is deployed now",
            deployed_file.display()
        );
    }
    let candidate = Configuration::read(&args.model, &args.config)?;
    let deployed_model = args.deployed_model.as_deref().unwrap_or(&args.model);
    let deployed = Configuration::read(deployed_model, &deployed_file)?;
    let mut journal = Journal::open(&folder)?;
    let what = format!("{} with {}", args.model, args.config.display());
    journal.say(&format!(
        "{what}, beside {deployed_model} with {}; commit {}",
        deployed_file.display(),
        cargo::commit(&cargo::root()?)
    ))?;
    let outcome = stages(args, &deployed, &candidate, &mut journal)?;
    if outcome == Outcome::Promoted {
        fs::copy(&candidate.file, folder.join("deployed.toml")).context("deployed.toml")?;
    }
    journal.close(&what, outcome.told())?;
    Ok(outcome.code())
}

fn stages(
    args: &PromoteArgs,
    deployed: &Configuration,
    candidate: &Configuration,
    journal: &mut Journal,
) -> Result<Outcome> {
    let mut engine = PathBuf::new();
    let built = journal.stage("build", |_| {
        engine = cargo::given_or_release_engine(args.engine.as_deref())?;
        // Built with the engine, unless one was named.
        if args.engine.is_some() && !cargo::release_binary("experiments")?.is_file() {
            cargo::build_release(&["experiments"])?;
        }
        cargo::build_reports()?;
        Ok(Verdict::Passed(engine.display().to_string()))
    })?;
    if !built || !journal.stage("tests", |_| tests(args))? {
        return Ok(Outcome::Refused);
    }
    let cache = cargo::target_dir()?.join("clients/cache");
    let folder = journal.folder().to_owned();
    let gates = Gates {
        engine: &engine,
        experiments: &cargo::release_binary("experiments")?,
        reports: &cargo::reports_binary()?,
        deployed,
        candidate,
        cache: &cache,
        folder: &folder,
    };
    let passed = journal.stage("answers", |_| gates.quality(args.golden.as_deref()))?
        && journal.stage("speed", |_| {
            gates.performance(
                &args.workload,
                args.replicates,
                args.margin,
                !args.full_workload,
            )
        })?
        && journal.stage("image", |journal| {
            image::build(&engine, candidate, journal.folder())
        })?;
    if !passed {
        return Ok(Outcome::Refused);
    }
    if args.dry_run {
        return Ok(Outcome::DryRun);
    }
    let limits = Limits {
        n_requests: args.step_requests,
        patience: Duration::from_secs(args.step_limit_s),
        error_share: 0.01,
        time_ratio: 1.5,
        time_slack_ms: args.step_slack_ms,
    };
    let promoted = match &args.gateway_admin {
        Some(admin) => at_gateway(admin, args, limits, journal)?,
        None => local::canary(&engine, deployed, candidate, &cache, limits, journal)?,
    };
    Ok(if promoted {
        Outcome::Promoted
    } else {
        Outcome::RolledBack
    })
}

fn tests(args: &PromoteArgs) -> Result<Verdict> {
    if args.skip_tests {
        return Ok(Verdict::NotDone("--skip-tests, in a dry run".into()));
    }
    // The same selection of packages as `test`, so that nothing is built twice.
    let mut command = vec!["test", "--workspace", "--test", "server"];
    command.extend(args.tests.as_deref());
    let tested = cmd("cargo", &command)
        .dir(cargo::root()?)
        .env("CARGO_TARGET_DIR", cargo::target_dir()?)
        .stdout_capture()
        .unchecked()
        .run()
        .context("cargo cannot be started")?;
    let text = String::from_utf8_lossy(&tested.stdout);
    let result = text.lines().rfind(|line| line.starts_with("test result:"));
    let told = format!("{}: {}", command.join(" "), result.unwrap_or("no result"));
    let n_passed = result.and_then(|result| {
        let (number, _) = result.split_once(" passed")?;
        number.rsplit(' ').next()?.parse::<u32>().ok()
    });
    Ok(
        if tested.status.success() && n_passed.is_some_and(|n| n > 0) {
            Verdict::Passed(told)
        } else {
            Verdict::Refused(told)
        },
    )
}

/// Requests are there already, and so is what starts and ends engines: promoted means that the canary
/// has all requests.
fn at_gateway(
    admin: &str,
    args: &PromoteArgs,
    limits: Limits,
    journal: &mut Journal,
) -> Result<bool> {
    let canary = Canary {
        admin: &Admin {
            address: admin.trim_start_matches("http://").to_owned(),
        },
        stable: Cluster {
            name: "stable",
            engines: args.stable.clone(),
        },
        candidate: Cluster {
            name: "canary",
            engines: args.canary.clone(),
        },
        limits,
    };
    let passed = canary.run(journal)?;
    journal.say(if passed {
        "all requests go to the canary; give the stable engines its configuration, then set the weights back"
    } else {
        "no requests go to the canary"
    })?;
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn parsed(args: &[&str]) -> Result<PromoteArgs, String> {
        let command = PromoteArgs::augment_args(Command::new("promote"));
        let args = ["promote", "m", "c.toml"].iter().chain(args).copied();
        let matches = command.try_get_matches_from(args);
        let matches = matches.map_err(|error| error.to_string())?;
        PromoteArgs::from_arg_matches(&matches).map_err(|error| error.to_string())
    }

    #[test]
    fn tests_are_skipped_in_a_dry_run_alone() {
        let error = parsed(&["--local", "--skip-tests"]).err().expect("refused");
        assert!(error.contains("--dry-run"), "{error}");
        assert!(parsed(&["--dry-run", "--skip-tests"]).is_ok());
        let error = parsed(&["--gateway-admin", "a:1"]).err().expect("refused");
        assert!(
            error.contains("--stable") && error.contains("--canary"),
            "{error}"
        );
        assert!(
            parsed(&["--replicates", "3"]).is_err(),
            "too few for a verdict"
        );
    }

    #[test]
    fn where_the_canary_runs_has_to_be_said() {
        let args = parsed(&[]).expect("parsed");
        let error = run(&args).expect_err("refused").to_string();
        assert!(error.contains("--local"), "{error}");
    }

    #[test]
    fn only_a_promotion_and_a_dry_run_succeed() {
        let succeeds = |outcome: Outcome| outcome.code() == ExitCode::SUCCESS;
        assert!(succeeds(Outcome::Promoted) && succeeds(Outcome::DryRun));
        assert!(!succeeds(Outcome::RolledBack) && !succeeds(Outcome::Refused));
    }
}
