//! A campaign folder: all starts of one call of a recipe in a few files.
//!
//! `campaign.json` and `starts.jsonl.zst` are summaries; `requests.jsonl.zst`, `times.zst` and
//! `files.jsonl.zst` hold the run folders' files ([`crate::sealed_rows`], [`crate::token_times`]);
//! `digests.json`, written last, covers all of them. Campaigns of older versions have
//! `starts.jsonl` uncompressed, and the times of tokens in the rows.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::digests::{Digests, digest_of_file, is_file_name};
use crate::environment::Environment;
use crate::manifest::{Derived, GitState, Hashes};
use crate::run_folder::read_json;
use crate::sealed_rows::{FilesOfRuns, decode};
use crate::source::Source;
use crate::status::RunStatus;
use crate::token_times::TokenTimes;
use crate::{REQUESTS, RecordError};

pub const CAMPAIGN: &str = "campaign.json";
pub const STARTS: &str = "starts.jsonl.zst";
/// Of campaigns of older versions.
const PLAIN_STARTS: &str = "starts.jsonl";
pub const TIMES: &str = "times.zst";
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

/// A line of `starts.jsonl.zst`: one server start.
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

/// One of the compressed files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Requests,
    /// All others.
    Files,
}

impl Part {
    pub const ALL: [Self; 2] = [Self::Requests, Self::Files];

    /// The compressed file that contains a run folder's `file`.
    pub fn of(file: &str) -> Self {
        match file {
            REQUESTS => Self::Requests,
            _ => Self::Files,
        }
    }

    pub fn file_name(self) -> &'static str {
        match self {
            Self::Requests => "requests.jsonl.zst",
            Self::Files => "files.jsonl.zst",
        }
    }
}

/// A campaign folder whose compressed files are read on first use.
#[derive(Debug)]
pub struct SealedCampaign {
    dir: PathBuf,
    pub starts: Vec<StartLine>,
    parts: [OnceLock<Result<FilesOfRuns, String>>; 2],
    checked: OnceLock<Result<(), String>>,
}

impl SealedCampaign {
    pub fn is_at(dir: &Path) -> bool {
        [CAMPAIGN, STARTS, PLAIN_STARTS]
            .iter()
            .any(|name| dir.join(name).is_file())
    }

    /// Reads the starts; the files of runs are read when they are first asked for.
    ///
    /// # Errors
    ///
    /// [`RecordError::Io`] if the folder has no readable `starts.jsonl.zst`,
    /// [`RecordError::Malformed`] if one of its lines is no start.
    pub fn open(dir: &Path) -> Result<Self, RecordError> {
        let starts = starts_text(dir)?
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<Vec<StartLine>, _>>()
            .map_err(|error| RecordError::malformed(dir.join(starts_name(dir)), error))?;
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
    /// If the compressed file cannot be read ([`RecordError::Io`]) or decoded
    /// ([`RecordError::Malformed`], with the line).
    pub fn read(&self, run_id: &str, file: &str) -> Result<Option<&[u8]>, RecordError> {
        let bytes = self.files(Part::of(file))?.get(run_id);
        Ok(bytes.and_then(|files| files.get(file)).map(Vec::as_slice))
    }

    /// All files of a run by name.
    ///
    /// # Errors
    ///
    /// If a compressed file cannot be read ([`RecordError::Io`]) or decoded
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
    /// The first file that is missing, unreadable, not listed, or whose digest is not that in
    /// `digests.json`.
    pub fn check(&self) -> Result<(), String> {
        self.checked.get_or_init(|| check(&self.dir)).clone()
    }

    fn files(&self, part: Part) -> Result<&FilesOfRuns, RecordError> {
        let path = self.dir.join(part.file_name());
        self.parts[part as usize]
            .get_or_init(|| {
                let text = unpacked(&path).map_err(|error| error.to_string())?;
                let text = std::str::from_utf8(&text).map_err(|error| error.to_string())?;
                let times = match part {
                    Part::Requests => times_in(&self.dir)?,
                    Part::Files => TokenTimes::default(),
                };
                decode(text, times.reader())
            })
            .as_ref()
            .map_err(|problem| RecordError::malformed(&path, problem))
    }
}

/// The text of the folder's starts, a line each.
pub(crate) fn starts_text(dir: &Path) -> Result<String, RecordError> {
    let name = starts_name(dir);
    let path = dir.join(name);
    let bytes = match name {
        PLAIN_STARTS => fs::read(&path),
        _ => unpacked(&path),
    };
    let bytes = bytes.map_err(|source| RecordError::io(&path, source))?;
    String::from_utf8(bytes).map_err(|error| RecordError::malformed(&path, error))
}

fn starts_name(dir: &Path) -> &'static str {
    if dir.join(PLAIN_STARTS).is_file() {
        PLAIN_STARTS
    } else {
        STARTS
    }
}

/// None in campaigns of older versions.
fn times_in(dir: &Path) -> Result<TokenTimes, String> {
    let path = dir.join(TIMES);
    if !path.exists() {
        return Ok(TokenTimes::default());
    }
    let bytes = unpacked(&path).map_err(|error| format!("{TIMES}: {error}"))?;
    TokenTimes::from_bytes(&bytes).ok_or_else(|| format!("{TIMES}: not a whole number of times"))
}

fn unpacked(path: &Path) -> io::Result<Vec<u8>> {
    zstd::decode_all(fs::read(path)?.as_slice())
}

/// `digests.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CampaignDigests {
    pub schema_version: u32,
    /// For each other file of the folder, by name.
    pub sha256: Digests,
}

fn check(dir: &Path) -> Result<(), String> {
    let digests: CampaignDigests =
        read_json(&dir.join(DIGESTS)).map_err(|error| error.to_string())?;
    let needed = [CAMPAIGN, starts_name(dir)]
        .into_iter()
        .chain(Part::ALL.map(Part::file_name));
    for name in needed {
        if !digests.sha256.contains_key(name) {
            return Err(format!("{DIGESTS} does not vouch for {name}"));
        }
    }
    for (name, wanted) in &digests.sha256 {
        if !is_file_name(name) {
            return Err(format!("{DIGESTS}: `{name}` is no file of the folder"));
        }
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
