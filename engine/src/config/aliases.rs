//! Translates launch lines of SGLang, vLLM and llama.cpp: their common flags to ours.
//!
//! [`translate`] processes a command line before it is parsed. Equivalent flags become ours; flags
//! without an effect here are kept with the reason; flags that would change results and are not
//! supported are refused with the reason. All unknown flags are named at once. `FLAGS.md` shows the
//! [table](markdown), and a test checks it row by row.

mod page;
mod table;
mod values;

use std::collections::HashMap;

use clap::Command;

pub use self::page::markdown;
use self::table::aliases;
use self::values::VALUES;

/// Passes flags without an effect through the parser, as `--NAME` or `--NAME=VALUE`.
const NO_EFFECT: &str = "--no-effect";

/// Minimum similarity for a flag to be suggested as the correct spelling.
const FAIR_SIMILARITY: f64 = 0.75;

/// The program a flag belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Sglang,
    Vllm,
    LlamaCpp,
    /// Several programs have it.
    Any,
}

/// The kind of value that follows a flag, with an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    Nothing,
    Value(&'static str),
    Optional(&'static str),
}

/// The meaning of another server's flag.
#[derive(Debug, Clone, Copy)]
enum Means {
    /// Equivalent to ours, with its value.
    Flag(&'static str),
    /// Equivalent to ours, with a count that may have a unit; these values mean the default.
    Count(&'static str, &'static [&'static str]),
    /// No effect, for this reason.
    Inactive(&'static str),
    /// These values describe the existing behaviour; any other is refused.
    Only {
        values: &'static [&'static str],
        reason: &'static str,
        refusal: &'static str,
    },
    Refused(&'static str),
    /// A revision of the model's repository.
    Revision,
    /// The model's own path has no effect; anything else is refused.
    SameAsModel,
    /// Layers on the GPU: 0 means the CPU.
    Layers,
}

struct Alias {
    of: Program,
    names: &'static [&'static str],
    takes: Takes,
    means: Means,
}

#[derive(Debug, Clone, Copy)]
enum ValueMeans {
    Same(&'static str),
    Inactive(&'static str),
    Refused(&'static str),
}

struct ValueAlias {
    flag: &'static str,
    value: &'static str,
    means: ValueMeans,
}

const LOCAL_OR_WHOLE: &str =
    "a revision belongs to a model of the hub; write it after its name, as org/name@revision";
const OTHER_TOKENIZER: &str =
    "the tokenizer next to the weights is used; put tokenizer.json there to use another";

/// Translates the arguments of a command line for the parser `command`. The error names everything
/// that is wrong and is suitable for the command line.
///
/// # Errors
///
/// All unknown arguments, with the flags that are meant, and all known ones that are refused,
/// with the reason.
pub fn translate(args: &[String], command: &Command) -> Result<Vec<String>, String> {
    let mut line = Line {
        known: known_flags(command),
        switch_spellings: switch_spellings(command),
        args: Vec::with_capacity(args.len()),
        unknown: Vec::new(),
        refused: Vec::new(),
    };
    let mut rest = args.iter().map(String::as_str).peekable();
    while let Some(word) = rest.next() {
        if word == "--" {
            // Nothing after it is a flag.
            line.args.push(word.to_owned());
            line.args.extend(rest.by_ref().map(str::to_owned));
            break;
        }
        let (typed, inline) = match word.split_once('=') {
            Some((name, value)) if name.starts_with('-') => (name, Some(value)),
            _ => (word, None),
        };
        let mut next_value = |takes: Takes| match (takes, inline) {
            (Takes::Nothing, inline) => inline.map(str::to_owned),
            (_, Some(value)) => Some(value.to_owned()),
            (_, None) => rest.next_if(|next| !is_flag(next)).map(str::to_owned),
        };
        let name = line.name_of(typed);
        if let Some(takes_value) = line.known.get(name.as_str()).copied() {
            let takes = if takes_value {
                Takes::Value("")
            } else {
                Takes::Nothing
            };
            let value = next_value(takes);
            line.known_flag(&name, value, inline.is_some());
        } else if let Some(alias) = find(&name) {
            let value = next_value(alias.takes);
            line.alias(alias, &name, value, args);
        } else if typed.starts_with("--") && typed.len() > 2 {
            line.unknown.push(typed.to_owned());
        } else {
            line.args.push(word.to_owned());
        }
    }
    line.finish()
}

/// The reason for a flag that [`translate`] has kept in `--no-effect`: `(flag, reason)`.
pub(super) fn reason(kept: &str) -> (String, String) {
    let (name, value) = kept.split_once('=').unwrap_or((kept, ""));
    let of_value = VALUES
        .iter()
        .find(|alias| alias.flag == name && alias.value == value);
    let reason = match (of_value.map(|alias| alias.means), find(name)) {
        (Some(ValueMeans::Inactive(reason)), _) => reason,
        (_, Some(alias)) => match alias.means {
            Means::Inactive(reason) | Means::Only { reason, .. } => reason,
            Means::Layers => "a model is wholly on its device, the GPU if there is one",
            Means::SameAsModel => "the tokenizer next to the weights is used",
            _ => "this value asks for the default",
        },
        _ => "this engine has no such flag",
    };
    (kept.replacen('=', " ", 1), reason.to_owned())
}

struct Line {
    /// Flag → whether a value follows.
    known: HashMap<String, bool>,
    /// Another spelling of a switch → its name, by which a model of a file can turn it off.
    switch_spellings: HashMap<String, String>,
    args: Vec<String>,
    unknown: Vec<String>,
    refused: Vec<String>,
}

impl Line {
    /// As typed, or with dashes if only that spelling is known: vLLM also accepts
    /// `--max_model_len`. A switch has one name.
    fn name_of(&self, typed: &str) -> String {
        let dashed = typed.replace('_', "-");
        let is_known = |name: &str| self.known.contains_key(name) || find(name).is_some();
        if !is_known(typed) && typed.starts_with("--") && is_known(&dashed) {
            return self.name_of(&dashed);
        }
        let own = self.switch_spellings.get(typed);
        own.cloned().unwrap_or_else(|| typed.to_owned())
    }

    fn push(&mut self, flag: &str, value: Option<&str>) {
        self.args.push(match value {
            Some(value) => format!("{flag}={value}"),
            None => flag.to_owned(),
        });
    }

    fn keep(&mut self, name: &str, value: Option<&str>) {
        let kept = value.map_or_else(|| name.to_owned(), |value| format!("{name}={value}"));
        self.push(NO_EFFECT, Some(&kept));
    }

    fn refuse(&mut self, name: &str, value: Option<&str>, reason: &str) {
        let value = value.map(|value| format!(" {value}")).unwrap_or_default();
        self.refused.push(format!("{name}{value}: {reason}"));
    }

    /// Keeps separate arguments separate, since further values may follow.
    fn known_flag(&mut self, name: &str, value: Option<String>, is_inline: bool) {
        let value = value.as_deref();
        let alias = VALUES
            .iter()
            .find(|alias| alias.flag == name && Some(alias.value) == value);
        match alias.map(|alias| alias.means) {
            None if is_inline => self.push(name, value),
            None => {
                self.args.push(name.to_owned());
                self.args.extend(value.map(str::to_owned));
            }
            Some(ValueMeans::Same(ours)) => self.push(name, Some(ours)),
            Some(ValueMeans::Inactive(_)) => self.keep(name, value),
            Some(ValueMeans::Refused(reason)) => self.refuse(name, value, reason),
        }
    }

    fn alias(&mut self, alias: &Alias, name: &str, value: Option<String>, line: &[String]) {
        let value = value.as_deref();
        if let (Takes::Value(_), None) = (alias.takes, value) {
            return self.refuse(name, None, "a value is missing");
        }
        if let (Takes::Nothing, Some(_)) = (alias.takes, value) {
            return self.refuse(name, value, "it takes no value");
        }
        let given = value.unwrap_or_default();
        match alias.means {
            Means::Flag(ours) if self.knows(ours) => self.push(ours, value),
            Means::Count(ours, defaults) if self.knows(ours) => {
                if defaults.contains(&given) {
                    self.keep(name, value);
                } else {
                    self.push(ours, Some(&counted(given)));
                }
            }
            Means::Flag(_) | Means::Count(..) => self.unknown.push(name.to_owned()),
            Means::Layers if given == "0" => self.push("--device", Some("cpu")),
            Means::Inactive(_) | Means::Layers => self.keep(name, value),
            Means::Only { values, .. } if values.contains(&given) => self.keep(name, value),
            Means::Only { refusal, .. } => self.refuse(name, value, refusal),
            Means::Refused(reason) => self.refuse(name, value, reason),
            Means::Revision => self.revise(name, given),
            Means::SameAsModel if is_model(given, line) => self.keep(name, value),
            Means::SameAsModel => self.refuse(name, value, OTHER_TOKENIZER),
        }
    }

    fn knows(&self, ours: &str) -> bool {
        let name = ours.split_once('=').map_or(ours, |(name, _)| name);
        self.known.contains_key(name)
    }

    /// Appends the revision to the model that was named last.
    fn revise(&mut self, name: &str, revision: &str) {
        let names = ["--model-path", "--model"];
        let mut model = None;
        for i in 0..self.args.len() {
            match self.args[i].split_once('=') {
                Some((flag, _)) if names.contains(&flag) => model = Some(i),
                None if names.contains(&self.args[i].as_str()) => model = Some(i + 1),
                _ => {}
            }
        }
        let Some(model) = model.and_then(|i| self.args.get_mut(i)) else {
            return self.refuse(
                name,
                Some(revision),
                "must come after the --model-path that it applies to",
            );
        };
        let id = model.split_once('=').map_or(model.as_str(), |(_, id)| id);
        let is_hub_id = id.matches('/').count() == 1
            && !id.starts_with(['/', '.', '~'])
            && !id.contains(['@', ':'])
            && !std::path::Path::new(id).exists();
        if is_hub_id {
            model.push('@');
            model.push_str(revision);
        } else {
            self.refuse(name, Some(revision), LOCAL_OR_WHOLE);
        }
    }

    fn finish(self) -> Result<Vec<String>, String> {
        let mut wrong = self.refused;
        if !self.unknown.is_empty() {
            let shown: Vec<String> = self
                .unknown
                .iter()
                .map(|name| self.known.with_tip(name))
                .collect();
            let (what, are) = if shown.len() == 1 {
                ("flag", "is")
            } else {
                ("flags", "are")
            };
            wrong.push(format!(
                "{what} {} {are} not known; --help lists all",
                shown.join(", ")
            ));
        }
        if wrong.is_empty() {
            Ok(self.args)
        } else {
            Err(wrong.join("\n"))
        }
    }
}

trait Tips {
    fn with_tip(&self, name: &str) -> String;
}

impl Tips for HashMap<String, bool> {
    /// Adds a suggestion if a known flag is similar enough.
    fn with_tip(&self, name: &str) -> String {
        let similarity = |known: &str| strsim::normalized_damerau_levenshtein(name, known);
        let best = self
            .keys()
            .filter(|known| known.starts_with("--") && *known != NO_EFFECT)
            .map(|known| (similarity(known), known))
            .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)));
        match best {
            Some((similarity, known)) if similarity >= FAIR_SIMILARITY => {
                format!("{name} (did you mean {known}?)")
            }
            _ => name.to_owned(),
        }
    }
}

fn find(name: &str) -> Option<&'static Alias> {
    aliases().find(|alias| alias.names.contains(&name))
}

/// Whether an argument starts a flag. Negative numbers are values.
fn is_flag(word: &str) -> bool {
    word.starts_with('-') && word.len() > 1 && word.parse::<f64>().is_err()
}

/// Whether the value is that of a `--model-path` on the command line.
fn is_model(value: &str, line: &[String]) -> bool {
    let names = ["--model-path", "--model", "-m"];
    let follows = line
        .windows(2)
        .any(|pair| names.contains(&pair[0].as_str()) && pair[1] == value);
    let is_inline = |word: &String| {
        word.split_once('=')
            .is_some_and(|(name, typed)| names.contains(&name) && typed == value)
    };
    follows || line.iter().any(is_inline)
}

/// vLLM's `32k` is 32,000 and `32K` is 32,768; other values are left to the parser of our flag.
fn counted(text: &str) -> String {
    let scale = match text.chars().last() {
        Some('k') => 1000,
        Some('K') => 1024,
        Some('m') => 1_000_000,
        Some('M') => 1 << 20,
        _ => return text.to_owned(),
    };
    let number = text[..text.len() - 1].parse::<u32>();
    number.map_or_else(
        |_| text.to_owned(),
        |number| (u64::from(number) * scale).to_string(),
    )
}

fn switch_spellings(command: &Command) -> HashMap<String, String> {
    let mut spellings = HashMap::new();
    for argument in command.get_arguments() {
        if let Some(own) = argument.get_long()
            && !argument.get_action().takes_values()
        {
            let others = argument.get_visible_aliases().unwrap_or_default();
            spellings.extend(
                others
                    .iter()
                    .map(|name| (format!("--{name}"), format!("--{own}"))),
            );
        }
    }
    spellings
}

/// All names that the parser accepts, and whether a value follows.
fn known_flags(command: &Command) -> HashMap<String, bool> {
    let mut known = HashMap::new();
    for argument in command.get_arguments() {
        let takes_value = argument.get_action().takes_values();
        let longs = argument.get_long_and_visible_aliases().unwrap_or_default();
        known.extend(longs.iter().map(|name| (format!("--{name}"), takes_value)));
        let short = argument.get_short();
        known.extend(short.map(|name| (format!("-{name}"), takes_value)));
    }
    // clap adds these later.
    for name in ["--help", "-h", "--version", "-V"] {
        known.entry(name.to_owned()).or_insert(false);
    }
    known
}

#[cfg(test)]
mod tests;
