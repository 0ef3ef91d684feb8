//! Steps of the engine's own, tried while it is unhealthy and idle: a load balancer that watches
//! `/health` sends no requests to an engine that says it is unhealthy, so no request would show
//! that the device is well again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::EngineLoop;
use crate::request::{Request, RequestId, SamplingParams};

/// Time between two of them.
const BETWEEN_PROBES: Duration = Duration::from_secs(2);

impl EngineLoop {
    /// How long an idle engine waits for a request before it tries a step; `None` where it is
    /// healthy or asleep.
    pub(super) fn next_probe(&self) -> Option<Duration> {
        let is_unhealthy = !self.shared.is_healthy.load(Ordering::Acquire);
        (is_unhealthy && self.engine.is_awake()).then_some(BETWEEN_PROBES)
    }

    /// Queues a request of one token in and one out, without a client. Its outcome is recorded as
    /// any step's.
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
            tracing::warn!("the engine cannot try a step of its own: {error}");
        }
    }
}
