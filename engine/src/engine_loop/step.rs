//! Executes one step and contains the executor's failures.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::executor::{Executor, ExecutorError};
use crate::metrics::Metrics;
use crate::request::Failure;
use crate::step::{StepOutput, StepPlan};

/// Why a step was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepFailure {
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    /// The executor's state is unknown.
    #[error("the executor panicked: {0}")]
    Panic(String),
}

impl StepFailure {
    pub fn is_panic(&self) -> bool {
        matches!(self, Self::Panic(_))
    }

    /// The failure reported to the clients of the step's requests.
    pub fn of_step(&self) -> Failure {
        let message = self.to_string();
        match self {
            Self::Executor(error) if error.is_device_lost() => Failure::DeviceLost { message },
            Self::Executor(_) | Self::Panic(_) => Failure::Step { message },
        }
    }

    /// The failure that ends the engine and all its requests: no further step can succeed, or be
    /// trusted.
    pub fn of_engine(&self) -> Option<Failure> {
        match self {
            Self::Executor(error) => lost(error),
            Self::Panic(_) => Some(Failure::Stopped),
        }
    }
}

/// The failure that ends the engine if the executor's device is lost.
pub(super) fn lost(error: &ExecutorError) -> Option<Failure> {
    error.is_device_lost().then(|| Failure::DeviceLost {
        message: error.to_string(),
    })
}

/// Where a step's time goes: what is done before its execution, the execution, what is done after.
pub(super) struct StepClock {
    started: Instant,
    planned: Duration,
    executed: Duration,
}

impl StepClock {
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
            planned: Duration::ZERO,
            executed: Duration::ZERO,
        }
    }

    pub fn end_plan(&mut self) {
        self.planned = self.elapsed();
    }

    /// Returns the time of the execution alone.
    pub fn end_execution(&mut self) -> Duration {
        self.executed = self.elapsed().saturating_sub(self.planned);
        self.executed
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Counts a step whose events have been sent.
    pub fn record(&self, metrics: &Metrics) {
        let rest = self.elapsed().saturating_sub(self.planned + self.executed);
        metrics.record_step_time(self.planned, self.executed, rest);
    }
}

pub(super) fn execute(
    executor: &mut dyn Executor,
    plan: &StepPlan,
) -> Result<StepOutput, StepFailure> {
    // After a panic the executor is not called again, so broken invariants cannot be observed.
    match catch_unwind(AssertUnwindSafe(|| executor.execute(plan))) {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => Err(error.into()),
        Err(payload) => Err(StepFailure::Panic(
            panic_message(payload.as_ref()).to_owned(),
        )),
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&'static str>().copied())
        .unwrap_or("no message")
}
