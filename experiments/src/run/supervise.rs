//! The small process between the runner and the server, so that no server outlives a run.
//!
//! ```text
//! runner ──pipe (orders)──▶ supervisor ──▶ server
//!        ◀─pipe (events)──
//! ```
//!
//! Whichever of the three is killed, even by `kill -9`, the server ends:
//!
//! - the runner dies: the kernel closes its end of the orders pipe. The supervisor reads
//!   the end of file, kills the server, labels the run folder failed, and then kills its own
//!   process group, which takes along whatever the server had started;
//! - the supervisor dies: the server has asked the kernel to be killed with its parent
//!   ([`exec_bound`]), and the runner, which sees the events pipe close, kills the group;
//! - both die: the server's own death signal is still there.
//!
//! The supervisor leads a process group of its own, so a terminal's Ctrl-C reaches the runner
//! only, which then stops the server in order. Orders: `stop`. Events: `started <pid>`,
//! `exited success`, `exited failure <how>`. Deliberately absent: restarting, health checks, anything about HTTP.

use std::ffi::OsString;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use records::run_folder;
use rustix::process::{Pid, Signal, getpid, kill_current_process_group, kill_process};

use crate::terminal::note;

/// The order that ends the server gently.
pub const ORDER_STOP: &str = "stop";
/// How long a server may take to end after SIGTERM before it is killed.
pub const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, clap::Args)]
pub struct SuperviseArgs {
    /// File that takes the command's output; without it the output goes to stderr
    #[arg(long)]
    pub log: Option<PathBuf>,
    /// Run folder to label failed should the runner be killed
    #[arg(long)]
    pub run_folder: Option<PathBuf>,
    /// The command
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

#[derive(Debug, Clone, clap::Args)]
pub struct ExecBoundArgs {
    /// The process whose death ends the command
    #[arg(long)]
    pub parent: i32,
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// How a supervised process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with exit code 0.
    Success,
    /// In any other way, which the text tells.
    Failure(String),
}

const SUCCESS: &str = "success";
const FAILURE: &str = "failure ";

impl Ending {
    fn of(status: ExitStatus) -> Self {
        if status.success() {
            Self::Success
        } else {
            Self::Failure(status.to_string())
        }
    }

    /// As it crosses the events' pipe, and back.
    fn to_event(&self) -> String {
        match self {
            Self::Success => SUCCESS.into(),
            Self::Failure(how) => format!("{FAILURE}{}", how.replace('\n', " ")),
        }
    }

    pub fn from_event(text: &str) -> Option<Self> {
        if text == SUCCESS {
            return Some(Self::Success);
        }
        let how = text.strip_prefix(FAILURE)?;
        Some(Self::Failure(how.into()))
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("exit status: 0"),
            Self::Failure(how) => f.write_str(how),
        }
    }
}

enum Event {
    ServerExited(Ending),
    StopOrdered,
    RunnerGone,
}

/// Runs until the server has ended, for whatever reason.
pub fn supervise(args: &SuperviseArgs) -> Result<()> {
    let own_binary = std::env::current_exe().context("the path of this binary")?;
    let mut words: Vec<OsString> = vec![
        "exec-bound".into(),
        "--parent".into(),
        std::process::id().to_string().into(),
        "--".into(),
    ];
    words.extend(args.command.iter().cloned());
    let server = duct::cmd(own_binary, words).stdin_null().unchecked();
    // This process's own stdout carries events, so the server's goes elsewhere in either case.
    // duct applies redirections from the last to the first.
    let server = match &args.log {
        None => server.stdout_to_stderr(),
        Some(log) => {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(log)
                .with_context(|| format!("server log {}", log.display()))?;
            server.stderr_to_stdout().stdout_file(file)
        }
    };
    // The death signal is bound to the thread that starts the server: this one, the last to end.
    let server = Arc::new(server.start().context("the server cannot be started")?);
    let server_pid = server
        .pids()
        .first()
        .copied()
        .context("the server has no process id")?;
    tell(&format!("started {server_pid}"));

    let (events, inbox) = mpsc::channel();
    let from_server = events.clone();
    let waited = Arc::clone(&server);
    thread::spawn(move || {
        let how = match waited.wait() {
            Ok(output) => Ending::of(output.status),
            Err(error) => Ending::Failure(format!("in an unknown way: {error}")),
        };
        from_server.send(Event::ServerExited(how))
    });
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if line.is_ok_and(|line| line == ORDER_STOP) {
                return events.send(Event::StopOrdered);
            }
        }
        events.send(Event::RunnerGone)
    });

    match inbox.recv().context("both watchers are gone")? {
        Event::ServerExited(how) => tell(&format!("exited {}", how.to_event())),
        Event::StopOrdered => {
            signal(server_pid, Signal::TERM);
            let how = match inbox.recv_timeout(GRACE) {
                Ok(Event::ServerExited(how)) => how,
                Ok(_) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    signal(server_pid, Signal::KILL);
                    Ending::Failure(format!(
                        "killed: still running {} s after SIGTERM",
                        GRACE.as_secs()
                    ))
                }
            };
            tell(&format!("exited {}", how.to_event()));
        }
        Event::RunnerGone => {
            signal(server_pid, Signal::KILL);
            // Its end is awaited, so that no zombie is left to its next parent. One that hangs
            // in the kernel is not waited for: the record matters more.
            let _ = inbox.recv_timeout(GRACE);
            if let Some(folder) = &args.run_folder
                && let Err(error) =
                    run_folder::label_failed(folder, run_folder::REASON_RUNNER_KILLED)
            {
                note!("{} cannot be labelled failed: {error}", folder.display());
            }
        }
    }
    end_group()
}

/// Replaces this process by the command, bound to the life of `parent`.
pub fn exec_bound(args: &ExecBoundArgs) -> Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("the death signal cannot be set")?;
    // The parent may have died before the signal was set.
    if rustix::process::getppid().map(Pid::as_raw_pid) != Some(args.parent) {
        bail!("the supervisor (process {}) is gone", args.parent);
    }
    let Some((program, words)) = args.command.split_first() else {
        bail!("no command to run");
    };
    let error = Command::new(program).args(words).exec();
    Err(error).with_context(|| format!("{} cannot be started", program.display()))
}

/// Kills what is left of this process's group, itself included. A group that this process
/// does not lead (someone typed `experiments supervise` into a shell) is left alone.
fn end_group() -> Result<()> {
    if rustix::process::getpgrp() == getpid() {
        kill_current_process_group(Signal::KILL).context("the process group cannot be killed")?;
    }
    Ok(())
}

/// The runner may be gone and the pipe closed; that is no reason to stop cleaning up.
fn tell(event: &str) {
    let mut stdout = io::stdout();
    if writeln!(stdout, "{event}")
        .and_then(|()| stdout.flush())
        .is_err()
    {
        note!("the measurement is gone: {event}");
    }
}

/// A process that has ended meanwhile needs no signal.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32)
        && let Err(error) = kill_process(pid, signal)
        && error != rustix::io::Errno::SRCH
    {
        note!("process {pid:?} cannot be signalled: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_crosses_the_pipe() {
        for ending in [
            Ending::Success,
            Ending::Failure("exit status: 1".into()),
            // What a successful end is called elsewhere is no success here.
            Ending::Failure("exit status: 0".into()),
        ] {
            assert_eq!(Ending::from_event(&ending.to_event()), Some(ending));
        }
        assert_eq!(Ending::from_event("exit status: 0"), None);
    }
}
