//! Identifies the process that wrote something, so that a later one can tell whether it is still
//! alive.
//!
//! A pid may be reused; pid, start time and boot id together are unique. Linux only: without
//! `/proc` the identity is incomplete and the process counts as gone.

use std::fs;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProcessIdentity {
    pub pid: u32,
    /// Clock ticks from boot to the start of the process.
    pub start_ticks: Option<u64>,
    pub boot_id: Option<String>,
}

impl ProcessIdentity {
    /// The calling process.
    pub fn own() -> Self {
        let pid = std::process::id();
        Self {
            pid,
            start_ticks: start_ticks(pid),
            boot_id: boot_id(),
        }
    }

    /// Whether this process is still running on this machine.
    pub fn is_alive(&self) -> bool {
        self.boot_id.is_some()
            && self.boot_id == boot_id()
            && self.start_ticks.is_some()
            && self.start_ticks == start_ticks(self.pid)
    }
}

/// Resident memory of a process; `None` once it is gone.
pub fn rss_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_string())
}

/// Field 22 of `/proc/<pid>/stat`; the second field may contain spaces, so count from its end. A
/// zombie has ended: it counts as gone.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_a_reused_pid_does_not_count() {
        let own = ProcessIdentity::own();
        assert!(own.is_alive());
        assert!(
            !ProcessIdentity {
                start_ticks: own.start_ticks.map(|t| t + 1),
                ..own.clone()
            }
            .is_alive()
        );
        assert!(
            !ProcessIdentity {
                boot_id: Some("another boot".into()),
                ..own
            }
            .is_alive()
        );
        assert!(rss_bytes(std::process::id()).is_some_and(|bytes| bytes > 1 << 20));
    }
}
