//! An engine that a recipe starts for itself: a tiny model, a free port, ended with the recipe.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::http;

const START_TIMEOUT: Duration = Duration::from_mins(1);

pub struct Served {
    child: Child,
    /// `host:port`
    pub address: String,
}

impl Served {
    /// Returns when it answers.
    pub fn start(engine: &Path, flags: &[&str]) -> Result<Self> {
        let mut child = Command::new(engine)
            .args(["serve", "--port", "0"])
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", engine.display()))?;
        let stdout = child.stdout.take().context("the engine's output")?;
        let mut served = Self {
            child,
            address: String::new(),
        };
        let mut said = String::new();
        BufReader::new(stdout).read_line(&mut said)?;
        let address = said.trim().strip_prefix("listening on http://");
        address
            .with_context(|| format!("the engine said {said:?} instead of its address"))?
            .clone_into(&mut served.address);
        let begun = Instant::now();
        while http::get(&served.address, "/health")?.status != 200 {
            if begun.elapsed() > START_TIMEOUT {
                bail!(
                    "the engine is not ready after {} s",
                    START_TIMEOUT.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(served)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
