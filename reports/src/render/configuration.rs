//! One configuration: its flags against the baseline's, what it used, how it held up.

use std::collections::{BTreeMap, BTreeSet};

use crate::lang::Lang;
use crate::load::Records;
use crate::render::context::ArmContext;
use crate::render::reasons;
use crate::select::{Arm, Group};

/// Flags as typed after `engine serve`.
pub fn flags_of(arm: &Arm<'_>) -> Vec<String> {
    arm.representative()
        .map(|run| run.record.config.flags.clone())
        .unwrap_or_default()
}

/// A flag given twice has its last value, as on a command line.
pub fn flags_by_name(arm: &Arm<'_>) -> BTreeMap<String, String> {
    flags_of(arm)
        .iter()
        .map(|line| match line.split_once(' ') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (line.clone(), String::new()),
        })
        .collect()
}

/// `baseline`: its flags, if the group has one.
pub fn arm_context(
    records: &Records,
    group: &Group<'_>,
    arm: &Arm<'_>,
    baseline: Option<&Vec<String>>,
    lang: Lang,
) -> ArmContext {
    let flags = flags_of(arm);
    let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let names: BTreeSet<String> = flags.iter().map(|f| name(f)).collect();
    let (added, removed) = match baseline {
        Some(base) => (
            flags
                .iter()
                .filter(|f| !base.contains(f))
                .cloned()
                .collect(),
            base.iter()
                .filter(|f| !names.contains(&name(f)))
                .cloned()
                .collect(),
        ),
        None => (flags.clone(), Vec::new()),
    };
    let of_arm = |run_id: &String| arm.runs.iter().any(|run| run.folder.run_id == *run_id);
    let cases: Vec<_> = records.cases.iter().filter(|c| of_arm(&c.run_id)).collect();
    let memory: Vec<_> = records
        .memory
        .iter()
        .filter(|(id, _)| of_arm(id))
        .map(|(_, memory)| memory)
        .collect();
    let n_failed_requests = cases.iter().map(|c| c.n_failed).sum();
    let server = arm
        .representative()
        .map(|run| run.record.server.clone())
        .unwrap_or_default();
    let run_ids: Vec<String> = arm
        .runs
        .iter()
        .map(|run| run.folder.run_id.clone())
        .collect();
    ArmContext {
        experiment: arm.experiment.clone(),
        campaigns: arm.campaigns.clone(),
        n_campaigns_seen: arm.n_campaigns_seen,
        base_url: arm
            .representative()
            .and_then(|run| run.record.manifest.base_url.clone()),
        added_flags: added,
        removed_flags: removed,
        flags,
        limited_flags: server
            .inactive_flags
            .iter()
            .filter(|(_, reason)| reasons::is_limited(reason))
            .map(|(flag, _)| flag.clone())
            .collect(),
        inactive_flags: server
            .inactive_flags
            .into_iter()
            .map(|(flag, reason)| (flag, reasons::translated(&reason, lang)))
            .collect(),
        kernels: server.kernels,
        n_runs: arm.runs.len(),
        n_failed_runs: arm.failed.len(),
        n_requests: cases.iter().map(|c| c.n_requests).sum(),
        n_failed_requests,
        n_warmup: cases.iter().map(|c| c.n_warmup).sum(),
        stability: match (
            arm.runs.is_empty(),
            arm.failed.is_empty() && n_failed_requests == 0,
        ) {
            (true, _) => lang.pick("실패", "failed"),
            (false, true) => lang.pick("안정", "stable"),
            (false, false) => lang.pick("불안정", "unstable"),
        },
        peak_rss_bytes: memory.iter().filter_map(|m| m.peak_rss_bytes).max(),
        peak_gpu_bytes: memory.iter().filter_map(|m| m.peak_gpu_bytes).max(),
        kv_pages: memory
            .iter()
            .filter_map(|m| m.peak_kv_pages.zip(m.kv_pages_total))
            .max(),
        short_ids: short_ids(group, &run_ids),
        run_ids,
    }
}

/// The hash at the end of each id, if no two runs of the group share one; else the ids themselves.
fn short_ids(group: &Group<'_>, run_ids: &[String]) -> Vec<String> {
    let tail = |id: &str| id.rsplit('_').next().unwrap_or(id).to_owned();
    let all: Vec<String> = group
        .all_runs()
        .map(|run| tail(&run.folder.run_id))
        .collect();
    let unique: BTreeSet<&String> = all.iter().collect();
    if unique.len() == all.len() {
        run_ids.iter().map(|id| tail(id)).collect()
    } else {
        run_ids.to_vec()
    }
}
