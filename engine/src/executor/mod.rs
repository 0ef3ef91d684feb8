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
    /// Above 1 only when every row is a decode row (one token, `sample` set): the executor feeds
    /// each sampled token back itself and returns `n_steps` tokens a row. Pages for all of them
    /// are in the rows already. 1 where a row is guided.
    pub n_steps: usize,
    /// Steps that the next plan will have for the same rows if nothing new happens, with pages
    /// for them in the rows already; 0 where that plan will differ. A hint: an executor may begin
    /// them ahead, and the next plan decides whether that counts.
    pub n_next_steps: usize,
    /// Pages that move between the device and the host meanwhile; see [`PageCopies`] for the order.
    pub copies: PageCopies,
    /// Rows whose tokens' log-probabilities are wanted, by rising row; none where `n_steps` is
    /// above 1.
    pub scores: Vec<ScoreSpec>,
}

/// Of one row: how likely the tokens that follow were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreSpec {
    /// Index in the plan's rows.
    pub row: usize,
    /// What follows the row's first token, its second, …; at most one for each.
    pub targets: Vec<u32>,
    /// How many of the likeliest tokens to report in each place.
    pub n_top: usize,
}

/// A token to score, and where its logits come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    row: usize,
    /// Index in the row's tokens of the one before it.
    at: usize,
    token: u32,
    n_top: usize,
}

impl StepPlan {
    /// Every token to score, in the order of the rows' tokens.
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
    /// Tokens of this sequence whose KV is in `pages` already.
    pub start: usize,
    /// Physical page of each logical page; covers `start + tokens.len() + n_steps - 1` tokens.
    pub pages: Vec<PageIdx>,
    /// Set where the logits of the row's last token choose a new token; unset for the inner
    /// chunks of a long prompt.
    pub sample: Option<SampleSpec>,
}

#[derive(Debug, Clone)]
pub struct SampleSpec {
    pub params: Arc<SamplingParams>,
    /// Index of the first output token this step makes: the position in the random stream.
    pub output_index: usize,
    /// Prompt and output tokens so far, when `params.needs_history()`; empty otherwise.
    pub history: Vec<u32>,
    /// How many of `history` are prompt tokens.
    pub n_prompt: usize,
}

impl SampleSpec {
    /// Which tokens may come depends on the one before.
    pub fn is_guided(&self) -> bool {
        self.params.guide.is_some()
    }
}

/// What a row of a plan got.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowOutput {
    /// `n_steps` where the row samples, none otherwise; fewer where `error` is set.
    pub tokens: Vec<SampledToken>,
    /// One for each target of the row's [`ScoreSpec`]; fewer where `error` is set.
    pub scores: Vec<ScoredToken>,
    /// Why no more came. It ends the row's own request and nothing else.
    pub error: Option<RowError>,
}

impl RowOutput {
    /// Takes in the next token, or why there is none. Nothing comes after an error.
    pub fn push(&mut self, chosen: Result<SampledToken, impl Into<RowError>>) {
        match chosen {
            Ok(token) => self.tokens.push(token),
            Err(error) => self.error = Some(error.into()),
        }
    }

    /// Takes in the next score, as [`Self::push`] does a token.
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

/// For each plan row in order: what it got.
#[derive(Debug, Clone, Default)]
pub struct StepOutput {
    pub rows: Vec<RowOutput>,
}

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
