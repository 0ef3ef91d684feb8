//! How a run ended, in words: its state, its reason, and what is unknown of its sources.

use crate::lang::Lang;
use crate::load::run_folder::{Outcome, RunFolder};
use crate::render::context::FailedRun;
use crate::render::sources;
use crate::select::Group;

pub fn failed_of(group: &Group<'_>, lang: Lang) -> Vec<FailedRun> {
    let arms = group.arms.iter().chain(&group.peers);
    arms.flat_map(|arm| &arm.failed)
        .map(|run| FailedRun {
            run_id: run.folder.run_id.clone(),
            experiment: run.record.manifest.arm(),
            state: state_word(&run.folder.outcome, lang),
            reason: reason_of(&run.folder.outcome, lang),
        })
        .collect()
}

pub fn state_word(outcome: &Outcome, lang: Lang) -> &'static str {
    match outcome {
        Outcome::Complete => lang.pick("완료", "complete"),
        Outcome::Failed { .. } => lang.pick("실패", "failed"),
        Outcome::Wrong { .. } => lang.pick("오답", "wrong"),
        Outcome::Killed => lang.pick("중단", "killed"),
        Outcome::Broken { .. } => lang.pick("손상", "broken"),
    }
}

/// With what must be known of the sources of what ran.
pub fn marked_state(run: &RunFolder, lang: Lang) -> String {
    let state = state_word(&run.outcome, lang);
    let source = run.record.as_ref().map(|record| &record.source);
    match source.and_then(|source| sources::mark(source, lang)) {
        Some(mark) => format!("{state} ({mark})"),
        None => state.to_owned(),
    }
}

pub fn reason_of(outcome: &Outcome, lang: Lang) -> String {
    match outcome {
        Outcome::Failed { reason } | Outcome::Wrong { reason } | Outcome::Broken { reason } => {
            one_line(reason)
        }
        Outcome::Killed => lang
            .pick("상태 기록 없이 끝남", "ended without a record of its state")
            .to_owned(),
        Outcome::Complete => String::new(),
    }
}

/// A message, which may have several lines, in one.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
