//! Runs the decoder on one NVIDIA GPU with this project's own kernels.
//!
//! A step's tokens go through the layers in passes of up to 64 sequences and, on a GPU with
//! `wgmma`, 1,024 tokens. A decode batch is one pass, replayed as a captured graph if one of its
//! size exists. The GPU chooses the tokens and writes the next step's inputs itself; for a batch
//! that continues, the next step is queued before the host has seen the last one's tokens. Logits
//! are copied to the host only for rows that exceed the limits of the GPU's sampler.
//!
//! [`device_setup`] opens the GPU, [`weights`] loads, [`memory`] sizes the KV pool, [`forward`]
//! launches, `passes` splits a step, [`inputs`] uploads the batch, [`decode`] and [`mixed`] run
//! plans, `drafts` makes drafts rows of their own, [`sampling`] sets up the GPU's sampler, [`run_ahead`] decides which plan continues the
//! current batch, [`device_guard`] keeps executors apart, [`tuning`] autotunes kernels, and
//! [`sleeping`] frees the GPU's memory.

mod decode;
mod describe;
mod device_guard;
mod device_setup;
mod drafts;
mod forward;
mod graphs;
mod inputs;
mod memory;
mod mixed;
mod passes;
mod run_ahead;
mod sampling;
mod sleeping;
mod tuning;
mod weights;

use std::sync::Arc;

pub use gpu::CardProfile;
use gpu::{Buffer, CudaError, Device, Event, Stream};
use kernels::KernelError;
pub use kernels::cuda::Element;
pub use kernels::qkv_prepare::cuda::KvFormat;

use self::device_guard::DeviceGuard;
use self::device_setup::DeviceSetup;
pub use self::forward::AttentionBackend;
use self::forward::{AttentionOptions, Forward, HostTier, KvPool, PassSize};
use self::graphs::Graphs;
pub(crate) use self::graphs::sizes as graph_sizes;
use self::inputs::Inputs;
pub(crate) use self::inputs::MAX_ROWS;
pub(in crate::executor) use self::passes::{Piece, passes};
pub(in crate::executor) use self::run_ahead::Batch;
use self::run_ahead::Burst;
use self::sampling::{DeviceSampler, Results};
pub use self::tuning::TuningOptions;
use self::weights::{DeviceWeights, Offload};
use super::{
    Executor, ExecutorCounts, ExecutorError, ExecutorInfo, HostTierOptions, MemoryParts,
    SuspendedExecutor, host_memory,
};
use crate::kv::PAGE_TOKENS;
use crate::model::config::ModelConfig;
use crate::step::{PlanRow, StepOutput, StepPlan};
use crate::weights::{Checkpoint, WeightError};

const DEVICE: &str = "cuda";
/// Maximum number of steps in a burst; longer ones are split.
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
    /// `place`: what says so.
    #[error(
        "{place}: the columns of a group are not neighbours (act-order, desc_act), and the GPU's \
         kernels take the columns of a matrix in the order of its inputs; serve it with --device \
         cpu, or use a checkpoint with desc_act false"
    )]
    ActOrder { place: String },
    #[error("experts that the GPU's kernels do not take: {0}; serve it with --device cpu")]
    Experts(KernelError),
}

/// Batch sizes whose decode step is captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GraphSizes {
    Off,
    UpTo(usize),
    Exactly(Vec<usize>),
}

/// The sampler for rows that are not plainly greedy; greedy tokens are always chosen on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// On the GPU, within its limits.
    Device,
    /// The reference sampler on the host.
    Host,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CudaOptions {
    /// Index of the GPU.
    pub ordinal: usize,
    /// The chip that the GPU is treated as; `None`: the one named by `ENGINE_CARD_PROFILE`, or its
    /// own.
    pub card_profile: Option<CardProfile>,
    /// Treat the GPU as having this much memory.
    pub memory_limit_bytes: Option<u64>,
    /// Keep at least this much of the layers' matrices in the host's memory.
    pub cpu_offload_bytes: u64,
    /// (weights + KV pool) / memory
    pub mem_fraction_static: f64,
    /// Cap on the KV pool.
    pub max_total_tokens: Option<usize>,
    /// Maximum sequence length; the model's if unset.
    pub context_length: Option<usize>,
    /// Element type of activations, and of weights that are not AWQ.
    pub element: Element,
    /// Round activations to 8 bits for AWQ weights in groups of 128, in passes of at least 17 rows.
    pub int8_activations: bool,
    /// The activations' type, or e4m3.
    pub kv_format: KvFormat,
    pub attention_backend: AttentionBackend,
    /// Where evicted KV pages go.
    pub host_tier: Option<HostTierOptions>,
    /// Maximum number of splits of a sequence's context.
    pub n_kv_splits: usize,
    /// Keep the splits' partial results in fp32 instead of the element type.
    pub reduce_in_fp32: bool,
    pub graphs: GraphSizes,
    /// Autotuning; `None` uses the default rules.
    pub tuning: Option<TuningOptions>,
    pub sampler: Sampler,
    /// Queue the next step of a batch that continues while the host reads the last one's tokens.
    pub run_ahead: bool,
    /// Run decode batches as two halves on two streams where that is safe.
    pub two_batch_overlap: bool,
    /// Maximum number of drafts of a row; 0 without speculation.
    pub n_draft_tokens: usize,
}

pub struct CudaExecutor {
    info: ExecutorInfo,
    counts: ExecutorCounts,
    stream: Stream,
    graphs: Graphs,
    inputs: Inputs,
    forward: Forward,
    host_tier: Option<HostTier>,
    /// 0, 1, 2 …: the values that [`Forward::step`] is set to.
    step_values: Buffer<i32>,
    vocab: usize,
    /// `None`: sampling runs on the host.
    sampler: Option<DeviceSampler>,
    /// Two, so that a lookahead burst has its own.
    results: [Results; 2],
    next_slot: usize,
    /// The batch that the inputs on the GPU are ready for; `None` after any other use of them.
    batch: Option<Batch>,
    /// Steps of that batch that have been queued already.
    ahead: Option<Burst>,
    /// Recorded after the work that a call leaves running on the GPU.
    work_left: Arc<Event>,
    options: CudaOptions,
}

/// A failed step, or a lost device if the driver's error code says so.
fn step_error(error: CudaError) -> ExecutorError {
    ExecutorError::of_step(DEVICE, error)
}

impl CudaExecutor {
    /// Why this machine or this binary cannot use a GPU; `None` if it can.
    pub fn unavailable() -> Option<String> {
        Device::open(0).err().map(|error| error.to_string())
    }

    /// Uploads the checkpoint's weights, sizes and allocates the KV pool, and captures the graphs.
    /// A model that does not fit is refused before anything is allocated.
    ///
    /// # Errors
    ///
    /// [`CudaLoadError::Option`] if an option does not suit the model or the GPU,
    /// [`CudaLoadError::Memory`] if the model does not fit, [`CudaLoadError::Weights`] if a
    /// weight cannot be read, [`CudaLoadError::Cuda`] if there is no such GPU, no kernel for the
    /// model's shapes, or a call of the driver fails.
    pub fn load(checkpoint: &dyn Checkpoint, options: &CudaOptions) -> Result<Self, CudaLoadError> {
        let config = checkpoint.config();
        check_model(config)?;
        let int8 = DeviceWeights::has_int8_products(checkpoint, options.element)?;
        if options.int8_activations && !int8 {
            return Err(CudaLoadError::Option {
                name: "--activation-quantization",
                value: "int8".to_owned(),
                limit: "none for a model without AWQ weights in groups of 128".to_owned(),
            });
        }
        let setup = DeviceSetup::open(options)?;
        let offload = Offload::plan(checkpoint, options.element, options.cpu_offload_bytes)?;
        check_host_memory(offload)?;
        let weight_bytes = DeviceWeights::bytes_of(checkpoint, options.element)?;
        let pool = setup.pool_pages(config, options, weight_bytes - offload.n_bytes)?;
        let weights = DeviceWeights::load(
            checkpoint,
            &setup.stream,
            options.element,
            setup.large_m,
            setup.int8_room(config, options),
            offload,
        )?;
        Self::with_weights(config.clone(), weights, pool, setup, options.clone())
    }

    /// The executor for weights that are already on the GPU.
    fn with_weights(
        config: ModelConfig,
        weights: DeviceWeights,
        (n_pages, memory): (usize, MemoryParts),
        setup: DeviceSetup,
        options: CudaOptions,
    ) -> Result<Self, CudaLoadError> {
        let DeviceSetup {
            device,
            stream,
            pass,
            ..
        } = setup;
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
            // The other backends do not split contexts.
            max_splits: match options.attention_backend {
                AttentionBackend::Split => options.n_kv_splits.clamp(1, 8),
                AttentionBackend::Packed | AttentionBackend::Plain => 1,
            },
            reduce_in_fp32: options.reduce_in_fp32,
            backend: options.attention_backend,
            n_fresh: 1 + options.n_draft_tokens,
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
        let guard = DeviceGuard::take(&work_left)?;
        let tuned = tuning::tune(
            &stream,
            &mut forward,
            &mut inputs,
            n_pages,
            &attention,
            options.tuning.as_ref(),
        )?;
        // The packed kernels find a row's sequence by its index in the whole batch.
        // With drafts, a row of one half may read what a row of the other writes.
        let overlaps = options.two_batch_overlap && options.n_draft_tokens == 0;
        if overlaps && options.attention_backend == AttentionBackend::Split {
            forward.overlap_two_batches(&stream)?;
        }
        let graphs = Graphs::capture(&stream, &forward, &mut inputs, &sizes)?;
        drop(guard);
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
        info.memory = memory;
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

    /// Logits of chosen tokens, `[wanted.len(), vocab]`, like the CPU executor's; for tests and
    /// scoring. `wanted` names (row, index in the row's tokens) in ascending order.
    ///
    /// # Errors
    ///
    /// If a wanted token is not in the rows or not in ascending order, or a call of the driver
    /// fails.
    pub fn forward_logits(
        &mut self,
        rows: &[PlanRow],
        wanted: &[(usize, usize)],
    ) -> Result<Vec<f32>, ExecutorError> {
        let _guard = DeviceGuard::take(&self.work_left).map_err(step_error)?;
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

    /// Uploads a pass. `outputs`: up to [`MAX_ROWS`] of its tokens, for [`Self::head`].
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

/// Whether the GPU's kernels take the model's experts, if it has any.
///
/// # Errors
///
/// [`CudaLoadError::Experts`] with the size and its limit.
pub(crate) fn check_experts(config: &ModelConfig) -> Result<(), CudaLoadError> {
    match forward::experts_shape(config) {
        None => Ok(()),
        Some(shape) => shape.check().map_err(CudaLoadError::Experts),
    }
}

/// Locked memory cannot be swapped out, so it must be free.
fn check_host_memory(offload: Offload) -> Result<(), CudaLoadError> {
    let needed = offload.n_bytes;
    match host_memory::free_bytes() {
        Some(free) if free < needed => Err(CudaLoadError::Memory(format!(
            "--cpu-offload-gb keeps {needed} bytes of weights in the host's memory, which has {free} bytes free"
        ))),
        _ => Ok(()),
    }
}

fn check_model(config: &ModelConfig) -> Result<(), CudaLoadError> {
    check_experts(config)?;
    let group = config.n_q_heads / config.n_kv_heads;
    let wrong = |name, value: usize, limit: &str| {
        Err(CudaLoadError::Option {
            name,
            value: value.to_string(),
            limit: limit.to_owned(),
        })
    };
    if !matches!(config.head_dim, 64 | 128) {
        return wrong("head_dim", config.head_dim, "64 or 128 on the GPU");
    }
    if group > 8 {
        return wrong("query heads a KV head", group, "at most 8 on the GPU");
    }
    let has_dense_layers = config.n_sparse_layers() < config.n_layers;
    if has_dense_layers && !config.intermediate.is_multiple_of(256) {
        return wrong(
            "intermediate",
            config.intermediate,
            "a multiple of 256 on the GPU",
        );
    }
    if config.hidden > 16_384 || !config.hidden.is_multiple_of(8) {
        return wrong(
            "hidden",
            config.hidden,
            "a multiple of 8, at most 16384, on the GPU",
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
        let mut guard = DeviceGuard::take(&self.work_left).map_err(step_error)?;
        let mut outcome = self.step(plan);
        if self.ahead.is_some() {
            let left = guard.hand_off(&self.stream, &self.work_left);
            outcome = outcome.and_then(|output| left.map(|()| output).map_err(step_error));
        }
        if outcome.is_err() {
            self.forget_batch();
            // No work may continue after the guard is dropped. The step's own error is reported
            // unless the other one is more severe.
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

    fn sleep(
        self: Box<Self>,
    ) -> Result<Box<dyn SuspendedExecutor>, (Box<dyn Executor>, ExecutorError)> {
        sleeping::put_to_sleep(self)
    }
}

impl Drop for CudaExecutor {
    /// Lookahead work must end before the memory that it uses is freed.
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
    }
}

impl CudaExecutor {
    /// Orders the plan's step after the copies of the last plan, and starts its own copies.
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
        let Some(flat) = drafts::expand(plan) else {
            return self.plain_step(plan);
        };
        // The inputs that the step leaves on the GPU are those after its drafts.
        self.forget_batch();
        let output = self.plain_step(&flat)?;
        self.forget_batch();
        Ok(drafts::verify(plan, output))
    }

    fn plain_step(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError> {
        if self.is_decode_plan(plan) {
            return self.decode(plan);
        }
        self.forget_batch();
        let output = self.execute_mixed(plan)?;
        // A chunk that yields no token is still running on the GPU.
        self.stream.synchronize().map_err(step_error)?;
        Ok(output)
    }

    /// Checks that every position of the step has a page, and that the page table has room for it.
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
