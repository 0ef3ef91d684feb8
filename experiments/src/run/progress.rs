//! Progress of long steps: a bar on a terminal, plain lines elsewhere.
//!
//! Everything goes to stderr, so that stdout carries results only.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use crate::terminal::{note, plain};
use indicatif::{ProgressBar, ProgressStyle};

#[derive(Debug)]
pub struct Progress {
    title: String,
    started: Instant,
    /// `None` where stderr is no terminal.
    bar: Option<ProgressBar>,
}

impl Progress {
    /// A step of unknown length.
    pub fn spinner(title: impl Into<String>) -> Self {
        Self::start(
            title.into(),
            None,
            "{spinner} {prefix} {elapsed} {wide_msg}",
        )
    }

    /// A step of `n` parts.
    pub fn bar(title: impl Into<String>, n: u64) -> Self {
        Self::start(
            title.into(),
            Some(n),
            "{prefix:24} [{bar:30}] {pos}/{len} {elapsed} {wide_msg}",
        )
    }

    fn start(title: String, n: Option<u64>, template: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            let bar = n.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            // The templates are constants; the default style serves if one were malformed.
            bar.set_style(
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.set_prefix(plain(&title));
            bar.enable_steady_tick(Duration::from_millis(100));
            Some(bar)
        } else {
            note!("{title} …");
            None
        };
        Self {
            title,
            started: Instant::now(),
            bar,
        }
    }

    pub fn advance(&self, message: impl Into<String>) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
            bar.set_message(plain(&message.into()));
        }
    }

    /// What is going on; shown on a terminal only.
    pub fn tell(&self, message: impl Into<String>) {
        if let Some(bar) = &self.bar {
            bar.set_message(plain(&message.into()));
        }
    }

    pub fn finish(self, message: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        note!(
            "{}: {message} ({:.1} s)",
            self.title,
            self.started.elapsed().as_secs_f64()
        );
    }
}

/// An unfinished bar leaves no remains on the terminal when its step is cut short.
impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
