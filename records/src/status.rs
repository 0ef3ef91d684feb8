//! How a run ended: `status.json`, written last.

use serde::{Deserialize, Serialize};

use crate::digests::Digests;
use crate::process_identity::ProcessIdentity;
use crate::utc;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum RunStatus {
    /// Or killed, if the runner is gone.
    Running,
    Complete,
    Failed,
    /// Its answers were not those of the reference engine, so it was not measured.
    Wrong,
}

impl RunStatus {
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Failed => "failed",
            Self::Wrong => "wrong",
        }
    }
}

/// `status.json`: how the run ended. Replaced last; until then it says `running`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status {
    pub status: RunStatus,
    /// Why it failed or what was wrong; for a complete run a remark: failed requests, responses of a different length
    /// than requested, a busy machine (others_share above 0.10, or steal_share above 0.05, in a
    /// case of at least half a second), a clock that was set.
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub finished_utc: Option<String>,
    /// The runner's process, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<ProcessIdentity>,
    /// For each other file of the folder, by name, once the run has ended on its own; absent in
    /// records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digests>,
}

impl Status {
    pub(crate) fn running() -> Self {
        Self {
            status: RunStatus::Running,
            reason: None,
            finished_utc: None,
            runner: Some(ProcessIdentity::own()),
            sha256: None,
        }
    }

    pub(crate) fn finished(
        status: RunStatus,
        reason: Option<String>,
        sha256: Option<Digests>,
    ) -> Self {
        Self {
            status,
            reason,
            finished_utc: Some(utc::rfc3339(utc::now_unix_s())),
            runner: None,
            sha256,
        }
    }

    /// Whether it says `running` and the process that wrote it is alive.
    pub fn is_alive(&self) -> bool {
        self.status == RunStatus::Running
            && self.runner.as_ref().is_some_and(ProcessIdentity::is_alive)
    }
}
