//! Suspending and waking the executor, on the engine thread.

use std::time::Instant;

use tokio::sync::oneshot;

use super::EngineLoop;
use super::handle::Acceptance;
use super::step::lost;
use crate::executor::{Executor, SuspendedExecutor};
use crate::request::Failure;

/// Why a model could not be suspended or woken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SleepError(pub String);

impl SleepError {
    pub(super) fn stopped() -> Self {
        Self("the engine has stopped".to_owned())
    }
}

/// The executor, or its suspended form.
pub(super) enum ExecutorState {
    Active(Box<dyn Executor>),
    Suspended(Box<dyn SuspendedExecutor>),
    /// During the transition.
    Switching,
}

impl ExecutorState {
    pub fn is_active(&self) -> bool {
        matches!(self, Self::Active(_))
    }
}

/// A pending request to suspend the model.
pub(super) struct SuspendRequest {
    /// Requests that have not ended by then are failed.
    pub deadline: Instant,
    pub done: oneshot::Sender<Result<(), SleepError>>,
}

impl EngineLoop {
    /// Suspends the executor, if requested and no request has time left.
    pub(super) fn suspend_if_due(&mut self) {
        let is_idle = self.scheduler.is_idle();
        let is_due = |request: &mut SuspendRequest| is_idle || Instant::now() >= request.deadline;
        let Some(request) = self.suspend_request.take_if(is_due) else {
            return;
        };
        self.fail_all(&Failure::Suspended);
        self.lease = None;
        self.tenant.set_idle();
        let outcome = match std::mem::replace(&mut self.executor, ExecutorState::Switching) {
            ExecutorState::Active(executor) => {
                let counts = executor.counts();
                match executor.sleep() {
                    Ok(suspended) => {
                        self.counts_before = self.counts_before.plus(counts);
                        self.executor = ExecutorState::Suspended(suspended);
                        // The contents of the pages are lost.
                        self.scheduler.forget();
                        self.metrics.record_stats(&self.scheduler.stats());
                        self.metrics.is_asleep.set(1.0);
                        Ok(())
                    }
                    Err((executor, error)) => {
                        self.executor = ExecutorState::Active(executor);
                        self.broken = lost(&error);
                        Err(SleepError(error.to_string()))
                    }
                }
            }
            other => {
                self.executor = other;
                Err(SleepError("the model is not active".to_owned()))
            }
        };
        if outcome.is_err() && self.executor.is_active() {
            let acceptance = &self.shared.acceptance;
            acceptance.change(Acceptance::Suspended, Acceptance::Open);
        }
        // The requester may be gone; the model is suspended all the same.
        let _ = request.done.send(outcome);
    }

    pub(super) fn wake(&mut self, done: oneshot::Sender<Result<(), SleepError>>) {
        let outcome = match &mut self.executor {
            ExecutorState::Suspended(suspended) => match suspended.wake() {
                Ok(mut executor) => {
                    executor.watch(&self.shared.stop);
                    self.executor = ExecutorState::Active(executor);
                    self.metrics.is_asleep.set(0.0);
                    let acceptance = &self.shared.acceptance;
                    acceptance.change(Acceptance::Suspended, Acceptance::Open);
                    Ok(())
                }
                Err(error) => {
                    self.broken = lost(&error);
                    Err(SleepError(error.to_string()))
                }
            },
            ExecutorState::Active(_) | ExecutorState::Switching => {
                Err(SleepError("the model is not suspended".to_owned()))
            }
        };
        // As above.
        let _ = done.send(outcome);
    }
}
