//! Runs a step planned by the scheduler. An executor makes no decisions: the requests, tokens and
//! pages are all in the [`StepPlan`].

pub mod cpu;
pub mod cuda;
mod error;
pub mod host_memory;
pub mod host_tier;
pub mod mock;
pub mod simulated;
mod stop_flag;

use std::sync::Arc;

pub use self::error::{ExecutorError, RowError, StepError};
pub use self::host_tier::{HostTierInfo, HostTierOptions, HostTierSize};
pub use self::stop_flag::StopFlag;
use crate::kv::{PageCopies, PageIdx};
use crate::request::{RequestId, SampledToken, SamplingParams, ScoredToken};

/// One step: every row's tokens go through the model once; rows with `sample` then get a token.
#[derive(Debug, Clone, Default)]
pub struct StepPlan {
    pub rows: Vec<PlanRow>,
    /// Above 1 only if every row is a decode row (one token, `sample` set): the executor feeds each
    /// sampled token back itself and returns `n_steps` tokens for each row. The rows already have
    /// the pages for all of them. 1 if a row is guided.
    pub n_steps: usize,
    /// Number of steps that the next plan will have for the same rows if nothing new happens, with
    /// pages for them already in the rows; 0 if that plan will differ. A hint: an executor may
    /// begin them ahead, and the next plan decides whether the result is used.
    pub lookahead_steps: usize,
    /// Pages to copy between device and host during the step; see [`PageCopies`] for the order.
    pub copies: PageCopies,
    /// Rows whose tokens' log-probabilities are needed, in ascending order; empty if `n_steps` is
    /// above 1.
    pub scores: Vec<ScoreSpec>,
}

/// For one row: tokens to score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreSpec {
    /// Index in the plan's rows.
    pub row: usize,
    /// The token after the row's first token, after its second, …; at most one for each.
    pub targets: Vec<u32>,
    /// Number of most likely tokens to report for each.
    pub n_top: usize,
}

/// A token to score, and the position of its logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    row: usize,
    /// Index in the row's tokens of the preceding token.
    at: usize,
    token: u32,
    n_top: usize,
}

impl StepPlan {
    /// All tokens to score, in the order of the rows' tokens.
    fn targets(&self) -> impl Iterator<Item = Target> {
        self.scores.iter().flat_map(|spec| {
            let targets = spec.targets.iter().enumerate();
            targets.map(move |(at, &token)| Target {
                row: spec.row,
                at,
                token,
                n_top: spec.n_top,
            })
        })
    }
}

/// One sequence's part of a step.
#[derive(Debug, Clone)]
pub struct PlanRow {
    pub request: RequestId,
    /// Tokens to compute, at positions `start .. start + tokens.len()`. Never empty.
    pub tokens: Vec<u32>,
    /// Tokens of this sequence whose KV is already in `pages`.
    pub start: usize,
    /// Physical page of each logical page; covers `start + tokens.len() + n_steps - 1` tokens.
    pub pages: Vec<PageIdx>,
    /// Set if the logits of the row's last token choose a new token; unset for the inner chunks of
    /// a long prompt.
    pub sample: Option<SampleSpec>,
}

#[derive(Debug, Clone)]
pub struct SampleSpec {
    pub params: Arc<SamplingParams>,
    /// Index of the first output token of this step: the position in the random stream.
    pub output_index: usize,
    /// Prompt and output tokens so far if `params.needs_history()`; otherwise empty.
    pub history: Vec<u32>,
    /// Number of prompt tokens in `history`.
    pub n_prompt: usize,
}

impl SampleSpec {
    /// Whether the allowed tokens depend on the previous one.
    pub fn is_guided(&self) -> bool {
        self.params.guide.is_some()
    }
}

/// The result of a plan's row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowOutput {
    /// `n_steps` tokens if the row samples, otherwise none; fewer if `error` is set.
    pub tokens: Vec<SampledToken>,
    /// One for each target of the row's [`ScoreSpec`]; fewer if `error` is set.
    pub scores: Vec<ScoredToken>,
    /// Why the row stopped. It ends only the row's own request.
    pub error: Option<RowError>,
}

impl RowOutput {
    /// Appends the next token or sets the error. Nothing is appended after an error.
    pub fn push(&mut self, chosen: Result<SampledToken, impl Into<RowError>>) {
        match chosen {
            Ok(token) => self.tokens.push(token),
            Err(error) => self.error = Some(error.into()),
        }
    }

    /// Appends the next score, like [`Self::push`].
    pub fn push_score(&mut self, scored: Result<ScoredToken, impl Into<RowError>>) {
        match scored {
            Ok(score) if self.error.is_none() => self.scores.push(score),
            Ok(_) => {}
            Err(error) => {
                self.error.get_or_insert_with(|| error.into());
            }
        }
    }

    pub fn has_failed(&self) -> bool {
        self.error.is_some()
    }
}

impl From<Vec<SampledToken>> for RowOutput {
    fn from(tokens: Vec<SampledToken>) -> Self {
        Self {
            tokens,
            ..Self::default()
        }
    }
}

/// The result of each plan row, in order.
#[derive(Debug, Clone, Default)]
pub struct StepOutput {
    pub rows: Vec<RowOutput>,
}

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
    /// [`RowOutput`].
    fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError>;
    fn counts(&self) -> ExecutorCounts {
        ExecutorCounts::default()
    }
    /// From here on, a step ends early with an error once `stop` is raised. An executor with short
    /// steps may ignore it.
    fn watch(&mut self, _stop: &StopFlag) {}
    /// Frees its device memory and KV pool; on failure it is returned unchanged.
    fn sleep(
        self: Box<Self>,
    ) -> Result<Box<dyn SuspendedExecutor>, (Box<dyn Executor>, ExecutorError)>;
}

/// An executor that has freed its memory.
pub trait SuspendedExecutor: Send {
    /// The executor as it was, with an empty KV pool of the same size. After success this object is
    /// spent; after failure it is still suspended.
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
