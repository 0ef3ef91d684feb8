//! A campaign folder: all starts of one call of a recipe in three files.
//!
//! `campaign.json` is for people. `rows.tar` ([`crate::rows_tar`]) has a line for each start, and the
//! run folders' files ([`crate::sealed_rows`], [`crate::token_times`]). `digests.json`, written last,
//! covers both, and every member of `rows.tar`.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::digests::{Digests, digest_of_bytes, digest_of_file};
use crate::environment::Environment;
use crate::manifest::{Derived, GitState, Hashes};
use crate::rows_tar::{self, Member, ROWS};
use crate::run_folder::read_json;
use crate::sealed_rows::{FilesOfRuns, decode};
use crate::source::Source;
use crate::status::RunStatus;
use crate::token_times::TokenTimes;
use crate::{REQUESTS, RecordError};

pub const CAMPAIGN: &str = "campaign.json";
pub const DIGESTS: &str = "digests.json";

/// `campaign.json`: what all starts have in common, and what was compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CampaignManifest {
    pub schema_version: u32,
    /// The id in the manifests of its runs.
    pub campaign: String,
    /// The recipe and the experiments, as in the folder's name.
    pub name: String,
    pub quick: bool,
    pub started_utc: String,
    /// Null if no start recorded it.
    pub machine: Option<Environment>,
    pub git: GitState,
    pub sha256: Hashes,
    /// How far the sources that ran can be recovered.
    pub source: Source,
    pub n_starts: u32,
    pub arms: Vec<ArmOfCampaign>,
}

/// One configuration of a campaign.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ArmOfCampaign {
    /// The experiment's name, with `+` and the engine if it is another than ours; a start is cited
    /// as `campaign#arm/round`.
    pub arm: String,
    pub title: String,
    pub model: String,
    /// All flags, as the server received them.
    pub flags: Vec<String>,
    /// The flags that were typed after `--`.
    pub extra_flags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// The engine with its preset, if it is another than ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derived: Option<Derived>,
    /// The rounds in which it was started.
    pub rounds: Vec<u32>,
}

/// A line of `starts.jsonl`: one server start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StartLine {
    pub run_id: String,
    pub arm: String,
    pub round: u32,
    /// Null if the start was killed before it had one.
    pub status: Option<RunStatus>,
    pub reason: Option<String>,
    pub started_utc: String,
    pub finished_utc: Option<String>,
    /// How far the sources that ran can be recovered.
    pub source: Source,
    /// For each case, from `summary.json`.
    pub figures: Vec<CaseFigures>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CaseFigures {
    pub case: String,
    /// Number of requests that succeeded.
    pub completed: Option<u64>,
    /// Tokens per second.
    pub output_throughput: Option<f64>,
    pub median_ttft_ms: Option<f64>,
    pub median_tpot_ms: Option<f64>,
    pub median_e2el_ms: Option<f64>,
}

/// Which member of `rows.tar` a run folder's file is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Requests,
    /// All others.
    Files,
}

impl Part {
    pub const ALL: [Self; 2] = [Self::Requests, Self::Files];

    pub fn of(file: &str) -> Self {
        match file {
            REQUESTS => Self::Requests,
            _ => Self::Files,
        }
    }

    pub fn member(self) -> Member {
        match self {
            Self::Requests => Member::Requests,
            Self::Files => Member::Files,
        }
    }
}

/// A campaign folder whose runs' files are read on first use.
#[derive(Debug)]
pub struct SealedCampaign {
    dir: PathBuf,
    pub starts: Vec<StartLine>,
    parts: [OnceLock<Result<FilesOfRuns, String>>; 2],
    checked: OnceLock<Result<(), String>>,
}

impl SealedCampaign {
    pub fn is_at(dir: &Path) -> bool {
        [CAMPAIGN, ROWS].iter().any(|name| dir.join(name).is_file())
    }

    /// Reads the starts; the files of runs are read when they are first asked for.
    ///
    /// # Errors
    ///
    /// [`RecordError::Io`] if the folder has no readable `rows.tar`, [`RecordError::Malformed`] if
    /// that is no archive of a campaign, or a line of its starts is no start.
    pub fn open(dir: &Path) -> Result<Self, RecordError> {
        let starts = unpacked_text(dir, Member::Starts)?
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<Vec<StartLine>, _>>()
            .map_err(|error| malformed(dir, Member::Starts, error))?;
        Ok(Self {
            dir: dir.to_owned(),
            starts,
            parts: [const { OnceLock::new() }; 2],
            checked: OnceLock::new(),
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads `campaign.json`.
    ///
    /// # Errors
    ///
    /// [`RecordError::Io`] if there is no readable `campaign.json`, [`RecordError::Malformed`]
    /// if it is not what a recipe writes.
    pub fn manifest(&self) -> Result<CampaignManifest, RecordError> {
        read_json(&self.dir.join(CAMPAIGN))
    }

    pub fn start(&self, run_id: &str) -> Option<&StartLine> {
        self.starts.iter().find(|start| start.run_id == run_id)
    }

    /// The original contents of a run folder's file; `None` if the run had no file of that name.
    ///
    /// # Errors
    ///
    /// If `rows.tar` cannot be opened ([`RecordError::Io`]) or its member cannot be decoded
    /// ([`RecordError::Malformed`], with the line).
    pub fn read(&self, run_id: &str, file: &str) -> Result<Option<&[u8]>, RecordError> {
        let bytes = self.files(Part::of(file))?.get(run_id);
        Ok(bytes.and_then(|files| files.get(file)).map(Vec::as_slice))
    }

    /// All files of a run by name.
    ///
    /// # Errors
    ///
    /// If `rows.tar` cannot be opened ([`RecordError::Io`]) or a member cannot be decoded
    /// ([`RecordError::Malformed`], with the line).
    pub fn files_of(&self, run_id: &str) -> Result<BTreeMap<&str, &[u8]>, RecordError> {
        let mut all = BTreeMap::new();
        for part in Part::ALL {
            let of_run = self.files(part)?.get(run_id).into_iter().flatten();
            all.extend(of_run.map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
        }
        Ok(all)
    }

    /// Whether the folder still contains what was sealed; otherwise what is wrong, in one line.
    ///
    /// # Errors
    ///
    /// The first file or member that is missing, unreadable, not listed, or whose digest is not that
    /// in `digests.json`; a file that is listed and none of a campaign's.
    pub fn check(&self) -> Result<(), String> {
        self.checked.get_or_init(|| check(&self.dir)).clone()
    }

    fn files(&self, part: Part) -> Result<&FilesOfRuns, RecordError> {
        self.parts[part as usize]
            .get_or_init(|| {
                self.decoded(part).map_err(|error| match error {
                    // The path is added below.
                    RecordError::Io { source, .. } => source.to_string(),
                    RecordError::Malformed { message, .. } => message,
                    other => other.to_string(),
                })
            })
            .as_ref()
            .map_err(|problem| RecordError::malformed(self.dir.join(ROWS), problem))
    }

    fn decoded(&self, part: Part) -> Result<FilesOfRuns, RecordError> {
        let text = unpacked_text(&self.dir, part.member())?;
        let times = match part {
            Part::Requests => times_in(&self.dir)?,
            Part::Files => TokenTimes::default(),
        };
        decode(&text, times.reader())
            .map_err(|problem| malformed(&self.dir, part.member(), problem))
    }
}

fn malformed(dir: &Path, member: Member, problem: impl Display) -> RecordError {
    RecordError::malformed(dir.join(ROWS), format!("{}: {problem}", member.name()))
}

fn unpacked_text(dir: &Path, member: Member) -> Result<String, RecordError> {
    let bytes = rows_tar::unpack(&dir.join(ROWS), member)?;
    String::from_utf8(bytes).map_err(|error| malformed(dir, member, error))
}

fn times_in(dir: &Path) -> Result<TokenTimes, RecordError> {
    let bytes = rows_tar::unpack(&dir.join(ROWS), Member::Times)?;
    TokenTimes::from_bytes(&bytes)
        .ok_or_else(|| malformed(dir, Member::Times, "not a whole number of times"))
}

/// `digests.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CampaignDigests {
    pub schema_version: u32,
    /// For each other file of the folder, by name.
    pub sha256: Digests,
    /// For each member of `rows.tar`, by name.
    pub members: Digests,
}

fn check(dir: &Path) -> Result<(), String> {
    let digests = read_digests(dir)?;
    check_files(dir, &digests.sha256, &[CAMPAIGN, ROWS])?;
    check_names(&digests.members, &Member::ALL.map(Member::name))?;
    let members = rows_tar::read(&dir.join(ROWS)).map_err(|error| error.to_string())?;
    for (member, bytes) in Member::ALL.into_iter().zip(members) {
        let name = member.name();
        if digest_of_bytes(&bytes) != digests.members[name] {
            return Err(format!(
                "{name} in {ROWS} is not what was sealed: its sha256 is not that in {DIGESTS}"
            ));
        }
    }
    Ok(())
}

pub(crate) fn read_digests(dir: &Path) -> Result<CampaignDigests, String> {
    read_json(&dir.join(DIGESTS)).map_err(|error| error.to_string())
}

/// Whether exactly these are vouched for.
fn check_names(digests: &Digests, names: &[&str]) -> Result<(), String> {
    if let Some(name) = digests.keys().find(|name| !names.contains(&name.as_str())) {
        return Err(format!("{DIGESTS}: `{name}` is no file of a campaign"));
    }
    match names.iter().find(|name| !digests.contains_key(**name)) {
        Some(name) => Err(format!("{DIGESTS} does not vouch for {name}")),
        None => Ok(()),
    }
}

/// Whether these files, and no others, are vouched for and unchanged.
pub(crate) fn check_files(dir: &Path, digests: &Digests, names: &[&str]) -> Result<(), String> {
    check_names(digests, names)?;
    for (name, wanted) in digests {
        match digest_of_file(&dir.join(name)) {
            Ok(found) if found == *wanted => {}
            Ok(_) => {
                return Err(format!(
                    "{name} is not what was sealed: its sha256 is not that in {DIGESTS}"
                ));
            }
            Err(error) => return Err(format!("{name}: {error}")),
        }
    }
    Ok(())
}
