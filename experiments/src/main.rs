//! The `experiments` program: makes, runs, compares and lists experiments. Exit codes: 0 all runs complete,
//! 1 a run failed, 2 a bad call, 130 interrupted.

use std::process::ExitCode;

use clap::Parser;
use experiments::commands::{Command, dispatch};
use experiments::{in_one_line, plain};

#[derive(Parser)]
#[command(
    name = "experiments",
    about = "Runs a numbered experiment end to end and records it"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", plain(&in_one_line(&error)));
            ExitCode::FAILURE
        }
    }
}
