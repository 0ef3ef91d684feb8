//! A deterministic executor without a model, for tests of everything around it.
//!
//! Its KV pool stores, for each slot, the token and position that were written there; the next
//! token is a hash of the whole sequence *as read back through the row's pages*. A wrong page, a
//! wrong position, a skipped chunk, or two rows that write to the same page change the text or fail
//! the step. Its host tier stores the same; copies are made as late as the plan allows, after the
//! rows. Steps can be delayed, and made to fail, to panic or to lose the device; a row's logits can
//! be made invalid.
//!
//! Part of the library with the feature `testkit`, as `weights::fixture` is.
//!
//! Deliberately absent: sampling, except for the check of its parameters. Temperature, truncation
//! and penalties do not change its tokens, except that a seed above temperature 0 enters the hash,
//! with the output index. If a grammar does not allow a token, another hash chooses among the
//! allowed ones.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{
    Executor, ExecutorCounts, ExecutorError, ExecutorInfo, HostTierInfo, MemoryParts, StepError,
    StopFlag, SuspendedExecutor,
};
use crate::guide::TokenMask;
use crate::kv::{PAGE_TOKENS, PageCopy};
use crate::request::{SampledToken, ScoredToken};
use crate::sampler::SampleSpec;
use crate::sampler::{self, SamplerError};
use crate::step::{PlanRow, RowError, RowOutput, StepOutput, StepPlan};

/// Maximum delay before a raised stop flag is noticed.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug, Clone)]
pub struct MockConfig {
    pub n_pages: usize,
    /// Pages of the host tier; 0 means none.
    pub n_host_pages: usize,
    /// Tokens are drawn from this range.
    pub tokens: Range<u32>,
    /// Duration of each step (also of each step in a burst).
    pub step_delay: Duration,
    /// Steps, counted from 0, that return an error.
    pub failing_steps: HashSet<u64>,
    /// Step, counted from 0, that panics.
    pub panicking_step: Option<u64>,
    /// Step, counted from 0, from which on every step reports a lost device.
    pub losing_step: Option<u64>,
    /// `(token, n)`: output token `n` of a sequence that contains `token` gets a NaN logit.
    pub broken_logits: Option<(u32, usize)>,
    /// `(token, n)`: emit `token` where the hash is divisible by n.
    pub stop: Option<(u32, u64)>,
    /// Emit these tokens cyclically, by output index, instead of the hash.
    pub script: Option<Arc<[u32]>>,
}

impl Default for MockConfig {
    fn default() -> Self {
        Self {
            n_pages: 1024,
            n_host_pages: 0,
            tokens: 0..32_000,
            step_delay: Duration::ZERO,
            failing_steps: HashSet::new(),
            panicking_step: None,
            losing_step: None,
            broken_logits: None,
            stop: None,
            script: None,
        }
    }
}

/// The content of a KV slot: token and position; `None` was never written.
type Slot = Option<(u32, usize)>;

#[derive(Debug)]
pub struct MockExecutor {
    config: MockConfig,
    info: ExecutorInfo,
    /// [n_pages · PAGE_TOKENS]
    slots: Vec<Slot>,
    /// [n_host_pages · PAGE_TOKENS]
    host_slots: Vec<Slot>,
    n_sampled: u64,
    n_executed: u64,
    stop: StopFlag,
}

impl MockExecutor {
    pub fn new(config: MockConfig) -> Self {
        let n_slots = config.n_pages * PAGE_TOKENS;
        let info = ExecutorInfo {
            name: "mock".to_owned(),
            device: "none".to_owned(),
            kernels: Vec::new(),
            inactive_flags: Vec::new(),
            kv_pool_tokens: n_slots,
            kv_pool_bytes: (n_slots * size_of::<Slot>()) as u64,
            weight_bytes: 0,
            host_tier: (config.n_host_pages > 0).then_some(HostTierInfo {
                n_pages: config.n_host_pages,
                page_bytes: (PAGE_TOKENS * size_of::<Slot>()) as u64,
                n_copies: 2,
            }),
            memory: MemoryParts::default(),
        };
        Self {
            slots: vec![None; n_slots],
            host_slots: vec![None; config.n_host_pages * PAGE_TOKENS],
            config,
            info,
            n_sampled: 0,
            n_executed: 0,
            stop: StopFlag::default(),
        }
    }

    /// Steps executed so far, including failed ones.
    pub fn n_executed(&self) -> u64 {
        self.n_executed
    }

    /// Waits for the duration of a step, unless it is aborted.
    fn delay(&self) -> Result<(), ExecutorError> {
        let end = Instant::now() + self.config.step_delay;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if self.stop.is_raised() {
                return Err(failure("the step was aborted".to_owned()));
            }
            std::thread::sleep(left.min(POLL_INTERVAL));
        }
    }

    fn slot_index(row: &PlanRow, position: usize) -> Result<usize, ExecutorError> {
        let page = row.pages.get(position / PAGE_TOKENS).ok_or_else(|| {
            failure(format!(
                "request {}: position {position} is beyond its {} pages",
                row.request,
                row.pages.len()
            ))
        })?;
        Ok(page.0 as usize * PAGE_TOKENS + position % PAGE_TOKENS)
    }

    fn write(&mut self, row: &PlanRow, position: usize, token: u32) -> Result<(), ExecutorError> {
        let index = Self::slot_index(row, position)?;
        let n_pages = self.config.n_pages;
        let slot = self.slots.get_mut(index).ok_or_else(|| {
            failure(format!(
                "request {}: page outside the pool of {n_pages}",
                row.request
            ))
        })?;
        *slot = Some((token, position));
        Ok(())
    }

    /// Tokens `0 ..= last` of the row's sequence, read through its pages.
    fn read(&self, row: &PlanRow, last: usize) -> Result<Vec<u32>, ExecutorError> {
        (0..=last)
            .map(
                |position| match self.slots.get(Self::slot_index(row, position)?) {
                    Some(Some((token, at))) if *at == position => Ok(*token),
                    found => Err(failure(format!(
                        "request {}: position {position} reads {found:?}",
                        row.request
                    ))),
                },
            )
            .collect()
    }

    /// The token that follows `sequence`.
    fn next_token(&self, sequence: &[u32], row: &PlanRow, output_index: usize) -> u32 {
        if let Some(script) = self.config.script.as_deref().filter(|s| !s.is_empty()) {
            return script[output_index % script.len()];
        }
        let mut hash = sequence
            .iter()
            .fold(FNV_OFFSET, |hash, &token| fnv(hash, token.into()));
        if let Some(sample) = row.sample.as_ref().filter(|s| s.params.temperature > 0.0) {
            hash = fnv(fnv(hash, sample.params.seed), output_index as u64);
        }
        hash ^= hash >> 29;
        match self.config.stop {
            Some((token, n)) if hash.is_multiple_of(n) => token,
            _ => {
                let n_tokens = u64::from(self.config.tokens.end - self.config.tokens.start).max(1);
                self.config.tokens.start + (hash % n_tokens) as u32
            }
        }
    }

    fn sample(
        &self,
        row: &PlanRow,
        position: usize,
        output_index: usize,
    ) -> Result<Option<Result<SampledToken, RowError>>, ExecutorError> {
        let Some(sample) = &row.sample else {
            return Ok(None);
        };
        let sequence = self.read(row, position)?;
        let i_step = output_index - sample.output_index;
        let history_is_right = if sample.params.needs_history() {
            sample.history.len() + i_step == sequence.len() && sequence.starts_with(&sample.history)
        } else {
            sample.history.is_empty()
        };
        if !history_is_right {
            return Err(failure(format!(
                "request {}: history is not the sequence",
                row.request
            )));
        }
        if sample.n_prompt + output_index != sequence.len() {
            return Err(failure(format!(
                "request {}: output {output_index} after {} prompt tokens samples at length {}",
                row.request,
                sample.n_prompt,
                sequence.len()
            )));
        }
        if let Err(error) = sampler::check(&sample.params) {
            return Ok(Some(Err(error.into())));
        }
        if let Some((token, n)) = self.config.broken_logits
            && output_index >= n
            && sequence.contains(&token)
        {
            let (token, value) = (token as usize, f32::NAN);
            let error = SamplerError::NotFinite { token, value };
            return Ok(Some(Err(error.into())));
        }
        let guide = sample.params.guide.as_ref();
        let mask = guide.and_then(|guide| guide.mask(output_index));
        let mask = mask.as_deref();
        let token = self.next_token(&sequence, row, output_index);
        let token = guided(token, mask, output_index);
        let Some(token) = self.allowed(token, sample, output_index, &sequence, mask) else {
            return Ok(Some(Err(SamplerError::AllMasked.into())));
        };
        // An invented distribution: 1/2, 1/4, 1/8, …, the chosen token first.
        let nth_logprob = |n: usize| -((n + 1) as f32) * std::f32::consts::LN_2;
        Ok(Some(Ok(SampledToken {
            token,
            logprob: sample.params.n_logprobs.map(|_| nth_logprob(0)),
            top_logprobs: (0..sample.params.n_logprobs.unwrap_or(0))
                .map(|n| {
                    let n_tokens = (self.config.tokens.end - self.config.tokens.start).max(1);
                    let offset = token.wrapping_sub(self.config.tokens.start);
                    let other = self.config.tokens.start + offset.wrapping_add(n as u32) % n_tokens;
                    (if n == 0 { token } else { other }, nth_logprob(n))
                })
                .collect(),
        })))
    }

    /// The token, or if the request excludes it, the next one in the range that is allowed.
    fn allowed(
        &self,
        token: u32,
        sample: &SampleSpec,
        output_index: usize,
        sequence: &[u32],
        mask: Option<&TokenMask>,
    ) -> Option<u32> {
        let exclusions = &sample.params.exclusions;
        if !exclusions.apply_at(output_index) {
            return Some(token);
        }
        let of_form = mask.and_then(|mask| mask.allowed().last().copied());
        let last = token.max(of_form.unwrap_or(0));
        let n_tokens = self.config.tokens.end.max(last + 1);
        let mut logits = vec![0.0; n_tokens as usize];
        if let Some(mask) = mask {
            mask.apply(&mut logits);
        }
        exclusions.mask(&mut logits, output_index, &sequence[sample.n_prompt..]);
        let range = || self.config.tokens.clone();
        let others = range().filter(|other| *other > token).chain(range());
        let mut candidates = std::iter::once(token).chain(others).chain(0..n_tokens);
        candidates.find(|token| logits[*token as usize] == 0.0)
    }

    /// Invented, but deterministic for each token: 1/2, 1/4, … or 1/128, and other tokens after it.
    fn score(target: u32, n_top: usize) -> ScoredToken {
        let rank = target % 7 + 1;
        let nth_logprob = |n: u32| -(n as f32) * std::f32::consts::LN_2;
        ScoredToken {
            token: target,
            logprob: nth_logprob(rank),
            rank,
            top_logprobs: (1..=n_top as u32)
                .map(|n| (target + n - rank.min(target + n), nth_logprob(n)))
                .collect(),
        }
    }

    fn check(plan: &StepPlan) -> Result<(), ExecutorError> {
        if plan.n_steps == 0 || (plan.rows.is_empty() && plan.copies.is_empty()) {
            return Err(failure("the plan is empty".to_owned()));
        }
        let mut written = HashSet::new();
        for row in &plan.rows {
            if row.tokens.is_empty() {
                return Err(failure(format!(
                    "request {}: row without tokens",
                    row.request
                )));
            }
            if row.n_drafts > 0 && (!row.is_decode() || plan.n_steps != 1) {
                return Err(failure(format!(
                    "request {}: drafts in no decode row",
                    row.request
                )));
            }
            if plan.n_steps > 1 && (row.tokens.len() != 1 || row.sample.is_none()) {
                return Err(failure(format!(
                    "request {}: no decode row in a burst",
                    row.request
                )));
            }
            let first_written = row.start / PAGE_TOKENS;
            for (i, page) in row.pages.iter().enumerate() {
                if i >= first_written && !written.insert(*page) {
                    let page = page.0;
                    return Err(failure(format!("two rows write to page {page}")));
                }
            }
        }
        super::check_scores(plan, DEVICE)?;
        for row in &plan.rows {
            let first_written = (row.start / PAGE_TOKENS).min(row.pages.len());
            let shared = &row.pages[..first_written];
            if let Some(page) = shared.iter().find(|page| written.contains(page)) {
                let page = page.0;
                return Err(failure(format!("page {page} is shared and written to")));
            }
        }
        let copies = &plan.copies;
        let copied = copies.restores.iter().chain(&copies.offloads);
        if let Some(copy) = copied.into_iter().find(|c| written.contains(&c.device)) {
            let page = copy.device.0;
            return Err(failure(format!("page {page} is copied and written to")));
        }
        Ok(())
    }

    fn copy_page(&mut self, copy: PageCopy, is_restored: bool) -> Result<(), ExecutorError> {
        let range = |page: u32| page as usize * PAGE_TOKENS..(page as usize + 1) * PAGE_TOKENS;
        let device = self.slots.get_mut(range(copy.device.0));
        let host = self.host_slots.get_mut(range(copy.host.0));
        let (Some(device), Some(host)) = (device, host) else {
            return Err(failure(format!("{copy:?} is outside the tiers")));
        };
        let (from, to) = if is_restored {
            (host, device)
        } else {
            (device, host)
        };
        if from.contains(&None) {
            return Err(failure(format!("{copy:?} copies what was never written")));
        }
        to.copy_from_slice(from);
        Ok(())
    }
}

impl Executor for MockExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    /// Each sampled token counts: the mock has no device.
    fn counts(&self) -> ExecutorCounts {
        ExecutorCounts {
            host_sampled_tokens: self.n_sampled,
            ..ExecutorCounts::default()
        }
    }

    fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError> {
        let step = self.n_executed;
        self.n_executed += 1;
        if self.config.failing_steps.contains(&step) {
            return Err(ExecutorError::Step {
                device: DEVICE,
                source: StepError::Told(format!("step {step} was told to fail")),
            });
        }
        if self.config.losing_step.is_some_and(|first| step >= first) {
            return Err(ExecutorError::DeviceLost {
                device: DEVICE,
                source: StepError::Told(format!("step {step} was told to lose the device")),
            });
        }
        assert!(
            self.config.panicking_step != Some(step),
            "step {step} was told to panic"
        );
        Self::check(plan)?;
        let mut output = StepOutput {
            rows: vec![RowOutput::default(); plan.rows.len()],
        };
        for i_step in 0..plan.n_steps {
            self.delay()?;
            // All rows write before any row reads, so that a page held by two rows is detected.
            for (row, made) in plan.rows.iter().zip(&output.rows) {
                match made.tokens.last() {
                    _ if made.has_failed() => {}
                    None => {
                        for (i, &token) in row.tokens.iter().enumerate() {
                            self.write(row, row.start + i, token)?;
                        }
                    }
                    Some(last) => self.write(row, row.start + i_step, last.token)?,
                }
            }
            for (row, made) in plan.rows.iter().zip(&mut output.rows) {
                if made.has_failed() {
                    continue;
                }
                for n_before in 0..=row.n_drafts {
                    let i_step = i_step + n_before;
                    let position = row.start + row.tokens.len() - row.n_drafts - 1 + i_step;
                    let output_index = row.sample.as_ref().map_or(0, |s| s.output_index) + i_step;
                    let Some(chosen) = self.sample(row, position, output_index)? else {
                        break;
                    };
                    let n_kept = made.tokens.len();
                    if row.n_drafts > 0 {
                        made.push_verified(row.drafts(), n_before, chosen);
                    } else {
                        made.push(chosen);
                    }
                    self.n_sampled += (made.tokens.len() - n_kept) as u64;
                }
            }
        }
        for target in plan.targets() {
            output.rows[target.row]
                .push_score(Ok::<_, RowError>(Self::score(target.token, target.n_top)));
        }
        for copy in &plan.copies.restores {
            self.copy_page(*copy, true)?;
        }
        for copy in &plan.copies.offloads {
            self.copy_page(*copy, false)?;
        }
        Ok(output)
    }

    fn watch(&mut self, stop: &StopFlag) {
        self.stop = stop.clone();
    }

    fn sleep(
        self: Box<Self>,
    ) -> Result<Box<dyn SuspendedExecutor>, (Box<dyn Executor>, ExecutorError)> {
        Ok(Box::new(SleepingMock(self.config)))
    }
}

struct SleepingMock(MockConfig);

impl SuspendedExecutor for SleepingMock {
    fn wake(&mut self) -> Result<Box<dyn Executor>, ExecutorError> {
        Ok(Box::new(MockExecutor::new(self.0.clone())))
    }
}

/// The token, or if a grammar does not allow it, one that it allows.
fn guided(token: u32, mask: Option<&TokenMask>, output_index: usize) -> u32 {
    match mask {
        Some(mask) if !mask.allows(token) => {
            let allowed = mask.allowed();
            let hash = fnv(fnv(FNV_OFFSET, token.into()), output_index as u64);
            let hash = hash ^ hash >> 29;
            let nth = hash % (allowed.len() as u64).max(1);
            allowed.get(nth as usize).copied().unwrap_or(token)
        }
        _ => token,
    }
}

fn failure(message: String) -> ExecutorError {
    ExecutorError::of_plan(DEVICE, message)
}

const DEVICE: &str = "mock";
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(0x0100_0000_01b3)
}
