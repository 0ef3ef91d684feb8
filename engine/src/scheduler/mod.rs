//! Decides what each step computes: continuous batching over a paged KV cache.
//!
//! [`Scheduler::plan`] decides which rows run next, [`Scheduler::commit`] applies their results.
//! Pure bookkeeping: no tensors, no clock (time is passed in), no locks. It cannot fail: a request
//! that could never run is refused by [`Scheduler::add`], and everything after that succeeds.
//!
//! # Rules
//!
//! - Admission takes the policy's first waiting request and reserves pages for all its known
//!   tokens. If the pool cannot supply them, admission stops (head-of-line blocking), except as
//!   below.
//! - Whole pages of a prompt that were computed before are shared instead of computed again. A
//!   request whose next page is being computed by another one is skipped until it is available.
//! - A prompt is computed in chunks of at most `chunked_prefill_size` tokens, a step computes at
//!   most `max_prefill_tokens` prompt tokens. Prefill steps and decode steps alternate while both
//!   have work, so that neither starves; with `mixed_chunk` decode rows are added to prefill steps.
//! - A prompt whose tokens are scored is computed from its first token on, ignoring the cache, in
//!   chunks of at most [`SCORED_CHUNK`] tokens, since each token costs a row of logits.
//! - A decode step generates up to `n_continuous_decode_steps` tokens for each row, limited by what
//!   every row may still generate and has pages for; one at a time while a row follows a grammar. A
//!   row whose next mask is not ready can be held back: it keeps its pages and skips a step.
//! - If decoding rows need pages and none are left, the last admitted sequence is preempted: its
//!   pages are freed, it waits again (with its old arrival) and later recomputes prompt and output.
//!   The first admitted one is never preempted while others run, and alone it fits the pool, so there
//!   is always progress.
//! - With a host tier, evicted pages are restored from the host; a request whose prefix is being
//!   restored has no row meanwhile ([`host_tier`]).
//! - With speculation, a decode row carries drafts of the tokens after it where these are expected
//!   to pay and something is left for them ([`drafts`]). The step samples after each of them, and
//!   the tokens up to the first that is not the draft are taken.
//! - The random draw for output token i depends only on the seed and i, so preemption, chunking and
//!   other requests in the batch do not change a text.
//!
//! Deliberately absent: beam search.

mod commit;
mod drafts;
mod host_tier;
mod plan;
pub mod policy;
mod row_memory;
mod sequence;
#[cfg(test)]
mod tests;
mod waiting;
mod waits;

use std::time::Duration;

use rustc_hash::FxHashMap;

use self::drafts::Speculation;
use self::host_tier::HostTierCounts;
pub use self::host_tier::{HostTierConfig, HostTierStats, RestoreCosts};
pub use self::policy::{PolicyName, UnknownPolicy};
use self::row_memory::RowPool;
use self::sequence::{Scores, Sequence};
use self::waiting::{QueueKey, WaitingQueue};
use self::waits::Admissions;
pub use self::waits::{RequestView, WaitReason};
use crate::guide::Guide;
use crate::kv::prefix::extend_chain;
use crate::kv::{
    IntegrityError, KvEvent, PAGE_TOKENS, PageAllocator, PageTable, Prefix, PrefixIndex,
};
use crate::request::{FinishReason, Request, RequestId, TokenEvent};
use crate::sampler::{self, SamplerError};
use crate::speculation::SpeculationConfig;
use crate::step::StepPlan;

/// Prompt tokens that are scored in one step: bounds the delay of other requests.
const SCORED_CHUNK: usize = 256;

/// Validated settings; every count is at least 1 (0 works as 1).
#[derive(Debug, Clone, serde::Serialize)]
pub struct SchedulerConfig {
    /// KV pool in tokens; rounded down to whole pages.
    pub max_total_tokens: usize,
    pub max_running_requests: usize,
    /// Maximum number of prompt tokens in one step, over all its rows.
    pub max_prefill_tokens: usize,
    /// Maximum length of one prompt's chunk in one step; `None` computes each prompt in one chunk,
    /// even one longer than `max_prefill_tokens` (then alone).
    pub chunked_prefill_size: Option<usize>,
    /// Decode rows are added to prefill steps; their count is deducted from the prefill budget.
    pub mixed_chunk: bool,
    pub n_continuous_decode_steps: usize,
    /// Plans announce the next decode step and reserve its pages if any are free, so that an
    /// executor may begin it ahead.
    pub run_ahead: bool,
    /// KV of prompts and outputs is cached and shared with requests that have the same prefix.
    pub radix_cache: bool,
    /// The host tier for evicted pages; needs `radix_cache`.
    pub host_tier: Option<HostTierConfig>,
    pub speculation: Option<SpeculationConfig>,
    pub policy: PolicyName,
    /// Seed of the `random` policy.
    pub policy_seed: u64,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            max_total_tokens: 16384,
            max_running_requests: 256,
            max_prefill_tokens: 16384,
            chunked_prefill_size: Some(2048),
            mixed_chunk: false,
            n_continuous_decode_steps: 1,
            run_ahead: false,
            radix_cache: true,
            host_tier: None,
            speculation: None,
            policy: PolicyName::Fcfs,
            policy_seed: 0,
        }
    }
}

impl SchedulerConfig {
    /// Maximum number of prompt and output tokens of one request.
    pub fn pool_tokens(&self) -> usize {
        self.max_total_tokens / PAGE_TOKENS * PAGE_TOKENS
    }

    /// Why `request` could never run, if so.
    ///
    /// # Errors
    ///
    /// [`AddError::EmptyPrompt`], [`AddError::ExceedsPool`] if prompt and output are longer than
    /// the KV pool, [`AddError::Sampling`] if a sampling parameter is out of its range.
    pub fn check(&self, request: &Request) -> Result<(), AddError> {
        if request.prompt.is_empty() {
            return Err(AddError::EmptyPrompt);
        }
        sampler::check(&request.sampling)?;
        let n_tokens = request.prompt.len().saturating_add(request.max_new_tokens);
        if n_tokens > self.pool_tokens() {
            return Err(AddError::ExceedsPool {
                n_prompt: request.prompt.len(),
                max_new_tokens: request.max_new_tokens,
                limit: self.pool_tokens(),
            });
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AddError {
    #[error("the prompt has no tokens; at least 1 is needed")]
    EmptyPrompt,
    #[error(
        "{n_prompt} prompt tokens and {max_new_tokens} output tokens exceed the KV pool of {limit} tokens"
    )]
    ExceedsPool {
        n_prompt: usize,
        max_new_tokens: usize,
        limit: usize,
    },
    #[error(transparent)]
    Sampling(#[from] SamplerError),
    #[error("request {0} is in the engine already")]
    Duplicate(RequestId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SchedulerStats {
    pub n_running: usize,
    pub n_waiting: usize,
    /// Tokens that waiting requests have to compute, as if none were cached: what is cached shows at
    /// their admission.
    pub n_waiting_tokens: usize,
    /// Waiting requests that the last step skipped because another request is computing their
    /// prefix.
    pub n_deferred: usize,
    /// Pages used by running requests.
    pub n_pages_used: usize,
    /// Cached pages; they count as free.
    pub n_pages_cached: usize,
    pub n_pages_total: usize,
    /// Prompt tokens of all requests admitted since the start, and the number of them whose KV was
    /// cached.
    pub n_prompt_tokens: u64,
    pub n_cached_tokens: u64,
    /// Number of preemptions since the start.
    pub n_preemptions: u64,
}

#[derive(Debug, Clone, Copy)]
enum RequestState {
    Waiting(QueueKey),
    Running,
}

#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    allocator: PageAllocator,
    waiting: WaitingQueue,
    /// In order of admission; the last is the first to be preempted.
    running: Vec<Sequence>,
    place: FxHashMap<RequestId, RequestState>,
    /// Prompt pages that running requests are computing, by chain hash.
    in_flight: PrefixIndex,
    n_arrived: u64,
    n_prompt_tokens: u64,
    n_cached_tokens: u64,
    n_preemptions: u64,
    restore_costs: RestoreCosts,
    /// Whether plans may announce the next step.
    lookahead_enabled: bool,
    host_counts: HostTierCounts,
    /// The last step was a prefill without decode rows, so decode rows are next.
    decode_is_due: bool,
    queue_waits: Vec<(RequestId, Duration)>,
    preempted: Vec<RequestId>,
    n_deferred: usize,
    admissions: Admissions,
    row_memory: RowPool,
    speculation: Option<Speculation>,
}

impl Scheduler {
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            allocator: PageAllocator::with_host_tier(
                config.max_total_tokens / PAGE_TOKENS,
                config.radix_cache,
                config.host_tier.map_or(0, |tier| tier.n_pages),
            ),
            waiting: WaitingQueue::new(config.policy.build(config.policy_seed)),
            running: Vec::new(),
            place: FxHashMap::default(),
            in_flight: PrefixIndex::default(),
            n_arrived: 0,
            n_prompt_tokens: 0,
            n_cached_tokens: 0,
            n_preemptions: 0,
            restore_costs: RestoreCosts::default(),
            lookahead_enabled: true,
            host_counts: HostTierCounts::default(),
            decode_is_due: false,
            queue_waits: Vec::new(),
            preempted: Vec::new(),
            n_deferred: 0,
            admissions: Admissions::default(),
            row_memory: RowPool::default(),
            speculation: config.speculation.map(Speculation::new),
            config,
        }
    }

    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Enables or disables lookahead for subsequent plans. Treated as an input to `plan`, like
    /// `now`. Only with [`SchedulerConfig::run_ahead`].
    pub fn set_lookahead(&mut self, enabled: bool) {
        self.lookahead_enabled = enabled;
    }

    /// The guides of running requests.
    pub fn guides(&self) -> impl Iterator<Item = &Guide> {
        let running = self.running.iter();
        running.filter_map(|s| s.request.sampling.guide.as_ref())
    }

    /// Selects running requests, by their guides, that the next plan leaves out. Treated as an
    /// input to `plan`, like `now`. Replaces the previous selection.
    pub fn hold_back(&mut self, is_held_back: impl Fn(&Guide) -> bool) {
        for sequence in &mut self.running {
            let guide = sequence.request.sampling.guide.as_ref();
            sequence.is_held_back = guide.is_some_and(&is_held_back);
        }
    }

    /// Asks for the tokens that the guides of decoding requests force: they are the drafts of the
    /// next plan. Treated as an input to `plan`, like `now`. Does nothing without speculation.
    pub fn set_forced(&mut self, mut forced: impl FnMut(&Guide) -> Vec<u32>) {
        for sequence in self.running.iter_mut().filter(|s| s.is_due()) {
            if let Some(drafts) = &mut sequence.drafts
                && let Some(guide) = &sequence.request.sampling.guide
            {
                drafts.forced = forced(guide);
            }
        }
    }

    /// Queues a request that arrived at `now` (on the caller's monotonic clock).
    ///
    /// # Errors
    ///
    /// As [`SchedulerConfig::check`], and [`AddError::Duplicate`] if a request with this id is
    /// there.
    pub fn add(&mut self, request: Request, now: Duration) -> Result<(), AddError> {
        self.config.check(&request)?;
        let id = request.id;
        if self.place.contains_key(&id) {
            return Err(AddError::Duplicate(id));
        }
        let mut prefix_hashes = Vec::new();
        if self.config.radix_cache || self.config.policy.uses_prefixes() {
            extend_chain(&mut prefix_hashes, request.prefix_root, &request.prompt);
        }
        let speculation = self.speculation.as_ref();
        let key = self.waiting.insert(Sequence {
            drafts: speculation.map(|s| s.drafts_of(&request)),
            tokens: request.prompt.to_vec(),
            request,
            n_computed: 0,
            pages: PageTable::default(),
            host_pages: PageTable::default(),
            n_restoring: 0,
            arrival: now,
            arrival_index: self.n_arrived,
            prefix_hashes,
            n_kept_pages: 0,
            n_cached: 0,
            ended: false,
            is_held_back: false,
            is_broken: false,
            scores: Scores::default(),
            was_admitted: false,
            entered_at: self.admissions.n,
        });
        self.n_arrived += 1;
        self.place.insert(id, RequestState::Waiting(key));
        Ok(())
    }

    /// Removes a request and frees its pages at once. Returns its last event; `None` if it is
    /// unknown or has ended. A step in progress may still name it: `commit` skips it.
    pub fn cancel(&mut self, id: RequestId) -> Option<TokenEvent> {
        let mut sequence = match self.place.remove(&id)? {
            RequestState::Waiting(key) => self.waiting.remove(key)?,
            RequestState::Running => {
                let i = self.running.iter().position(|s| s.request.id == id)?;
                let mut sequence = self.running.remove(i);
                self.release(&mut sequence);
                sequence
            }
        };
        self.end_drafts(&mut sequence);
        Some(TokenEvent::Finished {
            reason: FinishReason::Cancelled,
            usage: sequence.usage(),
        })
    }

    /// Recycles the memory of a committed plan for a later one.
    pub fn reuse(&mut self, plan: StepPlan) {
        self.row_memory.recycle(plan.rows);
    }

    /// Whether no request is waiting or running.
    pub fn is_idle(&self) -> bool {
        self.place.is_empty()
    }

    /// Drops all cached KV. Does nothing while there are requests.
    pub fn forget(&mut self) {
        if self.is_idle() {
            self.allocator.forget();
        }
    }

    /// From now on changes of the prefix cache are recorded for [`Self::take_kv_events`].
    pub fn record_kv_events(&mut self) {
        self.allocator.record_events();
    }

    /// The changes of the prefix cache since the last call, in order.
    pub fn take_kv_events(&mut self) -> Vec<KvEvent> {
        self.allocator.take_events()
    }

    /// Replaces the events not taken yet by those that lead from nothing to the present contents.
    pub fn restate_kv_events(&mut self) {
        self.allocator.restate_events();
    }

    /// All requests, in no particular order.
    pub fn request_ids(&self) -> Vec<RequestId> {
        self.place.keys().copied().collect()
    }

    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            n_running: self.running.len(),
            n_waiting: self.waiting.len(),
            n_waiting_tokens: self.waiting.n_uncomputed(),
            n_deferred: self.n_deferred.min(self.waiting.len()),
            n_pages_used: self.allocator.n_pages_used(),
            n_pages_cached: self.allocator.n_pages_cached(),
            n_pages_total: self.allocator.n_pages_total(),
            n_prompt_tokens: self.n_prompt_tokens,
            n_cached_tokens: self.n_cached_tokens,
            n_preemptions: self.n_preemptions,
        }
    }

    /// How long each request admitted (for the first time) since the last call had waited.
    pub fn take_queue_waits(&mut self) -> Vec<(RequestId, Duration)> {
        std::mem::take(&mut self.queue_waits)
    }

    /// The requests preempted since the last call; one may be in it more than once.
    pub fn take_preempted(&mut self) -> Vec<RequestId> {
        std::mem::take(&mut self.preempted)
    }

    /// Checks that pages, tables and counts agree. O(pages): for tests and debugging.
    ///
    /// # Errors
    ///
    /// The first disagreement, with the page.
    pub fn check_integrity(&self) -> Result<(), IntegrityError> {
        self.allocator.check_integrity(
            self.running.iter().map(|s| &s.pages),
            self.running.iter().map(|s| &s.host_pages),
        )
    }

    /// Frees the pages and the prefix of a sequence that leaves the running set. What it computed,
    /// prompt and output, is cached unless its row failed.
    fn release(&mut self, sequence: &mut Sequence) {
        self.in_flight.remove(sequence.hashes_in_flight());
        self.allocator
            .prefixes_mut()
            .remove(sequence.prompt_hashes());
        if self.config.radix_cache && !sequence.is_broken {
            let computed = &sequence.tokens[..sequence.n_computed];
            let root = sequence.request.prefix_root;
            extend_chain(&mut sequence.prefix_hashes, root, computed);
            let n_pages = sequence.n_computed / PAGE_TOKENS;
            keep(&mut self.allocator, sequence, n_pages);
        }
        self.allocator.free(&mut sequence.pages);
        self.allocator.free_host(&mut sequence.host_pages);
        sequence.n_restoring = 0;
    }

    /// Sends the last admitted sequence back to the queue, to recompute its tokens later.
    fn preempt_last(&mut self) {
        let Some(mut sequence) = self.running.pop() else {
            return;
        };
        self.release(&mut sequence);
        sequence.n_computed = 0;
        sequence.entered_at = self.admissions.n;
        sequence.scores.made.clear();
        if let Some(drafts) = &mut sequence.drafts {
            drafts.clear();
        }
        self.n_preemptions += 1;
        let id = sequence.request.id;
        self.preempted.push(id);
        let key = self.waiting.insert(sequence);
        self.place.insert(id, RequestState::Waiting(key));
    }
}

/// Caches the first `n_pages` of `sequence`, which are computed.
fn keep(allocator: &mut PageAllocator, sequence: &mut Sequence, n_pages: usize) {
    let prefix = Prefix {
        hashes: &sequence.prefix_hashes,
        tokens: &sequence.tokens,
    };
    allocator.keep(&mut sequence.pages, prefix.first(n_pages));
}

/// What a step computes, for logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepKind {
    Prefill,
    Decode,
    Mixed,
}

impl StepKind {
    pub fn of(plan: &StepPlan) -> Self {
        let n_decode = plan.rows.iter().filter(|row| row.is_decode()).count();
        if n_decode == plan.rows.len() {
            Self::Decode
        } else if n_decode == 0 {
            Self::Prefill
        } else {
            Self::Mixed
        }
    }
}
