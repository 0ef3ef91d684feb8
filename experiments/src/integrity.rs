//! Whether a complete run's folder holds what the run wrote.
//!
//! The last write of a run is `status.json`, with the digests of all other files. So a folder that was
//! changed, cut short or mixed up later tells. Runs of older versions have no digests; of them, and
//! of all others, the rows are checked against the workload.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::loadgen::RequestRow;
use crate::provenance::hex;
use crate::record::{self, Manifest, STATUS, Status};
use crate::recorded::{read_config, read_rows};
use crate::workload::Case;

/// SHA-256 by the name of a file of the folder.
pub type Digests = BTreeMap<String, String>;

/// What speaks for a folder in which nothing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vouched {
    ByDigests,
    /// By the number of its rows alone: an older version wrote no digests.
    ByRows,
}

/// Of every file in the folder but the status, into which they go.
pub fn digests_of(dir: &Path) -> io::Result<Digests> {
    let mut digests = Digests::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && !name.starts_with(STATUS) {
            digests.insert(name, digest_of(&entry.path())?);
        }
    }
    Ok(digests)
}

fn digest_of(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hex(&hash.finalize()))
}

/// What is wrong with the folder of a complete run, in one line.
pub fn check(dir: &Path) -> Result<Vouched, String> {
    let status: Status = read(dir, STATUS)?;
    let manifest: Manifest = read(dir, record::MANIFEST)?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    if manifest.run_id != name {
        return Err(format!(
            "a copy: its manifest is that of {}",
            manifest.run_id
        ));
    }
    for (name, wanted) in status.sha256.iter().flatten() {
        check_digest(dir, name, wanted)?;
    }
    let workload = read_config(dir).map_err(|e| format!("{e:#}"))?.workload;
    let rows = read_rows(dir).map_err(|e| format!("{e:#}"))?;
    check_rows(&rows, &workload.cases())?;
    Ok(match status.sha256 {
        Some(_) => Vouched::ByDigests,
        None => Vouched::ByRows,
    })
}

fn read<T: serde::de::DeserializeOwned>(dir: &Path, file: &str) -> Result<T, String> {
    record::read_json(&dir.join(file)).map_err(|error| error.to_string())
}

fn check_digest(dir: &Path, name: &str, wanted: &str) -> Result<(), String> {
    if name.contains('/') || name == ".." {
        return Err(format!("{STATUS}: `{name}` is no file of the folder"));
    }
    match digest_of(&dir.join(name)) {
        Ok(found) if found == wanted => Ok(()),
        Ok(_) => Err(format!(
            "{name} is not what the run wrote: its sha256 is not that in {STATUS}"
        )),
        Err(error) => Err(format!("{name}: {error}")),
    }
}

fn check_rows(rows: &[RequestRow], cases: &[Case]) -> Result<(), String> {
    for (index, row) in rows.iter().enumerate() {
        if let (None, Some(problem)) = (&row.error, row.implausible()) {
            return Err(format!(
                "{}, line {}: {problem}",
                record::REQUESTS,
                index + 1
            ));
        }
    }
    for case in cases.iter().filter(|case| !case.warmup) {
        let is_of = |row: &&RequestRow| row.case == case.name && !row.warmup;
        let n_found = rows.iter().filter(is_of).count();
        if n_found != case.n_requests as usize {
            return Err(format!(
                "{} has {n_found} rows of case {}; the workload asked for {}",
                record::REQUESTS,
                case.name,
                case.n_requests
            ));
        }
    }
    Ok(())
}
