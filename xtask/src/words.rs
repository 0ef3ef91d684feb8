//! `words [--shrink]`: checks that the texts of this repository use the field's words. A text is
//! code, a comment, a message or a document; `xtask/words.toml` lists the words to avoid and what
//! to say instead.
//!
//! `xtask/words-allowed.toml` lists the files that still have some, with their number and a reason.
//! More of them fail, and so do fewer: the list can only shrink (`--shrink` lowers its numbers).
//! Deliberately absent: grammar, spelling, and other languages than English.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use duct::cmd;
use serde::Deserialize;

use crate::cargo;

const WORDS: &str = "xtask/words.toml";
const ALLOWED: &str = "xtask/words-allowed.toml";
const EXTENSIONS: [&str; 7] = ["rs", "cu", "cuh", "toml", "md", "j2", "html"];
/// Records, rendered reports, test data, and the files of this check itself.
const NOT_CHECKED: [&str; 6] = [
    "data/",
    "reports/rendered/",
    "reports/tests/data/",
    "xtask/src/words.rs",
    WORDS,
    ALLOWED,
];

#[derive(Args)]
pub struct WordsArgs {
    /// Lower the numbers in words-allowed.toml to those found, and drop what is no longer needed
    #[arg(long)]
    shrink: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WordList {
    word: Vec<Word>,
}

/// Words with the same replacement.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Word {
    /// Each is found as whole words, whatever its case unless it has capitals itself. A `*` at the
    /// end stands for any ending.
    phrases: Vec<String>,
    say: String,
    /// Path prefixes; all files if empty.
    #[serde(default)]
    only: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct AllowList {
    #[serde(default)]
    allow: Vec<Allowed>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Allowed {
    path: String,
    count: usize,
    reason: String,
}

/// A phrase that was found.
#[derive(Debug, PartialEq, Eq)]
struct Hit {
    line: usize,
    phrase: String,
    say: String,
}

pub fn run(args: &WordsArgs) -> Result<ExitCode> {
    let root = cargo::root()?;
    if args.shrink {
        shrink(&root)?;
    }
    check(&root)?;
    Ok(ExitCode::SUCCESS)
}

pub fn check(root: &Path) -> Result<()> {
    let faults = faults(&hits_in_tree(root)?, &allow_list(root)?.allow);
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{}", faults.join("\n"))
}

fn shrink(root: &Path) -> Result<()> {
    let hits = hits_in_tree(root)?;
    let path = root.join(ALLOWED);
    let old = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let comment = old.split_inclusive('\n');
    let mut text: String = comment.take_while(|line| line.starts_with('#')).collect();
    for entry in allow_list(root)?.allow {
        let found = hits.get(&entry.path).map_or(0, Vec::len);
        if found > 0 {
            let count = found.min(entry.count);
            let Allowed { path, reason, .. } = entry;
            write!(
                text,
                "\n[[allow]]\npath = {path:?}\ncount = {count}\nreason = {reason:?}\n"
            )?;
        }
    }
    fs::write(&path, text).with_context(|| path.display().to_string())
}

fn allow_list(root: &Path) -> Result<AllowList> {
    parse(root, ALLOWED)
}

fn parse<T: serde::de::DeserializeOwned>(root: &Path, file: &str) -> Result<T> {
    let text = fs::read_to_string(root.join(file)).with_context(|| file.to_owned())?;
    toml::from_str(&text).with_context(|| file.to_owned())
}

/// By path, for every tracked file that has any.
fn hits_in_tree(root: &Path) -> Result<BTreeMap<String, Vec<Hit>>> {
    let words: WordList = parse(root, WORDS)?;
    let listed = cmd!("git", "ls-files", "-z")
        .dir(root)
        .read()
        .context("git ls-files")?;
    let mut hits = BTreeMap::new();
    for path in listed.split('\0').filter(|path| is_checked(path)) {
        // A tracked file may have been deleted in the working tree.
        let Ok(text) = fs::read_to_string(root.join(path)) else {
            continue;
        };
        let found = hits_in(path, &text, &words.word);
        if !found.is_empty() {
            hits.insert(path.to_owned(), found);
        }
    }
    Ok(hits)
}

fn is_checked(path: &str) -> bool {
    let extension = path.rsplit_once('.').map_or("", |(_, extension)| extension);
    EXTENSIONS.contains(&extension) && !NOT_CHECKED.iter().any(|other| path.starts_with(other))
}

fn faults(hits: &BTreeMap<String, Vec<Hit>>, allowed: &[Allowed]) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, found) in hits {
        let allowed = allowed.iter().find(|entry| entry.path == *path);
        let count = allowed.map_or(0, |entry| entry.count);
        if found.len() > count {
            faults.extend(
                found
                    .iter()
                    .map(|hit| format!("{path}:{}: `{}`; say: {}", hit.line, hit.phrase, hit.say)),
            );
        }
    }
    for entry in allowed {
        let found = hits.get(&entry.path).map_or(0, Vec::len);
        if found < entry.count {
            faults.push(format!(
                "{ALLOWED} allows {} in {}, which has {found}: lower it (`cargo xtask words --shrink`)",
                entry.count, entry.path
            ));
        }
        if entry.reason.trim().is_empty() {
            faults.push(format!("{ALLOWED}: {} has no reason", entry.path));
        }
    }
    faults
}

fn hits_in(path: &str, text: &str, words: &[Word]) -> Vec<Hit> {
    let (flowing, starts) = flowing(text);
    let lower = flowing.to_ascii_lowercase();
    let mut hits = Vec::new();
    for word in words {
        let applies = |prefix: &String| path.starts_with(prefix.as_str());
        if !word.only.is_empty() && !word.only.iter().any(applies) {
            continue;
        }
        for phrase in &word.phrases {
            let has_capitals = phrase.chars().any(|c| c.is_ascii_uppercase());
            let text = if has_capitals { &flowing } else { &lower };
            hits.extend(places(text, phrase).into_iter().map(|at| Hit {
                line: starts.partition_point(|start| *start <= at),
                phrase: phrase.clone(),
                say: word.say.clone(),
            }));
        }
    }
    hits.sort_by_key(|hit| hit.line);
    hits
}

/// The text with its lines joined by single spaces, without indentation and comment signs, so that
/// a phrase is found across lines; and the offset at which each line starts.
fn flowing(text: &str) -> (String, Vec<usize>) {
    let mut joined = String::with_capacity(text.len());
    let mut starts = Vec::new();
    for line in text.lines() {
        starts.push(joined.len());
        let line = line.trim();
        let line = ["//!", "///", "//", "#"]
            .iter()
            .find_map(|sign| line.strip_prefix(sign))
            .map_or(line, str::trim_start);
        joined.push_str(line);
        joined.push(' ');
    }
    (joined, starts)
}

/// Offsets of a phrase where it is not a part of other words.
fn places(text: &str, phrase: &str) -> Vec<usize> {
    let (stem, is_open) = match phrase.strip_suffix('*') {
        Some(stem) => (stem, true),
        None => (phrase, false),
    };
    // Parts of an identifier are words, unless the phrase is an identifier itself.
    let is_identifier = stem.contains('_');
    let is_of_word = |c: char| c.is_alphanumeric() || c == '-' || (is_identifier && c == '_');
    let begins_word = stem.starts_with(is_of_word);
    let ends_word = stem.ends_with(is_of_word) && !is_open;
    text.match_indices(stem)
        .filter(|(at, found)| {
            let before = text[..*at].chars().next_back();
            let after = text[at + found.len()..].chars().next();
            !(begins_word && before.is_some_and(is_of_word)
                || ends_word && after.is_some_and(is_of_word))
        })
        .map(|(at, _)| at)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Vec<Word> {
        let word = |phrases: &[&str], only: &[&str]| Word {
            phrases: phrases.iter().map(|p| (*p).to_owned()).collect(),
            say: "after".to_owned(),
            only: only.iter().map(|p| (*p).to_owned()).collect(),
        };
        vec![
            word(&["behind"], &[]),
            word(&["zig*", "zag and zog", "zog_up"], &[]),
            word(&["struct Turn"], &["engine/"]),
        ]
    }

    fn lines(path: &str, text: &str) -> Vec<usize> {
        let hits = hits_in(path, text, &words());
        hits.iter().map(|hit| hit.line).collect()
    }

    fn faults_of(text: &str, count: usize, reason: &str) -> Vec<String> {
        let found = hits_in("a.rs", text, &words());
        let hits = if found.is_empty() {
            BTreeMap::new()
        } else {
            BTreeMap::from([("a.rs".to_owned(), found)])
        };
        let allowed = Allowed {
            path: "a.rs".to_owned(),
            count,
            reason: reason.to_owned(),
        };
        faults(&hits, &[allowed])
    }

    #[test]
    fn a_planted_word_is_found_with_its_line_and_what_to_say() {
        let text = "fn f() {}\n// The step Behind it.\n";
        assert_eq!(
            hits_in("a.rs", text, &words()),
            [Hit {
                line: 2,
                phrase: "behind".to_owned(),
                say: "after".to_owned()
            }]
        );
        let hits = BTreeMap::from([("a.rs".to_owned(), hits_in("a.rs", text, &words()))]);
        assert_eq!(faults(&hits, &[]), ["a.rs:2: `behind`; say: after"]);
    }

    #[test]
    fn a_part_of_another_word_is_none() {
        let none = "look-behind behindhand mbehind azig zog_up_all";
        assert_eq!(lines("a.md", none), Vec::<usize>::new());
        assert_eq!(lines("a.md", "`behind` (behind) behind."), [1, 1, 1]);
        assert_eq!(
            lines("a.rs", "fn left_behind() {}"),
            [1],
            "names have words, too"
        );
        assert_eq!(lines("a.rs", "fn zog_up() {}"), [1]);
        assert_eq!(lines("a.md", "it zigs then"), [1]);
    }

    #[test]
    fn a_phrase_is_found_across_lines_of_a_comment() {
        assert_eq!(lines("a.rs", "    /// zag and\n    /// zog\n"), [1]);
    }

    #[test]
    fn capitals_and_folders_narrow_a_phrase() {
        assert_eq!(lines("engine/a.rs", "struct Turn;"), [1]);
        assert_eq!(lines("engine/a.rs", "struct turn;"), Vec::<usize>::new());
        assert_eq!(lines("xtask/a.rs", "struct Turn;"), Vec::<usize>::new());
    }

    #[test]
    fn the_allow_list_only_shrinks() {
        let two = "behind\nbehind\n";
        assert_eq!(faults_of(two, 2, "a name"), Vec::<String>::new());
        assert_eq!(faults_of(two, 1, "a name").len(), 2, "one too many");
        assert!(faults_of(two, 3, "a name")[0].contains("which has 2: lower it"));
        assert!(faults_of("", 1, "a name")[0].contains("which has 0"));
        assert!(faults_of(two, 2, " ")[0].contains("has no reason"));
    }

    #[test]
    fn records_and_this_check_are_left_out() {
        for path in ["data/SCHEMA.md", "xtask/words.toml", "a.json", "README"] {
            assert!(!is_checked(path), "{path}");
        }
        for path in [
            "README.md",
            "kernels/src/a.cuh",
            "reports/templates/a.en.md.j2",
        ] {
            assert!(is_checked(path), "{path}");
        }
    }
}
