//! Decides which plan continues the decode batch on the GPU.
//!
//! A decode step leaves the GPU's inputs ready for the next one: ids, positions, slots, contexts
//! and sampling state are those of the next token. So a plan that only continues the batch needs no
//! upload, and its step may even start before the plan exists: it is queued after the running step,
//! while the host still reads tokens, sends them and schedules. If a different plan comes, the step
//! is discarded.
//!
//! Discarding needs no rollback. A discarded step only leaves KV at positions from its rows' next
//! token on. All later work is ordered after it in the stream and reads a position only after
//! writing it: a row that continues computes its token again, into the same slot; a page that went
//! to another sequence is written by that sequence first, position by position, and masked until
//! then. The prefix cache shares only whole pages of computed tokens, and the position after the
//! last computed one is never in such a page, so no shared page is touched.
//!
//! A new request must wait for a step that has begun ahead. Therefore a batch runs ahead only from
//! its second consecutive step on, only if the plan says that the next one will be like it, and
//! never if pages for it are missing.

use std::sync::Arc;

use super::MAX_BURST;
use super::sampling::{MAX_PENALIZED, is_greedy};
use crate::kv::{PAGE_TOKENS, PageIdx};
use crate::request::{RequestId, SampledToken, SamplingParams};
use crate::sampler::SampleSpec;
use crate::step::{PlanRow, RowOutput};

/// A decode batch that the GPU's inputs are ready for.
#[derive(Debug, Clone)]
pub(in crate::executor) struct Batch {
    rows: Vec<BatchRow>,
    /// Rows of the launches: the graph's size, or the batch's.
    pub n_padded: usize,
    /// Whether some row needs the sampler.
    pub is_sampled: bool,
    pub has_logprobs: bool,
    /// Maximum number of penalised tokens that a row may have on the GPU by now; 0 if none has any.
    n_penalized: usize,
}

/// What a row of the next plan must match to continue this one.
#[derive(Debug, Clone)]
struct BatchRow {
    request: RequestId,
    token: u32,
    /// Position of that token.
    start: usize,
    /// Pages that are on the GPU.
    pages: Vec<PageIdx>,
    params: Arc<SamplingParams>,
    output_index: usize,
    n_history: usize,
}

/// Steps that were queued together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Burst {
    pub n_steps: usize,
    /// Rows of a step in `history`.
    pub n_padded: usize,
    /// Index of the result buffer.
    pub slot: usize,
}

impl Batch {
    /// A batch whose inputs are being uploaded. `rows` are decode rows, all with `sample` set;
    /// `n_penalized` is the length of the longest growing list.
    pub fn new(rows: &[PlanRow], n_padded: usize, n_penalized: usize) -> Self {
        let specs = || rows.iter().filter_map(|row| row.sample.as_ref());
        Self {
            rows: rows
                .iter()
                .filter_map(|row| BatchRow::of(row, row.sample.as_ref()?))
                .collect(),
            n_padded,
            is_sampled: !specs().all(is_greedy),
            has_logprobs: specs().any(|spec| spec.params.n_logprobs.is_some()),
            n_penalized,
        }
    }

    /// Whether the GPU's inputs are ready for `rows` with `n_steps` steps.
    pub fn is_continued_by(&self, rows: &[PlanRow], n_steps: usize) -> bool {
        self.has_room(n_steps)
            && self.rows.len() == rows.len()
            && self
                .rows
                .iter()
                .zip(rows)
                .all(|(expected, row)| expected.is_continued_by(row))
    }

    /// Number of steps that may begin ahead after `n_steps` of `rows`: `lookahead_steps` or 0.
    pub fn steps_ahead(&self, rows: &[PlanRow], n_steps: usize, lookahead_steps: usize) -> usize {
        let lookahead_steps = lookahead_steps.min(MAX_BURST);
        let is_paged =
            |row: &PlanRow| row.start + n_steps + lookahead_steps <= row.pages.len() * PAGE_TOKENS;
        if self.has_room(lookahead_steps) && rows.iter().all(is_paged) {
            lookahead_steps
        } else {
            0
        }
    }

    /// Records the pages of `rows`; returns true if some are not on the GPU yet.
    pub fn take_pages(&mut self, rows: &[PlanRow]) -> bool {
        let mut is_new = false;
        for (known, row) in self.rows.iter_mut().zip(rows) {
            if row.pages.len() > known.pages.len() {
                known.pages.clone_from(&row.pages);
                is_new = true;
            }
        }
        is_new
    }

    /// Records that steps were queued: the lists of penalised tokens grow.
    pub fn grow(&mut self, n_steps: usize) {
        if self.n_penalized > 0 {
            self.n_penalized += n_steps;
        }
    }

    /// Advances the rows by these tokens.
    pub fn advance(&mut self, made: &[RowOutput]) {
        for (row, made) in self.rows.iter_mut().zip(made) {
            let made = &made.tokens;
            if let Some(last) = made.last() {
                row.token = last.token;
            }
            row.start += made.len();
            row.output_index += made.len();
            if row.params.needs_history() {
                row.n_history += made.len();
            }
        }
    }

    fn has_room(&self, n_steps: usize) -> bool {
        self.n_penalized == 0 || self.n_penalized + n_steps <= MAX_PENALIZED
    }
}

impl BatchRow {
    fn of(row: &PlanRow, spec: &SampleSpec) -> Option<Self> {
        Some(Self {
            request: row.request,
            token: *row.tokens.first()?,
            start: row.start,
            pages: row.pages.clone(),
            params: Arc::clone(&spec.params),
            output_index: spec.output_index,
            n_history: spec.history.len(),
        })
    }

    fn is_continued_by(&self, row: &PlanRow) -> bool {
        let Some(spec) = &row.sample else {
            return false;
        };
        row.request == self.request
            && row.tokens == [self.token]
            && row.start == self.start
            && spec.output_index == self.output_index
            && spec.history.len() == self.n_history
            && (Arc::ptr_eq(&spec.params, &self.params) || spec.params == self.params)
            && row.pages.starts_with(&self.pages)
    }
}

/// A decode row advanced by the tokens generated since `row`.
pub(super) fn advance_row(row: &PlanRow, made: &[SampledToken]) -> PlanRow {
    let mut fed = row.clone();
    if let Some(last) = made.last() {
        fed.tokens = vec![last.token];
    }
    fed.start += made.len();
    if let Some(spec) = &mut fed.sample {
        spec.output_index += made.len();
        if spec.params.needs_history() {
            spec.history.extend(made.iter().map(|token| token.token));
        }
    }
    fed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(presence_penalty: f32) -> Arc<SamplingParams> {
        Arc::new(SamplingParams {
            temperature: 0.8,
            presence_penalty,
            ..SamplingParams::default()
        })
    }

    /// A decode row at `start` with pages for `n_tokens`.
    fn row(id: u64, token: u32, start: usize, n_tokens: usize) -> PlanRow {
        PlanRow {
            n_drafts: 0,
            request: RequestId(id),
            tokens: vec![token],
            start,
            pages: (0..n_tokens.div_ceil(PAGE_TOKENS))
                .map(|i| PageIdx(id as u32 * 100 + i as u32))
                .collect(),
            sample: Some(SampleSpec {
                params: params(0.5),
                output_index: start - 9,
                history: vec![3; start + 1],
                n_prompt: 10,
            }),
        }
    }

    fn spec(row: &mut PlanRow) -> &mut SampleSpec {
        row.sample.as_mut().unwrap()
    }

    fn made(tokens: &[u32]) -> Vec<SampledToken> {
        tokens
            .iter()
            .map(|token| SampledToken {
                token: *token,
                logprob: None,
                top_logprobs: Vec::new(),
            })
            .collect()
    }

    /// Two rows that have generated two tokens each, and the plan that continues them.
    fn continued() -> (Batch, Vec<PlanRow>) {
        let rows = [row(1, 7, 12, 15), row(2, 8, 30, 33)];
        let mut batch = Batch::new(&rows, 4, 5);
        let tokens = [made(&[40, 41]), made(&[50, 51])];
        batch.grow(2);
        batch.advance(&tokens.clone().map(RowOutput::from));
        let next = rows
            .iter()
            .zip(&tokens)
            .map(|(row, made)| advance_row(row, made))
            .collect();
        (batch, next)
    }

    #[test]
    fn the_plan_that_goes_on_is_recognised_with_and_without_new_pages() {
        let (mut batch, mut rows) = continued();
        assert_eq!((rows[0].tokens[0], rows[0].start), (41, 14));
        let fed = rows[0].sample.as_ref().unwrap();
        assert_eq!((fed.output_index, fed.history.len()), (5, 15));
        assert_eq!(fed.history[13..], [40, 41]);
        assert!(batch.is_continued_by(&rows, 1));
        assert!(!batch.take_pages(&rows));
        rows[0].pages.push(PageIdx(9));
        assert!(batch.is_continued_by(&rows, 1));
        assert!(batch.take_pages(&rows));
        assert!(!batch.take_pages(&rows), "they are on the GPU now");
        assert!(batch.is_continued_by(&rows, 1));
    }

    #[test]
    fn every_other_plan_is_refused() {
        let (batch, rows) = continued();
        let refused = |what: &str, change: &dyn Fn(&mut Vec<PlanRow>)| {
            let mut other = rows.clone();
            change(&mut other);
            assert!(!batch.is_continued_by(&other, 1), "{what}");
        };
        refused("a row less", &|rows| drop(rows.pop()));
        refused("a row more", &|rows| rows.push(row(3, 1, 20, 21)));
        refused("another order", &|rows| rows.swap(0, 1));
        refused("another request", &|rows| rows[0].request = RequestId(5));
        refused("another token", &|rows| rows[1].tokens = vec![4]);
        refused("two tokens", &|rows| rows[1].tokens.push(4));
        refused("another position", &|rows| rows[1].start += 1);
        refused("another page", &|rows| rows[1].pages[0] = PageIdx(99));
        refused("a page less", &|rows| rows[1].pages.truncate(2));
        refused("no token wanted", &|rows| rows[0].sample = None);
        refused("another draw", &|rows| spec(&mut rows[0]).output_index += 1);
        refused("another history", &|rows| {
            spec(&mut rows[0]).history.push(1);
        });
        refused("other parameters", &|rows| {
            spec(&mut rows[0]).params = params(0.25);
        });
        let mut same = rows.clone();
        spec(&mut same[0]).params = params(0.5);
        assert!(
            batch.is_continued_by(&same, 1),
            "equal parameters elsewhere"
        );
    }

    #[test]
    fn a_batch_runs_ahead_as_far_as_pages_and_lists_reach() {
        let (mut batch, mut rows) = continued();
        // Row 0 is at position 14 of a page of 16: there is room for one more step after this one.
        assert_eq!(batch.steps_ahead(&rows, 1, 1), 1);
        assert_eq!(batch.steps_ahead(&rows, 2, 1), 0);
        assert_eq!(batch.steps_ahead(&rows, 1, 0), 0);
        for row in &mut rows {
            row.pages.extend([PageIdx(9), PageIdx(10), PageIdx(11)]);
        }
        assert_eq!(batch.steps_ahead(&rows, 2, 4), 4);
        assert_eq!(batch.steps_ahead(&rows, 2, 64), MAX_BURST);
        batch.grow(MAX_PENALIZED - 5 - 2 - 3);
        assert_eq!(batch.steps_ahead(&rows, 1, 3), 3);
        assert_eq!(batch.steps_ahead(&rows, 1, 4), 0);
        assert!(batch.is_continued_by(&rows, 3) && !batch.is_continued_by(&rows, 4));
    }

    #[test]
    fn a_batch_without_penalties_has_no_list_to_fill() {
        let mut rows = [row(1, 7, 12, 40)];
        rows[0].sample = Some(SampleSpec {
            params: Arc::new(SamplingParams::default()),
            output_index: 3,
            history: Vec::new(),
            n_prompt: 10,
        });
        let mut batch = Batch::new(&rows, 1, 0);
        assert!(!batch.is_sampled && !batch.has_logprobs);
        batch.grow(100 * MAX_PENALIZED);
        batch.advance(&[made(&[9]).into()]);
        let next = [advance_row(&rows[0], &made(&[9]))];
        assert!(
            next[0]
                .sample
                .as_ref()
                .is_some_and(|s| s.history.is_empty())
        );
        assert!(batch.is_continued_by(&next, 1));
        assert_eq!(batch.steps_ahead(&next, 1, 1), 1);
    }
}
