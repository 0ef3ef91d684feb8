//! Probe steps while the engine is unhealthy and idle: a load balancer that watches `/health` sends
//! no requests to an unhealthy engine, so no request would show that the device has recovered.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::EngineLoop;
use crate::request::{Request, RequestId, SamplingParams};

/// Time between two probes.
const BETWEEN_PROBES: Duration = Duration::from_secs(2);

impl EngineLoop {
    /// How long an idle engine waits for a request before a probe; `None` if it is healthy or
    /// suspended.
    pub(super) fn next_probe(&self) -> Option<Duration> {
        let is_unhealthy = !self.shared.is_healthy.load(Ordering::Acquire);
        (is_unhealthy && self.executor.is_active()).then_some(BETWEEN_PROBES)
    }

    /// Queues a request of one prompt token and one output token, without a client. Its outcome is
    /// recorded like that of any step.
    pub(super) fn probe(&mut self) {
        let request = Request {
            id: RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed)),
            prompt: Arc::from([0]),
            sampling: Arc::new(SamplingParams::default()),
            max_new_tokens: 1,
            stop_token_ids: Arc::from([]),
            priority: 0,
            prefix_root: 0,
        };
        if let Err(error) = self.scheduler.add(request, self.started.elapsed()) {
            tracing::warn!("the engine cannot run a probe step: {error}");
        }
    }
}
