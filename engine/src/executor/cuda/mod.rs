//! Runs the decoder on one NVIDIA card, with this project's own kernels.
//!
//! A step's tokens go through the layers in passes of up to 64 sequences and, where the card has
//! `wgmma`, 1,024 tokens; a decode batch is one pass, replayed as a captured graph where one of its
//! size exists. The card chooses the tokens and writes the next step's inputs itself; a batch that
//! goes on has its next step queued before the host has seen the last one's tokens. Only what the
//! card's sampler has no room for has its logits brought to the host's.
//!
//! [`place`] finds the card, [`weights`] loads, [`memory`] sizes the KV pool, [`forward`] launches, `passes` cuts a step,
//! [`inputs`] carries the batch over, [`decode`] and [`general`] carry out plans, [`sampling`]
//! tells the card how to choose, [`run_ahead`] says which plan goes on with the batch before,
//! [`turn`] keeps executors apart, [`tuning`] picks kernels by timing where that is asked for, and
//! [`sleeping`] gives the card's memory back.

mod decode;
mod describe;
mod forward;
mod general;
mod graphs;
mod inputs;
mod memory;
mod passes;
mod place;
mod run_ahead;
mod sampling;
mod sleeping;
mod tuning;
mod turn;
mod weights;

use std::sync::Arc;

use kernels::cuda::{Buffer, CudaError, Device, Event, Stream};
pub use kernels::cuda::{CardProfile, Element};
pub use kernels::qkv_prepare::cuda::KvFormat;

pub use self::forward::AttentionBackend;
use self::forward::{AttentionOptions, Forward, HostTier, KvPool, PassSize};
use self::graphs::Graphs;
pub(crate) use self::graphs::sizes as graph_sizes;
use self::inputs::Inputs;
pub(in crate::executor) use self::inputs::MAX_ROWS;
pub(in crate::executor) use self::passes::{Piece, passes};
use self::place::Place;
pub(in crate::executor) use self::run_ahead::Batch;
use self::run_ahead::Burst;
use self::sampling::{DeviceSampler, Results};
pub use self::tuning::TuningOptions;
use self::turn::Turn;
use self::weights::DeviceWeights;
use super::{
    Asleep, Executor, ExecutorCounts, ExecutorError, ExecutorInfo, HostTierOptions, PlanRow,
    StepOutput, StepPlan,
};
use crate::kv::PAGE_TOKENS;
use crate::model::config::ModelConfig;
use crate::weights::{Checkpoint, WeightError};

const DEVICE: &str = "cuda";
/// Steps of a burst at most; longer ones are cut into several.
const MAX_BURST: usize = 16;

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

/// Who chooses the tokens of rows that are not plainly greedy; those are the card's in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// The card, but for what it has no room for.
    Device,
    /// The reference on the host.
    Host,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CudaOptions {
    /// Which card.
    pub ordinal: usize,
    /// The chip that the card is treated as; `None`: what `ENGINE_CARD_PROFILE` says, or its own.
    pub card_profile: Option<CardProfile>,
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
    /// Multiply AWQ weights in groups of 128 with activations in 8 bits, in passes of 17 rows and more.
    pub int8_activations: bool,
    /// The element's own, or e4m3.
    pub kv_format: KvFormat,
    pub attention_backend: AttentionBackend,
    /// Where KV goes that the pool has no room for.
    pub host_tier: Option<HostTierOptions>,
    /// Most parts that a sequence's context is split into.
    pub n_kv_splits: usize,
    /// Keep the parts' results in fp32 instead of the element.
    pub reduce_in_fp32: bool,
    pub graphs: GraphSizes,
    /// Kernels picked by timing; `None` goes by the rules.
    pub tuning: Option<TuningOptions>,
    pub sampler: Sampler,
    /// Give the card the next step of a batch that goes on while the host reads the last one's
    /// tokens.
    pub run_ahead: bool,
    /// Run decode batches as two halves on two streams, where that is safe.
    pub two_batch_overlap: bool,
}

pub struct CudaExecutor {
    info: ExecutorInfo,
    counts: ExecutorCounts,
    stream: Stream,
    graphs: Graphs,
    inputs: Inputs,
    forward: Forward,
    host_tier: Option<HostTier>,
    /// 0, 1, 2 …: what [`Forward::step`] is set to.
    step_values: Buffer<i32>,
    vocab: usize,
    /// `None`: the host samples.
    sampler: Option<DeviceSampler>,
    /// Two, so that a burst begun ahead has its own.
    results: [Results; 2],
    next_slot: usize,
    /// What the inputs on the card are ready for, unless they were used otherwise since.
    batch: Option<Batch>,
    /// Steps of that batch that the card has got already.
    ahead: Option<Burst>,
    /// Behind the work that a call leaves on the card.
    work_left: Arc<Event>,
    options: CudaOptions,
}

/// A failed step, or a lost card where the driver's code says that.
fn step_error(error: CudaError) -> ExecutorError {
    ExecutorError::of_step(DEVICE, error)
}

impl CudaExecutor {
    /// Why this machine or this binary cannot run on a card; `None` where it can.
    pub fn unavailable() -> Option<String> {
        Device::open(0).err().map(|error| error.to_string())
    }

    /// Brings the checkpoint's weights to the card, sizes and allocates the KV pool, captures the
    /// graphs. A model that does not fit is refused before anything is allocated.
    pub fn load(checkpoint: &dyn Checkpoint, options: &CudaOptions) -> Result<Self, CudaLoadError> {
        let config = checkpoint.config();
        check_model(config)?;
        let int8 = DeviceWeights::has_int8_products(checkpoint)?;
        if options.int8_activations && !int8 {
            return Err(CudaLoadError::Option {
                name: "--activation-quantization",
                value: "int8".to_owned(),
                limit: "none for a model without AWQ weights in groups of 128".to_owned(),
            });
        }
        let place = Place::open(options)?;
        let n_pages = place.pool_pages(config, options, DeviceWeights::bytes_of(checkpoint)?)?;
        let weights = DeviceWeights::load(
            checkpoint,
            &place.stream,
            options.element,
            place.many_rows,
            place.int8_room(config, options),
        )?;
        Self::with_weights(config.clone(), weights, n_pages, place, options.clone())
    }

    /// The executor of weights that are on the card.
    fn with_weights(
        config: ModelConfig,
        weights: DeviceWeights,
        n_pages: usize,
        place: Place,
        options: CudaOptions,
    ) -> Result<Self, CudaLoadError> {
        let Place {
            device,
            stream,
            pass,
            ..
        } = place;
        stream.synchronize()?;
        let sizes = graphs::sizes(&options.graphs);
        let page = forward::page_bytes(&config, options.kv_format);
        let kv_pool_tokens = n_pages * PAGE_TOKENS;
        let longest = options
            .context_length
            .unwrap_or(config.context_length)
            .min(kv_pool_tokens);
        let kv = KvPool::new(&stream, &config, options.kv_format, n_pages)?;
        let cos_sin = forward::cos_sin(&stream, &config, longest + MAX_BURST)?;
        let attention = AttentionOptions {
            format: options.kv_format,
            // The others split no context.
            max_splits: match options.attention_backend {
                AttentionBackend::Split => options.n_kv_splits.clamp(1, 8),
                AttentionBackend::Packed | AttentionBackend::Plain => 1,
            },
            reduce_in_fp32: options.reduce_in_fp32,
            backend: options.attention_backend,
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
        let sampler = match options.sampler {
            Sampler::Device => Some(DeviceSampler::new(&stream)?),
            Sampler::Host => None,
        };
        let results = [Results::new(&device)?, Results::new(&device)?];
        let work_left = Arc::new(Event::new(&device)?);
        let turn = Turn::take(&work_left)?;
        let tuned = tuning::tune(
            &stream,
            &mut forward,
            &mut inputs,
            n_pages,
            &attention,
            options.tuning.as_ref(),
        )?;
        // The packed kernels find a row's sequence by its place in the whole batch.
        if options.two_batch_overlap && options.attention_backend == AttentionBackend::Split {
            forward.overlap_two_batches(&stream)?;
        }
        let graphs = Graphs::capture(&stream, &forward, &mut inputs, &sizes)?;
        drop(turn);
        let host_tier = match &options.host_tier {
            Some(tier) => {
                let n_pages = tier.n_pages(n_pages, page).map_err(CudaLoadError::Memory)?;
                Some(HostTier::new(&stream, &forward, n_pages)?)
            }
            None => None,
        };
        let mut info = describe::describe(
            &device,
            &forward,
            &options,
            &attention,
            &graphs,
            tuned.as_ref(),
            kv_pool_tokens,
        );
        info.host_tier = host_tier.as_ref().map(HostTier::info);
        Ok(Self {
            info,
            counts: ExecutorCounts::default(),
            host_tier,
            stream,
            graphs,
            inputs,
            forward,
            step_values,
            vocab,
            sampler,
            results,
            next_slot: 0,
            batch: None,
            ahead: None,
            work_left,
            options,
        })
    }

    /// Logits of chosen tokens, `[wanted.len(), vocab]`; as the CPU executor's, for tests and
    /// scoring. `wanted` names (row, index in the row's tokens), in rising order.
    pub fn forward_logits(
        &mut self,
        rows: &[PlanRow],
        wanted: &[(usize, usize)],
    ) -> Result<Vec<f32>, ExecutorError> {
        let _turn = Turn::take(&self.work_left).map_err(step_error)?;
        self.forget_batch();
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
            return Err(ExecutorError::of_plan(
                DEVICE,
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

impl Executor for CudaExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError> {
        super::check_plan(plan, DEVICE)?;
        self.copy_pages(plan).map_err(step_error)?;
        if plan.rows.is_empty() {
            return Ok(StepOutput::default());
        }
        self.check_pages(plan)?;
        let mut turn = Turn::take(&self.work_left).map_err(step_error)?;
        let mut outcome = self.step(plan);
        if self.ahead.is_some() {
            let left = turn.leave_work(&self.stream, &self.work_left);
            outcome = outcome.and_then(|output| left.map(|()| output).map_err(step_error));
        }
        if outcome.is_err() {
            self.forget_batch();
            // Nothing may run on behind this turn. The step's own error is the one to tell, unless
            // it is the smaller one.
            if let Err(error) = self.stream.synchronize()
                && error.loses_device()
            {
                return Err(step_error(error));
            }
        }
        outcome
    }

    fn counts(&self) -> ExecutorCounts {
        ExecutorCounts {
            kv_saturated_values: self.forward.n_kv_saturated(),
            ..self.counts
        }
    }

    fn sleep(self: Box<Self>) -> Result<Box<dyn Asleep>, (Box<dyn Executor>, ExecutorError)> {
        sleeping::put_to_sleep(self)
    }
}

impl Drop for CudaExecutor {
    /// Work begun ahead ends before the memory that it uses goes.
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
    }
}

impl CudaExecutor {
    /// Puts the plan's step behind the copies of the last plan, and begins its own.
    fn copy_pages(&mut self, plan: &StepPlan) -> Result<(), CudaError> {
        let Some(host_tier) = self.host_tier.as_mut() else {
            return if plan.copies.is_empty() {
                Ok(())
            } else {
                Err(kernels::KernelError::Value {
                    op: "copies of KV pages",
                    message: "there is no host tier".to_owned(),
                }
                .into())
            };
        };
        host_tier.settle(&self.stream, &mut self.counts)?;
        host_tier.begin(&self.stream, &self.forward, &plan.copies)
    }

    fn step(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError> {
        if self.is_decode_plan(plan) {
            return self.decode(plan);
        }
        self.forget_batch();
        let output = self.general(plan)?;
        // A chunk that makes no token is still on the card.
        self.stream.synchronize().map_err(step_error)?;
        Ok(output)
    }

    /// Every position that the step computes has a page, and the table has room for it.
    fn check_pages(&self, plan: &StepPlan) -> Result<(), ExecutorError> {
        for row in &plan.rows {
            let n_tokens = row.start + row.tokens.len() + plan.n_steps - 1;
            let needed = n_tokens.div_ceil(PAGE_TOKENS);
            let limit = row.pages.len().min(self.inputs.max_pages());
            if needed > limit {
                let request = row.request;
                let message = format!(
                    "request {request} needs {needed} KV pages for {n_tokens} tokens, {limit} are there"
                );
                return Err(ExecutorError::of_plan(DEVICE, message));
            }
        }
        Ok(())
    }
}
