//! The one layer of an EAGLE-3 head, its keys and values, and its lm_head.
//!
//! ```text
//! h = fc of three states of the target, or the row's output before
//! x = [norm(embedding of the next token), norm(h)]
//! u = h + O(attention(rope(Q x), …)),  y = u + MLP(norm(u)),  guess = argmax lm_head(norm(y))
//! ```

use host::memory::Arena;
use host::pool::WorkerPool;
use kernels::attention::{self, AttentionPlan, AttentionShape, KvPages, Sequence, Slot};
use kernels::quant_linear::Terms;
use kernels::rope::{self, Rope};
use kernels::{KernelError, embedding, rms_norm};

use super::super::CpuLoadError;
use super::super::mlp::{self, MlpBuffers};
use super::super::options::{ActivationType, Attention, Settings};
use super::super::projection::{Inputs, Part, project};
use super::super::weights::{GatedMlp, Mlp, Projection, Rows, pack};
use crate::kv::{PAGE_TOKENS, PageIdx};
use crate::model::config::ModelConfig;
use crate::weights::eagle_head::{EagleHead, HeadMatrix, HeadNorm};

/// Rows of one request: their positions follow each other.
pub(super) struct Entry<'a> {
    pub start: usize,
    pub n_rows: usize,
    /// Covers the positions.
    pub pages: &'a [PageIdx],
}

pub(super) struct HeadLayer {
    config: ModelConfig,
    settings: Settings,
    shape: AttentionShape,
    rope: Rope,
    fc: Projection,
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    mlp: Mlp,
    lm_head: Projection,
    /// `None`: the target's.
    embedding: Option<Projection>,
    input_norm: Vec<f32>,
    hidden_norm: Vec<f32>,
    mlp_norm: Vec<f32>,
    final_norm: Vec<f32>,
    pub kv: KvPages,
    pub n_kv_saturated: u64,
    buffers: Buffers,
}

/// They grow to the largest pass and are kept.
#[derive(Default)]
struct Buffers {
    inputs: Inputs,
    plan: AttentionPlan,
    mlp: MlpBuffers,
    pages: Vec<u32>,
    slots: Vec<Slot>,
    angles: Vec<f32>,
    /// `[n_rows, hidden]`
    embedded: Vec<f32>,
    normed: Vec<f32>,
    /// `[n_rows, 2 * hidden]`
    both: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    /// `[n_guesses, draft_vocab]`
    logits: Vec<f32>,
}

impl HeadLayer {
    /// Keys and values have `n_pages` pages.
    pub fn load(
        head: &EagleHead,
        pool: &mut WorkerPool,
        settings: Settings,
        n_pages: usize,
    ) -> Result<Self, CpuLoadError> {
        let config = head.config.layer.clone();
        let kernel = |source| CpuLoadError::Kernel {
            what: "the draft head".to_owned(),
            source,
        };
        let shape = AttentionShape {
            n_q_heads: config.n_q_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
        };
        let shape = shape.checked().map_err(kernel)?;
        let rope = Rope::new(config.head_dim, config.rope.theta, config.rope.scaling);
        let mut arena = Arena::default();
        let mut load = |id, rows| {
            let what = format!("{id:?} of the draft head");
            pack(pool, &mut arena, &what, head.matrix(id)?, rows)
        };
        let head_rows = match settings.activations {
            ActivationType::Int8 => Rows::RoundedTo8Bits,
            ActivationType::F32 => Rows::AsStored,
        };
        let lm_head = load(HeadMatrix::LmHead, head_rows)?;
        let mut load = |id| load(id, Rows::AsStored);
        Ok(Self {
            lm_head,
            embedding: head
                .has_embedding()
                .then(|| load(HeadMatrix::Embedding))
                .transpose()?,
            fc: load(HeadMatrix::Fc)?,
            q: load(HeadMatrix::Q)?,
            k: load(HeadMatrix::K)?,
            v: load(HeadMatrix::V)?,
            o: load(HeadMatrix::O)?,
            mlp: Mlp::Dense(Box::new(GatedMlp {
                gate: load(HeadMatrix::Gate)?,
                up: load(HeadMatrix::Up)?,
                down: load(HeadMatrix::Down)?,
            })),
            input_norm: head.norm(HeadNorm::Input)?,
            hidden_norm: head.norm(HeadNorm::Hidden)?,
            mlp_norm: head.norm(HeadNorm::PostAttention)?,
            final_norm: head.norm(HeadNorm::Final)?,
            kv: KvPages::new(shape, n_pages, settings.kv_format).map_err(kernel)?,
            rope: rope.map_err(kernel)?,
            config,
            settings,
            shape,
            n_kv_saturated: 0,
            buffers: Buffers::default(),
        })
    }

    pub fn hidden(&self) -> usize {
        self.config.hidden
    }

    /// Width of the target's three states side by side.
    pub fn states_width(&self) -> usize {
        self.fc.weights.n_in()
    }

    pub fn shape(&self) -> AttentionShape {
        self.shape
    }

    /// Size of all matrices in bytes.
    pub fn weight_bytes(&self) -> u64 {
        let attention = [&self.q, &self.k, &self.v, &self.o, &self.fc, &self.lm_head];
        let matrices = attention.into_iter().chain(&self.embedding);
        let bytes: usize = matrices.map(|matrix| matrix.weights.bytes()).sum();
        (bytes + self.mlp.bytes()) as u64
    }

    /// `fc` of the target's states `[n, 3 * target_hidden]`: appends `[n, hidden]` to `out`.
    pub fn fuse(
        &mut self,
        pool: &mut WorkerPool,
        states: &[f32],
        out: &mut Vec<f32>,
    ) -> Result<(), KernelError> {
        let n = states.len() / self.fc.weights.n_in();
        let first = out.len();
        out.resize(first + n * self.config.hidden, 0.0);
        let part = Part::new(&self.fc, 0..n, &mut out[first..]);
        let inputs = &mut self.buffers.inputs;
        project(pool, self.settings, Terms::One, inputs, states, &mut [part])
    }

    /// Enters rows into the keys and values. `tokens` are the tokens that follow their positions; `x`
    /// (`[n_rows, hidden]`) is `h` before and `y` after.
    pub fn enter(
        &mut self,
        pool: &mut WorkerPool,
        targets_embedding: &Projection,
        entries: &[Entry<'_>],
        tokens: &[u32],
        x: &mut [f32],
    ) -> Result<(), KernelError> {
        let isa = self.settings.isa;
        let eps = self.config.rms_norm_eps;
        let n = tokens.len();
        self.buffers.prepare(&self.config, entries, n)?;
        let b = &mut self.buffers;
        let positions = entries
            .iter()
            .flat_map(|entry| entry.start..entry.start + entry.n_rows);
        let angles = b.angles.chunks_exact_mut(self.config.head_dim);
        for (position, out) in positions.zip(angles) {
            self.rope.angles(position, out)?;
        }
        let table = self.embedding.as_ref().unwrap_or(targets_embedding);
        embedding::forward(pool, &table.weights, tokens, &mut b.embedded)?;
        rms_norm::in_place(pool, isa, &mut b.embedded, &self.input_norm, eps)?;
        rms_norm::forward(pool, isa, x, &self.hidden_norm, eps, &mut b.normed)?;
        let hidden = self.config.hidden;
        let halves = b
            .embedded
            .chunks_exact(hidden)
            .zip(b.normed.chunks_exact(hidden));
        for (both, (embedded, state)) in b.both.chunks_exact_mut(2 * hidden).zip(halves) {
            both[..hidden].copy_from_slice(embedded);
            both[hidden..].copy_from_slice(state);
        }
        let mut parts = [
            Part::new(&self.q, 0..n, &mut b.q),
            Part::new(&self.k, 0..n, &mut b.k),
            Part::new(&self.v, 0..n, &mut b.v),
        ];
        let terms = Terms::One;
        project(
            pool,
            self.settings,
            terms,
            &mut b.inputs,
            &b.both,
            &mut parts,
        )?;
        for part in [&mut b.q, &mut b.k] {
            rope::rotate(pool, isa, self.config.head_dim, &b.angles, part)?;
        }
        self.n_kv_saturated += self.kv.store(pool, isa, &b.slots, &b.k, &b.v)?;
        let sequences = sequences_of(entries, &b.pages);
        b.plan.prepare(self.shape, &sequences, pool.n_threads())?;
        match self.settings.attention {
            Attention::Vectorised => {
                attention::forward(
                    pool,
                    isa,
                    &self.kv,
                    &b.plan,
                    &sequences,
                    &b.q,
                    &mut b.attended,
                )?;
            }
            Attention::Reference => {
                attention::reference::forward_on(
                    pool,
                    &self.kv,
                    &sequences,
                    &b.q,
                    &mut b.attended,
                )?;
            }
        }
        let part = Part {
            accumulate: true,
            ..Part::new(&self.o, 0..n, x)
        };
        project(
            pool,
            self.settings,
            terms,
            &mut b.inputs,
            &b.attended,
            &mut [part],
        )?;
        rms_norm::forward(pool, isa, x, &self.mlp_norm, eps, &mut b.normed)?;
        let (inputs, buffers) = (&mut b.inputs, &mut b.mlp);
        mlp::add(
            pool,
            self.settings,
            &self.mlp,
            inputs,
            buffers,
            &b.normed,
            x,
        )
    }

    /// The likeliest row of lm_head after each output `y: [n, hidden]`, which is normed in place.
    pub fn guess(
        &mut self,
        pool: &mut WorkerPool,
        y: &mut [f32],
    ) -> Result<Vec<usize>, KernelError> {
        let n = y.len() / self.config.hidden;
        let (isa, eps) = (self.settings.isa, self.config.rms_norm_eps);
        rms_norm::in_place(pool, isa, y, &self.final_norm, eps)?;
        let n_rows = self.lm_head.weights.n_out();
        let Buffers { logits, inputs, .. } = &mut self.buffers;
        logits.resize(n * n_rows, 0.0);
        let part = Part::new(&self.lm_head, 0..n, logits);
        project(pool, self.settings, Terms::One, inputs, y, &mut [part])?;
        Ok(logits.chunks_exact(n_rows).map(likeliest).collect())
    }
}

/// The first of the largest; what is no number counts for nothing.
fn likeliest(logits: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (row, logit) in logits.iter().enumerate() {
        if *logit > best.1 {
            best = (row, *logit);
        }
    }
    best.0
}

fn sequences_of<'a>(entries: &[Entry<'_>], pages: &'a [u32]) -> Vec<Sequence<'a>> {
    let (mut first, mut first_page) = (0, 0);
    let mut sequences = Vec::with_capacity(entries.len());
    for entry in entries {
        let n_pages = (entry.start + entry.n_rows).div_ceil(PAGE_TOKENS);
        sequences.push(Sequence {
            first,
            n_tokens: entry.n_rows,
            start: entry.start,
            pages: &pages[first_page..first_page + n_pages],
        });
        first += entry.n_rows;
        first_page += n_pages;
    }
    sequences
}

impl Buffers {
    fn prepare(
        &mut self,
        config: &ModelConfig,
        entries: &[Entry<'_>],
        n: usize,
    ) -> Result<(), KernelError> {
        for (buffer, width) in [
            (&mut self.angles, config.head_dim),
            (&mut self.embedded, config.hidden),
            (&mut self.normed, config.hidden),
            (&mut self.both, 2 * config.hidden),
            (&mut self.q, config.q_width()),
            (&mut self.attended, config.q_width()),
            (&mut self.k, config.kv_width()),
            (&mut self.v, config.kv_width()),
        ] {
            buffer.resize(n * width, 0.0);
        }
        self.pages.clear();
        self.slots.clear();
        for entry in entries {
            let end = entry.start + entry.n_rows;
            let n_pages = end.div_ceil(PAGE_TOKENS);
            let Some(pages) = entry.pages.get(..n_pages) else {
                return Err(KernelError::Shape {
                    op: "draft head",
                    what: "number of pages",
                    found: entry.pages.len(),
                    expected: format!("at least {n_pages} for {end} rows"),
                });
            };
            self.pages.extend(pages.iter().map(|page| page.0));
            self.slots.extend((entry.start..end).map(|position| Slot {
                page: pages[position / PAGE_TOKENS].0,
                slot: (position % PAGE_TOKENS) as u32,
            }));
        }
        Ok(())
    }
}
