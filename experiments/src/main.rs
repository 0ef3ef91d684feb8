//! The `experiments` program: runs, simulates and lists experiments. Exit codes: 0 all runs complete,
//! 1 a run failed, 2 a bad call, 130 interrupted.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use experiments::calibrate::{CalibrateArgs, calibrate};
use experiments::campaign::{self, CampaignEnd, RunArgs};
use experiments::repository::Repository;
use experiments::run_list;
use experiments::simulate::{SimulateArgs, simulate};
use experiments::supervise::{ExecBoundArgs, SuperviseArgs, exec_bound, supervise};

#[derive(Parser)]
#[command(
    name = "experiments",
    about = "Runs a numbered experiment end to end and records it"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve, load, record
    Run(RunArgs),
    /// Play the workload on a simulated card
    Simulate(SimulateArgs),
    /// Print the steps that a run measured, for data/cards
    Calibrate(CalibrateArgs),
    /// Show the experiments and the runs with their status
    List {
        /// Folder of the run folders [default: data/runs]
        #[arg(long, value_name = "PATH")]
        runs_dir: Option<PathBuf>,
        /// Engine binary that runs are laid beside [default: `engine` beside this program]
        #[arg(long, value_name = "PATH")]
        engine_bin: Option<PathBuf>,
    },
    /// Run a command that ends with its caller (used by `run`)
    #[command(hide = true)]
    Supervise(SuperviseArgs),
    /// Become a command that ends with its parent (used by `supervise`)
    #[command(hide = true)]
    ExecBound(ExecBoundArgs),
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => {
            let repository = Repository::find()?;
            // One thread: the load generator shall not compete with the server for cores.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("the runtime cannot be started")?;
            Ok(match runtime.block_on(campaign::run(&args, repository))? {
                CampaignEnd::Complete => ExitCode::SUCCESS,
                CampaignEnd::SomeFailed => ExitCode::FAILURE,
                CampaignEnd::Interrupted => ExitCode::from(130),
            })
        }
        Command::Simulate(args) => {
            simulate(&args, &Repository::find()?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Calibrate(args) => {
            print!("{}", calibrate(&args)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::List {
            runs_dir,
            engine_bin,
        } => {
            let repository = Repository::find()?;
            let runs_dir = runs_dir.unwrap_or_else(|| repository.runs_dir());
            let engine = match engine_bin {
                Some(path) => path,
                None => std::env::current_exe()
                    .context("the path of this program")?
                    .with_file_name("engine"),
            };
            print!("{}", run_list::list(&repository, &runs_dir, &engine)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Supervise(args) => supervise(&args).map(|()| ExitCode::SUCCESS),
        Command::ExecBound(args) => exec_bound(&args).map(|()| ExitCode::SUCCESS),
    }
}
