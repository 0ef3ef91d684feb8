//! Runs a step planned by the scheduler. An executor makes no decisions: the requests, tokens and
//! pages are all in the [`StepPlan`].

pub mod cpu;
pub mod cuda;
mod drafting;
mod error;
pub mod host_memory;
pub mod host_tier;
#[cfg(feature = "testkit")]
pub mod mock;
pub mod simulated;
mod stop_flag;

pub use self::drafting::{DraftAsk, DraftLimits, DraftModel, DraftingExecutor};
pub use self::error::{ExecutorError, StepError};
pub use self::host_tier::{HostTierInfo, HostTierOptions, HostTierSize};
pub use self::stop_flag::StopFlag;
use crate::sampler::SampleSpec;
pub use crate::step::RowError;
use crate::step::{StepOutput, StepPlan};

/// What was chosen at start-up, for the log, `/server_info` and run records.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ExecutorInfo {
    /// `cpu`, `cuda`, `mock`.
    pub name: String,
    /// Processor or GPU name.
    pub device: String,
    /// What was selected, by role: `attention`, `quant_linear`, `sampling`, … → kernel name.
    pub kernels: Vec<(String, String)>,
    /// Accepted flags that this executor does not use, with the reason.
    pub inactive_flags: Vec<(String, String)>,
    /// Size of the KV pool, in tokens and in bytes.
    pub kv_pool_tokens: usize,
    pub kv_pool_bytes: u64,
    pub weight_bytes: u64,
    /// The host tier for evicted KV pages, if there is one.
    pub host_tier: Option<HostTierInfo>,
    /// The rest of the device's memory.
    pub memory: MemoryParts,
}

/// What the executor set aside of its device's memory beside weights and KV pool, in bytes; a part that
/// is not known is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct MemoryParts {
    /// Of the device, or its limit.
    pub total: Option<u64>,
    /// In use by others at the start.
    pub others: Option<u64>,
    pub workspace: Option<u64>,
    /// At most this much.
    pub graphs: Option<u64>,
    /// What the driver may still allocate.
    pub reserve: Option<u64>,
}

/// Counters of an executor since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct ExecutorCounts {
    /// Plans whose work had begun ahead of them.
    pub run_ahead_used: u64,
    /// Lookahead work that was discarded because another plan came.
    pub run_ahead_discarded: u64,
    /// Tokens that were sampled on the host for a model on a device.
    pub host_sampled_tokens: u64,
    /// Keys and values that could not be stored exactly: too large for the KV format, or NaN.
    pub kv_saturated_values: u64,
    /// Pages copied between device and host in timed copies, and their total time.
    pub copied_pages: u64,
    pub copy_ns: u64,
}

impl ExecutorCounts {
    /// The sum of both.
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
    /// Runs the plan. An error concerns the whole step; an error of a single row is in its
    /// [`RowOutput`](crate::step::RowOutput).
    ///
    /// # Errors
    ///
    /// If the plan is not one for this executor (a page, token or row that it does not have),
    /// the device failed, or the executor was stopped.
    fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError>;
    /// Guesses at the next tokens of each request, by a draft model; an executor without one has
    /// none.
    ///
    /// # Errors
    ///
    /// If a step of the draft model failed.
    fn draft(&mut self, _asks: &[DraftAsk<'_>]) -> Result<Vec<Vec<u32>>, ExecutorError> {
        Ok(Vec::new())
    }
    fn counts(&self) -> ExecutorCounts {
        ExecutorCounts::default()
    }
    /// From here on, a step ends early with an error once `stop` is raised. An executor with short
    /// steps may ignore it.
    fn watch(&mut self, _stop: &StopFlag) {}
    /// Frees its device memory and KV pool; on failure it is returned unchanged.
    ///
    /// # Errors
    ///
    /// The executor itself, with the reason: it cannot be restored, or the device failed.
    fn sleep(
        self: Box<Self>,
    ) -> Result<Box<dyn SuspendedExecutor>, (Box<dyn Executor>, ExecutorError)>;
}

/// An executor that has freed its memory.
pub trait SuspendedExecutor: Send {
    /// The executor as it was, with an empty KV pool of the same size. After success this object is
    /// spent; after failure it is still suspended.
    ///
    /// # Errors
    ///
    /// If the memory is not free, the weights cannot be read again, or the device failed.
    fn wake(&mut self) -> Result<Box<dyn Executor>, ExecutorError>;
}

/// For executors that cannot free their memory.
fn cannot_sleep(
    executor: Box<dyn Executor>,
    device: &'static str,
) -> Result<Box<dyn SuspendedExecutor>, (Box<dyn Executor>, ExecutorError)> {
    let message = "it cannot be restored".to_owned();
    Err((executor, ExecutorError::Sleep { device, message }))
}

/// Refuses plans that violate the scheduler's contract, before they can do harm.
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
        if row.n_drafts > 0 && (!row.is_decode() || plan.n_steps != 1) {
            return Err(step_error(format!(
                "request {} has {} drafts, but {} tokens in a plan of {} steps",
                row.request,
                row.n_drafts,
                row.tokens.len(),
                plan.n_steps
            )));
        }
        if row.n_drafts > 0 && !row.grammar_knows_drafts() {
            return Err(step_error(format!(
                "request {} follows a grammar and has drafts, which the grammar has not seen",
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
                "request {} follows a grammar, which allows one step at a time, not {}",
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
                    "{} tokens after those of row {} are to be scored, in a plan of {} rows and {} \
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
