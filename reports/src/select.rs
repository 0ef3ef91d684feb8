//! Which runs a report is about.
//!
//! Runs are comparable only where the machine, the model and the flags typed after `--` are the
//! same, so these three make a [`Group`]. Within a group every experiment is one [`Arm`]: all starts of
//! one configuration, engine binary, model file and workload, whatever campaign they are of. Running
//! a campaign again until it pleases does not change the answer. Where an experiment has several such
//! pools, that of the baseline's binary is taken, then the newest with enough starts for an interval,
//! else the one with most; the others are counted. Full runs go before quick ones: a group with both
//! leaves the quick ones out, and never mixes them.
//!
//! Runs of another engine are peers, not configurations of ours: of a server that we did not start
//! (`base_url`), or of one that was started as an arm of the same campaign (`engine`). The latter are of a
//! group like our own runs are.

use std::collections::{BTreeMap, BTreeSet};

use crate::load::run_folder::{Outcome, Record, RunFolder, flags_one_a_line};

/// Runs on one machine with one model and one set of extra flags.
#[derive(Debug)]
pub struct Group<'a> {
    /// Flags that were typed after `--`, one on each line; none for most groups.
    pub extra_flags: Vec<String>,
    /// The figures come from quick runs: there are no full ones.
    pub quick: bool,
    /// Sorted by experiment name.
    pub arms: Vec<Arm<'a>>,
    /// Sorted by experiment name; measured against a server we did not start.
    pub peers: Vec<Arm<'a>>,
    /// Readable runs of the same group that are of other binaries, workloads or configurations.
    pub n_superseded: usize,
}

/// One configuration as one engine binary was measured with it.
#[derive(Debug, Clone)]
pub struct Arm<'a> {
    /// The experiment's name; for a peer with `+` and its engine, or with ` @ ` and its address.
    pub experiment: String,
    /// Whose starts are pooled, sorted.
    pub campaigns: Vec<String>,
    /// Campaigns that measured the experiment in this group, with whatever binary and workload.
    pub n_campaigns_seen: usize,
    /// Every replicate that these campaigns asked for ended well.
    pub campaigns_complete: bool,
    /// Complete runs, sorted by run id; may be empty if all failed.
    pub runs: Vec<Run<'a>>,
    /// Failed and killed runs of the campaigns.
    pub failed: Vec<Run<'a>>,
}

/// A campaign and the replicate in it.
pub type Round<'a> = (&'a str, u32);

/// A run whose record could be read.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    pub folder: &'a RunFolder,
    pub record: &'a Record,
}

impl<'a> Run<'a> {
    /// Campaign and replicate: runs of one round had the same prompts and came one after the other.
    pub fn round(&self) -> Round<'a> {
        let manifest = &self.record.manifest;
        (&manifest.campaign, manifest.replicate)
    }
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
    /// Part of the address or the experiment of a server that we did not start.
    pub peer: Option<String>,
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
        let among_peers = |part: &String| {
            record.is_none_or(|r| {
                let url = r.manifest.base_url.as_ref();
                r.manifest.is_ours()
                    || url.is_some_and(|url| url.contains(part.as_str()))
                    || r.manifest.arm().contains(part)
            })
        };
        (self.runs.is_empty() || self.runs.iter().any(wanted))
            && self.machine.iter().all(on_machine)
            && self.peer.iter().all(among_peers)
    }
}

/// What the runs of a group share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    machine: [String; 5],
    model: String,
    extra_flags: Vec<String>,
}

impl Key {
    fn of(record: &Record) -> Self {
        Self {
            machine: machine_key(record),
            model: record.manifest.model.used.clone(),
            extra_flags: flags_one_a_line(&record.manifest.extra_flags),
        }
    }
}

/// The groups, newest first. Peers join every group of the machine that loaded them: a server that we
/// did not start may call the same model by another name, and has flags of its own. Whether it is
/// judged is another question. A machine with peers only has a group for them.
pub fn groups(runs: &[RunFolder]) -> Vec<Group<'_>> {
    // Arms of an ablation, candidates of a search and repetitions are no runs of an experiment.
    let readable = runs.iter().filter_map(|folder| {
        let record = folder.record.as_ref()?;
        if matches!(folder.outcome, Outcome::Broken { .. }) {
            return None; // Listed apart: nothing of it is used.
        }
        record
            .manifest
            .derived
            .is_none()
            .then_some(Run { folder, record })
    });
    let (peers, own): (Vec<_>, Vec<_>) = readable.partition(|run| !run.record.manifest.is_ours());
    let mut by_key: BTreeMap<Key, Vec<Run<'_>>> = BTreeMap::new();
    for run in &own {
        by_key.entry(Key::of(run.record)).or_default().push(*run);
    }
    for peer in &peers {
        let key = Key::of(peer.record);
        let is_there = match peer.record.manifest.base_url {
            Some(_) => by_key.keys().any(|known| known.machine == key.machine),
            None => by_key.contains_key(&key),
        };
        if !is_there {
            by_key.insert(key, Vec::new());
        }
    }
    let mut groups: Vec<(&str, Group<'_>)> = by_key
        .into_iter()
        .map(|(key, own)| {
            let peers: Vec<_> = peers
                .iter()
                .filter(|peer| match peer.record.manifest.base_url {
                    Some(_) => machine_key(peer.record) == key.machine,
                    None => Key::of(peer.record) == key,
                })
                .copied()
                .collect();
            (
                newest_start(if own.is_empty() { &peers } else { &own }),
                group_of(key.extra_flags, own, peers),
            )
        })
        .collect();
    groups.sort_by_key(|(newest, _)| std::cmp::Reverse(*newest));
    groups.into_iter().map(|(_, group)| group).collect()
}

fn machine_key(record: &Record) -> [String; 5] {
    let environment = &record.environment;
    let gpu = environment.gpu.as_ref();
    [
        environment.host.clone(),
        environment.cpu.model.clone(),
        environment.cpu.n_cores.to_string(),
        gpu.map(|gpu| gpu.name.clone()).unwrap_or_default(),
        gpu.and_then(|gpu| gpu.memory_bytes)
            .map(|bytes| bytes.to_string())
            .unwrap_or_default(),
    ]
}

/// Same machine and model: figures may be compared, if not pooled.
pub fn same_place(a: &Record, b: &Record) -> bool {
    machine_key(a) == machine_key(b) && a.manifest.model.used == b.manifest.model.used
}

fn newest_start<'a>(runs: &[Run<'a>]) -> &'a str {
    runs.iter()
        .map(|run| run.record.manifest.started_utc.as_str())
        .max()
        .unwrap_or_default()
}

fn group_of<'a>(extra_flags: Vec<String>, own: Vec<Run<'a>>, peers: Vec<Run<'a>>) -> Group<'a> {
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
        extra_flags,
        quick,
        arms,
        peers,
        n_superseded: n_own - n_used,
    }
}

/// What starts must share to be pooled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct PoolKey {
    binary: Option<String>,
    model: Option<String>,
    prompts: Option<String>,
    flags: Vec<String>,
    n_models: usize,
    n_requests: BTreeMap<String, u64>,
    /// Milliseconds that a case lasts at least.
    measured_ms: Option<u64>,
    quick: bool,
}

impl PoolKey {
    fn of(record: &Record) -> Self {
        let sha256 = &record.manifest.sha256;
        Self {
            binary: match &record.manifest.engine {
                Some(engine) if engine.sha256.is_some() => engine.sha256.clone(),
                _ => sha256.engine_binary.clone(),
            },
            model: sha256.model.clone(),
            prompts: sha256.prompts.clone(),
            flags: record.config.flags.clone(),
            n_models: record.config.n_models,
            n_requests: record.config.n_requests.clone(),
            measured_ms: record.config.measured_s.map(|s| (1e3 * s) as u64),
            quick: record.manifest.quick,
        }
    }
}

/// With fewer starts no table has an interval; more do not make a pool better than a newer one.
const ENOUGH_STARTS: usize = 6;

fn arms_of<'a>(runs: impl Iterator<Item = Run<'a>>) -> Vec<Arm<'a>> {
    let mut experiments: BTreeMap<String, BTreeMap<PoolKey, Vec<Run<'_>>>> = BTreeMap::new();
    for run in runs {
        let manifest = &run.record.manifest;
        let name = match &manifest.base_url {
            None => manifest.arm(),
            Some(url) => format!("{} @ {url}", manifest.experiment),
        };
        experiments
            .entry(name)
            .or_default()
            .entry(PoolKey::of(run.record))
            .or_default()
            .push(run);
    }
    let is_baseline = |pools: &BTreeMap<PoolKey, Vec<Run<'_>>>| {
        let mut runs = pools.values().flatten();
        runs.any(|run| run.record.manifest.is_baseline())
    };
    let baseline = experiments.values().find(|pools| is_baseline(pools));
    let binary = baseline
        .and_then(|pools| chosen(pools, None))
        .and_then(|(key, _)| key.binary.clone());
    experiments
        .iter()
        .filter_map(|(experiment, pools)| {
            let (_, runs) = chosen(pools, binary.as_deref())?;
            Some(arm_of(experiment, runs, pools))
        })
        .collect()
}

/// Of the wanted binary before others, with enough starts before few, new before old.
fn chosen<'p, 'a>(
    pools: &'p BTreeMap<PoolKey, Vec<Run<'a>>>,
    binary: Option<&str>,
) -> Option<(&'p PoolKey, &'p Vec<Run<'a>>)> {
    pools.iter().max_by_key(|(key, runs)| {
        let complete = |run: &&Run<'_>| run.folder.outcome == Outcome::Complete;
        let n_complete = runs.iter().filter(complete).count();
        (
            n_complete > 0,
            binary.is_some() && key.binary.as_deref() == binary,
            n_complete.min(ENOUGH_STARTS),
            newest_start(runs).to_owned(),
            *key,
        )
    })
}

fn arm_of<'a>(
    experiment: &str,
    runs: &[Run<'a>],
    pools: &BTreeMap<PoolKey, Vec<Run<'a>>>,
) -> Arm<'a> {
    let campaigns_in = |runs: &mut dyn Iterator<Item = &Run<'a>>| -> BTreeSet<String> {
        runs.map(|run| run.record.manifest.campaign.clone())
            .collect()
    };
    let campaigns = campaigns_in(&mut runs.iter());
    let is_complete = |campaign: &String| {
        let mut n_asked = 1;
        let mut n_complete = 0;
        for run in runs {
            if run.record.manifest.campaign == *campaign {
                n_asked = n_asked.max(run.record.config.replicates.unwrap_or(1));
                n_complete += u32::from(run.folder.outcome == Outcome::Complete);
            }
        }
        n_complete >= n_asked
    };
    let is_good = |run: &Run<'_>| run.folder.outcome == Outcome::Complete;
    let complete: Vec<Run<'a>> = runs.iter().copied().filter(is_good).collect();
    // What a killed run left may look like another configuration.
    let failed: Vec<Run<'a>> = pools
        .values()
        .flatten()
        .copied()
        .filter(|run| !is_good(run) && campaigns.contains(&run.record.manifest.campaign))
        .collect();
    Arm {
        experiment: experiment.to_owned(),
        n_campaigns_seen: campaigns_in(&mut pools.values().flatten()).len(),
        campaigns_complete: failed.is_empty() && campaigns.iter().all(is_complete),
        campaigns: campaigns.into_iter().collect(),
        runs: complete,
        failed,
    }
}
