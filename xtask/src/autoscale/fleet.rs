//! The `engine simulate --fleet` that plays the replicas, as a process that answers line by line.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::day::DayRequest;

#[derive(Serialize)]
pub struct Load<'a> {
    pub start_s: f64,
    pub hold_s: f64,
    pub grace_s: f64,
    pub requests: &'a [DayRequest],
}

#[derive(Serialize)]
pub struct Advance {
    pub until_s: f64,
    pub n_replicas: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub n_ready: u32,
    pub n_held: u32,
    pub pages: Vec<Page>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    pub name: String,
    pub page: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    pub card_s: f64,
    pub requests: Vec<Served>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Served {
    #[serde(rename = "sent_s")]
    _sent: f64,
    pub ttft_s: Option<f64>,
    pub tpot_s: Option<f64>,
}

/// Ended when dropped.
pub struct Fleet {
    child: Child,
    /// `None` once the end has been said.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Fleet {
    pub fn start(engine: &Path, card: &Path, flags: &[&str], load: &Load) -> Result<Self> {
        let mut child = Command::new(engine)
            .args(["simulate", "--fleet", "--card"])
            .arg(card)
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| engine.display().to_string())?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("no standard output")?;
        let mut fleet = Self {
            child,
            input,
            output: BufReader::new(output),
        };
        fleet.say(load)?;
        Ok(fleet)
    }

    fn say(&mut self, what: &impl Serialize) -> Result<()> {
        let input = self.input.as_mut().context("the fleet has ended")?;
        serde_json::to_writer(&mut *input, what)?;
        writeln!(input)?;
        input.flush().context("the fleet's standard input")
    }

    pub fn advance(&mut self, advance: &Advance) -> Result<State> {
        self.say(advance)?;
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!(
                "the fleet ended ({}); its standard error says why",
                self.child.wait()?
            );
        }
        serde_json::from_str(&line).with_context(|| line.clone())
    }

    pub fn outcome(mut self) -> Result<Outcome> {
        drop(self.input.take());
        let outcome = serde_json::from_reader(&mut self.output).context("the fleet's outcome")?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the fleet failed ({status})");
        }
        Ok(outcome)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
