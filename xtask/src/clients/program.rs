//! Runs one client: its output goes to the terminal and to a log.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use duct::{Expression, cmd};

use super::catalogue::{Client, Server};
use super::install::Installed;

/// Lines of a failed client that are repeated below the table.
const N_SHOWN_LINES: usize = 20;
/// Maximum length of such a line.
const N_SHOWN_CHARS: usize = 400;

/// No client makes internet requests: no telemetry, no hub, no price lists. Other packages must not
/// take the torch replacement for torch.
pub const QUIET: [(&str, &str); 17] = [
    ("DO_NOT_TRACK", "1"),
    ("HF_DATASETS_OFFLINE", "1"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("HF_HUB_OFFLINE", "1"),
    ("LANGCHAIN_TRACING_V2", "false"),
    ("LANGSMITH_TRACING", "false"),
    ("LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS", "true"),
    ("LITELLM_LOCAL_AUTOROUTER_PRESETS", "true"),
    ("LITELLM_LOCAL_BLOG_POSTS", "true"),
    ("LITELLM_LOCAL_MODEL_COST_MAP", "true"),
    ("LITELLM_LOCAL_POLICY_TEMPLATES", "true"),
    ("OTEL_SDK_DISABLED", "true"),
    ("TQDM_DISABLE", "1"),
    ("TRANSFORMERS_OFFLINE", "1"),
    ("USE_TORCH", "0"),
    ("PYTHONUNBUFFERED", "1"),
    ("PYTHONDONTWRITEBYTECODE", "1"),
];

pub struct Outcome {
    pub name: &'static str,
    pub version: String,
    pub counts: Counts,
    pub elapsed: Duration,
    log: PathBuf,
    lines: Vec<String>,
}

/// Numbers of checks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub n_passed: usize,
    pub n_failed: usize,
}

/// Runs a client to its end; its log goes to `folder`.
pub fn run(
    client: &Client,
    server: &Server,
    installed: &Installed,
    folder: &Path,
) -> Result<Outcome> {
    let version = installed.version(client)?;
    println!("\n== {} {version}", client.name);
    let log = folder.join(format!("{}.log", client.name));
    let mut file = File::create(&log).with_context(|| log.display().to_string())?;
    let started = Instant::now();
    let reader = command(client, server, installed)
        .stderr_to_stdout()
        .unchecked()
        .reader()
        .with_context(|| format!("{} cannot be started", client.name))?;
    let mut lines = Vec::new();
    for line in BufReader::new(&reader).split(b'\n') {
        let line = line.with_context(|| format!("the output of {}", client.name))?;
        let line = String::from_utf8_lossy(&line).into_owned();
        println!("{line}");
        writeln!(file, "{line}").with_context(|| log.display().to_string())?;
        lines.push(line);
    }
    let ended = reader.try_wait()?;
    let succeeded = ended.is_some_and(|output| output.status.success());
    Ok(Outcome {
        name: client.name,
        version,
        counts: Counts::of(&lines, client.has_checks, succeeded),
        elapsed: started.elapsed(),
        log,
        lines,
    })
}

fn command(client: &Client, server: &Server, installed: &Installed) -> Expression {
    let command = cmd(installed.program(client), client.args(server))
        .dir(installed.working_folder(client))
        .env("HOME", installed.home());
    QUIET
        .iter()
        .fold(command, |command, (name, value)| command.env(name, value))
}

impl Counts {
    /// If a client ended early, the checks it did not report are failures, and so is a script of
    /// checks that made none.
    fn of(lines: &[String], has_checks: bool, succeeded: bool) -> Self {
        let count = |word: &str| lines.iter().filter(|line| line.starts_with(word)).count();
        let mut counts = if has_checks {
            Self {
                n_passed: count("PASS "),
                n_failed: count("FAIL "),
            }
        } else {
            Self {
                n_passed: usize::from(succeeded),
                n_failed: 0,
            }
        };
        if counts.n_failed == 0 && (!succeeded || counts.n_passed == 0) {
            counts.n_failed = 1;
        }
        counts
    }
}

impl Outcome {
    pub fn passed(&self) -> bool {
        self.counts.n_failed == 0
    }

    /// The end of a failed client's output.
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

/// One row for each client: program, version, checks, how many of them passed and failed, seconds.
pub fn table(outcomes: &[Outcome]) -> String {
    let width = |cells: fn(&Outcome) -> &str, heading: &str| {
        let widths = outcomes
            .iter()
            .map(|outcome| cells(outcome).chars().count());
        widths.max().unwrap_or(0).max(heading.len())
    };
    let program = width(|outcome| outcome.name, "program");
    let version = width(|outcome| &outcome.version, "version");
    let mut rows = vec![format!(
        "{:program$}  {:version$}  checks  passed  failed  seconds",
        "program", "version"
    )];
    for outcome in outcomes {
        let Counts { n_passed, n_failed } = outcome.counts;
        rows.push(format!(
            "{:program$}  {:version$}  {:6}  {n_passed:6}  {n_failed:6}  {:7.1}",
            outcome.name,
            outcome.version,
            n_passed + n_failed,
            outcome.elapsed.as_secs_f64(),
        ));
    }
    rows.join("\n")
}

fn shortened(line: &str) -> String {
    match line.char_indices().nth(N_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(lines: &[&str], has_checks: bool, succeeded: bool) -> (usize, usize) {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        let Counts { n_passed, n_failed } = Counts::of(&lines, has_checks, succeeded);
        (n_passed, n_failed)
    }

    #[test]
    fn what_was_not_checked_has_failed() {
        assert_eq!(counts(&["PASS a", "x", "PASS b"], true, true), (2, 0));
        assert_eq!(counts(&["PASS a", "FAIL b: c"], true, false), (1, 1));
        // It ended before its last check.
        assert_eq!(counts(&["PASS a"], true, false), (1, 1));
        assert_eq!(counts(&["nothing"], true, true), (0, 1));
        assert_eq!(counts(&["PASS a"], false, true), (1, 0));
        assert_eq!(counts(&["x"], false, false), (0, 1));
    }

    #[test]
    fn the_table_has_a_row_for_every_client() {
        let outcome = |name, version: &str, n_failed| Outcome {
            name,
            version: version.to_owned(),
            counts: Counts {
                n_passed: 3,
                n_failed,
            },
            elapsed: Duration::from_millis(1500),
            log: PathBuf::new(),
            lines: Vec::new(),
        };
        let table = table(&[outcome("a", "1.0", 0), outcome("longer-name", "–", 2)]);
        assert_eq!(
            table,
            "program      version  checks  passed  failed  seconds\n\
             a            1.0           3       3       0      1.5\n\
             longer-name  –             5       3       2      1.5"
        );
    }
}
