//! Runs by id, in run folders and campaign folders.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::campaign::SealedCampaign;
use crate::config::ResolvedConfig;
use crate::environment::Environment;
use crate::manifest::Manifest;
use crate::rows::RequestRow;
use crate::run_folder::run_folders;
use crate::source::Source;
use crate::status::{RunStatus, Status};
use crate::{
    CHANGES, CONFIG, ENVIRONMENT, MANIFEST, OLDEST_SCHEMA_VERSION, REQUESTS, RecordError,
    SCHEMA_VERSION, STATUS,
};

/// Folders that contain run folders, campaign folders, or both.
#[derive(Debug, Clone)]
pub struct Store {
    places: Vec<PathBuf>,
}

impl<P: AsRef<Path>> From<P> for Store {
    fn from(place: P) -> Self {
        Self::new([place])
    }
}

impl Store {
    pub fn new<P: AsRef<Path>>(places: impl IntoIterator<Item = P>) -> Self {
        let places = places.into_iter().map(|place| place.as_ref().to_owned());
        Self {
            places: places.collect(),
        }
    }

    pub fn places(&self) -> &[PathBuf] {
        &self.places
    }

    /// All runs, oldest first. A missing folder is empty: a fresh clone has no runs. A sealed run
    /// whose folder still exists counts once.
    ///
    /// # Errors
    ///
    /// [`RecordError::Io`] if a folder of runs cannot be listed or a campaign's `starts.jsonl`
    /// cannot be read, [`RecordError::Malformed`] if one of its lines is no start.
    pub fn all(&self) -> Result<Vec<StoredRun>, RecordError> {
        let mut runs = Vec::new();
        let mut sealed = BTreeSet::new();
        for place in &self.places {
            for dir in run_folders(place)? {
                let name = dir.file_name().unwrap_or_default().to_string_lossy();
                if name.starts_with('.') {
                    continue; // A campaign that is being sealed.
                }
                if !SealedCampaign::is_at(&dir) {
                    runs.push(StoredRun::in_folder(&dir));
                    continue;
                }
                let of_campaign = in_campaign(&dir)?;
                sealed.extend(of_campaign.iter().map(|run| run.run_id.clone()));
                runs.extend(of_campaign);
            }
        }
        runs.retain(|run| run.is_sealed() || !sealed.contains(&run.run_id));
        runs.sort_by(|a, b| a.run_id.cmp(&b.run_id));
        Ok(runs)
    }

    /// The run that `typed` refers to: its id, a part of it that matches only one run, a run
    /// folder, or `campaign#arm/round`, where campaign and arm may be abbreviated too; the campaign
    /// may be a folder elsewhere.
    ///
    /// # Errors
    ///
    /// If no run or more than one is named so, or a place cannot be read.
    pub fn find(&self, typed: &str) -> Result<StoredRun, RecordError> {
        let path = Path::new(typed);
        if path.join(MANIFEST).is_file() {
            return Ok(StoredRun::in_folder(path));
        }
        let citation = Citation::parse(typed);
        let elsewhere = citation
            .as_ref()
            .map(|citation| Path::new(citation.campaign));
        let mut fits = match elsewhere.filter(|dir| SealedCampaign::is_at(dir)) {
            Some(dir) => in_campaign(dir)?,
            None => self.all()?,
        };
        if let Some(exact) = fits.iter().find(|run| run.run_id == typed) {
            return Ok(exact.clone());
        }
        match citation {
            Some(citation) => citation.narrow(&mut fits),
            None => fits.retain(|run| run.run_id.contains(typed)),
        }
        if fits.len() == 1
            && let Some(run) = fits.pop()
        {
            return Ok(run);
        }
        if fits.is_empty() {
            let places: Vec<String> = self
                .places
                .iter()
                .map(|place| place.display().to_string())
                .collect();
            return Err(RecordError::UnknownRun {
                places: places.join(", "),
                typed: typed.to_owned(),
            });
        }
        Err(RecordError::AmbiguousRun {
            typed: typed.to_owned(),
            fits: fits.into_iter().map(|run| run.run_id).collect(),
        })
    }
}

fn in_campaign(dir: &Path) -> Result<Vec<StoredRun>, RecordError> {
    let campaign = Arc::new(SealedCampaign::open(dir)?);
    let runs = campaign.starts.iter().map(|start| StoredRun {
        run_id: start.run_id.clone(),
        files: Files::Sealed(Arc::clone(&campaign)),
    });
    Ok(runs.collect())
}

/// `campaign#arm/round`.
struct Citation<'a> {
    campaign: &'a str,
    arm: &'a str,
    round: u32,
}

impl<'a> Citation<'a> {
    fn parse(typed: &'a str) -> Option<Self> {
        let (campaign, rest) = typed.split_once('#')?;
        let (arm, round) = rest.rsplit_once('/')?;
        Some(Self {
            campaign,
            arm,
            round: round.parse().ok()?,
        })
    }

    /// An exact match of the arm takes precedence over partial ones.
    fn narrow(&self, runs: &mut Vec<StoredRun>) {
        let mut exact = Vec::new();
        runs.retain(|run| {
            let Ok(manifest) = run.manifest() else {
                return false;
            };
            let folder = match &run.files {
                Files::Sealed(campaign) => campaign.dir().file_name(),
                Files::Folder(_) => None,
            };
            let campaign = Path::new(self.campaign)
                .file_name()
                .unwrap_or_default()
                .to_string_lossy();
            let is_of = manifest.campaign.contains(&*campaign)
                || folder.is_some_and(|name| name.to_string_lossy().contains(&*campaign));
            let arm = manifest.arm();
            let fits = is_of && manifest.replicate == self.round && arm.contains(self.arm);
            if fits && arm == self.arm {
                exact.push(run.clone());
            }
            fits
        });
        if !exact.is_empty() {
            *runs = exact;
        }
    }
}

/// A run and the location of its files.
#[derive(Debug, Clone)]
pub struct StoredRun {
    pub run_id: String,
    files: Files,
}

#[derive(Debug, Clone)]
enum Files {
    Folder(PathBuf),
    Sealed(Arc<SealedCampaign>),
}

impl StoredRun {
    pub fn in_folder(dir: &Path) -> Self {
        let name = dir.file_name().unwrap_or_default();
        Self {
            run_id: name.to_string_lossy().into_owned(),
            files: Files::Folder(dir.to_owned()),
        }
    }

    pub fn is_sealed(&self) -> bool {
        matches!(self.files, Files::Sealed(_))
    }

    /// The campaign folder of a sealed run.
    pub fn campaign(&self) -> Option<&SealedCampaign> {
        match &self.files {
            Files::Sealed(campaign) => Some(campaign),
            Files::Folder(_) => None,
        }
    }

    /// The run folder of an unsealed one.
    pub fn folder(&self) -> Option<&Path> {
        match &self.files {
            Files::Folder(dir) => Some(dir),
            Files::Sealed(_) => None,
        }
    }

    /// Its location, for messages; for a sealed run the campaign folder with the run's id.
    pub fn place(&self) -> PathBuf {
        match &self.files {
            Files::Folder(dir) => dir.clone(),
            Files::Sealed(campaign) => campaign.dir().join(&self.run_id),
        }
    }

    /// `None` if the run has no such file.
    ///
    /// # Errors
    ///
    /// [`RecordError::Io`] if the file or the campaign's compressed file cannot be read,
    /// [`RecordError::Malformed`] if the latter cannot be decoded.
    pub fn read(&self, file: &str) -> Result<Option<Cow<'_, [u8]>>, RecordError> {
        match &self.files {
            Files::Sealed(campaign) => Ok(campaign.read(&self.run_id, file)?.map(Cow::Borrowed)),
            Files::Folder(dir) => {
                let path = dir.join(file);
                match fs::read(&path) {
                    Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(RecordError::io(path, source)),
                }
            }
        }
    }

    /// As [`Self::read`], as a stream: there may be many request rows.
    ///
    /// # Errors
    ///
    /// As [`Self::read`], but errors while the stream is read come from the stream.
    pub fn open(&self, file: &str) -> Result<Option<Box<dyn BufRead + '_>>, RecordError> {
        match &self.files {
            Files::Sealed(campaign) => {
                let bytes = campaign.read(&self.run_id, file)?;
                Ok(bytes.map(|bytes| Box::new(bytes) as Box<dyn BufRead + '_>))
            }
            Files::Folder(dir) => {
                let path = dir.join(file);
                match File::open(&path) {
                    Ok(file) => Ok(Some(Box::new(BufReader::new(file)))),
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(RecordError::io(path, source)),
                }
            }
        }
    }

    /// A required file.
    ///
    /// # Errors
    ///
    /// Those of [`Self::read`]; [`RecordError::Io`] if there is no such file,
    /// [`RecordError::Malformed`] if it is not UTF-8.
    pub fn text(&self, file: &str) -> Result<String, RecordError> {
        let path = || self.place().join(file);
        let bytes = self.read(file)?.ok_or_else(|| {
            RecordError::io(
                path(),
                std::io::Error::new(ErrorKind::NotFound, "No such file"),
            )
        })?;
        String::from_utf8(bytes.into_owned()).map_err(|error| RecordError::malformed(path(), error))
    }

    /// A required file.
    ///
    /// # Errors
    ///
    /// Those of [`Self::text`], and [`RecordError::Malformed`] if the text is no JSON of this
    /// type.
    pub fn json<T: DeserializeOwned>(&self, file: &str) -> Result<T, RecordError> {
        serde_json::from_str(&self.text(file)?)
            .map_err(|error| RecordError::malformed(self.place().join(file), error))
    }

    /// # Errors
    ///
    /// Those of [`Self::json`], and [`RecordError::SchemaVersion`] if the version is not between
    /// [`OLDEST_SCHEMA_VERSION`] and [`SCHEMA_VERSION`].
    pub fn manifest(&self) -> Result<Manifest, RecordError> {
        let manifest: Manifest = self.json(MANIFEST)?;
        let found = manifest.schema_version;
        if (OLDEST_SCHEMA_VERSION..=SCHEMA_VERSION).contains(&found) {
            return Ok(manifest);
        }
        Err(RecordError::SchemaVersion {
            path: self.place().join(MANIFEST),
            found,
        })
    }

    /// `None`: it was killed before it had one.
    ///
    /// # Errors
    ///
    /// Those of [`Self::read`], and [`RecordError::Malformed`] if `status.json` is no status.
    pub fn status(&self) -> Result<Option<Status>, RecordError> {
        match self.read(STATUS)? {
            None => Ok(None),
            Some(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| RecordError::malformed(self.place().join(STATUS), error)),
        }
    }

    pub fn is_complete(&self) -> bool {
        let status = self.status().ok().flatten();
        status.is_some_and(|status| status.status == RunStatus::Complete)
    }

    /// # Errors
    ///
    /// Those of [`Self::json`], for `environment.json`.
    pub fn environment(&self) -> Result<Environment, RecordError> {
        self.json(ENVIRONMENT)
    }

    /// # Errors
    ///
    /// Those of [`Self::text`], and [`RecordError::Malformed`] if `config.resolved.toml` is not
    /// what a run writes.
    pub fn config(&self) -> Result<ResolvedConfig, RecordError> {
        toml::from_str(&self.text(CONFIG)?)
            .map_err(|error| RecordError::malformed(self.place().join(CONFIG), error))
    }

    /// # Errors
    ///
    /// Those of [`Self::text`], and [`RecordError::Malformed`] with the line that is no request
    /// row.
    pub fn rows(&self) -> Result<Vec<RequestRow>, RecordError> {
        let text = self.text(REQUESTS)?;
        let rows = text.lines().enumerate().map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| {
                let message = format!("line {}: {error}", index + 1);
                RecordError::malformed(self.place().join(REQUESTS), message)
            })
        });
        rows.collect()
    }

    /// How far the sources that ran can be recovered. What was determined when it was sealed takes
    /// precedence over the manifest.
    pub fn source(&self) -> Source {
        if let Files::Sealed(campaign) = &self.files
            && let Some(start) = campaign.start(&self.run_id)
        {
            return start.source.clone();
        }
        let has_changes = self.read(CHANGES).is_ok_and(|changes| changes.is_some());
        self.manifest().map_or(Source::Unknown, |manifest| {
            Source::of(&manifest, has_changes)
        })
    }
}
