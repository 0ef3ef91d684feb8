//! Whether a configuration that was measured again still gives its old figures.
//!
//! Old: the complete starts of the run's own experiment and campaign. New: those of the campaign of
//! `reproduce`. With enough starts the verdict decides: all same, and the old figures hold; faster
//! or slower, and they do not. Too few starts decide nothing; then the table says how many figures
//! of the new starts lie where the old ones lay, which is a hint and called one. It needs two starts
//! a side: one has no range. On another machine or with another model nothing is concluded.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, bail};
use records::manifest::{Derived, Manifest};
use records::store::Store;

use super::{Figure, Runs, judge, phrase, range, remark, spread};
use crate::load::run_folder::{Outcome, RunFolder};
use crate::render::sources;
use crate::select::same_place;
use crate::stats::verdict::{Comparison, MetricSamples, Verdict};

/// The table and the conclusion, as Markdown.
///
/// # Errors
///
/// If the campaign repeats no run, the repeated run cannot be read, or one of the two sides has
/// no complete start.
pub fn table(store: impl Into<Store>, campaign: &str) -> anyhow::Result<String> {
    let store = &store.into();
    let of_run = of_run(store, campaign)?;
    let is_new = |run: &RunFolder| {
        manifest(run).is_some_and(|m| m.campaign == campaign && repeated(m).is_some())
    };
    let old = Runs::read(store, |run| run.run_id == of_run)?;
    let Some(repeated_run) = old.folders.first().and_then(manifest) else {
        bail!("no readable run {of_run}");
    };
    let is_old = |run: &RunFolder| {
        manifest(run).is_some_and(|m| {
            m.campaign == repeated_run.campaign
                && m.experiment == repeated_run.experiment
                && m.extra_flags == repeated_run.extra_flags
                && m.quick == repeated_run.quick
        })
    };
    let runs = Runs::read(store, |run| is_new(run) || is_old(run))?;
    let complete = |keep: &dyn Fn(&RunFolder) -> bool| -> Vec<&RunFolder> {
        runs.folders
            .iter()
            .filter(|run| run.outcome == Outcome::Complete && keep(run))
            .collect()
    };
    let (before, after) = (complete(&is_old), complete(&is_new));
    if before.is_empty() || after.is_empty() {
        bail!(
            "{} complete start(s) of old, {} of new: nothing to compare",
            before.len(),
            after.len()
        );
    }

    let cases: BTreeSet<(Option<u32>, Option<u32>, &str)> = runs
        .cases
        .iter()
        .filter(|c| c.n_requests > 0)
        .map(|c| (c.n_users, c.max_tokens, c.case.as_str()))
        .collect();
    let mut rows = Vec::new();
    for (.., case) in cases {
        for figure in Figure::ALL {
            let values = [&before, &after].map(|runs_of| runs.values(runs_of, case, figure));
            if values.iter().all(|values| !values.is_empty()) {
                rows.push((case, figure, values));
            }
        }
    }
    let family: Vec<MetricSamples> = rows
        .iter()
        .map(|(case, figure, _)| runs.samples((&before, &after), "then, now", case, *figure))
        .collect();
    let answers = judge(&family);

    let records = before.iter().zip(&after);
    let same = records
        .filter_map(|(old, new)| Some((old.record.as_ref()?, new.record.as_ref()?)))
        .all(|(old, new)| same_place(old, new));
    let source_unknown = before
        .iter()
        .chain(&after)
        .any(|run| sources::is_unknown(run));
    let judged = same && !source_unknown;

    // Writing into a String cannot fail.
    let mut text = format!(
        "{of_run}: {} start(s) then, {} now (campaign {campaign})\n\n",
        before.len(),
        after.len()
    );
    let _ = writeln!(text, "| case | figure | then | now | change |");
    let _ = writeln!(text, "|---|---|---|---|---|");
    let mut n_within = 0;
    for ((case, figure, [old, new]), answer) in rows.iter().zip(&answers) {
        let ((old_low, old_high), (new_low, new_high)) = (range(old), range(new));
        n_within += usize::from(new_low <= old_high && old_low <= new_high);
        let _ = writeln!(
            text,
            "| {case} | {} | {} | {} | {} |",
            figure.title(),
            spread(old, *figure),
            spread(new, *figure),
            if judged {
                phrase(answer)
            } else {
                "not judged".into()
            }
        );
    }
    text.push_str("\nmedian [lowest, highest] over the starts; ");
    if judged {
        let have_ranges = before.len() > 1 && after.len() > 1;
        let _ = writeln!(
            text,
            "plus: better now; {} figures judged together",
            answers.len()
        );
        text.push_str(&conclusion(&answers, have_ranges.then_some(n_within)));
    } else if source_unknown {
        text.push_str(
            "WARNING: the sources of what ran are in no commit: nothing follows for the old figures\n",
        );
    } else {
        text.push_str(
            "WARNING: another machine or another model: nothing follows for the old figures\n",
        );
    }
    text.push_str(&runs.broken_lines());
    Ok(text)
}

/// `n_within`: figures whose ranges overlap; none where a side has one start only.
fn conclusion(answers: &[Comparison], n_within: Option<usize>) -> String {
    let n = answers.len();
    let count = |verdict: Verdict| answers.iter().filter(|a| a.verdict == verdict).count();
    let (n_faster, n_slower) = (count(Verdict::Faster), count(Verdict::Slower));
    let overlap = n_within.map_or_else(String::new, |n_within| {
        format!("; {n_within} of {n} figures lie in ranges that overlap the old ones")
    });
    let mut text = if n_faster + n_slower > 0 {
        format!(
            "the old figures do not hold: {n_faster} of {n} are better now, {n_slower} worse{overlap}\n"
        )
    } else if count(Verdict::Same) == n {
        "the old figures hold: none has changed\n".to_owned()
    } else {
        format!(
            "the old figures are not contradicted, {} of {n} are the same, the rest is undecided{overlap}\n",
            count(Verdict::Same)
        )
    };
    if let Some(remark) = remark(answers) {
        text.push_str(&remark);
        text.push('\n');
    }
    text
}

fn manifest(run: &RunFolder) -> Option<&Manifest> {
    run.record.as_ref().map(|record| &record.manifest)
}

fn repeated(manifest: &Manifest) -> Option<&str> {
    match manifest.derived.as_ref()? {
        Derived::Reproduction { of_run, .. } => Some(of_run),
        Derived::Ablation { .. }
        | Derived::Tuning { .. }
        | Derived::AA { .. }
        | Derived::Slo { .. } => None,
    }
}

fn of_run(store: &Store, campaign: &str) -> anyhow::Result<String> {
    let new = Runs::read(store, |run| {
        manifest(run).is_some_and(|m| m.campaign == campaign)
    })?;
    let found = new.folders.iter().filter_map(manifest).find_map(repeated);
    found
        .map(str::to_owned)
        .with_context(|| format!("campaign {campaign} has no start of `reproduce`"))
}
