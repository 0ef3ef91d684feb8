//! What a search for the highest load within limits found: `slo.json`.

use serde::{Deserialize, Serialize};

/// The number of trials after which a search ends.
pub const MOST_TRIALS: usize = 16;
/// A search ends where the load that is too much is at most this multiple of the one that is kept.
pub const CLOSE_ENOUGH: f64 = 1.1;

/// `slo.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SloOutcome {
    /// Highest load that kept the limits: requests a second, or users; null if not even the lowest
    /// did.
    pub highest: Option<f64>,
    /// Lowest load that did not; null if all that were tried did.
    pub too_much: Option<f64>,
    /// In the order in which they ran.
    pub trials: Vec<SloTrial>,
}

/// One load that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SloTrial {
    /// Name of the case in `requests.jsonl`.
    pub case: String,
    pub load: f64,
    pub n_requests: u32,
    /// Requests that met every limit.
    pub n_within: u32,
    /// Whether their share is what was asked for.
    pub kept: bool,
}
