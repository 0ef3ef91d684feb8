//! The `engine` program: `serve`, `generate`, `inspect`, `fetch`, `bench`, `simulate`,
//! `selftest`, `errors`, `completions`.
//!
//! Exit codes: 0 done, 2 the command line is wrong, 1 anything else.

mod cli;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use engine::errors::Code;
use engine::printable::printable;
use tracing_subscriber::EnvFilter;

/// Returns the memory of a burst of requests to the system; the C library's allocator would keep
/// it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Invalid command lines end the program here, with exit code 2.
    let outcome = cli::read().and_then(|line| {
        start_log();
        cli::run(line)
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = cli::failure::code_of(&error);
            report(&error, code);
            ExitCode::from(if code.is_some_and(Code::is_usage) {
                2
            } else {
                1
            })
        }
    }
}

/// Prints the error with its code, cause and fix. If stderr is closed, only the exit code remains.
fn report(error: &anyhow::Error, code: Option<Code>) {
    let line = printable(&cli::failure::in_one_line(error));
    let text = match code.map(|code| (code, code.entry())) {
        None => format!("error: {line}\n"),
        Some((code, entry)) => format!(
            "error[{code}]: {line}\n  cause: {}\n  fix: {}\n",
            entry.cause, entry.fix
        ),
    };
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Logs to standard error, filtered by `RUST_LOG` or `info`, with colours only on terminals.
fn start_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // The log's disk may be full. The subscriber would report that on standard error too, and
        // panic if that fails.
        .log_internal_errors(false)
        .init();
}
