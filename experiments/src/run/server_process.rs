//! A server that runs under supervision: started in a process group of its own, gone when
//! this value is dropped, when the runner exits, and when the runner is killed.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::sync::watch;

use crate::run::supervise::{Ending, GRACE, ORDER_STOP};

/// How long the supervisor may take to say that the server's process exists.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long the killed processes of the server's group may take to end.
const GROUP_END_LIMIT: Duration = Duration::from_millis(200);
/// What the engine prints once it has a port, before it loads a model.
const LISTENING: &str = "listening on http://";

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
    /// Set for it beside the runner's own environment.
    pub environment: BTreeMap<String, String>,
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
    ended: watch::Receiver<Option<Ending>>,
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
        let mut supervisor = duct::cmd(&config.supervisor, args);
        for (name, value) in &config.environment {
            supervisor = supervisor.env(name, value);
        }
        let supervisor = supervisor
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

        let (first_line, first_event) = mpsc::channel();
        let (ending, ended) = watch::channel(None);
        thread::spawn(move || {
            let mut lines = BufReader::new(events_read).lines().map_while(Result::ok);
            let Some(line) = lines.next() else {
                return;
            };
            if first_line.send(line).is_err() {
                return;
            }
            let how = lines.find_map(|line| Ending::from_event(line.strip_prefix("exited ")?));
            // The receiver may be gone.
            let _ = ending.send(Some(how.unwrap_or_else(without_supervisor)));
        });
        let mut server = Self {
            pid: 0,
            group,
            supervisor,
            orders: Some(orders),
            ended,
        };
        // An error drops `server`, which takes the supervisor down.
        let reason = match first_event.recv_timeout(START_LIMIT) {
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
    pub fn exited(&self) -> Option<Ending> {
        self.ended.borrow().clone()
    }

    /// Waits for the server's end.
    pub async fn ended(&mut self) -> Ending {
        match self.ended.wait_for(Option::is_some).await {
            Ok(ending) => ending.clone().unwrap_or_else(without_supervisor),
            Err(_) => without_supervisor(),
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
        if told {
            // Either way the group is killed next.
            let _ = self.supervisor.wait_timeout(GRACE + Duration::from_secs(5));
        }
        // No such group: everything in it has ended already.
        let _ = kill_process_group(self.group, Signal::KILL);
        // Reaps the supervisor; its exit status says nothing that the events have not said.
        let _ = self.supervisor.wait();
        // A killed process ends a moment after the signal; a zombie stays in the group until it is reaped.
        let killed = Instant::now();
        while test_kill_process_group(self.group).is_ok() && killed.elapsed() < GROUP_END_LIMIT {
            thread::sleep(Duration::from_millis(2));
        }
        drop(orders);
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn without_supervisor() -> Ending {
    Ending::Failure("with its supervisor, which was killed".into())
}

/// The port on which a server that was given port 0 listens, as its log says; `None` until it does.
pub fn listening_port(log: &Path) -> Option<u16> {
    let bytes = std::fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    // What has no end yet is half a line.
    let lines = text
        .split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'));
    let mut addresses = lines.filter_map(|line| line.strip_prefix(LISTENING));
    addresses.find_map(|address| address.rsplit(':').next()?.parse().ok())
}

/// The first line of a log that ends in an exception or error with its message, `ModuleNotFoundError: No module
/// named 'x'`. Servers of several processes end with the complaint of one that knows no reason.
pub fn first_error(path: &Path) -> Option<String> {
    const MAX_BYTES: u64 = 4 << 20;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes))
        .ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().find_map(|line| {
        let (before, message) = ["Error: ", "Exception: "].into_iter().find_map(|word| {
            line.split_once(word)
                .map(|(a, b)| (format!("{a}{word}"), b))
        })?;
        // The name of a class, not `Error: ` alone or a sentence.
        let name = before.rsplit([' ', '\t']).nth(1)?;
        let is_class =
            name.len() > "Error:".len() && name.starts_with(|c: char| c.is_ascii_uppercase());
        (is_class && !message.trim().is_empty()).then(|| format!("{name} {}", message.trim_end()))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_read_from_a_whole_line_of_the_log() {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let port_in = |text: &str| {
            std::fs::write(log.path(), text).expect("written");
            listening_port(log.path())
        };
        assert_eq!(port_in(""), None);
        assert_eq!(port_in("listening on http://127.0.0.1:40"), None);
        assert_eq!(
            port_in("WARN: listening on http://x:1\nlistening on http://127.0.0.1:40213\nready\n"),
            Some(40213)
        );
        assert_eq!(listening_port(Path::new("/nonexistent/log")), None);
    }

    /// As vLLM 0.26 writes it where flashinfer is not installed.
    #[test]
    fn the_first_error_of_a_log_is_the_reason() {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let error_in = |text: &str| {
            std::fs::write(log.path(), text).expect("written");
            first_error(log.path())
        };
        let text = "INFO: ready soon\n\
            WARNING [system_utils.py:299] limits like `OSError: [Errno 24] Too many open files`.\n\
            (EngineCore pid=1665) ERROR 11-30 17:51:53 [core.py:1330] Traceback (most recent call last):\n\
            (EngineCore pid=1665) ERROR 11-30 17:51:53 [core.py:1330] ModuleNotFoundError: No module named 'flashinfer'\n\
            (APIServer pid=1600) RuntimeError: Engine core initialization failed. See root cause above.\n";
        assert_eq!(
            error_in(text).as_deref(),
            Some("ModuleNotFoundError: No module named 'flashinfer'")
        );
        assert_eq!(
            error_in("Error: no file\nthis Error: is a sentence\n"),
            None
        );
        assert_eq!(first_error(Path::new("/nonexistent/log")), None);
    }
}
