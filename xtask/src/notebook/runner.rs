//! One experiment at a time: its processes, its last lines, how it ended, and what the reports say of it.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde::{Deserialize, Serialize};

/// Lines that are kept; older ones are dropped.
const MAX_LINES: usize = 2000;
const MAX_LINE_BYTES: u64 = 4096;

/// What is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Started {
    pub name: String,
    #[serde(default)]
    pub quick: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Running,
    Stopping,
    Succeeded,
    Failed,
    Stopped,
}

impl Phase {
    pub fn has_ended(self) -> bool {
        !matches!(self, Self::Running | Self::Stopping)
    }
}

/// A run, without its lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Run {
    /// The first of this notebook is 1.
    pub number: u64,
    #[serde(flatten)]
    pub started: Started,
    pub phase: Phase,
}

#[derive(Default)]
struct State {
    run: Option<Run>,
    lines: VecDeque<String>,
    n_dropped: usize,
    /// Of the process that runs now, which leads a group of its own.
    group: Option<Pid>,
}

type Recipes = Box<dyn Fn(&Started) -> Vec<Command> + Send + Sync>;

#[derive(Clone)]
pub struct Runner(Arc<Shared>);

struct Shared {
    /// The commands of a run, one after the other until one fails.
    recipes: Recipes,
    state: Mutex<State>,
    changed: Condvar,
}

/// What is new to a reader.
#[derive(Debug, PartialEq, Eq)]
pub struct News {
    pub run: Option<Run>,
    /// The place of the first of `lines`, and the lines.
    pub first: usize,
    pub lines: Vec<String>,
}

impl Runner {
    pub fn new(recipes: impl Fn(&Started) -> Vec<Command> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared {
            recipes: Box::new(recipes),
            state: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// Starts a run; `None` if one has not ended.
    pub fn start(&self, started: Started) -> Option<Run> {
        let mut state = self.state();
        let before = state.run.as_ref();
        if before.is_some_and(|run| !run.phase.has_ended()) {
            return None;
        }
        let run = Run {
            number: before.map_or(0, |run| run.number) + 1,
            started,
            phase: Phase::Running,
        };
        *state = State {
            run: Some(run.clone()),
            ..State::default()
        };
        self.0.changed.notify_all();
        let (runner, started) = (self.clone(), run.started.clone());
        thread::spawn(move || runner.drive(&started));
        Some(run)
    }

    /// Asks the run to end (SIGTERM, since what a script starts in the background ignores SIGINT; SIGKILL
    /// if it was asked before); `None` if there is none.
    pub fn stop(&self) -> Option<Run> {
        let mut state = self.state();
        let group = state.group;
        let run = state.run.as_mut().filter(|run| !run.phase.has_ended())?;
        let signal = match run.phase {
            Phase::Stopping => Signal::KILL,
            _ => Signal::TERM,
        };
        run.phase = Phase::Stopping;
        let run = run.clone();
        if let Some(group) = group {
            // It may have ended meanwhile.
            let _ = kill_process_group(group, signal);
        }
        self.0.changed.notify_all();
        Some(run)
    }

    /// Ends the run, if there is one, and waits; after `limit` it is killed.
    pub fn end(&self, limit: Duration) {
        if self.stop().is_none() {
            return;
        }
        let begun = Instant::now();
        let mut state = self.state();
        while state.run.as_ref().is_some_and(|run| !run.phase.has_ended()) {
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                if let Some(group) = state.group {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                return;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn run(&self) -> Option<Run> {
        self.state().run.clone()
    }

    /// What a reader of `seen` and of the lines before `next` does not know; waits at most `limit` for
    /// it. Another run's lines begin at 0 again.
    pub fn news(&self, seen: Option<&Run>, next: usize, limit: Duration) -> News {
        let is_news = |state: &State| {
            state.run.as_ref() != seen || state.n_dropped + state.lines.len() > next
        };
        let waited = self
            .0
            .changed
            .wait_timeout_while(self.state(), limit, |state| !is_news(state));
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let number = |run: Option<&Run>| run.map(|run| run.number);
        let is_same = number(seen) == number(state.run.as_ref());
        let first = if is_same { next } else { 0 }.max(state.n_dropped);
        News {
            run: state.run.clone(),
            first,
            lines: state
                .lines
                .iter()
                .skip(first - state.n_dropped)
                .cloned()
                .collect(),
        }
    }

    fn drive(&self, started: &Started) {
        let mut has_failed = false;
        for command in (self.0.recipes)(started) {
            match self.run_one(command) {
                Ok(true) => {}
                Ok(false) => has_failed = true,
                Err(error) => {
                    self.say(&format!("error: {error}"));
                    has_failed = true;
                }
            }
            if has_failed {
                break;
            }
        }
        let mut state = self.state();
        if let Some(run) = &mut state.run {
            run.phase = match (run.phase, has_failed) {
                (Phase::Stopping, _) => Phase::Stopped,
                (_, true) => Phase::Failed,
                (_, false) => Phase::Succeeded,
            };
        }
        self.0.changed.notify_all();
    }

    /// Runs a command to its end; false if it failed, or was not to be started any more.
    fn run_one(&self, mut command: Command) -> io::Result<bool> {
        let (output, writer) = io::pipe()?;
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let mut child = {
            let mut state = self.state();
            if state
                .run
                .as_ref()
                .is_some_and(|run| run.phase == Phase::Stopping)
            {
                return Ok(false);
            }
            let child = command.spawn()?;
            state.group = Some(Pid::from_child(&child));
            child
        };
        // Its ends of the pipe: the output ends when the processes have closed theirs.
        drop(command);
        let runner = self.clone();
        let reading = thread::spawn(move || runner.read(BufReader::new(output)));
        let group = Pid::from_child(&child);
        // Not waited for yet, so that its number is not another's.
        let ends = || {
            waitid(
                WaitId::Pid(group),
                WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
            )
        };
        let ended = retry_on_intr(ends);
        // What it has left would hold its output open; there may be nothing.
        let _ = kill_process_group(group, Signal::KILL);
        let status = child.wait();
        self.state().group = None;
        ended?;
        let read = reading.join();
        read.map_err(|_| io::Error::other("the reader panicked"))??;
        let status = status?;
        if !status.success() {
            self.say(&format!("it ended with {status}"));
        }
        Ok(status.success())
    }

    fn read(&self, mut output: impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        while io::Read::take(&mut output, MAX_LINE_BYTES).read_until(b'\n', &mut line)? > 0 {
            let text = String::from_utf8_lossy(&line);
            // A progress bar overwrites its line.
            let text = text.trim_end().rsplit('\r').next().unwrap_or_default();
            self.say(text);
            line.clear();
        }
        Ok(())
    }

    fn say(&self, line: &str) {
        let mut state = self.state();
        if state.lines.len() == MAX_LINES {
            state.lines.pop_front();
            state.n_dropped += 1;
        }
        state.lines.push_back(line.to_owned());
        self.0.changed.notify_all();
    }

    /// No method panics between two related changes.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_mins(1);

    /// A runner whose runs are shell scripts.
    fn shell(scripts: &'static [&'static str]) -> Runner {
        Runner::new(move |_| {
            let command = |script: &&str| {
                let mut command = Command::new("sh");
                command.args(["-c", script]);
                command
            };
            scripts.iter().map(command).collect()
        })
    }

    fn some() -> Started {
        Started {
            name: "01-a".to_owned(),
            quick: true,
        }
    }

    /// All lines of a run, and its last phase.
    fn followed(runner: &Runner) -> (Vec<String>, Phase) {
        let (mut run, mut lines) = (None, Vec::new());
        loop {
            let news = runner.news(run.as_ref(), lines.len(), LIMIT);
            lines.extend(news.lines);
            run = news.run;
            let phase = run.as_ref().expect("a run").phase;
            if phase.has_ended() {
                return (lines, phase);
            }
        }
    }

    #[test]
    fn lines_of_both_outputs_arrive_and_commands_follow_each_other() {
        let runner = shell(&["echo one; printf '1 %%\\r2 %%\\n' >&2", "echo two"]);
        assert_eq!(runner.start(some()).expect("started").number, 1);
        assert_eq!(
            followed(&runner),
            (
                ["one", "2 %", "two"].map(String::from).to_vec(),
                Phase::Succeeded
            )
        );
        // A reader who knows all of it waits for news.
        let seen = runner.run();
        let news = runner.news(seen.as_ref(), 3, Duration::ZERO);
        assert_eq!((news.run, news.lines.len()), (seen, 0));
    }

    #[test]
    fn one_runs_at_a_time_and_is_stopped_with_its_children() {
        let runner = shell(&[
            "trap 'echo told; exit 143' TERM; sleep 600 & echo ready; wait",
            "echo two",
        ]);
        assert_eq!(runner.stop(), None);
        runner.start(some()).expect("started");
        assert_eq!(runner.start(some()), None);
        assert_eq!(
            runner.news(runner.run().as_ref(), 0, LIMIT).lines,
            ["ready"]
        );
        assert_eq!(runner.stop().expect("a run").phase, Phase::Stopping);
        assert_eq!(runner.start(some()), None);
        let (lines, phase) = followed(&runner);
        assert_eq!(phase, Phase::Stopped);
        assert!(lines.contains(&"told".to_owned()) && !lines.contains(&"two".to_owned()));
        // Then the next may start, and its lines are its own.
        assert_eq!(runner.start(some()).expect("started").number, 2);
        let news = runner.news(None, 0, LIMIT);
        assert_eq!(news.first, 0);
        runner.end(LIMIT);
        assert!(runner.run().expect("a run").phase.has_ended());
    }

    #[test]
    fn after_a_failure_nothing_follows_and_old_lines_are_dropped() {
        let runner = shell(&["seq 2005; exit 3", "echo two"]);
        runner.start(some()).expect("started");
        let mut run = runner.run();
        while run.as_ref().is_some_and(|run| !run.phase.has_ended()) {
            run = runner.news(run.as_ref(), usize::MAX, LIMIT).run;
        }
        assert_eq!(run.as_ref().map(|run| run.phase), Some(Phase::Failed));
        let news = runner.news(None, 0, Duration::ZERO);
        assert_eq!((news.first, news.lines.len()), (6, MAX_LINES));
        assert_eq!(news.lines[0], "7");
        let last = runner.news(run.as_ref(), 2005, Duration::ZERO).lines;
        assert_eq!(last, ["it ended with exit status: 3"]);
    }
}
