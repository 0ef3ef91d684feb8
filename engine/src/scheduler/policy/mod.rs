//! The order in which waiting requests are admitted. A policy is a name and one file.
//!
//! # Ageing
//!
//! Every policy expresses its preference as a *handicap* in time. The queue is ordered by each
//! waiting request's virtual start,
//!
//! ```text
//! virtual_start = arrival + clamp(handicap, −MAX_HANDICAP, +MAX_HANDICAP)
//! ```
//!
//! and the smallest goes first; ties are broken by arrival. All requests age alike, so the order of
//! two of them does not depend on the current time: no request is overtaken by one that arrived 2 ·
//! [`MAX_HANDICAP_US`] or more after it, so none starves, whatever the policy. Policies whose
//! handicap is fixed at entry cost one insertion into an ordered map and nothing in a step.
//!
//! Policies that use shared prefixes reorder the [`PREFIX_WINDOW`] longest-waiting requests when
//! one of these comes or goes, or when a prefix gets its first holder or loses its last; otherwise
//! their order stands. Both bound their cost.
//! Deliberately absent: influence on who is preempted (always the last admitted, which guarantees
//! progress) or on the order of running requests.

mod dfs_weight;
mod fcfs;
mod lof;
mod longest_output_first;
mod lpm;
mod priority;
mod random;

use std::str::FromStr;

use crate::kv::PrefixIndex;
use crate::request::RequestId;

/// Maximum absolute handicap, in microseconds.
pub const MAX_HANDICAP_US: i64 = 120_000_000;

/// Weight of one token of work against waiting, in microseconds: about what a token costs in a
/// small batch, so that a short request passes a long one that has just arrived, but not one that
/// has waited for as long as it would run.
pub const TOKEN_WEIGHT_US: i64 = 5_000;

/// Waiting requests that a prefix-aware policy orders at once.
pub const PREFIX_WINDOW: usize = 256;

/// The properties of a waiting request that a policy may use.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub request: RequestId,
    /// Tokens to compute before the next one can be sampled.
    pub n_uncomputed_tokens: usize,
    /// Output tokens still allowed.
    pub n_output_left: usize,
    pub priority: i32,
    /// Chain of whole-page prefix hashes; empty unless the policy uses prefixes.
    pub prefix_hashes: &'a [u64],
}

pub trait Policy: Send + std::fmt::Debug {
    /// Handicap at entry, in microseconds: positive is later, negative is earlier.
    fn handicap_us(&self, candidate: &Candidate<'_>) -> i64;

    /// True if handicaps depend on the other requests; [`Self::window_handicaps_us`] computes them.
    fn orders_window(&self) -> bool {
        false
    }

    /// Appends the handicaps of the longest-waiting requests, which come in order of arrival. They
    /// depend only on these and on `held`: the prefixes that are cached or belong to running
    /// requests.
    fn window_handicaps_us(
        &mut self,
        _window: &[Candidate<'_>],
        _held: &PrefixIndex,
        _handicaps_us: &mut Vec<i64>,
    ) {
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    #[default]
    Fcfs,
    Lof,
    LongestOutputFirst,
    Random,
    Priority,
    Lpm,
    DfsWeight,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown schedule policy {0:?}; known: fcfs, lof, longest-output-first, random, priority, lpm, dfs-weight"
)]
pub struct UnknownPolicy(pub String);

impl PolicyName {
    pub const ALL: [Self; 7] = [
        Self::Fcfs,
        Self::Lof,
        Self::LongestOutputFirst,
        Self::Random,
        Self::Priority,
        Self::Lpm,
        Self::DfsWeight,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fcfs => "fcfs",
            Self::Lof => "lof",
            Self::LongestOutputFirst => "longest-output-first",
            Self::Random => "random",
            Self::Priority => "priority",
            Self::Lpm => "lpm",
            Self::DfsWeight => "dfs-weight",
        }
    }

    pub fn build(self, seed: u64) -> Box<dyn Policy> {
        match self {
            Self::Fcfs => Box::new(fcfs::Fcfs),
            Self::Lof => Box::new(lof::Lof),
            Self::LongestOutputFirst => Box::new(longest_output_first::LongestOutputFirst),
            Self::Random => Box::new(random::Random { seed }),
            Self::Priority => Box::new(priority::Priority),
            Self::Lpm => Box::new(lpm::Lpm),
            Self::DfsWeight => Box::new(dfs_weight::DfsWeight::default()),
        }
    }

    /// True if the policy compares prompt prefixes, which are then hashed at entry.
    pub fn uses_prefixes(self) -> bool {
        matches!(self, Self::Lpm | Self::DfsWeight)
    }
}

impl FromStr for PolicyName {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.as_str() == name)
            .ok_or_else(|| UnknownPolicy(name.to_owned()))
    }
}

impl std::fmt::Display for PolicyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
