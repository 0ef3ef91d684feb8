//! An engine started by a recipe: on a free port, its log in a file, ended with the recipe.
//!
//! If it dies, the error includes the end of its output.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::http;

/// Time limit for loading the model, including downloading its tokenizer.
const START_LIMIT: Duration = Duration::from_mins(5);
/// Time from SIGTERM to exit: the engine lets requests finish for at most 30 s.
const STOP_LIMIT: Duration = Duration::from_mins(1);
/// Lines of the log in an error message.
const N_SHOWN_LINES: usize = 10;

pub struct Served {
    child: Child,
    /// `host:port`
    pub address: String,
    log: PathBuf,
}

impl Served {
    /// Starts `engine serve` with these flags; returns when it is ready.
    pub fn start(engine: &Path, flags: &[&str], log: &Path) -> Result<Self> {
        Self::start_on(engine, 0, flags, log)
    }

    /// As [`Self::start`], on a port that others know already.
    pub fn start_on(engine: &Path, port: u16, flags: &[&str], log: &Path) -> Result<Self> {
        let mut command = Command::new(engine);
        command
            .args(["serve", "--port", &port.to_string()])
            .args(flags);
        Self::of(command, log)
    }

    fn of(mut command: Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| log.display().to_string())?;
        let program = command.get_program().display().to_string();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .with_context(|| format!("{program} cannot be started"))?;
        let stdout = child.stdout.take().context("the engine's output")?;
        let mut served = Self {
            child,
            address: String::new(),
            log: log.to_owned(),
        };
        let mut said = String::new();
        BufReader::new(stdout).read_line(&mut said)?;
        let Some(address) = said.trim().strip_prefix("listening on http://") else {
            bail!(
                "the engine said {said:?} instead of its address; {}",
                served.last_words()
            );
        };
        address.clone_into(&mut served.address);
        let begun = Instant::now();
        while !served.is_healthy() {
            served.check_runs()?;
            if begun.elapsed() > START_LIMIT {
                bail!(
                    "the engine is not ready after {} s; {}",
                    START_LIMIT.as_secs(),
                    served.last_words()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(served)
    }

    /// Fails with the reason if the engine does not respond any more.
    pub fn check(&mut self) -> Result<()> {
        if self.is_healthy() {
            return Ok(());
        }
        self.check_runs()?;
        bail!("the engine runs but is not healthy; {}", self.last_words());
    }

    /// Ends it at once (SIGKILL), as a crash would.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("SIGKILL")?;
        self.child.wait().context("the killed engine")?;
        Ok(())
    }

    /// Shuts it down and waits; fails unless it exits successfully.
    pub fn stop(mut self) -> Result<()> {
        let id = self.child.id().to_string();
        let told = Command::new("kill").args(["-TERM", &id]).status()?;
        if !told.success() {
            bail!("kill -TERM {id} failed ({told})");
        }
        let begun = Instant::now();
        while begun.elapsed() < STOP_LIMIT {
            match self.child.try_wait()? {
                None => std::thread::sleep(Duration::from_millis(50)),
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the engine ended ({status}); {}", self.last_words()),
            }
        }
        bail!(
            "the engine still runs {} s after SIGTERM; {}",
            STOP_LIMIT.as_secs(),
            self.last_words()
        )
    }

    fn check_runs(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the engine ended ({status}); {}", self.last_words());
        }
        Ok(())
    }

    fn is_healthy(&self) -> bool {
        http::get(&self.address, "/health").is_ok_and(|answer| answer.status == 200)
    }

    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let first = lines.len().saturating_sub(N_SHOWN_LINES);
        format!(
            "the end of {}:\n{}",
            self.log.display(),
            lines[first..].join("\n")
        )
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_is_told_to_end_has_to_end_well() {
        let log = std::env::temp_dir().join(format!("stopped-{}", std::process::id()));
        let stop = |trap: &str| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = listener.local_addr().expect("an address");
            std::thread::spawn(move || {
                use std::io::{Read, Write};
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                // On a busy machine a question may come twice: the first one took too long.
                for client in listener.incoming() {
                    let mut client = client.expect("a client");
                    let _ = client.read(&mut [0; 1000]);
                    let _ = client.write_all(answer);
                }
            });
            let script = format!(
                "trap '{trap}' TERM; echo listening on http://{address}; \
                 while true; do sleep 0.05; done"
            );
            let mut command = Command::new("sh");
            command.args(["-c", &script]);
            let served = Served::of(command, &log).expect("a server");
            served.stop()
        };
        assert!(stop("exit 0").is_ok());
        let error = stop("exit 7").expect_err("ends badly");
        fs::remove_file(&log).expect("removed");
        assert!(format!("{error:#}").contains("exit status: 7"), "{error:#}");
    }

    #[test]
    fn an_engine_that_dies_is_noticed_and_quoted() {
        let log = std::env::temp_dir().join(format!("served-{}", std::process::id()));
        let error = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            let error = Served::of(command, &log).err().expect("no server");
            format!("{error:#}")
        };
        let errors = [
            error("echo no such model >&2; exit 3"),
            error("echo listening on http://127.0.0.1:1; echo no such model >&2; exit 3"),
        ];
        fs::remove_file(&log).expect("removed");
        assert!(errors[0].contains("instead of its address"), "{errors:?}");
        assert!(errors[1].contains("ended (exit status: 3)"), "{errors:?}");
        for error in errors {
            assert!(error.contains("no such model"), "{error}");
        }
    }
}
