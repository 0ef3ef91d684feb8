//! Builds the command line for the parser: flags from the environment first, then the typed
//! arguments, with other servers' flags translated.

use std::ffi::OsString;

use anyhow::Result;
use clap::{Command, FromArgMatches};
use engine::config::{PlanError, aliases, environment};

use super::groups::WITH_FLAGS;
use super::{Cli, groups};

/// A parsed command line.
pub struct Line {
    pub(super) cli: Cli,
    /// The arguments after the subcommand, as far as they are text.
    pub(super) args: Vec<String>,
}

/// Reads the command line of this process. A request for help, or an argument that the parser
/// refuses, ends the process; other errors are reported as a wrong command line.
pub fn read() -> Result<Line> {
    let typed: Vec<OsString> = std::env::args_os().collect();
    let args: Option<Vec<String>> = typed
        .iter()
        .map(|word| word.to_str().map(str::to_owned))
        .collect();
    // The parser refuses arguments that are not text.
    let args = match args {
        Some(args) => in_our_flags(args)?.into_iter().map(Into::into).collect(),
        None => typed,
    };
    let matches = groups::command().get_matches_from(args.iter().cloned());
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let args = args.iter().skip(2);
    Ok(Line {
        cli,
        args: args
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
    })
}

fn in_our_flags(args: Vec<String>) -> Result<Vec<String>, PlanError> {
    let mut cli = groups::command();
    cli.build();
    let subcommand = args.get(1).map(String::as_str).unwrap_or_default();
    let Some(command) = cli
        .find_subcommand(subcommand)
        .filter(|_| WITH_FLAGS.contains(&subcommand))
    else {
        return Ok(args);
    };
    let others: Vec<&Command> = cli.get_subcommands().collect();
    let variables = environment::variables().map_err(PlanError::Flags)?;
    let typed = aliases::translate(&args[2..], command).map_err(PlanError::Flags)?;
    let mut of_environment =
        environment::args(variables.into_iter(), command, &others).map_err(PlanError::Flags)?;
    if subcommand == "serve" {
        forget_other_models(&mut of_environment, &typed);
    }
    Ok([args[..2].to_vec(), of_environment, typed].concat())
}

/// A command line that names models does not also use the environment's.
fn forget_other_models(of_environment: &mut Vec<String>, typed: &[String]) {
    let is = |word: &String, names: &[&str]| {
        let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
        names.contains(&name)
    };
    let names = ["--model-path", "--model", "--config"];
    if typed.iter().any(|word| is(word, &names)) {
        of_environment.retain(|word| !is(word, &names));
    }
}
