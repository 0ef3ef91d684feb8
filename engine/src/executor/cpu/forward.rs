//! The decoder block of Qwen3, Qwen3-MoE, Qwen2 and Llama over a packed, ragged batch.
//!
//! x += O(attention(rope(norm(Q h)), …)) with h = rms_norm(x), then x += MLP(h) ([`mlp`]).
//! The families differ by q/k norms, biases and RoPE scaling, which the configuration switches.

use host::pool::WorkerPool;
use kernels::attention::{self, AttentionPlan, AttentionShape, KvPages, Sequence, Slot};
use kernels::quant_linear::Terms;
use kernels::rope::{self, Rope};
use kernels::{KernelError, embedding, rms_norm};

use super::super::{ExecutorCounts, HostTierInfo, StopFlag};
use super::eagle::Target;
use super::host_tier::HostTier;
use super::mlp::{self, MlpBuffers};
use super::options::{ActivationType, Attention, Settings};
use super::projection::{Inputs, Part, project};
use super::weights::{DecoderWeights, LayerWeights};
use super::{PAGE_TOKENS, PageIdx, PlanRow};
use crate::kv::PageCopies;
use crate::model::config::ModelConfig;

/// One sequence's tokens in a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowView<'a> {
    pub tokens: &'a [u32],
    pub start: usize,
    pub pages: &'a [PageIdx],
}

impl<'a> RowView<'a> {
    pub fn of(row: &'a PlanRow) -> Self {
        Self {
            tokens: &row.tokens,
            start: row.start,
            pages: &row.pages,
        }
    }
}

/// Number of tokens whose logits are passed to a [`Score`] at once: this bounds their memory, and
/// the head's weights are read once for all of them.
const SCORED_TOGETHER: usize = 32;

/// The input of q, k and v has outliers in a few dimensions, and the rounding error of their
/// neighbours in one 8-bit term is the largest part of the total quantisation error. The three are
/// a small part of a layer's weights (16 % in SmolLM2), so a second term is cheap here.
const QKV_TERMS: Terms = Terms::Two;

/// For the log and records.
pub(super) fn qkv_input_name(settings: Settings) -> &'static str {
    match (settings.activations, QKV_TERMS) {
        (ActivationType::F32, _) => "f32",
        (ActivationType::Int8, Terms::One) => "int8",
        (ActivationType::Int8, Terms::Two) => "int8_in_two_terms",
    }
}

/// Receives the logits of scored tokens: the index of the first, and `[n, vocab]`.
pub(super) type Score<'a> =
    &'a mut dyn FnMut(&mut WorkerPool, usize, &[f32]) -> Result<(), KernelError>;

/// Part of a row in one pass.
#[derive(Debug, Clone, Copy)]
struct Segment {
    first: usize,
    n_tokens: usize,
    start: usize,
    /// First entry of its range in [`Workspace::pages`].
    first_page: usize,
    n_pages: usize,
}

/// Why a pass has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("the step was aborted because the server is stopping")]
    Stopped,
}

/// Buffers of one pass; they grow to the largest pass and are kept.
#[derive(Default)]
struct Workspace {
    tokens: Vec<u32>,
    segments: Vec<Segment>,
    pages: Vec<u32>,
    slots: Vec<Slot>,
    plan: AttentionPlan,
    /// `[n_tokens, head_dim]`: cos, then sin
    angles: Vec<f32>,
    /// `[n_tokens, hidden]`: the residual stream
    x: Vec<f32>,
    /// `[n_tokens, hidden]`
    h: Vec<f32>,
    inputs: Inputs,
    /// `[n_tokens, n_q_heads, head_dim]`
    q: Vec<f32>,
    /// `[n_tokens, n_kv_heads, head_dim]`
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[n_tokens, n_q_heads, head_dim]`
    attended: Vec<f32>,
    mlp: MlpBuffers,
    /// `[n_outputs, hidden]`
    last: Vec<f32>,
    /// `[n_outputs, vocab]`
    logits: Vec<f32>,
    /// `[n_tokens, n_states, hidden]` of a whole run.
    states: Vec<f32>,
}

pub(super) struct Forward {
    config: ModelConfig,
    settings: Settings,
    shape: AttentionShape,
    rope: Rope,
    weights: DecoderWeights,
    /// One for each layer.
    kv: Vec<KvPages>,
    /// Keys and values in all layers that could not be stored exactly.
    n_kv_saturated: u64,
    host_tier: Option<HostTier>,
    workspace: Workspace,
    /// Layers whose inputs are kept, rising; the number of layers stands for the last one's output.
    kept_inputs: Vec<usize>,
    /// Checked between layers.
    stop: StopFlag,
}

impl Forward {
    pub fn new(
        config: ModelConfig,
        weights: DecoderWeights,
        settings: Settings,
        n_pages: usize,
    ) -> Result<Self, KernelError> {
        let ModelConfig {
            n_q_heads,
            n_kv_heads,
            head_dim,
            ..
        } = config;
        let shape = AttentionShape {
            n_q_heads,
            n_kv_heads,
            head_dim,
        }
        .checked()?;
        let rope = Rope::new(head_dim, config.rope.theta, config.rope.scaling)?;
        let kv = (0..config.n_layers)
            .map(|_| KvPages::new(shape, n_pages, settings.kv_format))
            .collect::<Result<_, _>>()?;
        let workspace = Workspace::default();
        Ok(Self {
            config,
            settings,
            shape,
            rope,
            weights,
            kv,
            n_kv_saturated: 0,
            host_tier: None,
            workspace,
            kept_inputs: Vec::new(),
            stop: StopFlag::default(),
        })
    }

    /// Number of keys and values so far that were too large for the KV format, or NaN.
    pub fn n_kv_saturated(&self) -> u64 {
        self.n_kv_saturated
    }

    /// A pass ends between two layers once `stop` is raised.
    pub fn watch(&mut self, stop: StopFlag) {
        self.stop = stop;
    }

    pub fn kv_bytes(&self) -> u64 {
        self.kv.iter().map(|layer| layer.bytes() as u64).sum()
    }

    /// Adds a host tier of `n_pages` pages.
    pub fn add_host_tier(&mut self, n_pages: usize) -> Result<(), KernelError> {
        let (format, n_layers) = (self.settings.kv_format, self.config.n_layers);
        self.host_tier = Some(HostTier::new(self.shape, format, n_layers, n_pages)?);
        Ok(())
    }

    pub fn host_tier_info(&self) -> Option<HostTierInfo> {
        self.host_tier.as_ref().map(HostTier::info)
    }

    /// Moves pages between the pool and the host tier.
    pub fn copy_pages(
        &mut self,
        pool: &mut WorkerPool,
        copies: &PageCopies,
        counts: &mut ExecutorCounts,
    ) -> Result<(), KernelError> {
        let Some(host_tier) = self.host_tier.as_mut() else {
            return Err(KernelError::Value {
                op: "copies of KV pages",
                message: "there is no host tier".to_owned(),
            });
        };
        host_tier.copy(pool, &mut self.kv, copies, counts)
    }

    /// Keeps the residual stream as it enters these layers from now on.
    pub fn keep_inputs(&mut self, layers: &[usize]) {
        layers.clone_into(&mut self.kept_inputs);
    }

    /// What [`Self::keep_inputs`] asked for, of the last run: `[n_tokens, layers, hidden]`.
    pub fn states(&self) -> &[f32] {
        &self.workspace.states
    }

    pub fn weights(&self) -> &DecoderWeights {
        &self.weights
    }

    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// What a draft head must fit to.
    pub fn as_target(&self) -> Target<'_> {
        Target {
            n_layers: self.config.n_layers,
            hidden: self.config.hidden,
            vocab: self.config.vocab,
            embedding: &self.weights.embedding,
        }
    }

    /// Logits of the last [`Self::run`], `[outputs.len(), vocab]`.
    pub fn logits(&self) -> &[f32] {
        &self.workspace.logits
    }

    /// Computes all rows; `outputs` are the indices of packed tokens whose logits are needed, in
    /// ascending order.
    pub fn run(
        &mut self,
        pool: &mut WorkerPool,
        rows: &[RowView<'_>],
        outputs: &[usize],
    ) -> Result<&[f32], ForwardError> {
        self.run_scoring(pool, rows, outputs, &[], &mut |_, _, _| Ok(()))
    }

    /// Like [`Self::run`]. The logits of the packed tokens `scored` (ascending) are passed to
    /// `score` in portions `[n, vocab]`, with the index in `scored` of the portion's first: those
    /// of a whole prompt would need too much memory.
    pub fn run_scoring(
        &mut self,
        pool: &mut WorkerPool,
        rows: &[RowView<'_>],
        outputs: &[usize],
        scored: &[usize],
        score: Score<'_>,
    ) -> Result<&[f32], ForwardError> {
        let hidden = self.config.hidden;
        let n_tokens: usize = rows.iter().map(|row| row.tokens.len()).sum();
        self.workspace.last.clear();
        let n_states = self.kept_inputs.len();
        self.workspace
            .states
            .resize(n_tokens * n_states * hidden, 0.0);
        let (mut outputs_left, mut n_scored) = (outputs, 0);
        for pass_start in (0..n_tokens).step_by(self.settings.max_pass_tokens) {
            let pass_end = (pass_start + self.settings.max_pass_tokens).min(n_tokens);
            self.workspace.gather(rows, pass_start, pass_end)?;
            self.prepare(pool)?;
            for layer in 0..self.config.n_layers {
                if self.stop.is_raised() {
                    return Err(ForwardError::Stopped);
                }
                self.keep_input(layer, pass_start);
                self.attention_block(pool, layer)?;
                self.mlp_block(pool, layer)?;
            }
            self.keep_input(self.config.n_layers, pass_start);
            let is_here = |token: &&usize| **token < pass_end;
            let n_here = scored[n_scored..].iter().take_while(is_here).count();
            for portion in scored[n_scored..n_scored + n_here].chunks(SCORED_TOGETHER) {
                let kept = std::mem::take(&mut self.workspace.last);
                for token in portion {
                    let start = (token - pass_start) * hidden;
                    let Workspace { x, last, .. } = &mut self.workspace;
                    last.extend_from_slice(&x[start..start + hidden]);
                }
                self.lm_head(pool, portion.len())?;
                score(pool, n_scored, &self.workspace.logits)?;
                n_scored += portion.len();
                self.workspace.last = kept;
            }
            let here = outputs_left.iter().take_while(is_here).count();
            for token in &outputs_left[..here] {
                let start = (token - pass_start) * hidden;
                let Workspace { x, last, .. } = &mut self.workspace;
                last.extend_from_slice(&x[start..start + hidden]);
            }
            outputs_left = &outputs_left[here..];
        }
        self.lm_head(pool, outputs.len())?;
        Ok(&self.workspace.logits)
    }

    fn keep_input(&mut self, layer: usize, pass_start: usize) {
        let Some(at) = self.kept_inputs.iter().position(|kept| *kept == layer) else {
            return;
        };
        let (hidden, n_states) = (self.config.hidden, self.kept_inputs.len());
        let Workspace { x, states, .. } = &mut self.workspace;
        let tokens = states.chunks_exact_mut(n_states * hidden).skip(pass_start);
        for (states, x) in tokens.zip(x.chunks_exact(hidden)) {
            states[at * hidden..][..hidden].copy_from_slice(x);
        }
    }

    /// Embeddings, angles and the attention work lists, which all layers share.
    fn prepare(&mut self, pool: &mut WorkerPool) -> Result<(), KernelError> {
        let ModelConfig {
            hidden, head_dim, ..
        } = self.config;
        let ws = &mut self.workspace;
        let n = ws.tokens.len();
        for (buffer, width) in [
            (&mut ws.x, hidden),
            (&mut ws.h, hidden),
            (&mut ws.q, self.shape.n_q_heads * head_dim),
            (&mut ws.attended, self.shape.n_q_heads * head_dim),
            (&mut ws.k, self.shape.n_kv_heads * head_dim),
            (&mut ws.v, self.shape.n_kv_heads * head_dim),
            (&mut ws.angles, head_dim),
        ] {
            buffer.resize(n * width, 0.0);
        }
        embedding::forward(pool, &self.weights.embedding.weights, &ws.tokens, &mut ws.x)?;
        for segment in &ws.segments {
            for i in 0..segment.n_tokens {
                let out = &mut ws.angles[(segment.first + i) * head_dim..][..head_dim];
                self.rope.angles(segment.start + i, out)?;
            }
        }
        let sequences = sequences_of(&ws.segments, &ws.pages);
        ws.plan.prepare(self.shape, &sequences, pool.n_threads())
    }

    fn attention_block(&mut self, pool: &mut WorkerPool, layer: usize) -> Result<(), KernelError> {
        let isa = self.settings.isa;
        let (eps, head_dim) = (self.config.rms_norm_eps, self.config.head_dim);
        let w = &self.weights.layers[layer];
        let ws = &mut self.workspace;
        let n = ws.tokens.len();
        rms_norm::forward(pool, isa, &ws.x, &w.attn_norm, eps, &mut ws.h)?;
        let mut parts = [
            Part {
                bias: w.q_bias.as_deref(),
                ..Part::new(&w.q, 0..n, &mut ws.q)
            },
            Part {
                bias: w.k_bias.as_deref(),
                ..Part::new(&w.k, 0..n, &mut ws.k)
            },
            Part {
                bias: w.v_bias.as_deref(),
                ..Part::new(&w.v, 0..n, &mut ws.v)
            },
        ];
        project(
            pool,
            self.settings,
            QKV_TERMS,
            &mut ws.inputs,
            &ws.h,
            &mut parts,
        )?;
        for (x, norm) in [(&mut ws.q, &w.q_norm), (&mut ws.k, &w.k_norm)] {
            if let Some(norm) = norm {
                rms_norm::in_place(pool, isa, x, norm, eps)?;
            }
            rope::rotate(pool, isa, head_dim, &ws.angles, x)?;
        }
        let kv = &mut self.kv[layer];
        self.n_kv_saturated += kv.store(pool, isa, &ws.slots, &ws.k, &ws.v)?;
        let sequences = sequences_of(&ws.segments, &ws.pages);
        match self.settings.attention {
            Attention::Vectorised => {
                attention::forward(pool, isa, kv, &ws.plan, &sequences, &ws.q, &mut ws.attended)?;
            }
            Attention::Reference => {
                attention::reference::forward_on(pool, kv, &sequences, &ws.q, &mut ws.attended)?;
            }
        }
        let LayerWeights { o, o_bias, .. } = w;
        let part = Part {
            accumulate: true,
            bias: o_bias.as_deref(),
            ..Part::new(o, 0..n, &mut ws.x)
        };
        let (inputs, x) = (&mut ws.inputs, &ws.attended);
        project(pool, self.settings, Terms::One, inputs, x, &mut [part])
    }

    fn mlp_block(&mut self, pool: &mut WorkerPool, layer: usize) -> Result<(), KernelError> {
        let (isa, eps) = (self.settings.isa, self.config.rms_norm_eps);
        let w = &self.weights.layers[layer];
        let Workspace {
            x, h, inputs, mlp, ..
        } = &mut self.workspace;
        rms_norm::forward(pool, isa, x, &w.mlp_norm, eps, h)?;
        mlp::add(pool, self.settings, &w.mlp, inputs, mlp, h, x)
    }

    /// Computes logits from the gathered final states.
    fn lm_head(&mut self, pool: &mut WorkerPool, n_outputs: usize) -> Result<(), KernelError> {
        let ws = &mut self.workspace;
        ws.logits.resize(n_outputs * self.config.vocab, 0.0);
        if n_outputs == 0 {
            return Ok(());
        }
        let (isa, eps) = (self.settings.isa, self.config.rms_norm_eps);
        rms_norm::in_place(pool, isa, &mut ws.last, &self.weights.final_norm, eps)?;
        let part = Part::new(self.weights.lm_head(), 0..n_outputs, &mut ws.logits);
        let (inputs, x) = (&mut ws.inputs, &ws.last);
        project(pool, self.settings, Terms::One, inputs, x, &mut [part])
    }
}

fn sequences_of<'a>(segments: &[Segment], pages: &'a [u32]) -> Vec<Sequence<'a>> {
    segments
        .iter()
        .map(|s| Sequence {
            first: s.first,
            n_tokens: s.n_tokens,
            start: s.start,
            pages: &pages[s.first_page..][..s.n_pages],
        })
        .collect()
}

impl Workspace {
    /// Collects the packed tokens `from .. to` of the rows.
    fn gather(&mut self, rows: &[RowView<'_>], from: usize, to: usize) -> Result<(), KernelError> {
        self.tokens.clear();
        self.segments.clear();
        self.pages.clear();
        self.slots.clear();
        let mut before = 0;
        for row in rows {
            let begin = from.max(before);
            let end = to.min(before + row.tokens.len());
            if begin < end {
                self.add_segment(row, begin - before, end - before)?;
            }
            before += row.tokens.len();
        }
        Ok(())
    }

    /// Adds tokens `begin .. end` of a row.
    fn add_segment(
        &mut self,
        row: &RowView<'_>,
        begin: usize,
        end: usize,
    ) -> Result<(), KernelError> {
        let n_pages = (row.start + end).div_ceil(PAGE_TOKENS);
        let Some(pages) = row.pages.get(..n_pages) else {
            return Err(KernelError::Shape {
                op: "KV pages of a row",
                what: "number of pages",
                found: row.pages.len(),
                expected: format!("at least {n_pages} for {} tokens", row.start + end),
            });
        };
        self.segments.push(Segment {
            first: self.tokens.len(),
            n_tokens: end - begin,
            start: row.start + begin,
            first_page: self.pages.len(),
            n_pages,
        });
        self.pages.extend(pages.iter().map(|page| page.0));
        self.tokens.extend_from_slice(&row.tokens[begin..end]);
        self.slots
            .extend((row.start + begin..row.start + end).map(|position| Slot {
                page: pages[position / PAGE_TOKENS].0,
                slot: (position % PAGE_TOKENS) as u32,
            }));
        Ok(())
    }
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
