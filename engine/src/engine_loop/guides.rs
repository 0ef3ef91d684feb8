//! The guides of requests whose output has a form: waits for their masks, and passes them the new
//! tokens.

use std::time::Duration;

use super::EngineLoop;
use crate::guide::{Guide, GuideError};
use crate::request::TokenEvent;
use crate::step::{StepOutput, StepPlan};

/// Maximum time that a step waits for masks that take too long to be computed concurrently.
const MAX_MASK_WAIT: Duration = Duration::from_millis(50);
/// Time for masks that a step waits for to learn what grammars force, all rows together.
const MAX_FORCED_WAIT_US: u64 = 1_000;

impl EngineLoop {
    /// Waits a bounded time for the masks of the next step that cannot be computed during it, and
    /// holds back the rows whose masks are not ready: an expensive grammar must not stop the other
    /// requests.
    pub(super) fn await_masks(&mut self) {
        Guide::await_masks(self.scheduler.guides(), MAX_MASK_WAIT);
        self.scheduler.hold_back(Guide::sits_out);
        let mut left_us = MAX_FORCED_WAIT_US;
        self.scheduler
            .set_forced(|guide| guide.forced_tokens(&mut left_us));
    }

    /// Passes the new tokens to the guides, so that the next masks are computed meanwhile, and ends
    /// the requests whose output cannot continue.
    pub(super) fn guide(&mut self, plan: &StepPlan, output: &mut StepOutput) {
        let mut counts = None;
        for (row, made) in plan.rows.iter().zip(&mut output.rows) {
            let Some(spec) = row.sample.as_ref() else {
                continue;
            };
            let Some(guide) = spec.params.guide.as_ref() else {
                continue;
            };
            if let Some(error) = guide.failure() {
                if let GuideError::Broken(message) = &error {
                    tracing::error!(request = %row.request, error = message, "a guide broke");
                }
                if self.scheduler.cancel(row.request).is_some() {
                    let failed = TokenEvent::Failed(error.into());
                    self.deliver(vec![(row.request, failed)]);
                }
                continue;
            }
            // Counters of all the model's guides.
            counts = Some(guide.mask_counts());
            if guide.ends_drafts(spec.output_index + made.tokens.len()) {
                made.error = None;
            }
            let tokens: Vec<u32> = made.tokens.iter().map(|token| token.token).collect();
            guide.advance_all(spec.output_index, &tokens);
        }
        if let Some(counts) = counts {
            self.metrics.record_masks(counts);
        }
    }
}
