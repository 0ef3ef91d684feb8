//! Records of measurements: their schema, and how they are read and written.
//!
//! ```text
//! one server start    → run folder       data/runs/<run id>/            written while it runs
//! one call of a recipe → campaign folder data/campaigns/<utc>_<name>_<hash8>/   sealed at its end
//! ```
//!
//! - [`manifest`], [`environment`], [`config`], [`status`], [`rows`], [`workload`]: the files of a run.
//! - [`run_folder`]: a folder that is being written, and the status of one whose runner was killed.
//! - [`campaign`], [`rows_tar`] and [`seal`]: all starts of a campaign in three files.
//! - [`store`]: runs by id, wherever they are.
//! - [`integrity`]: whether a record still contains what its run wrote.
//! - [`slo`]: what a search for the highest load found.
//! - [`source`]: how far the sources that ran can be recovered.
//! - [`sufficiency`]: how long a case must last, and how many requests a percentile takes.
//! - [`verdicts`]: the verdicts of the last rendered reports, and how many starts a verdict needs.
//! - [`imported`]: tables of figures that others measured.
//! - [`export`]: what all exports of a run share.
//!
//! A run folder is written while its server runs, and vouches for its files when it is finished:
//!
//! ```
//! use records::run_folder::{RunRecord, run_id};
//! use records::status::{RunStatus, Status};
//! use records::store::Store;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runs = std::env::temp_dir().join(format!("records-example-{}", std::process::id()));
//! let id = run_id(1_700_000_000, "01-baseline", "my host", "salt");
//! assert!(id.starts_with("20231114T221320Z_01-baseline_my-host_"));
//!
//! let record = RunRecord::create(&runs, &id)?;
//! record.write_text("server.log", "listening")?;
//! record.finish(RunStatus::Complete, None)?;
//! assert!(RunRecord::create(&runs, &id).is_err(), "records are never overwritten");
//!
//! let found = Store::from(&runs).find("01-baseline")?;
//! assert_eq!(found.text("server.log")?, "listening");
//! let status: Status = found.json(records::STATUS)?;
//! assert_eq!(status.status, RunStatus::Complete);
//! # std::fs::remove_dir_all(&runs)?;
//! # Ok(())
//! # }
//! ```
//!
//! `data/SCHEMA.md` is generated from these types (`UPDATE_SCHEMA=1 cargo test -p records schema`).
//! Deliberately absent: measuring, statistics of samples, an async runtime.

pub mod campaign;
pub mod config;
pub mod digests;
pub mod environment;
pub mod export;
pub mod imported;
pub mod integrity;
pub mod json_text;
pub mod manifest;
pub mod process_identity;
pub mod rows;
pub mod rows_tar;
pub mod run_folder;
#[cfg(test)]
mod schema_document;
pub mod seal;
pub mod sealed_rows;
pub mod slo;
pub mod source;
pub mod status;
pub mod store;
pub mod sufficiency;
pub mod text_file;
pub mod token_times;
pub mod utc;
pub mod verdicts;
pub mod workload;

use std::io;
use std::path::{Path, PathBuf};

/// The version written today.
pub const SCHEMA_VERSION: u32 = 3;
/// The oldest version that can be read.
pub const OLDEST_SCHEMA_VERSION: u32 = 1;

pub const MANIFEST: &str = "manifest.json";
pub const STATUS: &str = "status.json";
pub const SUMMARY: &str = "summary.json";
pub const ENVIRONMENT: &str = "environment.json";
pub const CONFIG: &str = "config.resolved.toml";
pub const SERVER_INFO: &str = "server_info.json";
pub const SERVER_LOG: &str = "server.log";
pub const REQUESTS: &str = "requests.jsonl";
pub const SERVER_METRICS: &str = "server_metrics.jsonl";
pub const MACHINE_LOAD: &str = "machine_load.jsonl";
pub const SLO: &str = "slo.json";
/// The difference between a modified tree and its commit.
pub const CHANGES: &str = "changes.diff";

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("{} exists already; records are never overwritten", path.display())]
    Exists { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {message}", path.display())]
    Malformed { path: PathBuf, message: String },
    #[error("{}: schema_version {found}, this program reads {OLDEST_SCHEMA_VERSION} to {SCHEMA_VERSION}", path.display())]
    SchemaVersion { path: PathBuf, found: u32 },
    #[error("{places}: no run is called `{typed}`")]
    UnknownRun { places: String, typed: String },
    #[error("`{typed}` fits {} runs: {}", fits.len(), fits.join(", "))]
    AmbiguousRun { typed: String, fits: Vec<String> },
    #[error("campaign {campaign} cannot be sealed: {message}")]
    Unsealable { campaign: String, message: String },
}

impl RecordError {
    pub(crate) fn io(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io {
            path: path.as_ref().to_owned(),
            source,
        }
    }

    pub(crate) fn malformed(path: impl AsRef<Path>, message: impl ToString) -> Self {
        Self::Malformed {
            path: path.as_ref().to_owned(),
            message: message.to_string(),
        }
    }
}
