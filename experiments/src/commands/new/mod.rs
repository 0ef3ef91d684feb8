//! `experiments new`: the next numbered experiment, ready for a hypothesis.

pub(crate) mod draft;
pub mod known_flags;

use anyhow::{Result, bail};
use clap::Args;
use toml::Value;

use crate::commands::new::draft::{Draft, Notes};
use crate::commands::new::known_flags::{known_flags, refuse_unknown};
use crate::spec::flags::Flags;
use crate::spec::repository::Repository;
use crate::spec::{Experiment, Overrides};

#[derive(Debug, Clone, Args)]
pub struct NewArgs {
    /// Name without a number, which it gets: short-chunks
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Experiment that it is a change to, with or without its number
    #[arg(long, value_name = "EXPERIMENT")]
    pub from: String,
    /// Flag that is set: chunked-prefill-size=256, enable-mixed-chunk, cuda-graph-bs="1 2 4"
    #[arg(long, value_name = "FLAG[=VALUE]", allow_hyphen_values = true)]
    pub set: Vec<String>,
    /// Flag of the source that is taken away
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    pub remove: Vec<String>,
    /// More than one change; what did it then stays unknown until `ablate` tells
    #[arg(long)]
    pub allow_many: bool,
}

/// Writes the folder and says what to do next.
pub(crate) fn new(args: &NewArgs, repository: &Repository) -> Result<String> {
    let dir = repository.experiments_dir();
    let source = Experiment::load(&dir, &args.from, &Overrides::default())?;
    let bare = |flag: &String| flag.trim_start_matches("--").to_string();
    let removed: Vec<String> = args.remove.iter().map(bare).collect();
    let mut set = Flags::default();
    for typed in &args.set {
        let typed = bare(typed);
        let (flag, value) = match typed.split_once('=') {
            None => (typed.as_str(), Value::Boolean(true)),
            Some((flag, words)) => (flag, value_of(words)),
        };
        if set.get(flag).is_some() || removed.iter().any(|name| name == flag) {
            bail!("`--{flag}` is named twice");
        }
        set.set(flag, Some(value));
    }
    set.validate()?;
    let known = known_flags(&repository.root)?;
    refuse_unknown(
        &known,
        set.names().chain(removed.iter().map(String::as_str)),
    )?;
    source.flags.clone().remove(&removed)?;
    for flag in set.names() {
        if source.flags.words(flag) == set.words(flag) {
            bail!("{} has {} already", source.name, set.shown(flag));
        }
    }
    let n_changes = set.names().count() + removed.len();
    if n_changes > 1 && !args.allow_many {
        bail!(
            "{n_changes} changes at once: an experiment changes one variable, or its effect cannot be told apart; --allow-many insists"
        );
    }

    let mut changed = source.flags.clone();
    changed.remove(&removed)?;
    changed.overlay(&set);
    let steps: Vec<String> = source
        .flags
        .differing(&changed)
        .iter()
        .map(|flag| {
            format!(
                "`{}` instead of `{}`",
                changed.shown(flag),
                source.flags.shown(flag)
            )
        })
        .collect();
    let parent = source.name.clone();
    let draft = Draft {
        name: args.name.clone(),
        title: if steps.is_empty() {
            format!("A change to {parent}")
        } else {
            format!("{parent} with {}", steps.join(", ").replace('`', ""))
        },
        parent: parent.clone(),
        set,
        removed,
        notes: Notes {
            hypothesis: "(what you believe, and why)".into(),
            change: if steps.is_empty() {
                format!("Against `{parent}`: (one flag, or one field of the workload).")
            } else {
                format!("Against `{parent}`: {}.", steps.join(", "))
            },
            prediction:
                "(which figure moves, in which direction, by how much; what would prove you wrong)"
                    .into(),
            result: String::new(),
            decision: "(open)".into(),
        },
    };
    let (name, folder) = draft.write(&dir)?;
    let folder = repository.relative(&folder).display();
    Ok(format!(
        "{folder}\n  write hypothesis and prediction into {folder}/notes.md before you measure:\n  cargo xtask exp {parent} {name}\n"
    ))
}

/// Numbers as numbers, several words as a list, so that the file reads as if written by hand.
fn value_of(words: &str) -> Value {
    let scalar = |word: &str| {
        word.parse::<i64>()
            .map(Value::Integer)
            .or_else(|_| word.parse::<f64>().map(Value::Float))
            .unwrap_or_else(|_| Value::String(word.into()))
    };
    let values: Vec<Value> = words.split_whitespace().map(scalar).collect();
    match <[Value; 1]>::try_from(values) {
        Ok([value]) => value,
        Err(values) => Value::Array(values),
    }
}
