//! Samples the server while it is measured: resident memory, the GPU's memory and power, `/metrics`.
//!
//! Memory figures come from the operating system and the GPU's driver, power and energy from the
//! machine's meters ([`crate::record::energy`]), queue and pool figures from the server's own
//! Prometheus page; a server that has none (or names its metrics otherwise) leaves nulls.

use std::collections::HashMap;
use std::time::Duration;

use records::RecordError;
use records::process_identity::rss_bytes;
use records::rows::ServerSample;
use records::run_folder::JsonLines;
use tokio::time::{MissedTickBehavior, interval};

use crate::load::{BaseUrl, RunClock};
use crate::record::energy::SharedMeters;

const PERIOD: Duration = Duration::from_millis(250);
/// `nvidia-smi` takes tens of milliseconds, so it is asked once in this many samples.
const SLOW_EVERY: u32 = 4;

#[derive(Debug)]
pub struct Sampler {
    /// The server's processes; `None` for one that was not started here.
    pub server_pids: Option<Vec<u32>>,
    pub base_url: BaseUrl,
    pub clock: RunClock,
    pub meters: SharedMeters,
}

impl Sampler {
    /// Runs until dropped; returns only if a sample cannot be written.
    pub async fn run(self, mut samples: JsonLines) -> RecordError {
        let mut ticks = interval(PERIOD);
        // A machine too busy to keep up gets fewer samples, not a burst of stale ones.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let every = if self.meters.is_slow() { SLOW_EVERY } else { 1 };
        let mut metered = None;
        let mut until_metered = 0;
        loop {
            ticks.tick().await;
            if until_metered == 0 {
                until_metered = every;
                let meters = self.meters.clone();
                // Reading blocks, and this thread sends the load.
                metered = tokio::task::spawn_blocking(move || meters.read())
                    .await
                    .ok();
            }
            until_metered -= 1;
            let page = self.base_url.get_root("/metrics", PERIOD * 4).await;
            let page = page
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .unwrap_or_default();
            let sample = ServerSample {
                t_s: self.clock.now_s(),
                rss_bytes: self.server_pids.as_deref().and_then(total_rss_bytes),
                gpu_memory_bytes: metered.and_then(|m| m.gpu_memory_bytes),
                gpu_power_w: metered.and_then(|m| m.gpu_power_w),
                gpu_energy_j: metered.and_then(|m| m.gpu_energy_j),
                cpu_energy_j: metered.and_then(|m| m.cpu_energy_j),
                ..metrics_of(&page)
            };
            if let Err(error) = samples.append(&sample) {
                return error;
            }
        }
    }
}

/// Of all that still run; pages that they share count in each.
fn total_rss_bytes(pids: &[u32]) -> Option<u64> {
    let found: Vec<u64> = pids.iter().filter_map(|pid| rss_bytes(*pid)).collect();
    (!found.is_empty()).then(|| found.iter().sum())
}

/// The figures of a Prometheus page that a sample keeps.
fn metrics_of(page: &str) -> ServerSample {
    let metrics = parse_prometheus(page);
    let first = |names: &[&str]| {
        names
            .iter()
            .find_map(|name| metrics.get(*name))
            .map(|value| *value as u64)
    };
    ServerSample {
        kv_pages_used: first(&["engine_kv_pages_used"]),
        kv_pages_total: first(&["engine_kv_pages_total"]),
        running: first(&["vllm:num_requests_running", "sglang:num_running_reqs"]),
        waiting: first(&["vllm:num_requests_waiting", "sglang:num_queue_reqs"]),
        generation_tokens_total: first(&[
            "vllm:generation_tokens_total",
            "sglang:generation_tokens_total",
        ]),
        ..ServerSample::default()
    }
}

/// Metric name → sum over its label sets. Lines that are not `name{labels} value` are skipped.
fn parse_prometheus(page: &str) -> HashMap<String, f64> {
    let mut metrics = HashMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = match line.split_once('{') {
            // The value follows the last brace: label values may contain one.
            Some((name, rest)) => (name, rest.rsplit_once('}').map(|(_, value)| value)),
            None => match line.split_once(' ') {
                Some((name, rest)) => (name, Some(rest)),
                None => continue,
            },
        };
        let value = rest
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|word| word.parse::<f64>().ok());
        if let Some(value) = value.filter(|value| value.is_finite()) {
            *metrics.entry(name.trim().to_string()).or_insert(0.0) += value;
        }
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_prometheus_page() {
        let page = "# HELP vllm:num_requests_running Requests.\n\
                    vllm:num_requests_running{model_name=\"a}b\"} 3.0\n\
                    vllm:num_requests_waiting 2\n\
                    vllm:generation_tokens_total{engine=\"0\"} 10 1700000000\n\
                    vllm:generation_tokens_total{engine=\"1\"} 5\n\
                    engine_kv_pages_used 0\nengine_kv_pages_total NaN\nbroken\n";
        let sample = metrics_of(page);
        assert_eq!(
            (
                sample.running,
                sample.waiting,
                sample.generation_tokens_total
            ),
            (Some(3), Some(2), Some(15))
        );
        assert_eq!(
            (sample.kv_pages_used, sample.kv_pages_total),
            (Some(0), None)
        );
        assert_eq!(metrics_of(""), ServerSample::default());
    }
}
