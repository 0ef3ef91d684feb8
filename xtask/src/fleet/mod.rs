//! `fleet [--router NAME,…] [--engine PATH]`: several engines before which a router of another project
//! runs, unchanged.
//!
//! Two and then three engines with a tiny model with random weights run on the CPU. For each router:
//!
//! - prompts with shared prefixes under its policy that keeps a prefix on one engine and under round
//!   robin, with a KV pool so small that the difference shows in the engines' `/metrics`;
//! - a replica is killed, one is drained, all are restarted one after the other, each under load;
//! - gateways check keys and limit rates.
//!
//! Every part has checks. One that fails ends the recipe with exit code 1, but for what a router is
//! known to lack ([`router::ROUTERS`]), which is told in the table from what was measured.

pub mod load;
mod parts;
pub mod replicas;
mod router;
pub mod shared_prefix;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::PossibleValuesParser;

use self::parts::Stage;
use self::replicas::Replicas;
use self::router::{Policy, ROUTERS, Router};
use self::shared_prefix::MODEL;
use self::table::Row;
use crate::cargo;
use crate::clients::install::Installed;

/// Room for eight of the twelve prefixes.
const POOL_TOKENS: &str = "2816";

#[derive(Args)]
pub struct FleetArgs {
    /// Only these routers, separated by commas
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = PossibleValuesParser::new(router::names())
    )]
    router: Vec<String>,
    /// An engine that has been built [default: build it in the release profile]
    #[arg(long, value_name = "PATH")]
    engine: Option<PathBuf>,
    /// Numbers of engines, separated by commas
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "2,3",
        value_parser = clap::value_parser!(u64).range(2..=8)
    )]
    engines: Vec<u64>,
}

pub fn run(args: &FleetArgs) -> Result<ExitCode> {
    let routers = chosen(&args.router);
    let clients = cargo::target_dir()?.join("clients");
    let installed = installed(&routers, &clients)?;
    let engine = cargo::given_or_release_engine(args.engine.as_deref())?;
    let folder = cargo::target_dir()?.join("fleet");
    let flags = engine_flags(&clients.join("cache"));
    let mut replicas = Replicas::new(&engine, &folder.join("engines"))?;
    let mut rows = Vec::new();
    for &n in &args.engines {
        while replicas.ports().len() < n as usize {
            replicas.add(&flags)?;
        }
        for router in &routers {
            let folder = folder.join(format!("{}-{n}", router.name));
            let new = with_router(router, &installed, &mut replicas, n as usize, &folder)
                .with_context(|| format!("{} with {n} engines", router.name))?;
            rows.extend(new);
        }
    }
    println!("\n{}", table::table(&rows));
    let failed = rows.iter().filter(|row| row.has_failed()).count();
    println!("{} parts, {failed} failed", rows.len());
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// Of all routers.
#[cfg(test)]
pub fn environments() -> Vec<&'static str> {
    ROUTERS.iter().map(|router| router.environment).collect()
}

fn installed(routers: &[&Router], folder: &Path) -> Result<Installed> {
    let environments: Vec<&str> = routers.iter().map(|router| router.environment).collect();
    let sources = cargo::root()?.join("engine/tests/clients");
    Installed::environments(&sources, folder, &environments)
}

/// All if none is named, in the table's order.
fn chosen(names: &[String]) -> Vec<&'static Router> {
    let is_chosen = |router: &&Router| names.is_empty() || names.iter().any(|n| n == router.name);
    ROUTERS.iter().filter(is_chosen).collect()
}

fn engine_flags(cache: &Path) -> Vec<String> {
    [
        "--model-path",
        "synthetic:tiny-qwen3",
        "--served-model-name",
        MODEL,
        "--cache-dir",
        &cache.display().to_string(),
        "--device",
        "cpu",
        "--n-threads",
        "1",
        "--max-total-tokens",
        POOL_TOKENS,
    ]
    .map(str::to_owned)
    .to_vec()
}

fn with_router(
    router: &'static Router,
    installed: &Installed,
    replicas: &mut Replicas,
    n_engines: usize,
    folder: &Path,
) -> Result<Vec<Row>> {
    let version = installed.version_of(router.environment)?;
    let ports = replicas.ports();
    let mut rows = Vec::new();
    for policy in [Policy::RoundRobin, Policy::Affinity] {
        let running = router.start(
            installed,
            &ports,
            policy,
            &folder.join(format!("{policy:?}")),
        )?;
        let mut stage = Stage {
            router,
            running: &running,
            replicas,
            n_engines,
            version: &version,
            policy: router.policy_name(policy),
        };
        let mut add = |row: Result<Row>| -> Result<()> {
            let mut row = row?;
            row.forgive(router.lacks);
            print!("{}", table::lines(&row));
            rows.push(row);
            Ok(())
        };
        add(stage.shared_prefixes())?;
        if policy == Policy::RoundRobin {
            continue;
        }
        add(stage.kill())?;
        add(stage.drain())?;
        add(stage.rolling_restart())?;
        if router.is_gateway() {
            add(Ok(stage.keys_and_limits()))?;
        }
    }
    table::check_affinity(&mut rows, 1, 0);
    rows[1].forgive(router.lacks);
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn parsed(args: &[&str]) -> Result<FleetArgs, String> {
        let command = FleetArgs::augment_args(Command::new("fleet"));
        let args = std::iter::once("fleet").chain(args.iter().copied());
        let matches = command.try_get_matches_from(args);
        let matches = matches.map_err(|error| error.to_string())?;
        FleetArgs::from_arg_matches(&matches).map_err(|error| error.to_string())
    }

    #[test]
    fn routers_are_chosen_by_name_and_others_refused_with_the_list() {
        let args = parsed(&["--router", "envoy,smg", "--engines", "2"]).expect("known");
        let names: Vec<&str> = chosen(&args.router).iter().map(|r| r.name).collect();
        assert_eq!(names, ["smg", "envoy"]);
        assert_eq!(parsed(&[]).expect("none").engines, [2, 3]);
        let error = parsed(&["--router", "nginx"]).err().expect("refused");
        assert!(
            error.contains("nginx") && error.contains("vllm-router"),
            "{error}"
        );
        assert!(parsed(&["--engines", "1"]).is_err());
    }
}
