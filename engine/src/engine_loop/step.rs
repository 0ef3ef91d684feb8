//! One step carried out, whatever the executor does.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::executor::{Executor, StepOutput, StepPlan};

pub(super) struct StepFailure {
    pub message: String,
    pub is_panic: bool,
}

pub(super) fn execute(
    executor: &mut dyn Executor,
    plan: &StepPlan,
) -> Result<StepOutput, StepFailure> {
    // After a panic the executor is not called again, so its broken invariants are not seen.
    match catch_unwind(AssertUnwindSafe(|| executor.execute(plan))) {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => Err(StepFailure {
            message: error.to_string(),
            is_panic: false,
        }),
        Err(payload) => {
            let message = format!("the executor panicked: {}", panic_message(payload.as_ref()));
            Err(StepFailure {
                message,
                is_panic: true,
            })
        }
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&'static str>().copied())
        .unwrap_or("no message")
}
