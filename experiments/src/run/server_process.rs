//! A server that runs under supervision: started in a process group of its own, gone when
//! this value is dropped, when the runner exits, and when the runner is killed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::run::supervise::{Ending, GRACE, ORDER_STOP};

/// How long the supervisor may take to say that the server's process exists.
const START_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{program} cannot be started: {source}")]
    Start { program: String, source: io::Error },
    #[error("{program} did not start: {reason}")]
    NotStarted { program: String, reason: String },
}

#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The `experiments` binary, which is also the supervisor.
    pub supervisor: PathBuf,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Where the server's output goes; the terminal if `None`.
    pub log: Option<PathBuf>,
    /// Labelled failed by the supervisor should this process be killed.
    pub run_folder: Option<PathBuf>,
}

#[derive(Debug)]
pub struct ServerProcess {
    pid: u32,
    group: Pid,
    supervisor: duct::Handle,
    orders: Option<io::PipeWriter>,
    events: Receiver<String>,
    exited: Option<Ending>,
}

impl ServerProcess {
    pub fn start(config: &ServerConfig) -> Result<Self, ServerError> {
        let program = config.command.first().cloned().unwrap_or_default();
        let failed = |source| ServerError::Start {
            program: program.clone(),
            source,
        };

        let mut args: Vec<String> = vec!["supervise".into()];
        let mut option = |name: &str, path: &Option<PathBuf>| {
            if let Some(path) = path {
                args.extend([name.to_string(), path.to_string_lossy().into_owned()]);
            }
        };
        option("--log", &config.log);
        option("--run-folder", &config.run_folder);
        args.push("--".into());
        args.extend(config.command.iter().cloned());

        let (orders_read, orders) = io::pipe().map_err(failed)?;
        let (events_read, events_write) = io::pipe().map_err(failed)?;
        let supervisor = duct::cmd(&config.supervisor, args)
            .stdin_file(orders_read)
            .stdout_file(events_write)
            .unchecked()
            .before_spawn(|command| {
                command.process_group(0);
                Ok(())
            })
            .start()
            .map_err(failed)?;
        let group = supervisor
            .pids()
            .first()
            .and_then(|&pid| Pid::from_raw(pid as i32));
        let group = group.ok_or_else(|| failed(io::Error::other("no process id")))?;

        let (sender, events) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(events_read).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut server = Self {
            pid: 0,
            group,
            supervisor,
            orders: Some(orders),
            events,
            exited: None,
        };
        // Dropping `server` on the way out of an error takes the supervisor down.
        let reason = match server.events.recv_timeout(START_LIMIT) {
            Ok(line) => match line
                .strip_prefix("started ")
                .and_then(|pid| pid.parse().ok())
            {
                Some(pid) => {
                    server.pid = pid;
                    return Ok(server);
                }
                None => line,
            },
            Err(RecvTimeoutError::Timeout) => {
                format!("no sign of life within {} s", START_LIMIT.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => "its supervisor ended at once".into(),
        };
        Err(ServerError::NotStarted { program, reason })
    }

    /// Process id of the server itself.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How the server ended, once it has.
    pub fn exited(&mut self) -> Option<&Ending> {
        if self.exited.is_none() {
            match self.events.try_recv() {
                Ok(line) => {
                    self.exited = line.strip_prefix("exited ").and_then(Ending::from_event);
                }
                Err(TryRecvError::Disconnected) => {
                    let how = "with its supervisor, which was killed";
                    self.exited = Some(Ending::Failure(how.into()));
                }
                Err(TryRecvError::Empty) => {}
            }
        }
        self.exited.as_ref()
    }

    /// Waits for a command that ends by itself (a download); `None` after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<Ending> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(how) = self.exited() {
                return Some(how.clone());
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(POLL);
        }
    }

    /// SIGTERM, some seconds of grace, SIGKILL for the whole group. Returns when no process
    /// of the group is left that this one could wait for.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        let Some(mut orders) = self.orders.take() else {
            return;
        };
        // A supervisor that is gone takes no orders; the group is killed below either way.
        let told = writeln!(orders, "{ORDER_STOP}").is_ok();
        let deadline = Instant::now()
            + if told {
                GRACE + Duration::from_secs(5)
            } else {
                Duration::ZERO
            };
        while Instant::now() < deadline && matches!(self.supervisor.try_wait(), Ok(None)) {
            thread::sleep(POLL);
        }
        // No such group: everything in it has ended already.
        let _ = kill_process_group(self.group, Signal::KILL);
        // Reaps the supervisor; its exit status says nothing that the events have not said.
        let _ = self.supervisor.wait();
        drop(orders);
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// The last lines of a log, for an error message.
pub fn log_tail(path: &Path, n_lines: usize) -> String {
    const MAX_BYTES: u64 = 16 << 10;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(MAX_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let Ok(bytes) = read() else {
        return String::new();
    };
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: VecDeque<&str> = VecDeque::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        if lines.len() == n_lines {
            lines.pop_front();
        }
        lines.push_back(line);
    }
    lines.make_contiguous().join("\n")
}

/// A port nobody listens on right now. Another process may take it before the server
/// binds it; the server then fails to start and says so.
pub fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?
        .local_addr()?
        .port())
}
