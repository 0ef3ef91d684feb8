//! One client's run: what it prints goes through to the terminal and into a log.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use duct::{Expression, cmd};

/// Lines of a failed client that are shown again under the table.
const N_SHOWN_LINES: usize = 20;
/// Of a line in the table and under it.
const N_SHOWN_CHARS: usize = 160;

pub struct Program {
    name: &'static str,
    command: Expression,
}

pub struct Outcome {
    pub name: &'static str,
    pub passed: bool,
    pub elapsed: Duration,
    pub last_line: String,
    log: PathBuf,
    lines: Vec<String>,
}

impl Program {
    pub fn new(
        name: &'static str,
        program: impl AsRef<OsStr>,
        folder: &Path,
        words: &[&str],
    ) -> Self {
        let command = cmd(program.as_ref(), words)
            .dir(folder)
            .env("PYTHONUNBUFFERED", "1")
            .env("PYTHONDONTWRITEBYTECODE", "1");
        Self { name, command }
    }

    pub fn with_home(self, home: &Path) -> Self {
        Self {
            name: self.name,
            command: self.command.env("HOME", home),
        }
    }

    pub fn run(&self, folder: &Path) -> Result<Outcome> {
        println!("\n== {}", self.name);
        let log = folder.join(format!("{}.log", self.name.replace([' ', ',', ':'], "_")));
        let mut file = File::create(&log).with_context(|| log.display().to_string())?;
        let started = Instant::now();
        let reader = self
            .command
            .stderr_to_stdout()
            .unchecked()
            .reader()
            .with_context(|| format!("{} cannot be started", self.name))?;
        let mut lines = Vec::new();
        for line in BufReader::new(&reader).split(b'\n') {
            let line = line.with_context(|| format!("the output of {}", self.name))?;
            let line = String::from_utf8_lossy(&line).into_owned();
            println!("{line}");
            writeln!(file, "{line}").with_context(|| log.display().to_string())?;
            lines.push(line);
        }
        let ended = reader.try_wait()?;
        let last = lines.iter().rev().find(|line| !line.trim().is_empty());
        Ok(Outcome {
            name: self.name,
            passed: ended.is_some_and(|output| output.status.success()),
            elapsed: started.elapsed(),
            last_line: last.map(|line| shortened(line.trim())).unwrap_or_default(),
            log,
            lines,
        })
    }
}

impl Outcome {
    /// The end of what a failed client said.
    pub fn explanation(&self) -> String {
        let first = self.lines.len().saturating_sub(N_SHOWN_LINES);
        format!(
            "\n{} failed; its last lines, all of them in {}:\n{}",
            self.name,
            self.log.display(),
            self.lines[first..]
                .iter()
                .map(|line| shortened(line))
                .collect::<Vec<_>>()
                .join("\n")
        )
    }
}

fn shortened(line: &str) -> String {
    match line.char_indices().nth(N_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
