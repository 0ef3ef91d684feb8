//! One measurement at a time on a machine: two at once would measure each other.
//!
//! A lock on a file in the cache folder. The kernel frees it when the process ends, however it ends;
//! what stands in the file only tells others who holds it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use records::utc;
use serde::{Deserialize, Serialize};

use crate::run::interrupts::Interrupts;
use crate::terminal::{note, plain};

const POLL: Duration = Duration::from_millis(500);

/// Held while it lives.
#[derive(Debug)]
pub struct MeasurementLock {
    _file: File,
}

/// Who holds the lock.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    /// The words of its command line.
    command: String,
    since_utc: String,
}

impl MeasurementLock {
    /// `None`: interrupted while it waited.
    pub async fn take(wait: bool, interrupts: &mut Interrupts) -> Result<Option<Self>> {
        let mut file = open()?;
        let mut is_told = false;
        while !is_free(&file)? {
            let holder = holder_in(&mut file);
            if !wait {
                bail!(
                    "{holder} measures on this machine; two at once would measure each other: call again when it has ended, or with --wait"
                );
            }
            if !is_told {
                note!("waiting: {holder} measures on this machine");
                is_told = true;
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                name = interrupts.next() => {
                    note!("interrupted ({name})");
                    return Ok(None);
                }
            }
        }
        Self::held(file).map(Some)
    }

    /// For what must not happen while something is measured.
    pub fn take_now() -> Result<Self> {
        let mut file = open()?;
        if !is_free(&file)? {
            bail!(
                "{} measures on this machine; call again when it has ended",
                holder_in(&mut file)
            );
        }
        Self::held(file)
    }

    /// Says who holds it.
    fn held(mut file: File) -> Result<Self> {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let holder = Holder {
            pid: std::process::id(),
            command: args.join(" "),
            since_utc: utc::rfc3339(utc::now_unix_s()),
        };
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(serde_json::to_string(&holder)?.as_bytes()));
        written.context("the lock on measurements")?;
        Ok(Self { _file: file })
    }
}

fn open() -> Result<File> {
    let path = path()?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("the lock {}", path.display()))
}

/// Takes it where it is.
fn is_free(file: &File) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error).context("the lock on measurements"),
    }
}

/// `process 4711 ("run balanced-v2", since …)`.
fn holder_in(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let holder = read
        .ok()
        .and_then(|_| serde_json::from_str::<Holder>(&text).ok());
    match holder {
        Some(Holder {
            pid,
            command,
            since_utc,
        }) => plain(&format!(
            "process {pid} (\"experiments {command}\", since {since_utc})"
        )),
        // It has just taken the lock, and writes.
        None => "another process".into(),
    }
}

/// In a folder of the engine's name below `$ENGINE_CACHE`, or else the user's cache folder.
fn path() -> Result<PathBuf> {
    let folder = |name: &str| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute() || (name == "ENGINE_CACHE" && path.as_os_str() != ""))
    };
    let cache = folder("ENGINE_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME"))
        .or_else(|| folder("HOME").map(|home| home.join(".cache")))
        .context(
            "no cache folder for the lock against a second measurement: set ENGINE_CACHE, XDG_CACHE_HOME or HOME",
        )?
        .join("balanced-engine");
    fs::create_dir_all(&cache).with_context(|| {
        format!(
            "{} cannot be made for the lock against a second measurement; ENGINE_CACHE names another folder",
            cache.display()
        )
    })?;
    Ok(cache.join("measurement.lock"))
}
