//! The rows of JSON Lines files: requests, samples of the server, the machine's load.

use serde::{Deserialize, Serialize};

use crate::workload::Phase;

/// A line of `requests.jsonl`: one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RequestRow {
    /// `latency-10`, `ladder-50`, `users-20` … unique within the workload. With several models
    /// `alone-<model>-<tokens>` while the others are idle, `together-<model>-<tokens>` all at once,
    /// with the same prompts.
    pub case: String,
    pub phase: Phase,
    /// Excluded from statistics: a warm-up, or sent as background load for cases that run at the
    /// same time.
    pub warmup: bool,
    /// The requested model; absent if the server has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Order within the case.
    pub index: u32,
    /// Index of the closed loop's user; null in an open loop.
    pub user: Option<u32>,
    /// Number of users in the case; null in an open loop.
    pub n_users: Option<u32>,
    /// Rate of Poisson arrivals; null in a closed loop.
    pub rate_per_s: Option<f64>,
    /// Line of the prompt file.
    pub prompt_id: String,
    /// Requested output tokens.
    pub max_tokens: u32,
    /// Scheduled time of sending.
    pub scheduled_s: f64,
    /// Time of sending, after the connection was opened; null if there was none.
    pub sent_s: Option<f64>,
    /// First token's arrival, down to 10 µs, null if none.
    pub first_token_s: Option<f64>,
    /// Arrival of every streamed chunk that carried a token, in order, down to 10 µs.
    pub token_s: Vec<f64>,
    /// End of the response.
    pub end_s: f64,
    /// From the server's `usage`, like the next two.
    pub prompt_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
    /// `length`, `stop`, … or null.
    pub finish_reason: Option<String>,
    /// Null or the message; an impossible `usage` (more output tokens than `max_tokens`, more
    /// cached than prompt tokens) is an error too.
    pub error: Option<String>,
}

impl RequestRow {
    /// What is impossible about its figures; they would show a server's mistake.
    pub fn implausible(&self) -> Option<String> {
        implausible_usage(
            self.max_tokens,
            self.prompt_tokens,
            self.output_tokens,
            self.cached_tokens,
        )
        .or_else(|| {
            let times = [self.sent_s, self.first_token_s, Some(self.end_s)];
            let times: Vec<f64> = times.into_iter().flatten().collect();
            let in_order = times.windows(2).all(|pair| pair[0] <= pair[1]);
            (!in_order)
                .then(|| "its times are not in order: sent_s, first_token_s, end_s".to_owned())
        })
    }
}

/// No prompt of a workload has this many tokens.
const MAX_PROMPT_TOKENS: u64 = 1 << 24;

/// What is impossible in a server's `usage`.
pub fn implausible_usage(
    max_tokens: u32,
    prompt_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cached_tokens: Option<u64>,
) -> Option<String> {
    if let Some(n) = output_tokens.filter(|n| *n > u64::from(max_tokens)) {
        return Some(format!(
            "the server's usage says {n} output tokens, but {max_tokens} were asked for"
        ));
    }
    if let Some(n) = prompt_tokens.filter(|n| *n > MAX_PROMPT_TOKENS) {
        return Some(format!(
            "the server's usage says {n} prompt tokens; more than {MAX_PROMPT_TOKENS} cannot be"
        ));
    }
    match (cached_tokens, prompt_tokens) {
        (Some(cached), Some(prompt)) if cached > prompt => Some(format!(
            "the server's usage says that {cached} of {prompt} prompt tokens were cached"
        )),
        _ => None,
    }
}

/// A line of `server_metrics.jsonl`: one sample of the server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ServerSample {
    pub t_s: f64,
    pub rss_bytes: Option<u64>,
    pub gpu_memory_bytes: Option<u64>,
    pub kv_pages_used: Option<u64>,
    pub kv_pages_total: Option<u64>,
    pub running: Option<u64>,
    pub waiting: Option<u64>,
    pub generation_tokens_total: Option<u64>,
    /// Power that the first GPU's board draws; absent in records of older versions, as the next two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_power_w: Option<f64>,
    /// Energy of that GPU since the meters were opened; they are read once a case, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_energy_j: Option<f64>,
    /// Energy of all processor packages, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_energy_j: Option<f64>,
}

/// A line of `machine_load.jsonl`: the machine's load while cases ran concurrently. Absent in
/// records of older versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CaseLoad {
    pub cases: Vec<String>,
    pub start_s: f64,
    pub end_s: f64,
    /// Over the last minute before the case began.
    pub load_average_1m: Option<f64>,
    /// CPU time of processes other than runner and server, as a share of all cores' time; null if
    /// the runner did not start the server.
    pub others_share: Option<f64>,
    /// Share taken by other guests of a virtual machine's host.
    pub steal_share: Option<f64>,
    /// What the machine's meters counted meanwhile; absent without a meter, for cases of less than a
    /// second, and in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<CaseEnergy>,
}

/// Energy that was used while cases ran: that of whole devices, of other processes, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CaseEnergy {
    /// Between the two readings of the meters.
    pub seconds: f64,
    /// Of the first GPU's board.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_j: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_source: Option<EnergySource>,
    /// Of all processor packages (RAPL), without the memory modules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_j: Option<f64>,
}

impl CaseEnergy {
    /// Of the device that serves: the GPU of a machine that has one, else the processor.
    pub fn device_j(&self, has_gpu: bool) -> Option<f64> {
        if has_gpu { self.gpu_j } else { self.cpu_j }
    }
}

/// How a GPU's energy was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum EnergySource {
    /// The difference of the GPU's own counter (NVML).
    Counter,
    /// Samples of its power, four a second or one, summed over time.
    Power,
}
