//! `clients [--engine-bin FILE] [--only NAME,…]`: unmodified third-party clients against a running
//! engine.
//!
//! Each client runs in its own process, one after the other, against one server with a tiny model
//! with random weights. Their dependencies are installed below the target folder in pinned
//! versions; at run time they make no internet requests. [`catalogue`] lists the clients:
//!
//! - `kv-events`: a router's view of the prefix cache over pyzmq and msgspec.
//! - `openai`, `openai-forms`, `openai-responses`, `openai-js`: OpenAI's clients for Python and
//!   JavaScript.
//! - `anthropic`: Anthropic's client for Python.
//! - `openai-agents`, `ai-sdk`, `langchain`, `pydantic-ai`, `instructor`: frameworks on top of them.
//!   The checks cover output formats, tool calls, usage, streams and typed errors.
//! - `litellm`, `litellm-proxy`: LiteLLM's functions, and its proxy between the server and OpenAI's client.
//! - `lm-eval`: lm-evaluation-harness with tasks of this repository; its scores must be the server's own.
//! - `guidellm`, `llama-benchy`: load generators. guidellm depends on torch, gigabytes of which it
//!   uses one iterator; a package of this repository replaces it.
//! - `schemathesis`: requests made from the server's OpenAPI document, the only client with keys.
//! - `stress`: this repository's own client, 200 requests at once of which half are abandoned.

mod book;
mod catalogue;
pub mod install;
pub mod program;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::PossibleValuesParser;

use self::book::Book;
use self::catalogue::{CLIENTS, Client, Server};
use self::install::Installed;
use self::program::Outcome;
use crate::cargo;
use crate::served::Served;

/// The model: tiny, with Qwen3's vocabulary and chat template.
const MODEL: &str = "synthetic:tiny-qwen3";
/// The location of that tokenizer in the engine's cache.
const TOKENIZER: &str = "tokenizers/qwen3";

#[derive(Args)]
pub struct ClientsArgs {
    /// An engine that has been built [default: build it in the release profile]
    #[arg(long, value_name = "FILE")]
    engine_bin: Option<PathBuf>,
    /// Only these clients, separated by commas
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = PossibleValuesParser::new(catalogue::names())
    )]
    only: Vec<String>,
}

/// Runs one client against an engine that has been built.
pub fn run_one(name: &str, engine: &Path) -> Result<ExitCode> {
    run(&ClientsArgs {
        engine_bin: Some(engine.to_owned()),
        only: vec![name.to_owned()],
    })
}

pub fn run(args: &ClientsArgs) -> Result<ExitCode> {
    let clients = chosen(&args.only);
    install::check_tools(&clients)?;
    let folder = cargo::target_dir()?.join("clients");
    let sources = cargo::root()?.join("engine/tests/clients");
    let installed = Installed::prepare(&sources, &folder, &clients)?;
    let engine = cargo::given_or_release_engine(args.engine_bin.as_deref())?;
    let cache = folder.join("cache");
    let cache_dir = cache.display().to_string();
    let kv_events = [free_endpoint()?, free_endpoint()?];
    let [events, replays] = &kv_events;
    let kv_events_config = format!(
        r#"{{"enable_kv_cache_events":true,"endpoint":"{}","replay_endpoint":"{replays}"}}"#,
        events.replace("127.0.0.1", "*"),
    );
    let flags = [
        "--kv-events-config",
        &kv_events_config,
        "--model-path",
        MODEL,
        "--cache-dir",
        &cache_dir,
        "--device",
        "cpu",
        "--reasoning-parser",
        "qwen3",
        // The clients' checks ask for a model that does not exist.
        "--strict-model-name",
    ];
    let book = Book::open(&cargo::root()?.join("data/prompts"))?;
    let mut outcomes = Vec::new();
    let mut still_serves = Ok(());
    for own_flags in servers(&clients) {
        let clients = clients.iter().filter(|client| client.flags == own_flags);
        let flags: Vec<&str> = flags.iter().chain(own_flags).copied().collect();
        let mut served = Served::start(&engine, &flags, &folder.join("engine.log"))?;
        let server = Server {
            url: &format!("http://{}", served.address),
            model: MODEL,
            tokenizer: &cache.join(TOKENIZER),
            book_url: book.url(),
            kv_events: [events, replays],
        };
        for client in clients {
            outcomes.push(program::run(client, &server, &installed, &folder)?);
        }
        still_serves = still_serves.and(served.check());
    }
    println!("\n{}", program::table(&outcomes));
    for outcome in outcomes.iter().filter(|outcome| !outcome.passed()) {
        println!("{}", outcome.explanation());
    }
    if let Err(error) = &still_serves {
        println!("after the clients: {error:#}");
    }
    let all_passed = still_serves.is_ok() && outcomes.iter().all(Outcome::passed);
    Ok(if all_passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A port that was free a moment ago.
fn free_endpoint() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    let address = listener.local_addr().context("looking for a free port")?;
    Ok(format!("tcp://{address}"))
}

/// The flags of each server that these clients need.
fn servers(clients: &[&Client]) -> Vec<&'static [&'static str]> {
    let mut servers: Vec<_> = clients.iter().map(|client| client.flags).collect();
    servers.sort_unstable();
    servers.dedup();
    servers
}

/// All if none is named, in the catalogue's order.
fn chosen(names: &[String]) -> Vec<&'static Client> {
    let is_chosen = |client: &&Client| names.is_empty() || names.iter().any(|n| n == client.name);
    CLIENTS.iter().filter(is_chosen).collect()
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn parsed(args: &[&str]) -> Result<ClientsArgs, String> {
        let command = ClientsArgs::augment_args(Command::new("clients"));
        let args = std::iter::once("clients").chain(args.iter().copied());
        let matches = command.try_get_matches_from(args);
        let matches = matches.map_err(|error| error.to_string())?;
        ClientsArgs::from_arg_matches(&matches).map_err(|error| error.to_string())
    }

    #[test]
    fn clients_are_chosen_by_name_and_others_refused_with_the_list() {
        let args = parsed(&["--only", "stress,langchain"]).expect("known names");
        let names: Vec<&str> = chosen(&args.only)
            .iter()
            .map(|client| client.name)
            .collect();
        assert_eq!(names, ["langchain", "stress"]);
        assert_eq!(chosen(&[]).len(), CLIENTS.len());
        let error = parsed(&["--only", "langchain,curl"])
            .err()
            .expect("refused");
        for word in ["curl", "langchain", "lm-eval", "stress"] {
            assert!(error.contains(word), "{error}");
        }
    }
}
