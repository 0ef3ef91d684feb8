//! Download progress: a bar on a terminal, occasional lines elsewhere.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use engine::printable::printable;
use engine::source::{Progress, Stage};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// Time between two lines about the same file.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Displays progress; pass `|p| shown.show(p)` as the progress callback.
pub struct ShownProgress {
    is_terminal: bool,
    current: RefCell<Option<Shown>>,
}

struct Shown {
    stage: Stage,
    file: String,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl ShownProgress {
    pub fn new() -> Self {
        Self {
            is_terminal: std::io::stderr().is_terminal(),
            current: RefCell::new(None),
        }
    }

    pub fn show(&self, progress: Progress<'_>) {
        let mut current = self.current.borrow_mut();
        let is_new = current
            .as_ref()
            .is_none_or(|shown| shown.stage != progress.stage || shown.file != progress.file);
        if is_new {
            if let Some(Shown { bar: Some(bar), .. }) = current.take() {
                bar.finish_and_clear();
            }
            if progress.stage == Stage::Finished {
                return;
            }
            let bar = self.is_terminal.then(|| new_bar(progress));
            if bar.is_none() {
                let file = printable(progress.file);
                say(&format!("{} {file}", verb(progress.stage)));
            }
            *current = Some(Shown {
                stage: progress.stage,
                file: progress.file.to_owned(),
                bar,
                last_line: Instant::now(),
            });
        }
        let Some(shown) = current.as_mut() else {
            return;
        };
        if let Some(bar) = &shown.bar {
            if let Some(total) = progress.total_bytes {
                bar.set_length(total);
            }
            bar.set_position(progress.done_bytes);
        } else if shown.last_line.elapsed() >= LINE_INTERVAL {
            shown.last_line = Instant::now();
            let what = verb(progress.stage);
            let file = printable(progress.file);
            say(&format!("{what} {file}: {}", amount(progress)));
        }
    }
}

/// Prints a line; errors are ignored, since progress is not essential.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn new_bar(progress: Progress<'_>) -> ProgressBar {
    let bar = ProgressBar::new(progress.total_bytes.unwrap_or(0));
    let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let file = printable(progress.file);
    bar.set_message(format!("{} {file}", verb(progress.stage)));
    bar
}

fn amount(progress: Progress<'_>) -> String {
    match progress.total_bytes {
        Some(total) => format!(
            "{} of {}",
            HumanBytes(progress.done_bytes),
            HumanBytes(total)
        ),
        None => HumanBytes(progress.done_bytes).to_string(),
    }
}

fn verb(stage: Stage) -> &'static str {
    match stage {
        Stage::Waiting => "waiting for another process to fetch",
        Stage::Downloading => "downloading",
        Stage::Unpacking => "unpacking",
        Stage::Hashing => "checking",
        Stage::Finished => "finished",
    }
}
