//! How busy the machine was beside the measurement, and what energy it used: `machine_load.jsonl`, an
//! object a case, and a remark where it was too busy.
//!
//! Other processes' share is what `/proc/stat` counts as busy, less the CPU time of this program and
//! of the server that it started. Of a server that it did not start the two cannot be told apart, so
//! there is no share then. Steal is CPU time that a virtual machine's host gave to others.

use std::fs;

use records::RecordError;
use records::run_folder::JsonLines;

use crate::record::energy::{self, Reading, SharedMeters};

pub use records::rows::CaseLoad;

/// Shares of the machine's CPU time above which a figure is marked.
pub const MAX_OTHERS_SHARE: f64 = 0.10;
pub const MAX_STEAL_SHARE: f64 = 0.05;
/// Shorter stretches have too few clock ticks to be judged.
const MIN_JUDGED_S: f64 = 0.5;

/// Clock ticks of all processors together since the machine's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    steal: u64,
    total: u64,
    /// Of the measurement's own processes.
    own: u64,
}

/// Writes a line a case.
#[derive(Debug)]
pub struct LoadWatch {
    /// This program and the server's processes; `None` where the server is not ours.
    own_pids: Option<Vec<u32>>,
    lines: JsonLines,
    meters: SharedMeters,
    seen: Vec<CaseLoad>,
}

/// A case that is running.
#[derive(Debug)]
pub struct Began {
    start_s: f64,
    ticks: Option<Ticks>,
    load_average_1m: Option<f64>,
    meters: Reading,
}

impl LoadWatch {
    pub fn new(server_pids: Option<Vec<u32>>, lines: JsonLines, meters: SharedMeters) -> Self {
        let with_this = |mut pids: Vec<u32>| {
            pids.push(std::process::id());
            pids
        };
        Self {
            own_pids: server_pids.map(with_this),
            lines,
            meters,
            seen: Vec::new(),
        }
    }

    pub fn begin(&self, now_s: f64) -> Began {
        Began {
            start_s: now_s,
            ticks: self.ticks(),
            load_average_1m: load_averages().map(|averages| averages[0]),
            meters: self.meters.read(),
        }
    }

    pub fn end(&mut self, cases: Vec<String>, began: Began, now_s: f64) -> Result<(), RecordError> {
        let (others_share, steal_share) = match (began.ticks, self.ticks()) {
            (Some(before), Some(after)) => shares(before, after),
            _ => (None, None),
        };
        let load = CaseLoad {
            cases,
            start_s: began.start_s,
            end_s: now_s,
            load_average_1m: began.load_average_1m,
            others_share: others_share.filter(|_| self.own_pids.is_some()),
            steal_share,
            energy: energy::between(&began.meters, &self.meters.read()),
        };
        self.lines.append(&load)?;
        self.seen.push(load);
        Ok(())
    }

    /// The lines so far.
    pub fn loads(&self) -> &[CaseLoad] {
        &self.seen
    }

    /// What a reader must know; `None` for a quiet machine.
    pub fn remark(&self) -> Option<String> {
        remark_on(&self.seen)
    }

    fn ticks(&self) -> Option<Ticks> {
        let own = self.own_pids.iter().flatten();
        let own = own.filter_map(|pid| {
            process_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
        });
        machine_ticks(&fs::read_to_string("/proc/stat").ok()?, own.sum())
    }
}

/// Over one, five and fifteen minutes.
pub fn load_averages() -> Option<[f64; 3]> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    let mut numbers = text.split_whitespace().map(|word| word.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

/// The line `cpu  user nice system idle iowait irq softirq steal …`.
fn machine_ticks(stat: &str, own: u64) -> Option<Ticks> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .map(|word| word.parse().ok())
        .collect::<Option<_>>()?;
    let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = fields[..] else {
        return None;
    };
    let busy = user + nice + system + irq + softirq;
    Some(Ticks {
        busy,
        steal,
        total: busy + idle + iowait + steal,
        own,
    })
}

/// User and system time of a process, fields 14 and 15; the second field may hold spaces.
fn process_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn shares(before: Ticks, after: Ticks) -> (Option<f64>, Option<f64>) {
    let total = after.total.saturating_sub(before.total);
    if total == 0 {
        return (None, None);
    }
    let of_total = |ticks: u64| Some(ticks as f64 / total as f64);
    let busy = after.busy.saturating_sub(before.busy);
    let own = after.own.saturating_sub(before.own);
    (
        of_total(busy.saturating_sub(own)),
        of_total(after.steal.saturating_sub(before.steal)),
    )
}

fn remark_on(loads: &[CaseLoad]) -> Option<String> {
    let judged: Vec<&CaseLoad> = loads
        .iter()
        .filter(|load| load.end_s - load.start_s >= MIN_JUDGED_S)
        .collect();
    let worst = |share: fn(&CaseLoad) -> Option<f64>, limit: f64, who: &str| {
        let above = judged
            .iter()
            .filter_map(|load| Some((share(load)?, load)))
            .filter(|(share, _)| *share > limit);
        let n_above = above.clone().count();
        let (most, load) = above.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
        Some(format!(
            "{who} {:.0} % of the CPU time in {} (more than {:.0} % in {n_above} of {} cases)",
            most * 100.0,
            load.cases.join(" and "),
            limit * 100.0,
            loads.len()
        ))
    };
    let found: Vec<String> = [
        worst(
            |load| load.others_share,
            MAX_OTHERS_SHARE,
            "other processes had",
        ),
        worst(
            |load| load.steal_share,
            MAX_STEAL_SHARE,
            "the host gave away",
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!found.is_empty()).then(|| format!("busy machine: {}", found.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_all_processors_time_without_our_own() {
        let at = |stat: &str, own| machine_ticks(stat, own).expect("a line of /proc/stat");
        let before = at("cpu  100 0 50 800 10 0 5 35 7 0\ncpu0 1\n", 60);
        assert_eq!((before.busy, before.total), (155, 1000));
        // 200 ticks later: 110 busy, 80 of them ours, 20 stolen.
        let after = at("cpu  190 10 60 860 20 0 5 55 9 0\n", 140);
        assert_eq!(shares(before, after), (Some(0.15), Some(0.1)));
        assert_eq!(shares(before, before), (None, None));
        assert_eq!(machine_ticks("cpu  1 2", 0), None);
        assert_eq!(
            process_ticks("7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 21 4 0 0"),
            Some(25)
        );
    }

    #[test]
    fn a_busy_machine_is_remarked_and_a_quiet_one_is_not() {
        let load = |case: &str, seconds, others: Option<f64>, steal| CaseLoad {
            cases: vec![case.into()],
            start_s: 1.0,
            end_s: 1.0 + seconds,
            load_average_1m: None,
            others_share: others,
            steal_share: Some(steal),
            energy: None,
        };
        let quiet = [
            load("a", 5.0, Some(0.02), 0.01),
            // Too short for its ticks to say anything; and a server that is not ours.
            load("b", 0.1, Some(0.9), 0.9),
            load("c", 5.0, None, 0.0),
        ];
        assert_eq!(remark_on(&quiet), None);
        let busy = [
            load("a", 5.0, Some(0.2), 0.0),
            load("b", 5.0, Some(0.354), 0.06),
            load("c", 5.0, Some(0.01), 0.0),
        ];
        assert_eq!(
            remark_on(&busy).as_deref(),
            Some(
                "busy machine: other processes had 35 % of the CPU time in b (more than 10 % in 2 of 3 cases), the host gave away 6 % of the CPU time in b (more than 5 % in 1 of 3 cases)"
            )
        );
    }

    #[test]
    fn this_machine_tells_its_load() {
        assert!(load_averages().is_some_and(|averages| averages[0] >= 0.0));
        let stat = fs::read_to_string("/proc/stat").expect("readable");
        assert!(machine_ticks(&stat, 0).is_some_and(|ticks| ticks.total > 0));
    }
}
