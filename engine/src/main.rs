//! The `engine` program: `serve`, `generate`, `inspect`, `fetch`, `bench`, `simulate`,
//! `errors`, `completions`.
//!
//! Exit codes: 0 done, 2 the command line is wrong, 1 anything else.

mod cli;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use engine::errors::Code;
use engine::printable::printable;
use tracing_subscriber::EnvFilter;

/// Memory that a burst of requests took goes back to the system; with the C library's allocator it
/// stays with the process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Command lines that no parser can read end in here, with exit code 2.
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

/// The error with its code, and what the catalogue says of it. Where nobody can be told, the exit
/// code remains.
fn report(error: &anyhow::Error, code: Option<Code>) {
    let line = printable(&cli::failure::in_one_line(error));
    let text = match code.map(|code| (code, code.entry())) {
        None => format!("error: {line}\n"),
        Some((code, entry)) => format!(
            "error[{code}]: {line}\n  cause: {}\n  cure: {}\n",
            entry.cause, entry.cure
        ),
    };
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Standard error, `RUST_LOG` or `info`, colours on terminals only.
fn start_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // The disk of a log may be full. It would be told on standard error, too, and with a panic
        // where that fails.
        .log_internal_errors(false)
        .init();
}
