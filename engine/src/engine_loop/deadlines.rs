//! Time limits of a request: `--max-queue-s` and `--max-request-s`.
//!
//! The engine thread checks between two steps, so a request ends at most one step plus
//! [`POLL_INTERVAL`] after its limit.

use std::time::{Duration, Instant};

use super::client::RequestTracker;
use crate::request::Failure;

/// A check goes through all requests, so it is not made at every step.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct TimeLimits {
    /// From submission to admission to the running batch.
    pub queue: Option<Duration>,
    /// From the time it was received to the last token.
    pub total: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Deadlines {
    limits: TimeLimits,
    next_look: Option<Instant>,
}

impl Deadlines {
    pub fn new(limits: TimeLimits) -> Self {
        Self {
            limits,
            next_look: None,
        }
    }

    /// Whether it is time for a check.
    pub fn is_due(&mut self, now: Instant) -> bool {
        if self.limits == TimeLimits::default() || self.next_look.is_some_and(|next| now < next) {
            return false;
        }
        self.next_look = now.checked_add(POLL_INTERVAL);
        true
    }

    pub fn check(&self, client: &RequestTracker, now: Instant) -> Option<Failure> {
        let taken = now.saturating_duration_since(client.received);
        let waited = now.saturating_duration_since(client.submitted);
        let millis = |duration: Duration| duration.as_millis() as u64;
        if let Some(limit) = self.limits.total.filter(|limit| taken > *limit) {
            return Some(Failure::RequestTimeout {
                taken_ms: millis(taken),
                limit_ms: millis(limit),
            });
        }
        let limit = self.limits.queue.filter(|limit| waited > *limit)?;
        client.admitted.is_none().then(|| Failure::QueueTimeout {
            waited_ms: millis(waited),
            limit_ms: millis(limit),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_has_a_limit_until_admission_and_the_whole_one_until_the_end() {
        let limits = TimeLimits {
            queue: Some(Duration::from_secs(2)),
            total: Some(Duration::from_secs(10)),
        };
        let deadlines = Deadlines::new(limits);
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let (events, _inbox) = tokio::sync::mpsc::unbounded_channel();
        let mut client = RequestTracker {
            events,
            n_prompt: 1,
            max_new_tokens: 1,
            n_tokens: 0,
            n_preemptions: 0,
            received: start,
            submitted: at(4),
            admitted: None,
            first_token: at(4),
            last_token: at(4),
            observer: None,
        };
        assert_eq!(deadlines.check(&client, at(6)), None);
        let (waited_ms, limit_ms) = (3000, 2000);
        let queue = Failure::QueueTimeout {
            waited_ms,
            limit_ms,
        };
        assert_eq!(deadlines.check(&client, at(7)), Some(queue));
        client.admitted = Some(at(5));
        assert_eq!(deadlines.check(&client, at(10)), None);
        // The time before its submission counts.
        let (taken_ms, limit_ms) = (11_000, 10_000);
        let total = Failure::RequestTimeout { taken_ms, limit_ms };
        assert_eq!(deadlines.check(&client, at(11)), Some(total));
    }

    #[test]
    fn without_limits_nothing_is_checked() {
        assert!(!Deadlines::new(TimeLimits::default()).is_due(Instant::now()));
    }
}
