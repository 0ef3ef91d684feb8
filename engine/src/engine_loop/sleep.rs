//! Falling asleep and waking up, on the engine's thread.

use std::time::Instant;

use tokio::sync::oneshot;

use super::EngineLoop;
use super::handle::Acceptance;
use super::step::lost;
use crate::executor::{Asleep, Executor};
use crate::request::Failure;

/// Why a model could not be put to sleep or woken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SleepError(pub String);

impl SleepError {
    pub(super) fn stopped() -> Self {
        Self("the engine has stopped".to_owned())
    }
}

/// The executor, or what is left of it.
pub(super) enum Engine {
    Awake(Box<dyn Executor>),
    Asleep(Box<dyn Asleep>),
    /// Between the two.
    Gone,
}

impl Engine {
    pub fn is_awake(&self) -> bool {
        matches!(self, Self::Awake(_))
    }
}

/// Somebody waits for the model to fall asleep.
pub(super) struct Rest {
    /// Requests that are not done by then are failed.
    pub deadline: Instant,
    pub done: oneshot::Sender<Result<(), SleepError>>,
}

impl EngineLoop {
    /// Falls asleep, if somebody waits for it and no request has time left.
    pub(super) fn rest_if_due(&mut self) {
        let is_idle = self.scheduler.is_idle();
        let is_due = |rest: &mut Rest| is_idle || Instant::now() >= rest.deadline;
        let Some(rest) = self.rest.take_if(is_due) else {
            return;
        };
        self.fail_all(&Failure::Asleep);
        self.turn = None;
        self.member.rest();
        let outcome = match std::mem::replace(&mut self.engine, Engine::Gone) {
            Engine::Awake(executor) => {
                let counts = executor.counts();
                match executor.sleep() {
                    Ok(asleep) => {
                        self.counts_before = self.counts_before.plus(counts);
                        self.engine = Engine::Asleep(asleep);
                        // What the pages held is gone.
                        self.scheduler.forget();
                        self.metrics.record_stats(&self.scheduler.stats());
                        Ok(())
                    }
                    Err((executor, error)) => {
                        self.engine = Engine::Awake(executor);
                        self.broken = lost(&error);
                        Err(SleepError(error.to_string()))
                    }
                }
            }
            other => {
                self.engine = other;
                Err(SleepError("it is not awake".to_owned()))
            }
        };
        if outcome.is_err() && self.engine.is_awake() {
            let acceptance = &self.shared.acceptance;
            acceptance.change(Acceptance::Asleep, Acceptance::Open);
        }
        // Whoever asked may have gone; the model sleeps all the same.
        let _ = rest.done.send(outcome);
    }

    pub(super) fn wake(&mut self, done: oneshot::Sender<Result<(), SleepError>>) {
        let outcome = match &mut self.engine {
            Engine::Asleep(asleep) => match asleep.wake() {
                Ok(mut executor) => {
                    executor.watch(&self.shared.stop);
                    self.engine = Engine::Awake(executor);
                    let acceptance = &self.shared.acceptance;
                    acceptance.change(Acceptance::Asleep, Acceptance::Open);
                    Ok(())
                }
                Err(error) => {
                    self.broken = lost(&error);
                    Err(SleepError(error.to_string()))
                }
            },
            Engine::Awake(_) | Engine::Gone => Err(SleepError("it does not sleep".to_owned())),
        };
        // As above.
        let _ = done.send(outcome);
    }
}
