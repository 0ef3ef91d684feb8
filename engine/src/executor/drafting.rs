//! A model with a second, smaller one that guesses its next tokens.
//!
//! The draft model reads what the requests' texts are and continues each greedily, all requests in
//! the same steps. It has a KV pool of its own. Of what it has computed, the tokens that became part
//! of the text stay; wrong ones are overwritten. Where its pool is full, the request that it has
//! drafted for least recently is computed again later.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{Executor, ExecutorCounts, ExecutorError, ExecutorInfo, StopFlag, SuspendedExecutor};
use crate::kv::{PAGE_TOKENS, PageAllocator, PageIdx, PageTable};
use crate::request::{RequestId, SamplingParams};
use crate::sampler::SampleSpec;
use crate::step::{PlanRow, StepOutput, StepPlan};

/// Tokens of one request that the draft model reads in one call; a longer prompt takes several
/// steps before there are drafts.
const MAX_READ: usize = 256;

/// A request that wants drafts.
#[derive(Debug, Clone, Copy)]
pub struct DraftAsk<'a> {
    pub request: RequestId,
    /// Its prompt and output so far; never empty.
    pub tokens: &'a [u32],
    /// Of the model that is guessed for; they hold all but the last token.
    pub pages: &'a [PageIdx],
    pub n_drafts: usize,
}

/// What the draft model can read and say.
#[derive(Debug, Clone, Copy)]
pub struct DraftLimits {
    /// Longest text, in tokens.
    pub context_length: usize,
    /// Ids that the draft model has.
    pub vocab: usize,
    /// Ids that the target has.
    pub target_vocab: usize,
}

/// A draft model and its KV.
pub struct DraftModel {
    executor: Box<dyn Executor>,
    limits: DraftLimits,
    allocator: PageAllocator,
    sequences: FxHashMap<RequestId, Sequence>,
    clock: u64,
}

/// What the draft model has of one request.
#[derive(Default)]
struct Sequence {
    pages: PageTable,
    /// Tokens whose KV is in `pages`.
    computed: Vec<u32>,
    last_call: u64,
}

impl DraftModel {
    pub fn new(executor: Box<dyn Executor>, limits: DraftLimits) -> Self {
        let n_pages = executor.info().kv_pool_tokens / PAGE_TOKENS;
        Self {
            executor,
            limits,
            allocator: PageAllocator::new(n_pages, false),
            sequences: FxHashMap::default(),
            clock: 0,
        }
    }

    /// For each request the most likely tokens after its text, as the draft model sees it; fewer
    /// where the text is too long for it or not read yet.
    ///
    /// # Errors
    ///
    /// If a step of the draft model failed.
    pub fn draft(&mut self, asks: &[DraftAsk<'_>]) -> Result<Vec<Vec<u32>>, ExecutorError> {
        self.clock += 1;
        let mut drafts = vec![Vec::new(); asks.len()];
        let mut rows = Vec::new();
        let mut of_row = Vec::new();
        for (i, ask) in asks.iter().enumerate() {
            if let Some(row) = self.first_row(ask) {
                rows.push(row);
                of_row.push(i);
            }
        }
        while !rows.is_empty() {
            let plan = StepPlan {
                rows,
                n_steps: 1,
                ..StepPlan::default()
            };
            let output = self.executor.execute(&plan)?;
            rows = Vec::new();
            let mut going = Vec::new();
            for ((row, made), i) in plan.rows.into_iter().zip(output.rows).zip(of_row) {
                let Some(token) = made.tokens.first().map(|token| token.token) else {
                    continue;
                };
                // A model may have more rows in its lm_head than it has tokens.
                if token as usize >= self.limits.target_vocab.min(self.limits.vocab) {
                    continue;
                }
                drafts[i].push(token);
                if drafts[i].len() < asks[i].n_drafts
                    && let Some(sequence) = self.sequences.get_mut(&row.request)
                {
                    let start = sequence.computed.len();
                    sequence.computed.push(token);
                    rows.push(PlanRow {
                        tokens: vec![token],
                        start,
                        sample: Some(greedy(start + 1)),
                        ..row
                    });
                    going.push(i);
                }
            }
            of_row = going;
        }
        Ok(drafts)
    }

    /// The row that reads what is new of a request, and samples if that is all.
    fn first_row(&mut self, ask: &DraftAsk<'_>) -> Option<PlanRow> {
        let n_tokens = ask.tokens.len();
        let is_readable = |token: &u32| (*token as usize) < self.limits.vocab;
        let n_last = n_tokens + ask.n_drafts.saturating_sub(1);
        if ask.n_drafts == 0 || n_tokens == 0 || n_last > self.limits.context_length {
            return None;
        }
        let mut sequence = self.sequences.remove(&ask.request).unwrap_or_default();
        sequence.last_call = self.clock;
        let known = sequence.computed.iter().zip(ask.tokens);
        let n_known = known.take_while(|(a, b)| a == b).count();
        // The last token is computed again, for its logits.
        let start = n_known.min(n_tokens - 1);
        sequence.computed.truncate(start);
        let end = n_tokens.min(start + MAX_READ);
        let is_whole = end == n_tokens;
        let new = &ask.tokens[start..end];
        let n_held = if is_whole { n_last } else { end };
        let fits = new.iter().all(is_readable) && self.grow(&mut sequence.pages, n_held);
        let row = fits.then(|| {
            sequence.computed.extend_from_slice(new);
            PlanRow {
                request: ask.request,
                tokens: new.to_vec(),
                n_drafts: 0,
                start,
                pages: sequence.pages.as_slice().to_vec(),
                sample: is_whole.then(|| greedy(n_tokens)),
            }
        });
        self.sequences.insert(ask.request, sequence);
        row
    }

    /// Gives a request pages, if need be those of others that this call is not for.
    fn grow(&mut self, pages: &mut PageTable, n_tokens: usize) -> bool {
        while !self.allocator.grow(pages, n_tokens) {
            let others = self.sequences.iter();
            let oldest = others
                .filter(|(_, other)| other.last_call < self.clock)
                .min_by_key(|(id, other)| (other.last_call, id.0))
                .map(|(id, _)| *id);
            let Some(mut other) = oldest.and_then(|id| self.sequences.remove(&id)) else {
                return false;
            };
            self.allocator.free(&mut other.pages);
        }
        true
    }
}

/// The likeliest token after a text of `n_tokens`.
fn greedy(n_tokens: usize) -> SampleSpec {
    SampleSpec {
        params: Arc::new(SamplingParams::default()),
        output_index: 0,
        history: Vec::new(),
        n_prompt: n_tokens,
    }
}

/// An executor whose requests a draft model guesses for.
pub struct DraftingExecutor {
    target: Box<dyn Executor>,
    model: DraftModel,
}

impl DraftingExecutor {
    pub fn new(target: Box<dyn Executor>, model: DraftModel) -> Self {
        Self { target, model }
    }
}

impl Executor for DraftingExecutor {
    fn info(&self) -> &ExecutorInfo {
        self.target.info()
    }

    fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError> {
        self.target.execute(plan)
    }

    fn draft(&mut self, asks: &[DraftAsk<'_>]) -> Result<Vec<Vec<u32>>, ExecutorError> {
        self.model.draft(asks)
    }

    fn counts(&self) -> ExecutorCounts {
        self.target.counts()
    }

    fn watch(&mut self, stop: &StopFlag) {
        self.target.watch(stop);
        self.model.executor.watch(stop);
    }

    fn sleep(
        self: Box<Self>,
    ) -> Result<Box<dyn SuspendedExecutor>, (Box<dyn Executor>, ExecutorError)> {
        let Self { target, model } = *self;
        let limits = model.limits;
        let model = match model.executor.sleep() {
            Ok(model) => model,
            Err((executor, error)) => {
                let model = DraftModel::new(executor, limits);
                return Err((Box::new(Self { target, model }), error));
            }
        };
        match target.sleep() {
            Ok(target) => Ok(Box::new(SleepingPair {
                target,
                model,
                limits,
            })),
            // The target stays awake, without drafts.
            Err(failed) => Err(failed),
        }
    }
}

struct SleepingPair {
    target: Box<dyn SuspendedExecutor>,
    model: Box<dyn SuspendedExecutor>,
    limits: DraftLimits,
}

impl SuspendedExecutor for SleepingPair {
    fn wake(&mut self) -> Result<Box<dyn Executor>, ExecutorError> {
        let model = DraftModel::new(self.model.wake()?, self.limits);
        match self.target.wake() {
            Ok(target) => Ok(Box::new(DraftingExecutor { target, model })),
            Err(error) => {
                // Suspended again, so that a later attempt finds both as they were.
                if let Ok(asleep) = model.executor.sleep() {
                    self.model = asleep;
                }
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::mock::{MockConfig, MockExecutor};

    fn model(n_pages: usize, context_length: usize) -> DraftModel {
        let executor = MockExecutor::new(MockConfig {
            n_pages,
            tokens: 0..100,
            ..MockConfig::default()
        });
        let limits = DraftLimits {
            context_length,
            vocab: 100,
            target_vocab: 100,
        };
        DraftModel::new(Box::new(executor), limits)
    }

    fn ask(request: u64, tokens: &[u32], n_drafts: usize) -> DraftAsk<'_> {
        DraftAsk {
            request: RequestId(request),
            tokens,
            pages: &[],
            n_drafts,
        }
    }

    /// What a model without a cache says.
    fn anew(tokens: &[u32], n_drafts: usize) -> Vec<u32> {
        model(64, 1000)
            .draft(&[ask(1, tokens, n_drafts)])
            .unwrap()
            .remove(0)
    }

    #[test]
    fn right_and_wrong_drafts_leave_what_a_new_model_would_say() {
        let mut one = model(64, 1000);
        let mut tokens: Vec<u32> = (0..21).collect();
        for n_right in [0, 3, 1, 4, 0, 2, 4, 4, 1] {
            let drafts = one.draft(&[ask(1, &tokens, 4)]).unwrap().remove(0);
            assert_eq!(drafts, anew(&tokens, 4));
            tokens.extend(&drafts[..n_right]);
            tokens.push(99 - drafts.first().copied().unwrap_or(0) / 2);
        }
    }

    #[test]
    fn requests_are_drafted_together_and_as_many_as_each_asks() {
        let mut one = model(64, 1000);
        let texts: Vec<Vec<u32>> = (1..5).map(|n| (0..n * 9).collect()).collect();
        let asks: Vec<DraftAsk> = texts
            .iter()
            .zip([3, 0, 1, 5])
            .enumerate()
            .map(|(id, (text, n))| ask(id as u64, text, n))
            .collect();
        let drafts = one.draft(&asks).unwrap();
        for (ask, drafts) in asks.iter().zip(drafts) {
            assert_eq!(drafts.len(), ask.n_drafts);
            if ask.n_drafts > 0 {
                assert_eq!(drafts, anew(ask.tokens, ask.n_drafts));
            }
        }
    }

    #[test]
    fn a_full_pool_forgets_who_was_drafted_for_least_recently() {
        let mut one = model(4, 1000);
        let texts: Vec<Vec<u32>> = (0..3).map(|i| (i..i + 20).collect()).collect();
        for round in 0..6 {
            let text = &texts[round % 3];
            let drafts = one.draft(&[ask(round as u64 % 3, text, 3)]).unwrap();
            assert_eq!(drafts[0], anew(text, 3));
            assert!(one.sequences.len() <= 2);
        }
        // Two texts in one call do not push each other out.
        let asks: Vec<DraftAsk> = (0..3).map(|i| ask(i as u64, &texts[i], 3)).collect();
        let n_drafts: Vec<usize> = one.draft(&asks).unwrap().iter().map(Vec::len).collect();
        assert_eq!(n_drafts, [3, 3, 0]);
    }

    #[test]
    fn what_it_cannot_read_gets_no_drafts() {
        let mut one = model(64, 20);
        assert_eq!(one.draft(&[ask(1, &[1, 100, 2], 3)]).unwrap(), [[0u32; 0]]);
        let text: Vec<u32> = (0..18).collect();
        assert_eq!(one.draft(&[ask(2, &text, 3)]).unwrap()[0].len(), 3);
        assert_eq!(one.draft(&[ask(2, &text, 4)]).unwrap()[0].len(), 0);
    }

    #[test]
    fn a_long_prompt_is_read_in_pieces() {
        let mut one = model(64, 1000);
        let text: Vec<u32> = (0..2 * MAX_READ as u32 + 5).map(|i| i % 90).collect();
        for _ in 0..2 {
            assert!(one.draft(&[ask(1, &text, 2)]).unwrap()[0].is_empty());
        }
        assert_eq!(one.draft(&[ask(1, &text, 2)]).unwrap()[0].len(), 2);
    }
}
