//! Which runs a report is about.
//!
//! Runs are comparable only where machine and model are the same, so those two make a [`Group`].
//! Within a group every experiment is one [`Arm`], taken from its newest complete campaign (a
//! campaign is complete when every replicate it asked for ended well); without one, from the newest
//! that has any good run, and the arm says so. Full runs go before quick ones: a group with both
//! leaves the quick ones out, and never mixes them.
//!
//! Runs against another engine (`base_url`) are peers, not configurations of ours.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::load::run_folder::{Outcome, Record, RunFolder};

/// Runs on one machine with one model.
#[derive(Debug)]
pub struct Group<'a> {
    /// The figures come from quick runs: there are no full ones.
    pub quick: bool,
    /// Sorted by experiment name.
    pub arms: Vec<Arm<'a>>,
    /// Sorted by experiment name; measured against a server we did not start.
    pub peers: Vec<Arm<'a>>,
    /// Readable runs of the same machine and model that other campaigns superseded.
    pub n_superseded: usize,
}

/// One configuration as one campaign measured it.
#[derive(Debug, Clone)]
pub struct Arm<'a> {
    /// The experiment's name; for a peer with ` @ ` and its address.
    pub experiment: String,
    pub campaign: String,
    pub campaign_complete: bool,
    /// Complete runs, sorted by run id; may be empty if all failed.
    pub runs: Vec<Run<'a>>,
    /// Failed and killed runs of the campaign.
    pub failed: Vec<Run<'a>>,
}

/// A run whose record could be read.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    pub folder: &'a RunFolder,
    pub record: &'a Record,
}

impl Arm<'_> {
    /// Any run of the arm, for what all of them share.
    pub fn representative(&self) -> Option<Run<'_>> {
        self.runs.first().or(self.failed.first()).copied()
    }
}

impl<'a> Group<'a> {
    pub fn all_runs(&self) -> impl Iterator<Item = Run<'a>> {
        self.arms
            .iter()
            .flat_map(|arm| arm.runs.iter().chain(&arm.failed))
            .copied()
    }
}

/// Limits from the command line; empty lists select everything.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Parts of run ids, campaign ids or experiment names.
    pub runs: Vec<String>,
    /// Part of the host's, the processor's or the GPU's name.
    pub machine: Option<String>,
}

impl Selection {
    pub fn keeps(&self, run: &RunFolder) -> bool {
        let record = run.record.as_ref();
        let wanted = |part: &String| {
            run.run_id.contains(part.as_str())
                || record.is_some_and(|r| {
                    r.manifest.campaign.contains(part) || r.manifest.experiment.contains(part)
                })
        };
        let on_machine = |name: &String| {
            record.is_some_and(|r| {
                let environment = &r.environment;
                environment.host.contains(name)
                    || environment.cpu.model.contains(name)
                    || environment
                        .gpu
                        .as_ref()
                        .is_some_and(|gpu| gpu.name.contains(name))
            })
        };
        (self.runs.is_empty() || self.runs.iter().any(wanted))
            && self.machine.iter().all(on_machine)
    }
}

/// The groups, newest first. Peers join every group of their machine: a server that we did not
/// start may call the same model by another name. A machine with peers only has a group for them.
pub fn groups(runs: &[RunFolder]) -> Vec<Group<'_>> {
    let readable = runs.iter().filter_map(|folder| {
        Some(Run {
            folder,
            record: folder.record.as_ref()?,
        })
    });
    let (peers, own): (Vec<_>, Vec<_>) =
        readable.partition(|run| run.record.manifest.base_url.is_some());
    let peers_of = |run: &Run<'_>| -> Vec<_> {
        peers
            .iter()
            .filter(|peer| machine_key(peer.record) == machine_key(run.record))
            .copied()
            .collect()
    };
    let mut by_key: BTreeMap<([String; 4], String), Vec<Run<'_>>> = BTreeMap::new();
    for run in &own {
        let key = (
            machine_key(run.record),
            run.record.manifest.model.used.clone(),
        );
        by_key.entry(key).or_default().push(*run);
    }
    for peer in &peers {
        let machine = machine_key(peer.record);
        if !by_key.keys().any(|(known, _)| *known == machine) {
            by_key.insert(
                (machine, peer.record.manifest.model.used.clone()),
                Vec::new(),
            );
        }
    }
    let mut groups: Vec<(&str, Group<'_>)> = by_key
        .into_iter()
        .map(|((machine, _), own)| {
            let peers = match own.first() {
                Some(run) => peers_of(run),
                None => peers
                    .iter()
                    .filter(|peer| machine_key(peer.record) == machine)
                    .copied()
                    .collect(),
            };
            (
                newest_start(if own.is_empty() { &peers } else { &own }),
                group_of(own, peers),
            )
        })
        .collect();
    groups.sort_by_key(|(newest, _)| std::cmp::Reverse(*newest));
    groups.into_iter().map(|(_, group)| group).collect()
}

fn machine_key(record: &Record) -> [String; 4] {
    let environment = &record.environment;
    [
        environment.host.clone(),
        environment.cpu.model.clone(),
        environment.cpu.n_cores.to_string(),
        environment
            .gpu
            .as_ref()
            .map(|gpu| gpu.name.clone())
            .unwrap_or_default(),
    ]
}

fn newest_start<'a>(runs: &[Run<'a>]) -> &'a str {
    runs.iter()
        .map(|run| run.record.manifest.started_utc.as_str())
        .max()
        .unwrap_or_default()
}

fn group_of<'a>(own: Vec<Run<'a>>, peers: Vec<Run<'a>>) -> Group<'a> {
    let is_full =
        |run: &Run<'_>| !run.record.manifest.quick && run.folder.outcome == Outcome::Complete;
    let any_full = own.iter().chain(&peers).any(is_full);
    let any_own_full = own.iter().any(is_full);
    let n_own = own.len();
    let arms = arms_of(
        own.into_iter()
            .filter(|run| !(any_own_full && run.record.manifest.quick)),
    );
    let peers = arms_of(
        peers
            .into_iter()
            .filter(|run| !(any_full && run.record.manifest.quick)),
    );
    let n_used: usize = arms
        .iter()
        .map(|arm| arm.runs.len() + arm.failed.len())
        .sum();
    let quick = arms
        .iter()
        .flat_map(|arm| &arm.runs)
        .any(|run| run.record.manifest.quick);
    Group {
        quick,
        arms,
        peers,
        n_superseded: n_own - n_used,
    }
}

fn arms_of<'a>(runs: impl Iterator<Item = Run<'a>>) -> Vec<Arm<'a>> {
    let mut experiments: BTreeMap<String, BTreeMap<String, Vec<Run<'_>>>> = BTreeMap::new();
    for run in runs {
        let manifest = &run.record.manifest;
        let name = match &manifest.base_url {
            None => manifest.experiment.clone(),
            Some(url) => format!("{} @ {url}", manifest.experiment),
        };
        experiments
            .entry(name)
            .or_default()
            .entry(manifest.campaign.clone())
            .or_default()
            .push(run);
    }
    experiments
        .into_iter()
        .filter_map(|(experiment, campaigns)| {
            let candidates = campaigns
                .into_iter()
                .map(|(campaign, runs)| arm_of(&experiment, campaign, runs));
            candidates.max_by(preference)
        })
        .collect()
}

fn arm_of<'a>(experiment: &str, campaign: String, runs: Vec<Run<'a>>) -> Arm<'a> {
    let (runs, failed): (Vec<_>, Vec<_>) = runs
        .into_iter()
        .partition(|run| run.folder.outcome == Outcome::Complete);
    let n_asked = runs
        .iter()
        .filter_map(|run| run.record.config.replicates)
        .max()
        .unwrap_or(1);
    let campaign_complete = failed.is_empty() && runs.len() >= n_asked.max(1) as usize;
    Arm {
        experiment: experiment.to_owned(),
        campaign,
        campaign_complete,
        runs,
        failed,
    }
}

/// Complete campaigns before broken ones, those with any good run before those without, new before old.
fn preference(a: &Arm<'_>, b: &Arm<'_>) -> Ordering {
    let rank = |arm: &Arm<'_>| {
        let newest = newest_start(&arm.runs)
            .max(newest_start(&arm.failed))
            .to_owned();
        (
            arm.campaign_complete,
            !arm.runs.is_empty(),
            newest,
            arm.campaign.clone(),
        )
    };
    rank(a).cmp(&rank(b))
}
