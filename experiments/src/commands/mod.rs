//! The commands of the `experiments` program, a file or folder each.

// Measure.
mod ablate;
mod answers;
mod ended;
mod reproduce;
mod run;
pub mod tune;

// Make experiments.
pub mod new;

// Look at what was recorded.
mod export;
mod last_verdicts;
mod list;
mod marked;
mod notes;
mod seal;

// Other engines' figures.
pub mod import;

// The simulated GPU beside the measured one.
mod calibrate;
mod simulate;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;
use tokio::runtime::Runtime;

use self::ablate::{AblateArgs, ablate};
use self::answers::{AnswersArgs, answers};
use self::calibrate::{CalibrateArgs, calibrate};
use self::export::{ExportArgs, export};
use self::import::{ImportArgs, import};
use self::new::{NewArgs, new};
use self::notes::{NotesArgs, notes};
use self::reproduce::{ReproduceArgs, reproduce};
use self::run::{RunArgs, run};
use self::seal::{SealArgs, seal};
use self::simulate::against::{AgainstArgs, against};
use self::simulate::policies::{PoliciesArgs, policies};
use self::simulate::projection::{ProjectArgs, project};
use self::simulate::{SimulateArgs, simulate};
use self::tune::{TuneArgs, tune};
use crate::record::provenance::Sources;
use crate::run::campaign::CampaignEnd;
use crate::run::supervise::{ExecBoundArgs, SuperviseArgs, exec_bound, supervise};
use crate::spec::repository::Repository;
use crate::terminal::plain;

#[derive(Subcommand)]
pub enum Command {
    /// Serve, load, record
    Run(RunArgs),
    /// Run every flag of an experiment off and on, and tell what each does
    Ablate(AblateArgs),
    /// Compare what a running server says of a fixed text with another server, or with a file
    Answers(AnswersArgs),
    /// Search an experiment's flags within a budget of time
    Tune(TuneArgs),
    /// Make the next numbered experiment
    New(NewArgs),
    /// Measure a recorded run's configuration again
    Reproduce(ReproduceArgs),
    /// Write a run in the forms that other programs read
    Export(ExportArgs),
    /// Keep another engine's benchmark result beside the runs
    Import(ImportArgs),
    /// Play the workload on a simulated card
    Simulate(SimulateArgs),
    /// Play every measured run on the simulated card, and say how far off that is
    Against(AgainstArgs),
    /// Project first tokens and decode steps onto cards, beside what a real one was measured to do
    Project(ProjectArgs),
    /// Write what the scheduling policies do into their experiment's notes
    Policies(PoliciesArgs),
    /// Write what came of each experiment into its notes
    Notes(NotesArgs),
    /// Print the steps that a run measured, for data/cards
    Calibrate(CalibrateArgs),
    /// Show the experiments and the runs with their status
    List {
        /// Folder of runs and campaigns [default: data/runs and data/campaigns]
        #[arg(long, value_name = "PATH")]
        runs_dir: Option<PathBuf>,
        /// Engine binary that runs are compared with [default: `engine` beside this program]
        #[arg(long, value_name = "PATH")]
        engine_bin: Option<PathBuf>,
    },
    /// Make campaign folders of runs that have ended
    Seal(SealArgs),
    /// Tell the sources of these programs, for source.json beside packed ones
    #[command(hide = true)]
    Sources {
        /// The engine that is packed
        #[arg(long, value_name = "PATH")]
        engine_bin: PathBuf,
    },
    /// Run a command that ends with its caller (used by `run`)
    #[command(hide = true)]
    Supervise(SuperviseArgs),
    /// Become a command that ends with its parent (used by `supervise`)
    #[command(hide = true)]
    ExecBound(ExecBoundArgs),
}

/// One thread: the load generator shall not compete with the server for cores.
fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")
}

fn exit_code(end: CampaignEnd) -> ExitCode {
    match end {
        CampaignEnd::Complete => ExitCode::SUCCESS,
        CampaignEnd::SomeFailed => ExitCode::FAILURE,
        CampaignEnd::Interrupted => ExitCode::from(130),
    }
}

/// Does what was typed; the exit codes are those that `main.rs` names.
///
/// # Errors
///
/// What the command found wrong, or what could not be read, written or started. A run that
/// failed or was interrupted is an exit code, not an error.
pub fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => {
            let repository = Repository::find()?;
            let end = runtime()?.block_on(run(&args, repository))?;
            Ok(exit_code(end))
        }
        Command::Ablate(args) => {
            let repository = Repository::find()?;
            let end = runtime()?.block_on(ablate(&args, repository))?;
            Ok(exit_code(end))
        }
        Command::Answers(args) => runtime()?.block_on(answers(&args)),
        Command::Tune(args) => {
            let end = tune(&args, Repository::find()?, &runtime()?)?;
            Ok(exit_code(end))
        }
        Command::New(args) => {
            print!("{}", plain(&new(&args, &Repository::find()?)?));
            Ok(ExitCode::SUCCESS)
        }
        Command::Export(args) => {
            print!("{}", plain(&export(&args, &Repository::find()?)?));
            Ok(ExitCode::SUCCESS)
        }
        Command::Import(args) => {
            print!("{}", plain(&import(&args, &Repository::find()?)?));
            Ok(ExitCode::SUCCESS)
        }
        Command::Reproduce(args) => {
            let repository = Repository::find()?;
            let end = runtime()?.block_on(reproduce(&args, repository))?;
            Ok(exit_code(end))
        }
        Command::Simulate(args) => {
            simulate(&args, &Repository::find()?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Against(args) => {
            print!("{}", plain(&against(&args, &Repository::find()?)?));
            Ok(ExitCode::SUCCESS)
        }
        Command::Project(args) => {
            print!("{}", plain(&project(&args, &Repository::find()?)?));
            Ok(ExitCode::SUCCESS)
        }
        Command::Policies(args) => {
            print!("{}", plain(&policies(&args, &Repository::find()?)?));
            Ok(ExitCode::SUCCESS)
        }
        Command::Notes(args) => {
            print!("{}", plain(&notes(&args, &Repository::find()?)?));
            Ok(ExitCode::SUCCESS)
        }
        Command::Calibrate(args) => {
            let store = Repository::find()?.store(None);
            print!("{}", plain(&calibrate(&args, &store)?));
            Ok(ExitCode::SUCCESS)
        }
        Command::List {
            runs_dir,
            engine_bin,
        } => {
            let repository = Repository::find()?;
            let store = repository.store(runs_dir.as_deref());
            let engine = match engine_bin {
                Some(path) => path,
                None => std::env::current_exe()
                    .context("the path of this program")?
                    .with_file_name("engine"),
            };
            print!("{}", plain(&list::list(&repository, &store, &engine)?));
            Ok(ExitCode::SUCCESS)
        }
        Command::Seal(args) => {
            print!("{}", plain(&seal(&args, &Repository::find()?)?));
            Ok(ExitCode::SUCCESS)
        }
        Command::Sources { engine_bin } => {
            let root = Repository::find()?.root;
            // Of the tree, whatever was packed beside the engine before.
            let sources = Sources::of(&root, &root, Some(&engine_bin))?;
            println!("{}", serde_json::to_string_pretty(&sources)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Supervise(args) => supervise(&args).map(|()| ExitCode::SUCCESS),
        Command::ExecBound(args) => exec_bound(&args).map(|()| ExitCode::SUCCESS),
    }
}
