//! The next numbered experiment: its folder, `experiment.toml` and `notes.md`.
//!
//! An experiment changes one thing against another, so the file holds what differs and `extends`
//! names the rest. Deliberately absent: changing an experiment that is there; that is a new one.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::commands::marked::END;
use crate::commands::notes::{BEGIN, NOTHING};
use crate::spec::flags::Flags;
use crate::spec::{Experiment, MAX_NAME_LENGTH, Overrides, experiment_names};

/// What is about to be written.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Without its number: `short-chunks`.
    pub name: String,
    pub title: String,
    /// Full name of the experiment it extends.
    pub parent: String,
    /// Flags set otherwise than the parent has them.
    pub set: Flags,
    /// Flags of the parent that are taken away.
    pub removed: Vec<String>,
    pub notes: Notes,
}

/// The paragraphs of `notes.md`.
#[derive(Debug, Clone)]
pub struct Notes {
    pub hypothesis: String,
    pub change: String,
    pub prediction: String,
    /// Beside the block that `notes` writes.
    pub result: String,
    pub decision: String,
}

impl Draft {
    /// What turns `parent`'s flags into `flags`.
    pub fn flags_from(parent: &Flags, flags: &Flags) -> (Flags, Vec<String>) {
        let mut set = Flags::default();
        let mut removed = Vec::new();
        for flag in parent.differing(flags) {
            match flags.get(&flag) {
                Some(value) => set.set(&flag, Some(value.clone())),
                None => removed.push(flag),
            }
        }
        (set, removed)
    }

    /// Writes the folder below `dir` and reads it back; returns the full name and the folder.
    pub(crate) fn write(&self, dir: &Path) -> Result<(String, PathBuf)> {
        let name = numbered(dir, &self.name)?;
        let folder = dir.join(&name);
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let write = |file: &str, text: String| {
            let path = folder.join(file);
            fs::write(&path, text).with_context(|| path.display().to_string())
        };
        let written = write("experiment.toml", self.toml(&name)?)
            .and_then(|()| write("notes.md", self.notes.text(&name)))
            .and_then(|()| Ok(Experiment::load(dir, &name, &Overrides::default())?));
        if let Err(error) = written {
            // Half an experiment would stop every command that reads all of them.
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
            return Err(error);
        }
        Ok((name, folder))
    }

    fn toml(&self, name: &str) -> Result<String> {
        Ok(toml::to_string_pretty(&Written {
            name,
            title: &self.title,
            extends: &self.parent,
            remove_flags: &self.removed,
            flags: Some(&self.set).filter(|set| set.names().next().is_some()),
        })?)
    }
}

/// `experiment.toml`, in the order in which it is read.
#[derive(Serialize)]
struct Written<'a> {
    name: &'a str,
    title: &'a str,
    extends: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    remove_flags: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    flags: Option<&'a Flags>,
}

impl Notes {
    fn text(&self, name: &str) -> String {
        let mut text = format!("# {name}\n");
        for (heading, paragraph) in [
            ("Hypothesis", &self.hypothesis),
            ("Change", &self.change),
            ("Prediction", &self.prediction),
            ("Result", &self.result),
            ("Decision", &self.decision),
        ] {
            // Writing into a String cannot fail.
            let _ = writeln!(
                text,
                "\n{}",
                format!("**{heading}.** {paragraph}").trim_end()
            );
            if heading == "Result" {
                let _ = writeln!(text, "\n{BEGIN}\n\n{NOTHING}\n\n{END}");
            }
        }
        text
    }
}

/// `07-short-chunks`: the highest number there is plus one. A name that is taken, with whatever
/// number, is refused.
fn numbered(dir: &Path, name: &str) -> Result<String> {
    let well_named = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if !well_named {
        bail!(
            "name `{name}`: must be lower-case letters, digits and `-`, without a number in front"
        );
    }
    // With the number in front.
    if name.len() + 3 > MAX_NAME_LENGTH {
        bail!(
            "name `{}…` of {} characters: must be at most {} long",
            name.chars().take(20).collect::<String>(),
            name.len(),
            MAX_NAME_LENGTH - 3
        );
    }
    let names = experiment_names(dir)?;
    if let Some(taken) = names.iter().find(|full| is_called(full, name)) {
        bail!("an experiment is called {taken} already");
    }
    let highest = names
        .iter()
        .filter_map(|full| full.split_once('-')?.0.parse::<u32>().ok())
        .max()
        .unwrap_or(0);
    Ok(format!("{:02}-{name}", highest + 1))
}

fn is_called(full: &str, name: &str) -> bool {
    full == name || full.split_once('-').is_some_and(|(_, rest)| rest == name)
}

/// `name`, or `name-2`, `name-3`, …, whichever is free.
pub(crate) fn free_name(dir: &Path, name: &str) -> Result<String> {
    let names = experiment_names(dir)?;
    let candidates = std::iter::once(name.to_string()).chain((2..).map(|n| format!("{name}-{n}")));
    let is_free = |name: &String| !names.iter().any(|full| is_called(full, name));
    candidates
        .into_iter()
        .find(is_free)
        .context("no name is free")
}
