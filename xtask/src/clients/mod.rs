//! `clients [--engine-bin FILE]`: other people's clients against a running engine, unchanged.
//!
//! OpenAI's Python and JavaScript clients, this repository's stress client, and llama-benchy, a
//! public load generator, each in its own process against one server with a tiny model of random
//! weights. What they need is installed below the target folder, in pinned versions.

mod book;
mod install;
mod program;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use self::book::Book;
use self::install::Installed;
use self::program::{Outcome, Program};
use crate::cargo;
use crate::served::Served;

/// Of the model: tiny, with Qwen3's vocabulary and chat template.
const MODEL: &str = "synthetic:tiny-qwen3";
/// Where the engine keeps that tokenizer in its cache.
const TOKENIZER: &str = "tokenizers/qwen3";

#[derive(Args)]
pub struct ClientsArgs {
    /// An engine that is built already [default: build it in the release profile]
    #[arg(long, value_name = "FILE")]
    engine_bin: Option<PathBuf>,
}

pub fn run(args: &ClientsArgs) -> Result<ExitCode> {
    install::check_tools()?;
    let folder = cargo::target_dir()?.join("clients");
    let sources = cargo::root()?.join("engine/tests/clients");
    let installed = Installed::prepare(&sources, &folder)?;
    let engine = engine(args.engine_bin.as_deref())?;
    let cache = folder.join("cache");
    let cache_dir = cache.display().to_string();
    let flags = [
        "--model-path",
        MODEL,
        "--cache-dir",
        &cache_dir,
        "--device",
        "cpu",
        "--reasoning-parser",
        "qwen3",
        // The clients' checks ask for a model that is not there.
        "--strict-model-name",
    ];
    let mut served = Served::start(&engine, &flags, &folder.join("engine.log"))?;
    let book = Book::open(&cargo::root()?.join("data/prompts"))?;
    let outcomes = programs(
        &sources,
        &installed,
        &served.address,
        &book,
        &cache.join(TOKENIZER),
    )
    .iter()
    .map(|program| program.run(&folder))
    .collect::<Result<Vec<Outcome>>>()?;
    let still_serves = served.check();
    println!("\n{}", table(&outcomes));
    for outcome in outcomes.iter().filter(|outcome| !outcome.passed) {
        println!("{}", outcome.explanation());
    }
    if let Err(error) = &still_serves {
        println!("behind the clients: {error:#}");
    }
    let all_passed = still_serves.is_ok() && outcomes.iter().all(|outcome| outcome.passed);
    Ok(if all_passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn engine(given: Option<&Path>) -> Result<PathBuf> {
    let built = if let Some(program) = given {
        program.to_owned()
    } else {
        cargo::build_release(&cargo::MEASURED)?;
        cargo::release_binary("engine")?
    };
    built
        .canonicalize()
        .with_context(|| built.display().to_string())
}

/// One after the other, the heaviest last.
fn programs(
    sources: &Path,
    installed: &Installed,
    address: &str,
    book: &Book,
    tokenizer: &Path,
) -> Vec<Program> {
    let url = format!("http://{address}");
    let api = format!("{url}/v1");
    let path = |path: &Path| path.display().to_string();
    let python = |name: &'static str, script: &str, arguments: &[&str]| {
        let words = [&[script], arguments].concat();
        Program::new(name, installed.python(), sources, &words)
    };
    vec![
        python("openai, Python", "openai_client.py", &[&api]),
        python(
            "openai, Python: forms, tools, thoughts",
            "openai_forms.py",
            &[&api],
        ),
        Program::new(
            "openai, JavaScript",
            "node",
            installed.node(),
            &["openai_client.mjs", &api],
        ),
        Program::new(
            "llama-benchy",
            installed.python_program("llama-benchy"),
            installed.home(),
            &[
                "--base-url",
                &api,
                "--model",
                MODEL,
                "--tokenizer",
                &path(tokenizer),
                "--book-url",
                book.url(),
                "--pp",
                "128",
                "--tg",
                "16",
                "--runs",
                "2",
                "--concurrency",
                "1",
                "4",
                "--exit-on-first-fail",
                // What random weights say is never coherent.
                "--skip-coherence",
            ],
        )
        // It keeps the book below the user's home.
        .with_home(installed.home()),
        // Without the process id, so it does not look at memory: that swings more in a few rounds
        // than it may grow in many.
        python("stress", "stress.py", &[&url]),
    ]
}

fn table(outcomes: &[Outcome]) -> String {
    let width = outcomes
        .iter()
        .map(|outcome| outcome.name.chars().count())
        .max()
        .unwrap_or(0);
    let row = |outcome: &Outcome| {
        let result = if outcome.passed { "passed" } else { "FAILED" };
        format!(
            "{:width$}  {result}  {:6.1} s  {}",
            outcome.name,
            outcome.elapsed.as_secs_f64(),
            outcome.last_line
        )
    };
    outcomes.iter().map(row).collect::<Vec<_>>().join("\n")
}
