//! What was typed → runs.
//!
//! A run is named by its id, a path to it, or a part of the id that no other run shares. An
//! experiment (`03-balanced-v2`, `balanced-v2`, `03`) stands for its pooled starts, in
//! the group (machine, model, extra flags) that it shares with the other name, if there is one.

use std::collections::BTreeSet;

use crate::ReportError;
use crate::load::run_folder::{Outcome, RunFolder};
use crate::select::{Arm, Group, Run, groups, same_place};

/// The runs that a name refers to.
#[derive(Debug, Clone)]
pub struct Chosen<'a> {
    pub experiment: String,
    pub arm: Arm<'a>,
}

/// Every arm that a name may mean, the preferred first.
type Candidates<'a> = Vec<Arm<'a>>;

pub fn resolve<'a>(
    folders: &'a [RunFolder],
    names: [&str; 2],
) -> Result<[Chosen<'a>; 2], ReportError> {
    let groups = groups(folders);
    let [a, b] = [
        candidates(folders, &groups, names[0])?,
        candidates(folders, &groups, names[1])?,
    ];
    let pairs = || a.iter().flat_map(|a| b.iter().map(move |b| (a, b)));
    let chosen = pairs().find(|(a, b)| are_together(a, b));
    let chosen = chosen.or_else(|| pairs().next());
    let (a, b) = chosen.ok_or_else(|| unknown(folders, names[0]))?;
    let of_arm = |arm: &Arm<'a>| Chosen {
        experiment: arm.experiment.clone(),
        arm: arm.clone(),
    };
    Ok([of_arm(a), of_arm(b)])
}

fn candidates<'a>(
    folders: &'a [RunFolder],
    groups: &[Group<'a>],
    name: &str,
) -> Result<Candidates<'a>, ReportError> {
    let arms = groups.iter().flat_map(|g| g.arms.iter().chain(&g.peers));
    let of_experiment: Candidates<'a> = arms
        .filter(|arm| is_named(&arm.experiment, name) && arm.representative().is_some())
        .cloned()
        .collect();
    if !of_experiment.is_empty() {
        return Ok(of_experiment);
    }
    let id = name
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(name);
    let fits: Vec<&RunFolder> = match folders.iter().find(|run| run.run_id == id) {
        Some(exact) => vec![exact],
        None => folders
            .iter()
            .filter(|run| run.run_id.contains(id))
            .collect(),
    };
    match fits[..] {
        [] => Err(unknown(folders, name)),
        [folder] => match (&folder.outcome, &folder.record) {
            (Outcome::Broken { reason }, _) => Err(ReportError::UnreadableRun {
                run_id: folder.run_id.clone(),
                problem: reason.clone(),
            }),
            (_, Some(record)) => Ok(vec![single(Run { folder, record })]),
            (_, None) => Err(ReportError::UnreadableRun {
                run_id: folder.run_id.clone(),
                problem: folder.record_problem.clone().unwrap_or_default(),
            }),
        },
        _ => Err(ReportError::AmbiguousRun {
            name: name.to_owned(),
            fits: fits
                .iter()
                .map(|run| run.run_id.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

/// One machine, one model, the same extra flags.
fn are_together(a: &Arm<'_>, b: &Arm<'_>) -> bool {
    let records = a.representative().zip(b.representative());
    records.is_some_and(|(a, b)| {
        same_place(a.record, b.record)
            && a.record.manifest.extra_flags == b.record.manifest.extra_flags
    })
}

/// `03-balanced-v2` is called `balanced-v2` and `03`, too.
fn is_named(experiment: &str, name: &str) -> bool {
    let parts = experiment.split_once('-');
    experiment == name || parts.is_some_and(|(number, rest)| number == name || rest == name)
}

fn single(run: Run<'_>) -> Arm<'_> {
    let manifest = &run.record.manifest;
    Arm {
        experiment: manifest.arm(),
        campaigns: vec![manifest.campaign.clone()],
        n_campaigns_seen: 1,
        campaigns_complete: true,
        runs: vec![run],
        failed: Vec::new(),
    }
}

fn unknown(folders: &[RunFolder], name: &str) -> ReportError {
    let experiments: BTreeSet<&str> = folders
        .iter()
        .filter_map(|run| run.record.as_ref())
        .map(|record| record.manifest.experiment.as_str())
        .collect();
    ReportError::UnknownRun {
        name: name.to_owned(),
        n_runs: folders.len(),
        experiments: experiments.into_iter().collect::<Vec<_>>().join(", "),
    }
}
