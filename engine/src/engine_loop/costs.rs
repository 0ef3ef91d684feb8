//! Measures the times of steps and page copies as they run. The scheduler uses them to decide
//! whether KV is restored from the host or computed again.

use std::time::Duration;

use crate::executor::ExecutorCounts;
use crate::scheduler::{RestoreCosts, StepKind};
use crate::step::StepPlan;

/// Weight of the newest measurement: the mean follows the load within about ten steps.
const NEWEST: f64 = 0.1;
/// Prompt steps of fewer tokens are ignored: their time is that of a step, not of its tokens.
const MIN_TOKENS: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct CostMeter {
    costs: RestoreCosts,
    /// The executor's counters at the last call.
    copied: (u64, u64),
}

impl CostMeter {
    /// Records a step that took `elapsed`, and the executor's counters at its end.
    pub fn observe(
        &mut self,
        plan: &StepPlan,
        elapsed: Duration,
        counts: &ExecutorCounts,
    ) -> RestoreCosts {
        let (n_pages, ns) = (
            counts.copied_pages.saturating_sub(self.copied.0),
            counts.copy_ns.saturating_sub(self.copied.1),
        );
        self.copied = (counts.copied_pages, counts.copy_ns);
        if n_pages > 0 {
            follow(&mut self.costs.page_s, ns as f64 / 1e9 / n_pages as f64);
        }
        if plan.rows.is_empty() {
            return self.costs;
        }
        let elapsed_s = elapsed.as_secs_f64();
        match StepKind::of(plan) {
            StepKind::Decode => follow(&mut self.costs.step_s, elapsed_s / plan.n_steps as f64),
            StepKind::Prefill | StepKind::Mixed => {
                let n_tokens: usize = plan.rows.iter().map(|row| row.tokens.len()).sum();
                if n_tokens >= MIN_TOKENS {
                    follow(&mut self.costs.token_s, elapsed_s / n_tokens as f64);
                }
            }
        }
        self.costs
    }
}

fn follow(mean: &mut f64, newest: f64) {
    *mean = if *mean == 0.0 {
        newest
    } else {
        *mean + NEWEST * (newest - *mean)
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::RequestId;
    use crate::step::PlanRow;

    fn plan(n_tokens: usize) -> StepPlan {
        let row = PlanRow {
            n_drafts: 0,
            request: RequestId(1),
            tokens: vec![1; n_tokens],
            start: 0,
            pages: Vec::new(),
            sample: None,
        };
        StepPlan {
            rows: vec![row],
            n_steps: 1,
            ..StepPlan::default()
        }
    }

    #[test]
    fn means_follow_what_is_measured_and_what_is_not_stays_unknown() {
        let mut meter = CostMeter::default();
        let nothing = ExecutorCounts::default();
        let ms = Duration::from_millis;
        let first = meter.observe(&plan(100), ms(50), &nothing);
        assert!((first.token_s - 5e-4).abs() < 1e-9, "{first:?}");
        assert!(first.page_s == 0.0 && first.step_s == 0.0, "{first:?}");
        let short = meter.observe(&plan(10), ms(50), &nothing);
        assert_eq!(short, first, "too few tokens to tell");
        let copied = ExecutorCounts {
            copied_pages: 4,
            copy_ns: 2_000_000,
            ..nothing
        };
        let next = meter.observe(&plan(100), ms(100), &copied);
        assert!((next.page_s - 5e-4).abs() < 1e-9, "{next:?}");
        assert!((next.token_s - 5.5e-4).abs() < 1e-9, "{next:?}");
        // No new copies.
        assert_eq!(meter.observe(&StepPlan::default(), ms(1), &copied), next);
    }
}
