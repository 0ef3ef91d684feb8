//! The `engine` program: `serve`, `generate`, `inspect`, `fetch`, `bench`, `simulate`,
//! `errors`.
//!
//! Exit codes: 0 done, 2 the command line is wrong, 1 anything else.

mod cli;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use engine::config::{ConfigError, PlanError};
use engine::errors::Code;
use engine::launch::LaunchError;
use engine::source::SourceError;
use tracing_subscriber::EnvFilter;

/// Memory that a burst of requests took goes back to the system; with the C library's allocator it
/// stays with the process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Wrong command lines end in here, with exit code 2.
    let arguments = cli::Cli::parse();
    start_log();
    match cli::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(if is_usage(&error) { 2 } else { 1 })
        }
    }
}

/// The error with its code, and what the catalogue says of it.
fn report(error: &anyhow::Error) {
    let Some(code) = Code::of(error) else {
        eprintln!("error: {error:#}");
        return;
    };
    eprintln!("error[{code}]: {error:#}");
    eprintln!("  cause: {}", code.entry().cause);
    eprintln!("  cure: {}", code.entry().cure);
}

fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<ConfigError>()
        || error.is::<PlanError>()
        || error.downcast_ref().is_some_and(LaunchError::is_usage)
        || matches!(error.downcast_ref(), Some(SourceError::Parse { .. }))
}

/// Standard error, `RUST_LOG` or `info`, colours on terminals only.
fn start_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
