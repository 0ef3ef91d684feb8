//! Carries out a step that the scheduler planned. An executor decides nothing: which requests
//! run, with which tokens and pages, is all in the [`StepPlan`].

pub mod cpu;
pub mod cuda;
mod error;
pub mod host_memory;
pub mod host_tier;
pub mod mock;
pub mod simulated;
mod stop_flag;

pub use self::error::{ExecutorError, StepError};
pub use self::host_tier::{HostTierInfo, HostTierOptions, HostTierSize};
pub use self::stop_flag::StopFlag;
use crate::sampler::SampleSpec;
pub use crate::step::RowError;
use crate::step::{StepOutput, StepPlan};

/// What was chosen at start-up, for the log, `/server_info` and every run record.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ExecutorInfo {
    /// `cpu`, `cuda`, `mock`.
    pub name: String,
    /// Processor or GPU name.
    pub device: String,
    /// What was selected, by role: `attention`, `quant_linear`, `sampling`, … → kernel name.
    pub kernels: Vec<(String, String)>,
    /// Accepted flags that this executor has no use for, with the reason.
    pub inactive_flags: Vec<(String, String)>,
    /// Size of the KV pool, in tokens and in bytes.
    pub kv_pool_tokens: usize,
    pub kv_pool_bytes: u64,
    pub weight_bytes: u64,
    /// Where KV pages go that the device has no room for, if there is such a place.
    pub host_tier: Option<HostTierInfo>,
}

/// What an executor did since its start that its plans do not show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct ExecutorCounts {
    /// Plans whose work had begun ahead of them.
    pub run_ahead_used: u64,
    /// Work begun ahead for a plan that did not come.
    pub run_ahead_discarded: u64,
    /// Tokens that the host's sampler chose for a model on a device.
    pub host_sampled_tokens: u64,
    /// Keys and values that were not stored as they were: too large for the KV format, or NaN.
    pub kv_saturated_values: u64,
    /// Pages copied between device and host whose time was taken, and that time.
    pub copied_pages: u64,
    pub copy_ns: u64,
}

impl ExecutorCounts {
    /// With what came later.
    #[must_use]
    pub fn plus(self, later: Self) -> Self {
        Self {
            run_ahead_used: self.run_ahead_used + later.run_ahead_used,
            run_ahead_discarded: self.run_ahead_discarded + later.run_ahead_discarded,
            host_sampled_tokens: self.host_sampled_tokens + later.host_sampled_tokens,
            kv_saturated_values: self.kv_saturated_values + later.kv_saturated_values,
            copied_pages: self.copied_pages + later.copied_pages,
            copy_ns: self.copy_ns + later.copy_ns,
        }
    }
}

pub trait Executor: Send {
    fn info(&self) -> &ExecutorInfo;
    /// Carries the plan out. An error is one of the whole step; what concerns a row alone is in
    /// its [`RowOutput`].
    fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError>;
    fn counts(&self) -> ExecutorCounts {
        ExecutorCounts::default()
    }
    /// From here on a step ends early, with an error, once `stop` is raised. An executor whose
    /// steps are short need not look.
    fn watch(&mut self, _stop: &StopFlag) {}
    /// Gives its memory back, on the device and of the KV pool; where it fails, it is as it was.
    fn sleep(self: Box<Self>) -> Result<Box<dyn Asleep>, (Box<dyn Executor>, ExecutorError)>;
}

/// An executor that gave its memory back.
pub trait Asleep: Send {
    /// The executor as it was, with a KV pool of the same size that holds nothing. Once it has
    /// succeeded, this is of no more use; where it fails, it still sleeps.
    fn wake(&mut self) -> Result<Box<dyn Executor>, ExecutorError>;
}

/// For executors that have no memory to give back.
fn cannot_sleep(
    executor: Box<dyn Executor>,
    device: &'static str,
) -> Result<Box<dyn Asleep>, (Box<dyn Executor>, ExecutorError)> {
    let message = "it keeps nothing to come back from".to_owned();
    Err((executor, ExecutorError::Sleep { device, message }))
}

/// Refuses plans that no scheduler of ours makes, before they can do harm.
fn check_plan(plan: &StepPlan, device: &'static str) -> Result<(), ExecutorError> {
    let step_error = |message: String| ExecutorError::of_plan(device, message);
    if plan.n_steps == 0 {
        return Err(step_error(
            "the plan has 0 steps; it must have at least 1".to_owned(),
        ));
    }
    check_scores(plan, device)?;
    for row in &plan.rows {
        if row.tokens.is_empty() {
            return Err(step_error(format!(
                "request {} has no token to compute",
                row.request
            )));
        }
        if plan.n_steps > 1 && (row.tokens.len() != 1 || row.sample.is_none()) {
            return Err(step_error(format!(
                "request {} is no decode row in a plan of {} steps",
                row.request, plan.n_steps
            )));
        }
        if plan.n_steps > 1 && row.sample.as_ref().is_some_and(SampleSpec::is_guided) {
            return Err(step_error(format!(
                "request {} follows a grammar, which goes one step at a time, not {}",
                row.request, plan.n_steps
            )));
        }
    }
    Ok(())
}

fn check_scores(plan: &StepPlan, device: &'static str) -> Result<(), ExecutorError> {
    for spec in &plan.scores {
        let n_tokens = plan.rows.get(spec.row).map(|row| row.tokens.len());
        if plan.n_steps != 1 || n_tokens.is_none_or(|n| spec.targets.len() > n) {
            return Err(ExecutorError::of_plan(
                device,
                format!(
                    "{} tokens behind those of row {} are to be scored, in a plan of {} rows and {} \
                 steps",
                    spec.targets.len(),
                    spec.row,
                    plan.rows.len(),
                    plan.n_steps
                ),
            ));
        }
    }
    Ok(())
}
