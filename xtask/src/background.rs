//! Someone else's server, started by a recipe: its output in a file, ended with the recipe.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::clients::program::QUIET;

/// Time from SIGTERM to SIGKILL.
const STOP_LIMIT: Duration = Duration::from_secs(10);
const N_SHOWN_CHARS: usize = 1500;

pub struct Background {
    child: Child,
    log: PathBuf,
}

impl Background {
    /// Starts it in `folder`, which is its home, too.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(program: &Path, args: &[String], folder: &Path, log: &str) -> Result<Self> {
        Self::start_with(program, args, folder, log, &[])
    }

    /// As [`Self::start`], with variables of its environment.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start_with(
        program: &Path,
        args: &[String],
        folder: &Path,
        log: &str,
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let log = folder.join(log);
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        let child = Command::new(program)
            .args(args)
            .current_dir(folder)
            .env("HOME", folder)
            .envs(QUIET)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        Ok(Self { child, log })
    }

    /// # Errors
    ///
    /// If the program ends, or the condition does not hold within `limit`; with the end of its output.
    pub fn until(&mut self, what: &str, limit: Duration, holds: impl Fn() -> bool) -> Result<()> {
        let begun = Instant::now();
        while !holds() {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended ({status}); {}", self.last_output());
            }
            if begun.elapsed() > limit {
                bail!(
                    "after {} s it is not so: {what}; {}",
                    limit.as_secs(),
                    self.last_output()
                );
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn last_output(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let skipped = text.chars().count().saturating_sub(N_SHOWN_CHARS);
        let end: String = text.chars().skip(skipped).collect();
        format!("the end of {}:\n{end}", self.log.display())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended on its own.
        let id = self.child.id().to_string();
        let _ = Command::new("kill")
            .args(["-TERM", &id])
            .stderr(Stdio::null())
            .status();
        let begun = Instant::now();
        while begun.elapsed() < STOP_LIMIT {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_ends_is_quoted_and_one_that_runs_is_ended() {
        let folder = std::env::temp_dir().join(format!("background-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("made");
        let start = |script: &str| {
            let args = ["-c".to_owned(), script.to_owned()];
            Background::start(Path::new("sh"), &args, &folder, "log").expect("started")
        };
        let mut ending = start("echo no such port >&2; exit 3");
        let limit = Duration::from_mins(1);
        let error = ending.until("never", limit, || false).expect_err("ended");
        let error = format!("{error:#}");
        assert!(
            error.contains("no such port") && error.contains("exit status: 3"),
            "{error}"
        );
        let ended = folder.join("ended");
        let mut running =
            start("trap 'echo > ended; exit' TERM; echo > begun; while true; do sleep 0.05; done");
        let begun = folder.join("begun");
        running
            .until("it runs", limit, || begun.is_file())
            .expect("runs");
        drop(running);
        let was_told = ended.is_file();
        fs::remove_dir_all(&folder).expect("removed");
        assert!(was_told);
    }
}
