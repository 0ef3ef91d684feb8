//! Runs the decoder on one NVIDIA card, with this project's own kernels.
//!
//! A step's tokens go through the layers in passes of up to 64 sequences and, where the card has
//! `wgmma`, 1,024 tokens; a decode batch is one pass, replayed as a captured graph where one of its
//! size exists. Greedy rows never leave the card
//! between the steps of a burst: the argmax writes the next step's inputs. Rows that sample, or
//! that want log-probabilities, have their logits brought to the host's sampler.
//!
//! [`weights`] loads, [`memory`] sizes the KV pool, [`forward`] launches, [`passes`] cuts a step,
//! [`inputs`] carries the batch over, [`tuning`] picks kernels by timing where that is asked for.
//! Deliberately absent for now: sampling on the card.

mod forward;
mod graphs;
mod inputs;
mod memory;
mod passes;
mod tuning;
mod weights;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use kernels::cuda::Element;
use kernels::cuda::{Buffer, CudaError, Device, HostBuffer, Stream};
pub use kernels::qkv_prepare::cuda::KvFormat;
use kernels::stream_linear::ManyRows;

use self::forward::{AttentionOptions, Forward, KvPool, PassShape, PassSize};
use self::graphs::Graphs;
use self::inputs::{Inputs, MAX_ROWS, SequenceTokens};
use self::memory::Demand;
use self::passes::{Piece, passes, sampled};
pub use self::tuning::TuningOptions;
use self::tuning::{Tuned, describe_linear, describe_splits};
use self::weights::DeviceWeights;
use super::{Executor, ExecutorError, ExecutorInfo, PlanRow, SampleSpec, StepOutput, StepPlan};
use crate::kv::PAGE_TOKENS;
use crate::model::config::ModelConfig;
use crate::request::SampledToken;
use crate::sampler;
use crate::weights::{Checkpoint, WeightError};

const DEVICE: &str = "cuda";
/// Steps of a burst at most; longer ones are cut into several.
const MAX_BURST: usize = 16;
/// Tokens of a pass where projections take any number of rows: enough to keep the matrix
/// instructions busy; more only takes memory from the KV pool.
const TILED_PASS_TOKENS: usize = 1024;

/// Held while a step is on the card. Blocks of a projection wait for each other, so kernels of two
/// executors must not run side by side.
static TURN: Mutex<()> = Mutex::new(());

#[derive(Debug, thiserror::Error)]
pub enum CudaLoadError {
    #[error(transparent)]
    Weights(#[from] WeightError),
    #[error(transparent)]
    Cuda(CudaError),
    #[error("{name} is {value}; it must be {limit}")]
    Option {
        name: &'static str,
        value: String,
        limit: String,
    },
    #[error("the model does not fit: {0}")]
    Memory(String),
}

/// Batch sizes whose decode step is captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GraphSizes {
    Off,
    UpTo(usize),
    Exactly(Vec<usize>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct CudaOptions {
    /// Which card.
    pub ordinal: usize,
    /// Treat the card as having this much memory.
    pub memory_limit_bytes: Option<u64>,
    /// (weights + KV pool) / memory
    pub mem_fraction_static: f64,
    /// Cap on the KV pool.
    pub max_total_tokens: Option<usize>,
    /// Longest sequence; the model's where unset.
    pub context_length: Option<usize>,
    /// Of activations, and of weights that are not AWQ.
    pub element: Element,
    /// The element's own, or e4m3.
    pub kv_format: KvFormat,
    /// Most parts that a sequence's context is split into.
    pub n_kv_splits: usize,
    /// Keep the parts' results in fp32 instead of the element.
    pub reduce_in_fp32: bool,
    pub graphs: GraphSizes,
    /// Kernels picked by timing; `None` goes by the rules.
    pub tuning: Option<TuningOptions>,
}

pub struct CudaExecutor {
    info: ExecutorInfo,
    stream: Stream,
    graphs: Graphs,
    inputs: Inputs,
    forward: Forward,
    /// 0, 1, 2 …: what [`Forward::step`] is set to.
    step_values: Buffer<i32>,
    tokens: HostBuffer<i32>,
    vocab: usize,
}

fn step_error(message: impl std::fmt::Display) -> ExecutorError {
    ExecutorError::Step {
        device: DEVICE,
        message: message.to_string(),
    }
}

impl CudaExecutor {
    /// Why this machine or this binary cannot run on a card; `None` where it can.
    pub fn unavailable() -> Option<String> {
        Device::open(0).err().map(|error| error.to_string())
    }

    /// Brings the checkpoint's weights to the card, sizes and allocates the KV pool, captures the
    /// graphs.
    pub fn load(checkpoint: &dyn Checkpoint, options: &CudaOptions) -> Result<Self, CudaLoadError> {
        let config = checkpoint.config().clone();
        check_model(&config)?;
        let device = Device::open(options.ordinal)?;
        let stream = Stream::new(&device)?;
        let (free_before, total) = device.memory_bytes()?;
        let many_rows = ManyRows::best(&device, true);
        let is_tiled = matches!(many_rows, ManyRows::Wgmma { .. });
        let pass = PassShape {
            max_tokens: if is_tiled {
                TILED_PASS_TOKENS
            } else {
                MAX_ROWS
            },
            is_tiled,
        };
        let weights = DeviceWeights::load(checkpoint, &stream, options.element, many_rows)?;
        stream.synchronize()?;
        let device_bytes = options
            .memory_limit_bytes
            .map_or(total as u64, |limit| limit.min(total as u64));
        let sizes = graphs::sizes(&options.graphs);
        let page = forward::page_bytes(&config, options.kv_format);
        let n_pages = memory::pool_pages(&Demand {
            device: device_bytes,
            in_use: (total - free_before) as u64,
            mem_fraction_static: options.mem_fraction_static,
            weights: weights.n_bytes(),
            workspace: forward::workspace_bytes(&config, pass),
            n_graphs: sizes.len(),
            page,
            max_total_tokens: options.max_total_tokens,
        })
        .map_err(CudaLoadError::Memory)?;
        let kv_pool_tokens = n_pages * PAGE_TOKENS;
        let longest = options
            .context_length
            .unwrap_or(config.context_length)
            .min(kv_pool_tokens);
        let kv = KvPool::new(&stream, &config, options.kv_format, n_pages)?;
        let cos_sin = forward::cos_sin(&stream, &config, longest + MAX_BURST)?;
        let attention = AttentionOptions {
            format: options.kv_format,
            max_splits: options.n_kv_splits.clamp(1, 8),
            reduce_in_fp32: options.reduce_in_fp32,
        };
        let vocab = config.vocab;
        let mut forward = Forward::new(
            &stream, config, weights, kv, cos_sin, attention, pass, MAX_BURST,
        )?;
        let mut inputs = Inputs::new(
            &device,
            &stream,
            pass.max_tokens,
            (longest + MAX_BURST).div_ceil(PAGE_TOKENS),
        )?;
        let values: Vec<i32> = (0..MAX_BURST as i32).collect();
        let step_values = Buffer::from_slice(&stream, &values)?;
        let tokens = HostBuffer::zeroed(&device, MAX_BURST * MAX_ROWS)?;
        let turn = take_turn();
        let tuned = tuning::tune(
            &stream,
            &mut forward,
            &mut inputs,
            n_pages,
            &attention,
            options.tuning.as_ref(),
        )?;
        let graphs = Graphs::capture(&stream, &forward, &mut inputs, &sizes)?;
        drop(turn);
        let info = describe(
            &device,
            &forward,
            options,
            &attention,
            &graphs,
            tuned.as_ref(),
            kv_pool_tokens,
        );
        Ok(Self {
            info,
            stream,
            graphs,
            inputs,
            forward,
            step_values,
            tokens,
            vocab,
        })
    }

    /// Logits of chosen tokens, `[wanted.len(), vocab]`; as the CPU executor's, for tests and
    /// scoring. `wanted` names (row, index in the row's tokens), in rising order.
    pub fn forward_logits(
        &mut self,
        rows: &[PlanRow],
        wanted: &[(usize, usize)],
    ) -> Result<Vec<f32>, ExecutorError> {
        let _turn = take_turn();
        let mut all = Vec::with_capacity(wanted.len() * self.vocab);
        for pass in passes(rows, self.inputs.max_tokens()) {
            let outputs: Vec<usize> = pass
                .iter()
                .flat_map(|piece| {
                    (piece.first..piece.first + piece.n_tokens).map(|i| (piece.row, i))
                })
                .enumerate()
                .filter(|(_, token)| wanted.contains(token))
                .map(|(i, _)| i)
                .collect();
            let size = self.upload(rows, &pass, &[]).map_err(step_error)?;
            self.layers(size).map_err(step_error)?;
            for outputs in outputs.chunks(MAX_ROWS) {
                self.upload(rows, &pass, outputs).map_err(step_error)?;
                self.head(outputs.len()).map_err(step_error)?;
                let n = outputs.len() * self.vocab;
                let logits = self.forward.logits().view(0..n).map_err(step_error)?;
                all.extend(logits.download(&self.stream).map_err(step_error)?);
            }
        }
        self.stream.synchronize().map_err(step_error)?;
        if all.len() != wanted.len() * self.vocab {
            return Err(step_error(
                "a wanted token is not in the batch, or not in rising order",
            ));
        }
        Ok(all)
    }

    /// Brings a pass to the card. `outputs`: up to [`MAX_ROWS`] of its tokens, for [`Self::head`].
    fn upload(
        &mut self,
        rows: &[PlanRow],
        pass: &[Piece],
        outputs: &[usize],
    ) -> Result<PassSize, CudaError> {
        let sequences: Vec<_> = pass.iter().map(|piece| piece.of(rows)).collect();
        let size = PassSize {
            n_tokens: pass.iter().map(|piece| piece.n_tokens).sum(),
            n_sequences: pass.len(),
        };
        self.inputs
            .upload(&self.stream, &sequences, size.n_tokens, outputs)?;
        Ok(size)
    }

    fn layers(&self, size: PassSize) -> Result<(), CudaError> {
        self.forward.layers(&self.stream, &self.inputs, size)
    }

    fn head(&self, n_outputs: usize) -> Result<(), CudaError> {
        self.forward.head(&self.stream, &self.inputs, n_outputs)
    }

    /// Tokens for the first rows of the logits: on the card where all are greedy, else by the
    /// host's sampler.
    fn choose(
        &mut self,
        specs: &[(&SampleSpec, &[SampledToken])],
        step: usize,
    ) -> Result<Vec<SampledToken>, ExecutorError> {
        let n = specs.len();
        if specs.iter().all(|(spec, _)| is_greedy(spec)) {
            let tokens = self.argmax(n).map_err(step_error)?;
            return Ok(tokens.into_iter().map(plain_token).collect());
        }
        let logits = self
            .forward
            .logits()
            .view(0..n * self.vocab)
            .map_err(step_error)?;
        let logits = logits.download(&self.stream).map_err(step_error)?;
        let rows = specs.iter().zip(logits.chunks_exact(self.vocab));
        rows.map(|((spec, made), logits)| {
            let extra: Vec<u32> = if spec.params.needs_history() {
                made.iter().map(|token| token.token).collect()
            } else {
                Vec::new()
            };
            sampler::sample(logits, spec, step, &extra).map_err(step_error)
        })
        .collect()
    }

    fn argmax(&mut self, n: usize) -> Result<Vec<u32>, CudaError> {
        self.forward
            .step
            .all()
            .copy_from(&self.stream, self.step_values.view(0..1)?)?;
        self.forward.argmax(&self.stream, &self.inputs, n, false)?;
        self.tokens
            .copy_from(&self.stream, self.forward.history.view(0..n)?)?;
        Ok(self.tokens.as_slice()?[..n]
            .iter()
            .map(|token| *token as u32)
            .collect())
    }

    /// `n_steps` greedy steps of up to [`MAX_ROWS`] decode rows, without the host in between.
    fn burst(
        &mut self,
        rows: &[PlanRow],
        n_steps: usize,
        output: &mut [Vec<SampledToken>],
    ) -> Result<(), CudaError> {
        let tokens: Vec<SequenceTokens<'_>> = rows
            .iter()
            .map(|row| SequenceTokens {
                tokens: &row.tokens,
                start: row.start,
                pages: &row.pages,
            })
            .collect();
        let outputs: Vec<usize> = (0..rows.len()).collect();
        let graph = self.graphs.at_least(rows.len());
        let n_padded = graph.map_or(rows.len(), |(size, _)| size);
        self.inputs
            .upload(&self.stream, &tokens, n_padded, &padded(outputs, n_padded))?;
        for step in 0..n_steps {
            self.forward
                .step
                .all()
                .copy_from(&self.stream, self.step_values.view(step..step + 1)?)?;
            match graph {
                Some((_, graph)) => graph.launch(&self.stream)?,
                None => {
                    graphs::decode_step(&self.stream, &self.forward, &self.inputs, n_padded)?;
                }
            }
        }
        self.tokens.copy_from(
            &self.stream,
            self.forward.history.view(0..n_steps * n_padded)?,
        )?;
        let tokens = self.tokens.as_slice()?;
        for step in 0..n_steps {
            for (row, made) in output.iter_mut().enumerate() {
                made.push(plain_token(tokens[step * n_padded + row] as u32));
            }
        }
        Ok(())
    }

    /// Any plan: passes of up to [`MAX_ROWS`] tokens, the head where tokens are wanted.
    fn general(&mut self, rows: &[PlanRow], n_steps: usize) -> Result<StepOutput, ExecutorError> {
        let mut output = StepOutput {
            rows: vec![Vec::new(); rows.len()],
        };
        for step in 0..n_steps {
            let fed: Vec<PlanRow>;
            let current = if step == 0 {
                rows
            } else {
                fed = rows
                    .iter()
                    .zip(&output.rows)
                    .map(|(row, made)| feed(row, step, made))
                    .collect();
                &fed
            };
            for pass in passes(current, self.inputs.max_tokens()) {
                let (sampling, outputs) = sampled(current, &pass);
                let size = self.upload(current, &pass, &outputs).map_err(step_error)?;
                self.layers(size).map_err(step_error)?;
                if !outputs.is_empty() {
                    self.head(outputs.len()).map_err(step_error)?;
                }
                let specs: Vec<(&SampleSpec, &[SampledToken])> = sampling
                    .iter()
                    .filter_map(|row| {
                        Some((rows[*row].sample.as_ref()?, output.rows[*row].as_slice()))
                    })
                    .collect();
                if specs.is_empty() {
                    continue;
                }
                let chosen = self.choose(&specs, step)?;
                for (row, token) in sampling.into_iter().zip(chosen) {
                    output.rows[row].push(token);
                }
            }
        }
        Ok(output)
    }
}

fn take_turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A decode row, `step` tokens further on.
fn feed(row: &PlanRow, step: usize, made: &[SampledToken]) -> PlanRow {
    let token = made.last().map_or(row.tokens[0], |token| token.token);
    PlanRow {
        tokens: vec![token],
        start: row.start + step,
        ..row.clone()
    }
}

fn padded(mut outputs: Vec<usize>, n: usize) -> Vec<usize> {
    outputs.extend(outputs.len()..n);
    outputs
}

fn plain_token(token: u32) -> SampledToken {
    SampledToken {
        token,
        logprob: None,
        top_logprobs: Vec::new(),
    }
}

/// Whether the likeliest token under the model's own distribution is all that is asked.
fn is_greedy(spec: &SampleSpec) -> bool {
    let p = &spec.params;
    p.temperature == 0.0 && p.logit_bias.is_empty() && p.n_logprobs.is_none() && !p.needs_history()
}

fn check_model(config: &ModelConfig) -> Result<(), CudaLoadError> {
    let group = config.n_q_heads / config.n_kv_heads;
    let wrong = |name, value: usize, limit: &str| {
        Err(CudaLoadError::Option {
            name,
            value: value.to_string(),
            limit: limit.to_owned(),
        })
    };
    if !matches!(config.head_dim, 64 | 128) {
        return wrong("head_dim", config.head_dim, "64 or 128 on the card");
    }
    if group > 8 {
        return wrong("query heads a KV head", group, "at most 8 on the card");
    }
    if !config.intermediate.is_multiple_of(256) {
        return wrong(
            "intermediate",
            config.intermediate,
            "a multiple of 256 on the card",
        );
    }
    if config.hidden > 16_384 || !config.hidden.is_multiple_of(8) {
        return wrong(
            "hidden",
            config.hidden,
            "a multiple of 8, at most 16384, on the card",
        );
    }
    Ok(())
}

fn describe(
    device: &Device,
    forward: &Forward,
    options: &CudaOptions,
    attention: &AttentionOptions,
    graphs: &Graphs,
    tuned: Option<&Tuned>,
    kv_pool_tokens: usize,
) -> ExecutorInfo {
    let properties = device.properties();
    let element = forward.element().name();
    let kv = if options.kv_format == KvFormat::Fp8E4m3 {
        "fp8_e4m3"
    } else {
        element
    };
    let reduce = if attention.reduce_in_fp32 {
        "fp32"
    } else {
        element
    };
    let mut kernels: Vec<(String, String)> = forward
        .linears()
        .map(|(name, linear)| (name.to_owned(), describe_linear(linear, tuned)))
        .collect();
    if let Some(tuned) = tuned {
        let splits = describe_splits(forward, tuned);
        kernels.push(("attention_splits".to_owned(), splits));
        kernels.push(("tuning".to_owned(), tuned.describe()));
    }
    kernels.extend([
        (
            "attention".to_owned(),
            format!(
                "decode_cluster_{kv}_{reduce}_splits{}",
                attention.max_splits
            ),
        ),
        (
            "sampling".to_owned(),
            "argmax on the card, host sampler otherwise".to_owned(),
        ),
        ("activations".to_owned(), element.to_owned()),
        ("cuda_graph_bs".to_owned(), graphs.describe()),
        ("architecture".to_owned(), properties.architecture()),
    ]);
    ExecutorInfo {
        name: DEVICE.to_owned(),
        device: properties.name.clone(),
        kernels,
        inactive_flags: Vec::new(),
        kv_pool_tokens,
        kv_pool_bytes: forward.kv_bytes(),
        weight_bytes: forward.weight_bytes(),
    }
}

impl Executor for CudaExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError> {
        super::check_plan(plan, DEVICE)?;
        if plan.rows.is_empty() {
            return Ok(StepOutput::default());
        }
        self.check_pages(plan)?;
        let _turn = take_turn();
        let decode = plan
            .rows
            .iter()
            .all(|row| row.tokens.len() == 1 && row.sample.as_ref().is_some_and(is_greedy));
        if !decode {
            let output = self.general(&plan.rows, plan.n_steps)?;
            // A chunk that makes no token is still on the card.
            self.stream.synchronize().map_err(step_error)?;
            return Ok(output);
        }
        let mut output = StepOutput {
            rows: vec![Vec::new(); plan.rows.len()],
        };
        for (rows, made) in plan
            .rows
            .chunks(MAX_ROWS)
            .zip(output.rows.chunks_mut(MAX_ROWS))
        {
            let mut left = plan.n_steps;
            let mut rows = rows.to_vec();
            while left > 0 {
                let n = left.min(MAX_BURST);
                self.burst(&rows, n, made).map_err(step_error)?;
                left -= n;
                rows = rows
                    .iter()
                    .zip(made.iter())
                    .map(|(row, made)| feed(row, n, made))
                    .collect();
            }
        }
        Ok(output)
    }
}

impl CudaExecutor {
    /// Every position that the step computes has a page, and the table has room for it.
    fn check_pages(&self, plan: &StepPlan) -> Result<(), ExecutorError> {
        for row in &plan.rows {
            let n_tokens = row.start + row.tokens.len() + plan.n_steps - 1;
            let needed = n_tokens.div_ceil(PAGE_TOKENS);
            let limit = row.pages.len().min(self.inputs.max_pages());
            if needed > limit {
                let request = row.request;
                return Err(step_error(format!(
                    "request {request} needs {needed} KV pages for {n_tokens} tokens, {limit} are there"
                )));
            }
        }
        Ok(())
    }
}
