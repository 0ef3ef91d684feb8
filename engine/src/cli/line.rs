//! The command line as the parser gets it: flags of the environment first, then what was typed, with
//! other servers' flags in ours.

use std::ffi::OsString;

use anyhow::Result;
use clap::{Command, FromArgMatches};
use engine::config::{PlanError, aliases, environment};

use super::groups::WITH_FLAGS;
use super::{Cli, groups};

/// A command line that was read.
pub struct Line {
    pub(super) cli: Cli,
    /// What stands after the subcommand, as far as it is text.
    pub(super) words: Vec<String>,
}

/// Reads the command line of this process. A line that asks for help, or that the parser refuses,
/// ends the process; other errors are a wrong command line.
pub fn read() -> Result<Line> {
    let typed: Vec<OsString> = std::env::args_os().collect();
    let words: Option<Vec<String>> = typed
        .iter()
        .map(|word| word.to_str().map(str::to_owned))
        .collect();
    // What is no text is the parser's to refuse.
    let words = match words {
        Some(words) => in_our_flags(words)?.into_iter().map(Into::into).collect(),
        None => typed,
    };
    let matches = groups::command().get_matches_from(words.iter().cloned());
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let words = words.iter().skip(2);
    Ok(Line {
        cli,
        words: words
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
    })
}

fn in_our_flags(words: Vec<String>) -> Result<Vec<String>, PlanError> {
    let mut cli = groups::command();
    cli.build();
    let subcommand = words.get(1).map(String::as_str).unwrap_or_default();
    let Some(command) = cli
        .find_subcommand(subcommand)
        .filter(|_| WITH_FLAGS.contains(&subcommand))
    else {
        return Ok(words);
    };
    let others: Vec<&Command> = cli.get_subcommands().collect();
    let variables = environment::variables().map_err(PlanError::Flags)?;
    let typed = aliases::translate(&words[2..], command).map_err(PlanError::Flags)?;
    let mut of_environment =
        environment::words(variables.into_iter(), command, &others).map_err(PlanError::Flags)?;
    if subcommand == "serve" {
        forget_other_models(&mut of_environment, &typed);
    }
    Ok([words[..2].to_vec(), of_environment, typed].concat())
}

/// A line that names its models does not have the environment's too.
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
