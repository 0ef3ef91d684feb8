//! What a search found, as the notes of the experiment that won: every rung, every run id.

use std::fmt::Write as _;
use std::time::Duration;

use crate::commands::tune::objective::Objective;
use crate::commands::tune::search::{Found, Stop};
use crate::spec::flags::Flags;

/// Everything that decided.
pub struct Evidence<'a> {
    pub found: &'a Found,
    pub objective: &'a Objective,
    /// The incumbent first.
    pub candidates: &'a [Flags],
    pub campaign: &'a str,
    pub took: Duration,
    pub budget: Duration,
    pub seed: u64,
}

impl Evidence<'_> {
    /// A table a rung, as Markdown.
    pub fn tables(&self) -> String {
        let found = self.found;
        let mut text = format!(
            "Campaign {}, seed {}: {} of {} challengers measured in {} of {}",
            self.campaign,
            self.seed,
            found.n_measured,
            found.n_challengers,
            shown(self.took),
            shown(self.budget),
        );
        text.push_str(match found.stop {
            Stop::Finished => ".\n",
            Stop::OutOfTime => "; time ran out before the last rung was whole.\n",
            Stop::Interrupted => "; interrupted.\n",
        });
        for (i, rung) in found.rungs.iter().enumerate() {
            // Writing into a String cannot fail.
            let _ = writeln!(
                text,
                "\nRung {i}, {} start(s) each, {}:\n\n| candidate | against the experiment | median | goes on | runs |\n|---|---|---|---|---|",
                rung.n_starts,
                self.objective.title()
            );
            for standing in &rung.standings {
                let score = match standing.score {
                    Some(score) => self.objective.shown(score),
                    None if standing.starts.is_empty() => "not measured".into(),
                    None => "failed".into(),
                };
                let ids: Vec<&str> = standing.starts.iter().map(|s| s.run_id.as_str()).collect();
                let _ = writeln!(
                    text,
                    "| {} | {} | {score} | {} | {} |",
                    standing.candidate,
                    self.change_of(standing.candidate),
                    if standing.kept { "yes" } else { "no" },
                    ids.join(", ")
                );
            }
        }
        text
    }

    /// `--a 1 → --a 2; none → --b`.
    pub fn change_of(&self, candidate: usize) -> String {
        let (Some(incumbent), Some(flags)) =
            (self.candidates.first(), self.candidates.get(candidate))
        else {
            return String::new();
        };
        let steps: Vec<String> = incumbent
            .differing(flags)
            .iter()
            .map(|flag| format!("`{}` → `{}`", incumbent.shown(flag), flags.shown(flag)))
            .collect();
        if steps.is_empty() {
            "as it is".into()
        } else {
            steps.join("; ")
        }
    }

    /// The last rung's medians of the winner and of the incumbent.
    pub fn medians(&self) -> (String, String) {
        let last = self.found.rungs.last();
        let median = |candidate: Option<usize>| {
            let standing = last?
                .standings
                .iter()
                .find(|standing| Some(standing.candidate) == candidate)?;
            standing.score.map(|score| self.objective.shown(score))
        };
        let shown = |value: Option<String>| value.unwrap_or_else(|| "nothing".into());
        (shown(median(self.found.winner)), shown(median(Some(0))))
    }
}

/// To the second.
fn shown(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(time.as_secs()))
}
