//! From run folders to a campaign folder.
//!
//! The campaign folder is written under a temporary name, read back, compared with the run folders
//! byte by byte, and only then renamed; the run folders are removed last. So a process that is
//! killed at any moment loses nothing, and the next call continues: run folders that are already
//! sealed are compared again and removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::campaign::{
    ArmOfCampaign, CAMPAIGN, CampaignDigests, CampaignManifest, CaseFigures, DIGESTS, Part,
    SealedCampaign, StartLine,
};
use crate::digests::{digest_of_bytes, digests_of};
use crate::manifest::{Derived, Hashes, Manifest};
use crate::rows_tar::{self, Member, ROWS};
use crate::run_folder::{run_folders, write_json};
use crate::sealed_rows::encode;
use crate::source::Source;
use crate::store::StoredRun;
use crate::token_times::TokenTimes;
use crate::{CHANGES, RecordError, SCHEMA_VERSION, SUMMARY};

/// How far the sources of a run can be recovered; `true`: it has a `changes.diff`.
pub type SourceOf<'a> = &'a dyn Fn(&Manifest, bool) -> Source;

/// A run folder that is to be sealed.
struct Start {
    run: StoredRun,
    dir: PathBuf,
    manifest: Manifest,
    source: Source,
}

/// Campaigns with run folders in `runs_dir`, oldest first, and whether all of them are quick runs.
/// Folders without a readable manifest belong to none.
///
/// # Errors
///
/// [`RecordError::Io`] if `runs_dir` exists but cannot be listed.
pub fn unsealed_campaigns(runs_dir: &Path) -> Result<Vec<(String, bool)>, RecordError> {
    let mut campaigns: BTreeMap<String, bool> = BTreeMap::new();
    for dir in unsealed_folders(runs_dir)? {
        if let Ok(manifest) = StoredRun::in_folder(&dir).manifest() {
            let quick = campaigns.entry(manifest.campaign).or_insert(true);
            *quick &= manifest.quick;
        }
    }
    Ok(campaigns.into_iter().collect())
}

/// Seals the run folders of `campaign` into a folder below `campaigns_dir`, whose path it returns,
/// and removes them. None of them may be running.
///
/// # Errors
///
/// If a run has no record or is running, the campaign folder exists, or what was written differs
/// from the run folders.
pub fn seal(
    runs_dir: &Path,
    campaigns_dir: &Path,
    campaign: &str,
    source_of: SourceOf<'_>,
) -> Result<PathBuf, RecordError> {
    let starts = starts_of(runs_dir, campaign, source_of)?;
    let unsealable = |message: String| RecordError::Unsealable {
        campaign: campaign.to_owned(),
        message,
    };
    if starts.is_empty() {
        return Err(unsealable(format!(
            "no run of it lies in {}",
            runs_dir.display()
        )));
    }
    let name = name_of(&starts);
    let dir = campaigns_dir.join(folder_name(campaign, &name));
    if !dir.exists() {
        write_campaign(&dir, campaign, &name, &starts)?;
    }
    let sealed = SealedCampaign::open(&dir)?;
    sealed.check().map_err(unsealable)?;
    compare(&sealed, &starts).map_err(unsealable)?;
    for start in &starts {
        fs::remove_dir_all(&start.dir).map_err(|source| RecordError::io(&start.dir, source))?;
    }
    Ok(dir)
}

fn unsealed_folders(runs_dir: &Path) -> Result<Vec<PathBuf>, RecordError> {
    let mut dirs = run_folders(runs_dir)?;
    // Targets of links are elsewhere and are not changed.
    dirs.retain(|dir| !dir.is_symlink() && !SealedCampaign::is_at(dir));
    Ok(dirs)
}

fn starts_of(
    runs_dir: &Path,
    campaign: &str,
    source_of: SourceOf<'_>,
) -> Result<Vec<Start>, RecordError> {
    let mut starts = Vec::new();
    for dir in unsealed_folders(runs_dir)? {
        let run = StoredRun::in_folder(&dir);
        let Ok(manifest) = run.manifest() else {
            continue;
        };
        // A copy of a run is not a start of its campaign.
        if manifest.campaign != campaign || manifest.run_id != run.run_id {
            continue;
        }
        if run.status()?.is_some_and(|status| status.is_alive()) {
            return Err(RecordError::Unsealable {
                campaign: campaign.to_owned(),
                message: format!("{} is running", run.run_id),
            });
        }
        let has_changes = run.read(CHANGES)?.is_some();
        starts.push(Start {
            source: source_of(&manifest, has_changes),
            run,
            dir,
            manifest,
        });
    }
    Ok(starts)
}

/// From the recipe and its arguments.
fn name_of(starts: &[Start]) -> String {
    let parents: BTreeSet<String> = starts
        .iter()
        .filter_map(|start| start.manifest.derived.as_ref())
        .map(|derived: &Derived| format!("{}-{}", derived.word(), derived.parent()))
        .collect();
    let arms = arms_of(starts);
    match (parents.first(), arms.as_slice()) {
        (Some(parent), _) => parent.clone(),
        (None, [arm]) => arm.clone(),
        (None, [first, others @ ..]) => format!("{first}-and-{}-more", others.len()),
        (None, []) => String::new(),
    }
}

/// In the order of their first start.
fn arms_of(starts: &[Start]) -> Vec<String> {
    let mut arms: Vec<String> = Vec::new();
    for start in starts {
        let arm = start.manifest.arm();
        if !arms.contains(&arm) {
            arms.push(arm);
        }
    }
    arms
}

/// `<utc>_<name>_<hash8>` of a campaign's id, `<utc>_<hash8>`.
fn folder_name(campaign: &str, name: &str) -> String {
    let full = match campaign.split_once('_') {
        Some((utc, hash)) => format!("{utc}_{name}_{hash}"),
        None => format!("{campaign}_{name}"),
    };
    full.replace(['/', '\\'], "-")
        .trim_start_matches('.')
        .to_owned()
}

fn write_campaign(
    dir: &Path,
    campaign: &str,
    name: &str,
    starts: &[Start],
) -> Result<(), RecordError> {
    let folder = dir.file_name().unwrap_or_default().to_string_lossy();
    let beside = dir.with_file_name(format!(".{folder}.partial"));
    if beside.exists() {
        // Left by a killed process, whose run folders are all still there.
        fs::remove_dir_all(&beside).map_err(|source| RecordError::io(&beside, source))?;
    }
    fs::create_dir_all(&beside).map_err(|source| RecordError::io(&beside, source))?;
    let written = write_files(&beside, campaign, name, starts)
        .and_then(|()| fs::rename(&beside, dir).map_err(|source| RecordError::io(dir, source)));
    if written.is_err() {
        // A full disk may have written a part of it.
        let _ = fs::remove_dir_all(&beside);
    }
    written
}

fn write_files(
    dir: &Path,
    campaign: &str,
    name: &str,
    starts: &[Start],
) -> Result<(), RecordError> {
    let mut parts = Part::ALL.map(|_| String::new());
    let mut times = TokenTimes::default();
    for start in starts {
        for (file, bytes) in files_in(&start.dir)? {
            let part = Part::of(&file);
            let text = &mut parts[part as usize];
            let times = (part == Part::Requests).then_some(&mut times);
            encode(&start.run.run_id, &file, &bytes, text, times);
        }
    }
    write_json(&dir.join(CAMPAIGN), &manifest_of(campaign, name, starts))?;
    let mut lines = String::new();
    for start in starts {
        lines.push_str(&line_of(&dir.join(ROWS), &start_line(start))?);
    }
    let times = times.to_bytes();
    let mut members = Member::ALL.map(|_| Vec::new());
    for (member, packed) in Member::ALL.into_iter().zip(&mut members) {
        let bytes = match member {
            Member::Starts => lines.as_bytes(),
            Member::Requests => parts[Part::Requests as usize].as_bytes(),
            Member::Times => &times,
            Member::Files => parts[Part::Files as usize].as_bytes(),
        };
        *packed =
            rows_tar::compress(bytes).map_err(|source| RecordError::io(dir.join(ROWS), source))?;
    }
    write_rows(dir, &members)
}

/// Writes what lies beside `campaign.json`, which is there: the members' archive and, last, the
/// digests.
fn write_rows(dir: &Path, members: &[Vec<u8>; 4]) -> Result<(), RecordError> {
    let path = dir.join(ROWS);
    let archive = rows_tar::archive(members).map_err(|source| RecordError::io(&path, source))?;
    write_synced(&path, &archive)?;
    let of_members = Member::ALL.into_iter().zip(members);
    let digests = CampaignDigests {
        schema_version: SCHEMA_VERSION,
        sha256: digests_of(dir, DIGESTS).map_err(|source| RecordError::io(dir, source))?,
        members: of_members
            .map(|(member, bytes)| (member.name().to_owned(), digest_of_bytes(bytes)))
            .collect(),
    };
    write_json(&dir.join(DIGESTS), &digests)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    let mut file = File::create_new(path).map_err(|source| RecordError::io(path, source))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(|source| RecordError::io(path, source))
}

fn line_of(path: &Path, value: &impl Serialize) -> Result<String, RecordError> {
    let line = serde_json::to_string(value).map_err(|error| RecordError::malformed(path, error))?;
    Ok(line + "\n")
}

/// Every file of a run folder by name. Anything but files is not part of a record.
fn files_in(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>, RecordError> {
    let mut files = BTreeMap::new();
    let entries = fs::read_dir(dir).map_err(|source| RecordError::io(dir, source))?;
    for entry in entries {
        let path = entry.map_err(|source| RecordError::io(dir, source))?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !path.is_file() {
            return Err(RecordError::malformed(
                &path,
                "a run folder holds files alone",
            ));
        }
        let bytes = fs::read(&path).map_err(|source| RecordError::io(&path, source))?;
        files.insert(name, bytes);
    }
    Ok(files)
}

/// Every file of every start must be in the campaign unchanged, and nothing else of that start.
fn compare(sealed: &SealedCampaign, starts: &[Start]) -> Result<(), String> {
    for start in starts {
        let run_id = &start.run.run_id;
        if sealed.start(run_id).is_none() {
            return Err(format!(
                "it was sealed before, into {}, without {run_id}",
                sealed.dir().display()
            ));
        }
        let there = sealed.files_of(run_id).map_err(|error| error.to_string())?;
        let here = files_in(&start.dir).map_err(|error| error.to_string())?;
        let names = |name: &str| format!("{name} of {run_id} is not what was sealed");
        for (name, bytes) in &here {
            if there.get(name.as_str()).copied() != Some(bytes.as_slice()) {
                return Err(names(name));
            }
        }
        if let Some(name) = there.keys().find(|name| !here.contains_key(**name)) {
            return Err(names(name));
        }
    }
    Ok(())
}

fn manifest_of(campaign: &str, name: &str, starts: &[Start]) -> CampaignManifest {
    let first = &starts[0];
    let arms = arms_of(starts).into_iter().map(|arm| {
        let of_arm: Vec<&Start> = starts
            .iter()
            .filter(|start| start.manifest.arm() == arm)
            .collect();
        arm_of(&arm, &of_arm)
    });
    CampaignManifest {
        schema_version: SCHEMA_VERSION,
        campaign: campaign.to_owned(),
        name: name.to_owned(),
        quick: starts.iter().all(|start| start.manifest.quick),
        started_utc: first.manifest.started_utc.clone(),
        machine: starts.iter().find_map(|start| start.run.environment().ok()),
        git: first.manifest.git.clone(),
        sha256: Hashes {
            // Each arm has its own.
            model: None,
            prompts: None,
            ..first.manifest.sha256.clone()
        },
        source: first.source.clone(),
        n_starts: starts.len() as u32,
        arms: arms.collect(),
    }
}

fn arm_of(arm: &str, starts: &[&Start]) -> ArmOfCampaign {
    let manifest = &starts[0].manifest;
    let config = starts
        .iter()
        .find_map(|start| start.run.config().ok())
        .unwrap_or_default();
    ArmOfCampaign {
        arm: arm.to_owned(),
        title: config.title,
        model: manifest.model.used.clone(),
        flags: config.flags,
        extra_flags: manifest.extra_flags.clone(),
        base_url: manifest.base_url.clone(),
        engine: manifest.other_engine(),
        derived: manifest.derived.clone(),
        rounds: starts
            .iter()
            .map(|start| start.manifest.replicate)
            .collect(),
    }
}

fn start_line(start: &Start) -> StartLine {
    let status = start.run.status().ok().flatten();
    let summary: Option<Value> = start.run.json(SUMMARY).ok();
    let cases = summary
        .as_ref()
        .and_then(|summary| summary["cases"].as_array());
    StartLine {
        run_id: start.run.run_id.clone(),
        arm: start.manifest.arm(),
        round: start.manifest.replicate,
        status: status.as_ref().map(|status| status.status),
        reason: status.as_ref().and_then(|status| status.reason.clone()),
        started_utc: start.manifest.started_utc.clone(),
        finished_utc: status.and_then(|status| status.finished_utc),
        source: start.source.clone(),
        figures: cases.into_iter().flatten().map(figures_of).collect(),
    }
}

fn figures_of(case: &Value) -> CaseFigures {
    let number = |key: &str| case[key].as_f64();
    CaseFigures {
        case: case["case"].as_str().unwrap_or_default().to_owned(),
        completed: case["completed"].as_u64(),
        output_throughput: number("output_throughput"),
        median_ttft_ms: number("median_ttft_ms"),
        median_tpot_ms: number("median_tpot_ms"),
        median_e2el_ms: number("median_e2el_ms"),
    }
}

#[cfg(test)]
mod tests;
