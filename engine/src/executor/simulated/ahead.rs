//! Lookahead decode steps, as in `executor/cuda/run_ahead`. A discarded step delays the plan that
//! came instead.

use super::super::ExecutorCounts;
use super::super::cuda::{Batch, MAX_ROWS};
use crate::step::{RowOutput, StepPlan};

#[derive(Debug, Default)]
pub(super) struct RunAhead {
    batch: Option<Batch>,
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    n_steps: usize,
    s: f64,
}

impl RunAhead {
    /// Seconds that `plan` waits for a discarded step.
    pub fn wait_s(&mut self, plan: &StepPlan, is_decode: bool, counts: &mut ExecutorCounts) -> f64 {
        let goes_on = |batch: &Batch| is_decode && batch.is_continued_by(&plan.rows, plan.n_steps);
        self.batch = self.batch.take().filter(goes_on);
        match self.begun.take() {
            None => 0.0,
            Some(begun) if self.batch.is_some() && begun.n_steps >= plan.n_steps => {
                counts.run_ahead_used += 1;
                0.0
            }
            Some(begun) => {
                counts.run_ahead_discarded += 1;
                begun.s
            }
        }
    }

    /// `plan` has generated these tokens, in `step_s` seconds for each step; the next steps take as
    /// long. A batch runs ahead from its second consecutive step on.
    pub fn go_on(&mut self, plan: &StepPlan, is_decode: bool, made: &[RowOutput], step_s: f64) {
        if !is_decode || plan.rows.len() > MAX_ROWS {
            return;
        }
        if let Some(batch) = &mut self.batch {
            let n_steps = batch.steps_ahead(&plan.rows, plan.n_steps, plan.lookahead_steps);
            self.begun = (n_steps > 0).then_some(Begun {
                n_steps,
                s: step_s * n_steps as f64,
            });
            batch.take_pages(&plan.rows);
        }
        self.batch
            .get_or_insert_with(|| Batch::new(&plan.rows, plan.rows.len(), 0))
            .advance(made);
    }
}
