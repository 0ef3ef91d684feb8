//! One request in progress: its tokens so far, how many of them are computed, its pages.

use std::sync::Arc;
use std::time::Duration;

use super::SCORED_CHUNK;
use super::drafts::{Pools, SequenceDrafts};
use crate::kv::{PAGE_TOKENS, PageTable, Prefix};
use crate::request::{
    Failure, FinishReason, Request, RequestId, SampledToken, ScoredToken, TokenEvent, Usage,
};
use crate::sampler::SampleSpec;
use crate::step::{PlanRow, RowOutput, ScoreSpec};

/// The events that [`Sequence::accept`] reports.
pub(super) type Events = Vec<(RequestId, TokenEvent)>;

#[derive(Debug)]
pub(super) struct Sequence {
    pub request: Request,
    /// Prompt, then output so far.
    pub tokens: Vec<u32>,
    /// Leading tokens whose KV is in `pages`. One less than `tokens.len()` while decoding.
    pub n_computed: usize,
    pub pages: PageTable,
    /// Host copies of the first pages, held while the pages after `n_computed` are being restored;
    /// otherwise empty.
    pub host_pages: PageTable,
    /// Pages that the current step restores.
    pub n_restoring: usize,
    pub arrival: Duration,
    /// Order of arrival; kept through preemption.
    pub arrival_index: u64,
    /// Hash of each whole-page prefix of the prompt, and after a preemption also of the output;
    /// empty if neither cache nor policy uses prefixes.
    pub prefix_hashes: Vec<u64>,
    /// Leading pages of the prompt that are in the prefix cache while this is running.
    pub n_kept_pages: usize,
    /// Prompt tokens whose KV was cached at the first admission.
    pub n_cached: usize,
    pub ended: bool,
    /// Its next mask is not ready: it skips the next plan.
    pub is_held_back: bool,
    /// Its last row failed: what that row computed is not cached.
    pub is_broken: bool,
    pub scores: Scores,
    /// `None` if it gets no drafts.
    pub drafts: Option<SequenceDrafts>,
    /// True from the first admission on, so that the queue wait is reported only once.
    pub was_admitted: bool,
    /// The number of the admissions before it entered the queue.
    pub entered_at: u64,
}

/// Log-probabilities of a prompt's tokens, if requested.
#[derive(Debug, Default)]
pub(super) struct Scores {
    /// Scores of the second token, the third, …, until they are sent.
    pub made: Vec<ScoredToken>,
    pub are_told: bool,
}

impl Sequence {
    pub fn n_prompt(&self) -> usize {
        self.request.prompt.len()
    }

    pub fn n_output(&self) -> usize {
        self.tokens.len() - self.n_prompt()
    }

    pub fn n_output_left(&self) -> usize {
        self.request.max_new_tokens.saturating_sub(self.n_output())
    }

    /// Known tokens that have not been computed yet; never 0 between steps.
    pub fn n_uncomputed(&self) -> usize {
        self.tokens.len() - self.n_computed
    }

    /// Whether only one known token is left to compute, which samples the next: a decode row.
    pub fn is_decoding(&self) -> bool {
        self.n_uncomputed() == 1 && self.request.max_new_tokens > 0
    }

    /// Whether it has a decode row in the next plan.
    pub fn is_due(&self) -> bool {
        self.is_decoding() && !self.is_held_back
    }

    /// Whether its prompt still has to be scored.
    pub fn is_scored(&self) -> bool {
        let is_asked = self.request.sampling.n_prompt_logprobs.is_some();
        is_asked && !self.scores.are_told && self.n_prompt() > 1
    }

    /// How many of `n_tokens` known tokens one row may compute.
    pub fn chunk_of(&self, n_tokens: usize) -> usize {
        if self.is_scored() {
            n_tokens.min(SCORED_CHUNK)
        } else {
            n_tokens
        }
    }

    /// The tokens that `row`, the plan's `i`th, has to score.
    pub fn scores_of(&self, i: usize, row: &PlanRow) -> Option<ScoreSpec> {
        let n_top = self.request.sampling.n_prompt_logprobs?;
        let targets = self.targets(row);
        (self.is_scored() && !targets.is_empty()).then(|| ScoreSpec {
            row: i,
            targets: targets.to_vec(),
            n_top,
        })
    }

    /// Prompt tokens that follow the row's tokens.
    fn targets(&self, row: &PlanRow) -> &[u32] {
        let end = (row.start + row.tokens.len() + 1).min(self.n_prompt());
        self.tokens.get(row.start + 1..end).unwrap_or_default()
    }

    /// Whether a grammar constrains its tokens.
    pub fn is_guided(&self) -> bool {
        self.request.sampling.guide.is_some()
    }

    /// Whether some of its pages are being restored: it cannot be computed yet.
    pub fn is_restoring(&self) -> bool {
        self.host_pages.capacity_tokens() > self.n_computed
    }

    pub fn n_accepted_drafts(&self) -> usize {
        self.drafts.as_ref().map_or(0, |drafts| drafts.n_accepted)
    }

    pub fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.n_prompt(),
            completion_tokens: self.n_output(),
            cached_tokens: self.n_cached,
            accepted_drafts: self.n_accepted_drafts(),
            rejected_drafts: self.drafts.as_ref().map_or(0, |d| d.n_rejected),
        }
    }

    /// Hashes of the whole pages of the prompt.
    pub fn prompt_hashes(&self) -> &[u64] {
        &self.prefix_hashes[..self.prefix_hashes.len().min(self.n_prompt() / PAGE_TOKENS)]
    }

    /// Hashes of the prompt's pages that are not in the prefix cache yet.
    pub fn hashes_in_flight(&self) -> &[u64] {
        self.prompt_hashes()
            .get(self.n_kept_pages..)
            .unwrap_or_default()
    }

    /// The prefix that may be taken from the cache: all known whole pages, but not the last token,
    /// which must be computed for its logits; nothing while every token must be scored.
    pub fn shareable(&self) -> Prefix<'_> {
        let prefix = Prefix {
            hashes: &self.prefix_hashes,
            tokens: &self.tokens,
        };
        let n_computed = if self.is_scored() {
            1
        } else {
            self.tokens.len()
        };
        prefix.first((n_computed - 1) / PAGE_TOKENS)
    }

    /// Overwrites `row` with the row that computes the next `n_tokens` known tokens; a decode row
    /// also has the drafts.
    pub fn write_row(&self, n_tokens: usize, row: &mut PlanRow) {
        let end = (self.n_computed + n_tokens).min(self.tokens.len());
        row.request = self.request.id;
        row.start = self.n_computed;
        row.tokens.clear();
        row.tokens
            .extend_from_slice(&self.tokens[self.n_computed..end]);
        row.n_drafts = 0;
        if let Some(drafts) = self.drafts.as_ref().filter(|_| self.is_decoding()) {
            row.tokens.extend_from_slice(&drafts.next);
            row.n_drafts = drafts.next.len();
        }
        row.pages.clear();
        row.pages.extend_from_slice(self.pages.as_slice());
        if end < self.tokens.len() || self.request.max_new_tokens == 0 {
            row.sample = None;
            return;
        }
        let params = &self.request.sampling;
        let spec = row.sample.get_or_insert_with(|| SampleSpec {
            params: Arc::clone(params),
            output_index: 0,
            history: Vec::new(),
            n_prompt: 0,
        });
        if !Arc::ptr_eq(&spec.params, params) {
            spec.params = Arc::clone(params);
        }
        spec.output_index = self.n_output();
        spec.n_prompt = self.n_prompt();
        spec.history.clear();
        if params.needs_history() {
            spec.history.extend_from_slice(&self.tokens);
        }
    }

    /// Applies the results of a step for `row`. Tokens after a stop id, or after the last allowed
    /// one, are discarded, and so is an error after those.
    /// `pools`: how often all requests' drafts were right; `None` without speculation.
    pub fn accept(
        &mut self,
        row: &PlanRow,
        output: RowOutput,
        pools: Option<&mut Pools>,
        events: &mut Events,
    ) {
        let id = self.request.id;
        let RowOutput {
            tokens,
            scores,
            error,
        } = output;
        if let Some(error) = &error
            && tokens.is_empty()
        {
            self.fail(error.failure(&self.request.sampling), events);
            return;
        }
        if self.is_scored() && !self.take_scores(row, scores, events) {
            let message = "the executor scored too few tokens of this request".to_owned();
            self.fail(Failure::Step { message }, events);
            return;
        }
        if row.sample.is_none() {
            self.n_computed += row.tokens.len();
            if self.request.max_new_tokens == 0 && self.n_uncomputed() == 0 {
                self.finish(FinishReason::Length, events);
            }
            return;
        }
        if tokens.is_empty() {
            let message = "the executor returned no token for this request".to_owned();
            self.fail(Failure::Step { message }, events);
            return;
        }
        self.n_computed += row.tokens.len() - row.n_drafts - 1;
        if let Some(pools) = pools {
            self.record_drafts(pools, row, &tokens, error.is_some());
        }
        for token in tokens {
            let is_stop = self.request.stop_token_ids.contains(&token.token);
            self.tokens.push(token.token);
            self.n_computed += 1;
            events.push((id, TokenEvent::Token(token)));
            let reason = if is_stop {
                FinishReason::Stop
            } else if self.n_output_left() == 0 {
                FinishReason::Length
            } else {
                continue;
            };
            self.finish(reason, events);
            return;
        }
        if let Some(error) = error {
            self.fail(error.failure(&self.request.sampling), events);
        }
    }

    /// Records what became of the row's drafts.
    fn record_drafts(
        &mut self,
        pools: &mut Pools,
        row: &PlanRow,
        tokens: &[SampledToken],
        has_failed: bool,
    ) {
        let n_left = self.n_output_left();
        let Some(drafts) = &mut self.drafts else {
            return;
        };
        if row.n_drafts > 0 {
            // All tokens but the last are accepted drafts; those after the end do not count.
            let n_right = tokens.len() - usize::from(!has_failed);
            let ends = |token: &SampledToken| self.request.stop_token_ids.contains(&token.token);
            let end = tokens.iter().position(ends).map_or(n_left, |i| i + 1);
            drafts.record(pools, row.n_drafts, n_right, n_right.min(end).min(n_left));
        } else if let Some(first) = tokens.first() {
            drafts.record_shadow(pools, first.token);
        }
    }

    /// Appends the scores of the row's tokens, and sends them when they are complete. Returns false
    /// if some are missing.
    fn take_scores(
        &mut self,
        row: &PlanRow,
        scores: Vec<ScoredToken>,
        events: &mut Events,
    ) -> bool {
        if scores.len() != self.targets(row).len() {
            return false;
        }
        let made = &mut self.scores.made;
        made.extend(scores);
        if made.len() + 1 == self.request.prompt.len() {
            let event = TokenEvent::PromptLogprobs(std::mem::take(made));
            events.push((self.request.id, event));
            self.scores.are_told = true;
        }
        true
    }

    fn finish(&mut self, reason: FinishReason, events: &mut Events) {
        self.ended = true;
        let usage = self.usage();
        events.push((self.request.id, TokenEvent::Finished { reason, usage }));
    }

    fn fail(&mut self, failure: Failure, events: &mut Events) {
        self.ended = true;
        self.is_broken = true;
        events.push((self.request.id, TokenEvent::Failed(failure)));
    }
}
