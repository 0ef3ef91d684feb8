//! The program itself, started with a launch line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::client;
use crate::fixture::until;

/// Killed when the test ends.
pub struct Program {
    child: Child,
    pub address: SocketAddr,
    log: tempfile::TempDir,
}

impl Program {
    /// `engine serve` with a launch line, once it answers.
    pub async fn start(line: &str, environment: &[(&str, String)]) -> Self {
        let command = Command::new(env!("CARGO_BIN_EXE_engine"));
        Self::spawn(command, line, environment, None).await
    }

    /// `command` is the program, or is replaced by it with `exec`. If its standard error is
    /// redirected, [`Self::log`] is empty.
    pub async fn spawn(
        mut command: Command,
        line: &str,
        environment: &[(&str, String)],
        stderr: Option<Stdio>,
    ) -> Self {
        let log = tempfile::tempdir().expect("a folder");
        let file = File::create(log_file(&log)).expect("a file");
        command
            .arg("serve")
            .args(line.split_whitespace())
            .env_remove("HF_HUB_OFFLINE")
            .env_remove("RUST_LOG")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(stderr.unwrap_or_else(|| file.into()));
        let mut child = command.spawn().expect("the program starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut program = Self {
            child,
            address: ([127, 0, 0, 1], 0).into(),
            log,
        };
        let mut said = String::new();
        stdout.read_line(&mut said).expect("a line");
        program.address = said
            .trim()
            .strip_prefix("listening on http://")
            .and_then(|address| address.parse().ok())
            .unwrap_or_else(|| panic!("no address in {said:?}: {}", program.log()));
        // A server that listens on all addresses is reached here.
        if program.address.ip().is_unspecified() {
            program.address.set_ip([127, 0, 0, 1].into());
        }
        let is_healthy = async || {
            let ended = program.child.try_wait().expect("a child");
            assert_eq!(ended, None, "the server gave up: {}", program.log());
            client::get(program.address, "/health").await.status == 200
        };
        until("the server is healthy", Duration::from_mins(2), is_healthy).await;
        program
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM and waits for the process to end.
    pub async fn terminate(&mut self, limit: Duration) -> ExitStatus {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.expect("kill runs").success(), "SIGTERM was sent");
        let mut ended = None;
        let has_ended = async || {
            ended = self.child.try_wait().expect("a child");
            ended.is_some()
        };
        until("the program ends", limit, has_ended).await;
        ended.expect("it has")
    }

    /// What it has written to standard error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_file(&self.log)).expect("a file")
    }
}

fn log_file(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("log")
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself, which the test then says.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
