//! An EAGLE-3 head: one layer that guesses the next tokens from the target's own states.
//!
//! The head has a row for each position: the target's states there and the token that follows. Rows
//! are entered with the pass that computes the states, as far as the next token is known; the last one
//! waits ([`Last`]) until it is. Guesses go on from it: each is a row of its own, with the output of
//! the row before in place of the states. They are provisional: the next pass enters the rows of
//! accepted tokens again, with the target's states.
//!
//! Keys and values lie in the pages of the target's own table, so what the prefix cache or the host
//! tier holds of a request holds for the head, too. The last row of a shared page was entered with the
//! first owner's next token, and of a page that no one went beyond it is missing: such a row costs a
//! right guess now and then. It cannot change a text, since guesses are verified.

mod layer;

use host::pool::WorkerPool;
use kernels::KernelError;
use rustc_hash::FxHashMap;

use self::layer::{Entry, HeadLayer};
use super::CpuLoadError;
use super::forward::RowView;
use super::host_tier::HostTier;
use super::options::Settings;
use super::weights::Projection;
use crate::executor::{DraftAsk, ExecutorCounts};
use crate::kv::{PAGE_TOKENS, PageCopies, PageIdx};
use crate::model::config::ConfigError;
use crate::model::eagle_json::N_STATES;
use crate::request::RequestId;
use crate::step::MAX_DRAFTS;
use crate::weights::WeightError;
use crate::weights::eagle_head::EagleHead;

/// Requests that guess in the same passes.
const DRAFTED_TOGETHER: usize = 32;
/// Pages beyond a request's own that its provisional rows may need.
const PAGES_BEYOND: usize = MAX_DRAFTS / PAGE_TOKENS + 2;
/// Requests whose last states are kept. A request that ends says nothing here, so the one that was
/// computed least recently is forgotten; it guesses again after its next pass.
const MAX_KEPT: usize = 4096;

/// A row whose next token was not known when its states were computed.
struct Last {
    position: usize,
    /// `fc` of its states, `[hidden]`.
    fused: Vec<f32>,
    is_entered: bool,
    /// The number of the pass that computed it.
    pass: u64,
}

/// A row of the target's pass, with what is known of it after sampling.
pub(super) struct Seen<'a> {
    pub request: RequestId,
    pub row: RowView<'a>,
    /// Its first token in the pass.
    pub first: usize,
    /// How many of its tokens belong to the text: all but wrong drafts.
    pub n_valid: usize,
}

/// Rows of several requests that are entered together.
#[derive(Default)]
struct Batch<'a> {
    entries: Vec<Entry<'a>>,
    tokens: Vec<u32>,
    /// `[n_rows, hidden]`
    x: Vec<f32>,
}

impl<'a> Batch<'a> {
    fn push(&mut self, pages: &'a [PageIdx], start: usize, tokens: &[u32], x: &[f32]) {
        let n_rows = tokens.len();
        self.entries.push(Entry {
            start,
            n_rows,
            pages,
        });
        self.tokens.extend_from_slice(tokens);
        self.x.extend_from_slice(x);
    }

    fn enter(
        mut self,
        pool: &mut WorkerPool,
        embedding: &Projection,
        layer: &mut HeadLayer,
    ) -> Result<(), KernelError> {
        if self.tokens.is_empty() {
            return Ok(());
        }
        layer.enter(pool, embedding, &self.entries, &self.tokens, &mut self.x)
    }
}

pub(super) struct Eagle {
    layer: HeadLayer,
    boundaries: [usize; N_STATES],
    /// The target's token of each row of lm_head.
    tokens: Vec<u32>,
    /// First of the pages for provisional rows.
    n_pool_pages: usize,
    host_tier: Option<HostTier>,
    max_pass_tokens: usize,
    last: FxHashMap<RequestId, Last>,
    n_passes: u64,
}

/// What a head must fit to.
pub(super) struct Target<'a> {
    pub n_layers: usize,
    pub hidden: usize,
    pub vocab: usize,
    pub embedding: &'a Projection,
}

impl Eagle {
    /// # Errors
    ///
    /// [`CpuLoadError::Weights`] if the head is one of another model or a tensor cannot be read,
    /// [`CpuLoadError::Kernel`] if the memory cannot be had.
    pub fn load(
        head: &EagleHead,
        target: &Target<'_>,
        pool: &mut WorkerPool,
        settings: Settings,
        n_pages: usize,
    ) -> Result<Self, CpuLoadError> {
        let config = &head.config;
        let needs = |what: &str, found: usize, of_target: usize| {
            if found == of_target {
                return Ok(());
            }
            let limit = format!("{of_target}, as the model that it guesses for");
            Err(CpuLoadError::Weights(WeightError::Config(
                ConfigError::invalid(format!("the draft head's {what}"), found, limit),
            )))
        };
        needs("vocab_size", config.layer.vocab, target.vocab)?;
        needs("target_hidden_size", config.target_hidden, target.hidden)?;
        if !head.has_embedding() {
            let width = target.embedding.weights.n_in();
            needs(
                "hidden_size (it has no embedding)",
                config.layer.hidden,
                width,
            )?;
        }
        let boundaries = config
            .boundaries(target.n_layers)
            .map_err(|error| CpuLoadError::Weights(error.into()))?;
        let n_kv_pages = n_pages + DRAFTED_TOGETHER * PAGES_BEYOND;
        Ok(Self {
            tokens: head.tokens()?,
            layer: HeadLayer::load(head, pool, settings, n_kv_pages)?,
            boundaries,
            n_pool_pages: n_pages,
            host_tier: None,
            max_pass_tokens: settings.max_pass_tokens,
            last: FxHashMap::default(),
            n_passes: 0,
        })
    }

    /// The layers of the target whose inputs are the head's states.
    pub fn boundaries(&self) -> [usize; N_STATES] {
        self.boundaries
    }

    pub fn weight_bytes(&self) -> u64 {
        self.layer.weight_bytes()
    }

    pub fn kv_bytes(&self) -> u64 {
        self.layer.kv.bytes() as u64
    }

    pub fn n_kv_saturated(&self) -> u64 {
        self.layer.n_kv_saturated
    }

    /// Room for as many of the head's pages as the target has there.
    pub fn add_host_tier(&mut self, settings: Settings, n_pages: usize) -> Result<(), KernelError> {
        let shape = self.layer.shape();
        self.host_tier = Some(HostTier::new(shape, settings.kv_format, 1, n_pages)?);
        Ok(())
    }

    /// Moves pages as the target's are moved, which is what is counted.
    pub fn copy_pages(
        &mut self,
        pool: &mut WorkerPool,
        copies: &PageCopies,
    ) -> Result<(), KernelError> {
        let Some(tier) = &mut self.host_tier else {
            return Ok(());
        };
        let kv = std::slice::from_mut(&mut self.layer.kv);
        tier.copy(pool, kv, copies, &mut ExecutorCounts::default())
    }

    /// Enters the rows of a pass of the target, whose states are `[n_tokens, 3 * target_hidden]`.
    pub fn observe(
        &mut self,
        pool: &mut WorkerPool,
        embedding: &Projection,
        seen: &[Seen<'_>],
        states: &[f32],
    ) -> Result<(), KernelError> {
        self.n_passes += 1;
        let (hidden, most) = (self.layer.hidden(), self.max_pass_tokens);
        let mut fused = Vec::new();
        for states in states.chunks(most * self.layer.states_width()) {
            self.layer.fuse(pool, states, &mut fused)?;
        }
        let mut batch = Batch::default();
        for seen in seen.iter().filter(|seen| seen.n_valid > 0) {
            let RowView {
                tokens,
                start,
                pages,
            } = seen.row;
            let fused = &fused[seen.first * hidden..][..seen.n_valid * hidden];
            let (known, last) = fused.split_at(fused.len() - hidden);
            if let Some(waiting) = self.last.get(&seen.request)
                && waiting.position + 1 == start
                && !waiting.is_entered
            {
                batch.push(pages, waiting.position, &tokens[..1], &waiting.fused);
            }
            // Each row with the token after it.
            let nexts = tokens[1..seen.n_valid].chunks(most);
            let starts = (start..).step_by(most);
            for ((tokens, x), start) in nexts.zip(known.chunks(most * hidden)).zip(starts) {
                batch.push(pages, start, tokens, x);
                if batch.tokens.len() >= most {
                    std::mem::take(&mut batch).enter(pool, embedding, &mut self.layer)?;
                }
            }
            self.keep(seen.request, start + seen.n_valid - 1, last.to_vec());
        }
        batch.enter(pool, embedding, &mut self.layer)?;
        Ok(())
    }

    fn keep(&mut self, request: RequestId, position: usize, fused: Vec<f32>) {
        let last = Last {
            position,
            fused,
            is_entered: false,
            pass: self.n_passes,
        };
        self.last.insert(request, last);
        if self.last.len() > MAX_KEPT {
            let oldest = self.last.iter().min_by_key(|(id, last)| (last.pass, id.0));
            if let Some(id) = oldest.map(|(id, _)| *id) {
                self.last.remove(&id);
            }
        }
    }

    /// The likeliest next tokens of each request; none for one whose last states are not known.
    pub fn draft(
        &mut self,
        pool: &mut WorkerPool,
        embedding: &Projection,
        asks: &[DraftAsk<'_>],
    ) -> Result<Vec<Vec<u32>>, KernelError> {
        let mut drafts = Vec::with_capacity(asks.len());
        for asks in asks.chunks(DRAFTED_TOGETHER) {
            drafts.extend(self.draft_together(pool, embedding, asks)?);
        }
        Ok(drafts)
    }

    fn draft_together(
        &mut self,
        pool: &mut WorkerPool,
        embedding: &Projection,
        asks: &[DraftAsk<'_>],
    ) -> Result<Vec<Vec<u32>>, KernelError> {
        let hidden = self.layer.hidden();
        let mut drafts = vec![Vec::new(); asks.len()];
        let (mut x, mut tokens, mut going) = (Vec::new(), Vec::new(), Vec::new());
        for (i, ask) in asks.iter().enumerate() {
            let Some(&next) = ask.tokens.last().filter(|_| ask.n_drafts > 0) else {
                continue;
            };
            let Some(last) = self.last.get_mut(&ask.request) else {
                continue;
            };
            if last.position + 2 != ask.tokens.len() {
                continue;
            }
            last.is_entered = true;
            x.extend_from_slice(&last.fused);
            tokens.push(next);
            going.push((i, last.position, self.table_of(ask, i)));
        }
        while !going.is_empty() {
            let entries: Vec<Entry<'_>> = going
                .iter()
                .map(|(_, position, pages)| Entry {
                    start: *position,
                    n_rows: 1,
                    pages,
                })
                .collect();
            self.layer
                .enter(pool, embedding, &entries, &tokens, &mut x)?;
            let rows = self.layer.guess(pool, &mut x.clone())?;
            tokens.clear();
            let mut kept = Vec::with_capacity(x.len());
            let mut still = Vec::with_capacity(going.len());
            for (((i, position, pages), row), y) in
                going.into_iter().zip(rows).zip(x.chunks(hidden))
            {
                let token = self.tokens[row];
                drafts[i].push(token);
                if drafts[i].len() < asks[i].n_drafts {
                    kept.extend_from_slice(y);
                    tokens.push(token);
                    still.push((i, position + 1, pages));
                }
            }
            (x, going) = (kept, still);
        }
        Ok(drafts)
    }

    /// The request's pages, and after them those for provisional rows.
    fn table_of(&self, ask: &DraftAsk<'_>, index: usize) -> Vec<PageIdx> {
        let first = self.n_pool_pages + index * PAGES_BEYOND;
        let beyond = (first..first + PAGES_BEYOND).map(|page| PageIdx(page as u32));
        ask.pages.iter().copied().chain(beyond).collect()
    }
}

#[cfg(test)]
mod tests;
