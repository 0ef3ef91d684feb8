//! The run folder of one promotion: a line for every stage in `log.txt` and on the terminal, and all of
//! them in `result.json`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use duct::cmd;
use serde::Serialize;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Passed(String),
    Refused(String),
    /// Not done here, with the reason. It stops nothing.
    NotDone(String),
}

impl Verdict {
    fn word(&self) -> &'static str {
        match self {
            Self::Passed(_) => "passed",
            Self::Refused(_) => "refused",
            Self::NotDone(_) => "not done",
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Passed(reason) | Self::Refused(reason) | Self::NotDone(reason) => reason,
        }
    }
}

#[derive(Debug, Serialize)]
struct Entry {
    stage: String,
    ended: String,
    seconds: f64,
    verdict: &'static str,
    reason: String,
}

pub struct Journal {
    folder: PathBuf,
    log: File,
    entries: Vec<Entry>,
}

impl Journal {
    /// A folder below `runs`, named by the time.
    pub fn open(runs: &Path) -> Result<Self> {
        let folder = runs.join(now()?.replace(':', ""));
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let path = folder.join("log.txt");
        let log = OpenOptions::new().create(true).append(true).open(&path);
        Ok(Self {
            log: log.with_context(|| path.display().to_string())?,
            folder,
            entries: Vec::new(),
        })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A line outside the stages.
    pub fn say(&mut self, text: &str) -> Result<()> {
        let line = format!("{} {text}", now()?);
        println!("{line}");
        writeln!(self.log, "{line}").context("log.txt")
    }

    /// Runs a stage and writes what came of it. An error is a refusal: what could not be looked at has
    /// not passed.
    pub fn stage(
        &mut self,
        stage: &str,
        run: impl FnOnce(&mut Self) -> Result<Verdict>,
    ) -> Result<bool> {
        let begun = Instant::now();
        let verdict = run(self).unwrap_or_else(|error| Verdict::Refused(format!("{error:#}")));
        let seconds = begun.elapsed().as_secs_f64();
        let (word, reason) = (verdict.word(), verdict.reason());
        self.say(&format!("{stage}: {word} ({seconds:.1} s): {reason}"))?;
        self.entries.push(Entry {
            stage: stage.to_owned(),
            ended: now()?,
            seconds,
            verdict: word,
            reason: reason.to_owned(),
        });
        Ok(!matches!(verdict, Verdict::Refused(_)))
    }

    /// The last line, and `result.json`.
    pub fn close(&mut self, what: &str, outcome: &str) -> Result<()> {
        self.say(&format!("{what}: {outcome}"))?;
        let result = serde_json::json!({
            "what": what,
            "outcome": outcome,
            "stages": self.entries,
        });
        let path = self.folder.join("result.json");
        fs::write(&path, serde_json::to_string_pretty(&result)?)
            .with_context(|| path.display().to_string())
    }
}

fn now() -> Result<String> {
    cmd!("date", "-u", "+%Y-%m-%dT%H:%M:%SZ")
        .read()
        .context("date")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_leaves_a_line_and_an_entry() {
        let runs = std::env::temp_dir().join(format!("journal-{}", std::process::id()));
        let mut journal = Journal::open(&runs).expect("opened");
        let passed = journal.stage("build", |_| Ok(Verdict::Passed("engine".into())));
        assert!(passed.expect("written"));
        let not_done = journal.stage("image", |_| Ok(Verdict::NotDone("no docker".into())));
        assert!(not_done.expect("written"), "it stops nothing");
        let refused = journal.stage("quality", |_| anyhow::bail!("no answer"));
        assert!(!refused.expect("written"));
        journal.close("a model", "refused").expect("closed");
        let folder = journal.folder().to_owned();
        let log = fs::read_to_string(folder.join("log.txt")).expect("a log");
        let result = fs::read_to_string(folder.join("result.json")).expect("a result");
        fs::remove_dir_all(&runs).expect("removed");
        assert_eq!(log.lines().count(), 4, "{log}");
        for wanted in [" build: passed (", " image: not done (", "): no answer"] {
            assert!(log.contains(wanted), "{log}");
        }
        let result: serde_json::Value = serde_json::from_str(&result).expect("JSON");
        assert_eq!(result["stages"][2]["verdict"], "refused");
        assert_eq!(result["outcome"], "refused");
    }
}
