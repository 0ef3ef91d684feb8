//! The run folder: `data/SCHEMA.md` describes every file.
//!
//! Created once, never overwritten; rows are appended and flushed as they come, so that a killed
//! run keeps its measurements. `status.json` says `running` from the start, with the identity of
//! the runner, and is replaced last, with the digests of all other files. If it still says
//! `running` but the runner is gone, the run was killed, and [`finalise_killed`] records that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::digests::{self, digest_of_bytes};
use crate::rows::RequestRow;
use crate::status::{RunStatus, Status};
use crate::{MANIFEST, REQUESTS, RecordError, STATUS, utc};

pub const REASON_RUNNER_KILLED: &str = "the runner was killed";

/// Grace period for a folder without a status: its runner may be about to write it.
const STATUS_DUE: Duration = Duration::from_mins(1);

/// `<utc>_<experiment>_<host>_<hash8>`; the hash distinguishes runs of the same second.
pub fn run_id(started_unix_s: u64, experiment: &str, host: &str, salt: &str) -> String {
    let safe_host: String = host
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' {
                c
            } else {
                '-'
            }
        })
        .collect();
    let hash = digest_of_bytes(salt.as_bytes());
    format!(
        "{}_{experiment}_{safe_host}_{}",
        utc::compact(started_unix_s),
        &hash[..8]
    )
}

/// A run folder that is being written.
#[derive(Debug)]
pub struct RunRecord {
    dir: PathBuf,
    requests: JsonLines,
}

impl RunRecord {
    /// Creates the folder and marks it as running. An existing folder is an error.
    ///
    /// # Errors
    ///
    /// If the folder exists already, or cannot be made.
    pub fn create(runs_dir: &Path, run_id: &str) -> Result<Self, RecordError> {
        fs::create_dir_all(runs_dir).map_err(|source| RecordError::Io {
            path: runs_dir.into(),
            source,
        })?;
        let dir = runs_dir.join(run_id);
        fs::create_dir(&dir).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => RecordError::Exists { path: dir.clone() },
            _ => RecordError::Io {
                path: dir.clone(),
                source,
            },
        })?;
        write_json(&dir.join(STATUS), &Status::running())?;
        let requests = JsonLines::create(&dir.join(REQUESTS))?;
        Ok(Self { dir, requests })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Writes `file` as JSON. For files that are written once; the manifest is written again when
    /// the server has reported its model.
    ///
    /// # Errors
    ///
    /// [`RecordError::Io`] if the file cannot be written, [`RecordError::Malformed`] if the
    /// value has no JSON form.
    pub fn write_json(&self, file: &str, value: &impl Serialize) -> Result<(), RecordError> {
        write_json(&self.dir.join(file), value)
    }

    /// # Errors
    ///
    /// [`RecordError::Io`] if the file cannot be written.
    pub fn write_text(&self, file: &str, text: &str) -> Result<(), RecordError> {
        write_replacing(&self.dir.join(file), text.as_bytes())
    }

    /// # Errors
    ///
    /// [`RecordError::Io`] if the file cannot be written, [`RecordError::Malformed`] if the
    /// value has no TOML form.
    pub fn write_toml(&self, file: &str, value: &impl Serialize) -> Result<(), RecordError> {
        let path = self.dir.join(file);
        let text = toml::to_string_pretty(value).map_err(|error| RecordError::Malformed {
            path: path.clone(),
            message: error.to_string(),
        })?;
        write_replacing(&path, text.as_bytes())
    }

    /// # Errors
    ///
    /// [`RecordError::Io`] if the row cannot be written in full; nothing of it is kept then.
    pub fn append_request(&mut self, row: &RequestRow) -> Result<(), RecordError> {
        self.requests.append(row)
    }

    /// The last write of a run.
    ///
    /// # Errors
    ///
    /// [`RecordError::Io`] if a file of the folder cannot be read for its digest or the status
    /// cannot be written.
    pub fn finish(self, status: RunStatus, reason: Option<String>) -> Result<(), RecordError> {
        let digests = digests::digests_of(&self.dir, STATUS)
            .map_err(|source| RecordError::io(&self.dir, source))?;
        let status = Status::finished(status, reason, Some(digests));
        write_json(&self.dir.join(STATUS), &status)
    }
}

/// A JSON Lines file whose rows are on disk as soon as they are appended.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: File,
    /// Length of the complete lines.
    n_bytes: u64,
}

impl JsonLines {
    /// An existing file is an error.
    ///
    /// # Errors
    ///
    /// [`RecordError::Io`] if the file exists or cannot be created.
    pub fn create(path: &Path) -> Result<Self, RecordError> {
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(path)
            .map_err(|source| RecordError::Io {
                path: path.into(),
                source,
            })?;
        Ok(Self {
            path: path.into(),
            file,
            n_bytes: 0,
        })
    }

    /// Appends the row as one line.
    ///
    /// # Errors
    ///
    /// [`RecordError::Malformed`] if the row has no JSON form, [`RecordError::Io`] if it cannot
    /// be written in full; a part of a line is cut off again.
    pub fn append(&mut self, row: &impl Serialize) -> Result<(), RecordError> {
        let mut line = serde_json::to_vec(row).map_err(|error| RecordError::Malformed {
            path: self.path.clone(),
            message: error.to_string(),
        })?;
        line.push(b'\n');
        // One write for the whole line: a runner killed here leaves no half line. A disk
        // that is full takes a part, which is taken back.
        let written = self.file.write_all(&line).inspect_err(|_| {
            let _ = self.file.set_len(self.n_bytes);
        });
        written.map_err(|source| RecordError::Io {
            path: self.path.clone(),
            source,
        })?;
        self.n_bytes += line.len() as u64;
        Ok(())
    }
}

/// Changes `running` to `failed`; a run that has ended keeps its status.
///
/// # Errors
///
/// If the status there cannot be read or the new one cannot be written ([`RecordError::Io`]), or
/// the one there is no status ([`RecordError::Malformed`]).
pub fn label_failed(dir: &Path, reason: &str) -> Result<(), RecordError> {
    let path = dir.join(STATUS);
    if path.exists() && read_json::<Status>(&path)?.status != RunStatus::Running {
        return Ok(());
    }
    write_json(
        &path,
        &Status::finished(RunStatus::Failed, Some(reason.into()), None),
    )
}

/// Labels the runs whose runner is gone; returns their folders' names. Targets of links in
/// `runs_dir` are elsewhere and are not changed.
///
/// # Errors
///
/// [`RecordError::Io`] if `runs_dir` cannot be listed or a killed run's status cannot be
/// written. A folder with an unreadable status is left as it is.
pub fn finalise_killed(runs_dir: &Path) -> Result<Vec<String>, RecordError> {
    let mut labelled = Vec::new();
    for dir in run_folders(runs_dir)? {
        if dir.is_symlink() {
            continue;
        }
        let path = dir.join(STATUS);
        let killed = if path.exists() {
            // Without a readable status the runner is unknown.
            let Ok(status) = read_json::<Status>(&path) else {
                continue;
            };
            status.status == RunStatus::Running && !status.is_alive()
        } else {
            is_record(&dir) && is_older_than(&dir, STATUS_DUE)
        };
        if killed {
            label_failed(&dir, REASON_RUNNER_KILLED)?;
            labelled.extend(
                dir.file_name()
                    .map(|name| name.to_string_lossy().into_owned()),
            );
        }
    }
    Ok(labelled)
}

/// Run folders, oldest first. Having none yet is not an error.
///
/// # Errors
///
/// [`RecordError::Io`] if `runs_dir` exists but cannot be listed.
pub fn run_folders(runs_dir: &Path) -> Result<Vec<PathBuf>, RecordError> {
    let entries = match fs::read_dir(runs_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(RecordError::Io {
                path: runs_dir.into(),
                source,
            });
        }
    };
    let mut dirs: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    dirs.sort();
    Ok(dirs)
}

/// # Errors
///
/// [`RecordError::Io`] if the file cannot be read, [`RecordError::Malformed`] if it is no JSON
/// of this type.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let text = fs::read_to_string(path).map_err(|source| RecordError::Io {
        path: path.into(),
        source,
    })?;
    serde_json::from_str(&text).map_err(|error| RecordError::Malformed {
        path: path.into(),
        message: error.to_string(),
    })
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), RecordError> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| RecordError::Malformed {
        path: path.into(),
        message: error.to_string(),
    })?;
    text.push('\n');
    write_replacing(path, text.as_bytes())
}

/// Readers see the old or the new content, never a part.
pub(crate) fn write_replacing(path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = PathBuf::from(beside);
    fs::write(&beside, bytes)
        .and_then(|()| fs::rename(&beside, path))
        .inspect_err(|_| {
            // A full disk may have written a part of it.
            let _ = fs::remove_file(&beside);
        })
        .map_err(|source| RecordError::Io {
            path: path.into(),
            source,
        })
}

/// True only for run folders; guards against a mistyped `--runs-dir`.
fn is_record(dir: &Path) -> bool {
    [MANIFEST, REQUESTS]
        .iter()
        .any(|name| dir.join(name).is_file())
}

fn is_older_than(path: &Path, age: Duration) -> bool {
    let modified = path.metadata().and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| {
        SystemTime::now()
            .duration_since(modified)
            .is_ok_and(|elapsed| elapsed > age)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SUMMARY;
    use crate::process_identity::ProcessIdentity;

    #[test]
    fn an_existing_folder_is_never_overwritten() {
        let runs = tempfile::tempdir().expect("temporary folder");
        let record = RunRecord::create(runs.path(), "r1").expect("new");
        fs::write(record.path("keep"), "me").expect("written");
        let error = RunRecord::create(runs.path(), "r1").expect_err("exists");
        assert!(matches!(error, RecordError::Exists { .. }), "{error}");
        assert_eq!(
            fs::read_to_string(runs.path().join("r1/keep")).expect("kept"),
            "me"
        );
        assert!(JsonLines::create(&runs.path().join("r1").join(REQUESTS)).is_err());
    }

    #[test]
    fn only_runs_whose_runner_is_gone_are_labelled() {
        let runs = tempfile::tempdir().expect("temporary folder");
        let status_of =
            |id: &str| read_json::<Status>(&runs.path().join(id).join(STATUS)).expect("status");

        let _alive = RunRecord::create(runs.path(), "alive").expect("new");
        RunRecord::create(runs.path(), "done")
            .expect("new")
            .finish(RunStatus::Complete, None)
            .expect("finished");
        let _gone = RunRecord::create(runs.path(), "gone").expect("new");
        let mut status = status_of("gone");
        status.runner = status.runner.map(|runner| ProcessIdentity {
            boot_id: Some("before the reboot".into()),
            ..runner
        });
        write_json(&runs.path().join("gone").join(STATUS), &status).expect("written");
        // Another runner may be about to write this one's status.
        fs::create_dir(runs.path().join("just-made")).expect("made");
        let old = |id: &str, file: &str| {
            let dir = runs.path().join(id);
            fs::create_dir(&dir).expect("made");
            fs::write(dir.join(file), "").expect("written");
            let hour_ago = SystemTime::now() - Duration::from_hours(1);
            let dir = File::open(&dir).expect("opened");
            dir.set_modified(hour_ago).expect("aged");
        };
        old("old", REQUESTS);
        old("no-run", "experiment.toml");

        let labelled = finalise_killed(runs.path()).expect("readable");
        assert_eq!(labelled, ["gone", "old"]);
        assert!(!runs.path().join("no-run").join(STATUS).exists());
        assert_eq!(status_of("alive").status, RunStatus::Running);
        assert_eq!(status_of("done").status, RunStatus::Complete);
        let gone = status_of("gone");
        assert_eq!(
            (gone.status, gone.reason.as_deref()),
            (RunStatus::Failed, Some(REASON_RUNNER_KILLED))
        );
        assert!(gone.finished_utc.is_some());
        assert!(!runs.path().join("just-made").join(STATUS).exists());
        assert!(finalise_killed(runs.path()).expect("readable").is_empty());
    }

    #[test]
    fn what_a_link_leads_to_is_left_as_it_is() {
        let (runs, elsewhere) = (
            tempfile::tempdir().expect("temporary folder"),
            tempfile::tempdir().expect("temporary folder"),
        );
        let _gone = RunRecord::create(elsewhere.path(), "gone").expect("new");
        let path = elsewhere.path().join("gone").join(STATUS);
        let mut status: Status = read_json(&path).expect("status");
        status.runner = None;
        write_json(&path, &status).expect("written");
        let link = runs.path().join("gone");
        std::os::unix::fs::symlink(elsewhere.path().join("gone"), link).expect("linked");
        assert!(finalise_killed(runs.path()).expect("readable").is_empty());
        let status: Status = read_json(&path).expect("status");
        assert_eq!(status.status, RunStatus::Running);
    }

    #[test]
    fn a_status_that_cannot_be_read_stops_nothing() {
        let runs = tempfile::tempdir().expect("temporary folder");
        let record = RunRecord::create(runs.path(), "torn").expect("new");
        fs::write(record.path(STATUS), "{\"status\":").expect("written");
        assert!(finalise_killed(runs.path()).expect("readable").is_empty());
    }

    #[test]
    fn the_last_write_vouches_for_all_others() {
        let runs = tempfile::tempdir().expect("temporary folder");
        let record = RunRecord::create(runs.path(), "r1").expect("new");
        record.write_json(SUMMARY, &1).expect("written");
        let dir = record.dir().to_path_buf();
        record.finish(RunStatus::Complete, None).expect("finished");
        let status: Status = read_json(&dir.join(STATUS)).expect("status");
        let digests = status.sha256.expect("digests");
        let names: Vec<&str> = digests.keys().map(String::as_str).collect();
        assert_eq!(names, [REQUESTS, SUMMARY]);
        // Of an empty file.
        assert!(digests[REQUESTS].starts_with("e3b0c44298fc1c149afbf4c8996fb924"));
    }

    /// Like a full disk: the status cannot be written next to the old one.
    #[test]
    fn a_run_whose_end_cannot_be_written_is_not_complete() {
        let runs = tempfile::tempdir().expect("temporary folder");
        let record = RunRecord::create(runs.path(), "r1").expect("new");
        let status = record.path(STATUS);
        let blocked = record.path(&format!("{STATUS}.{}.tmp", std::process::id()));
        fs::create_dir(&blocked).expect("made");
        let error = record
            .finish(RunStatus::Complete, None)
            .expect_err("blocked");
        assert!(error.to_string().contains(STATUS), "{error}");
        let left: Status = read_json(&status).expect("the old status");
        assert_eq!(left.status, RunStatus::Running);
        fs::remove_dir(&blocked).expect("removed");
        label_failed(&status.with_file_name(""), "the disk was full").expect("written");
        let left: Status = read_json(&status).expect("a status");
        assert_eq!(left.status, RunStatus::Failed);
    }

    #[test]
    fn run_ids_sort_by_time_and_are_safe_names() {
        let id = run_id(1_758_528_930, "03-balanced-v2", "my host.local/x", "salt");
        assert!(
            id.starts_with("20250922T081530Z_03-balanced-v2_my-host-local-x_"),
            "{id}"
        );
        assert_eq!(id.rsplit_once('_').map(|(_, hash)| hash.len()), Some(8));
        assert_ne!(
            id,
            run_id(1_758_528_930, "03-balanced-v2", "my host.local/x", "pepper")
        );
    }
}
