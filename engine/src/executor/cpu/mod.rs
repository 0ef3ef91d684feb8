//! Runs the decoder on the CPU.
//!
//! All rows of a step go through the model as one packed batch of prefill chunks and decode rows. A
//! token's logits depend only on its own sequence, bit for bit: not on the batch, the chunking, the
//! pages or `n_steps`.
//!
//! [`weights`] loads and repacks, [`forward`] is the decoder, [`mlp`] its MLPs and experts, [`eagle`]
//! a head that guesses next tokens, [`host_tier`] holds evicted pages.
//! Deliberately absent: splitting one sequence's context over threads.

mod device;
mod eagle;
mod forward;
mod host_tier;
mod mlp;
mod options;
mod projection;
mod weights;

pub(crate) use device::processor_name;
pub use kernels::attention::KvFormat;
pub(crate) use mlp::expert_buffer_bytes;
pub use options::{ActivationType, Attention, CpuOptions, Sampling};

use host::pool::WorkerPool;
use kernels::KernelError;

use self::eagle::{Eagle, Seen};
use self::forward::{Forward, ForwardError, RowView};
use self::weights::DecoderWeights;
use super::{
    DraftAsk, Executor, ExecutorCounts, ExecutorError, ExecutorInfo, MemoryParts, StepError,
    StopFlag, SuspendedExecutor,
};
use crate::kv::{PAGE_TOKENS, PageIdx};
use crate::model::config::ModelConfig;
use crate::sampler;
use crate::sampler::SampleSpec;
use crate::step::{PlanRow, RowOutput, StepOutput, StepPlan, Target};
use crate::weights::eagle_head::EagleHead;
use crate::weights::{Checkpoint, WeightError};

const DEVICE: &str = "cpu";

/// Why the executor could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CpuLoadError {
    #[error(transparent)]
    Weights(#[from] WeightError),
    #[error("loading {what}: {source}")]
    Kernel { what: String, source: KernelError },
    #[error("{0}")]
    HostTier(String),
    #[error("{name} is {value}; it must be {limit}")]
    Option {
        name: &'static str,
        value: usize,
        limit: String,
    },
}

pub struct CpuExecutor {
    info: ExecutorInfo,
    counts: ExecutorCounts,
    sampling: Sampling,
    pool: WorkerPool,
    forward: Forward,
    eagle: Option<Eagle>,
    vocab: usize,
}

/// For the log and records.
fn experts_name(config: &ModelConfig) -> Option<(String, String)> {
    let experts = config.experts.as_ref()?;
    let (n, of) = (experts.n_active, experts.n_experts);
    let name = format!("{n} of {of}, sorted by expert, router in f32");
    Some(("experts".to_owned(), name))
}

fn step_error(error: impl Into<ForwardError>) -> ExecutorError {
    match error.into() {
        ForwardError::Kernel(error) => ExecutorError::of_step(DEVICE, error),
        ForwardError::Stopped => ExecutorError::of_step(DEVICE, StepError::Stopped),
    }
}

impl CpuExecutor {
    /// Repacks the checkpoint's weights and allocates the KV pool.
    ///
    /// # Errors
    ///
    /// [`CpuLoadError::Option`] if an option is out of its range, [`CpuLoadError::Weights`] if a
    /// weight cannot be read, [`CpuLoadError::HostTier`] if the tier does not fit,
    /// [`CpuLoadError::Kernel`] if the threads or the memory cannot be had.
    pub fn load(checkpoint: &dyn Checkpoint, options: CpuOptions) -> Result<Self, CpuLoadError> {
        let settings = options.validate()?;
        let kernel = |what: &str| {
            let what = what.to_owned();
            move |source| CpuLoadError::Kernel { what, source }
        };
        let mut pool = WorkerPool::new(settings.n_threads)
            .map_err(KernelError::from)
            .map_err(kernel("worker threads"))?;
        let weights = DecoderWeights::load(checkpoint, &mut pool, settings.activations)?;
        let weight_bytes = weights.bytes();
        let lm_head = weights.lm_head_name.clone();
        let n_pages = settings.kv_pool_tokens.div_ceil(PAGE_TOKENS);
        let mut forward = Forward::new(checkpoint.config().clone(), weights, settings, n_pages)
            .map_err(kernel("the KV pool"))?;
        if let Some(host_tier) = settings.host_tier {
            let page_bytes = forward.kv_bytes() / n_pages.max(1) as u64;
            let n_host_pages = host_tier.n_pages(n_pages, page_bytes);
            forward
                .add_host_tier(n_host_pages.map_err(CpuLoadError::HostTier)?)
                .map_err(kernel("the host tier"))?;
        }
        let isa = settings.isa.name();
        let activations = settings.activations.name();
        let kv = match settings.kv_format {
            KvFormat::F16 => "f16",
            KvFormat::Fp8E4m3 => "fp8_e4m3",
        };
        let kernels = [
            ("quant_linear", format!("{isa}_{activations}")),
            ("qkv_input", forward::qkv_input_name(settings).to_owned()),
            ("dense_linear", format!("{isa}_f32")),
            ("lm_head", lm_head),
            (
                "attention",
                match settings.attention {
                    Attention::Vectorised => format!("{isa}_paged_{kv}"),
                    Attention::Reference => format!("reference_f64_paged_{kv}"),
                },
            ),
            (
                "sampling",
                match settings.sampling {
                    Sampling::Selecting => "selecting, rows on threads",
                    Sampling::Plain => "plain, sorted vocabulary",
                }
                .to_owned(),
            ),
            ("threads", settings.n_threads.to_string()),
        ];
        let info = ExecutorInfo {
            name: DEVICE.to_owned(),
            device: device::processor_name(),
            kernels: kernels
                .into_iter()
                .map(|(role, name)| (role.to_owned(), name))
                .chain(experts_name(checkpoint.config()))
                .collect(),
            inactive_flags: Vec::new(),
            kv_pool_tokens: n_pages * PAGE_TOKENS,
            kv_pool_bytes: forward.kv_bytes(),
            weight_bytes,
            host_tier: forward.host_tier_info(),
            memory: MemoryParts::default(),
        };
        Ok(Self {
            info,
            counts: ExecutorCounts::default(),
            sampling: settings.sampling,
            pool,
            forward,
            eagle: None,
            vocab: checkpoint.config().vocab,
        })
    }

    /// Adds a head that guesses the next tokens ([`Executor::draft`]).
    ///
    /// # Errors
    ///
    /// [`CpuLoadError::Weights`] if it is a head of another model or a tensor cannot be read,
    /// [`CpuLoadError::Kernel`] if the memory cannot be had.
    pub fn add_draft_head(&mut self, head: &EagleHead) -> Result<(), CpuLoadError> {
        let settings = self.forward.settings();
        let n_pages = self.info.kv_pool_tokens / PAGE_TOKENS;
        let target = self.forward.as_target();
        let mut eagle = Eagle::load(head, &target, &mut self.pool, settings, n_pages)?;
        if let Some(tier) = &self.info.host_tier {
            let added = eagle.add_host_tier(settings, tier.n_pages);
            added.map_err(|source| CpuLoadError::Kernel {
                what: "the draft head's host tier".to_owned(),
                source,
            })?;
        }
        self.forward.keep_inputs(&eagle.boundaries());
        self.info.weight_bytes += eagle.weight_bytes();
        self.info.kv_pool_bytes += eagle.kv_bytes();
        let layers = eagle.boundaries().map(|layer| layer.to_string()).join(", ");
        let name = format!("eagle3, states before layers {layers}");
        self.info.kernels.push(("draft_head".to_owned(), name));
        self.eagle = Some(eagle);
        Ok(())
    }

    /// Lets the head see a pass: rows, and how many of each one's tokens belong to the text.
    fn observe<'a>(
        &mut self,
        rows: impl IntoIterator<Item = (&'a PlanRow, RowView<'a>, usize)>,
    ) -> Result<(), ExecutorError> {
        let Some(eagle) = &mut self.eagle else {
            return Ok(());
        };
        let mut first = 0;
        let seen: Vec<Seen<'_>> = rows
            .into_iter()
            .map(|(plan, row, n_valid)| {
                let seen = Seen {
                    request: plan.request,
                    row,
                    first,
                    n_valid,
                };
                first += row.tokens.len();
                seen
            })
            .collect();
        let embedding = &self.forward.weights().embedding;
        eagle
            .observe(&mut self.pool, embedding, &seen, self.forward.states())
            .map_err(step_error)
    }

    /// Computes the rows and returns the logits of chosen tokens, `[wanted.len(), vocab]`.
    ///
    /// `wanted` names (row, index in the row's tokens) in ascending order; `sample` of the rows is
    /// ignored. For teacher-forced tests and scoring.
    ///
    /// # Errors
    ///
    /// If a wanted token is not in the rows or not in ascending order, or the step fails.
    pub fn forward_logits(
        &mut self,
        rows: &[PlanRow],
        wanted: &[(usize, usize)],
    ) -> Result<Vec<f32>, ExecutorError> {
        let mut firsts = Vec::with_capacity(rows.len());
        let mut n_tokens = 0;
        for row in rows {
            firsts.push(n_tokens);
            n_tokens += row.tokens.len();
        }
        let mut outputs = Vec::with_capacity(wanted.len());
        for (row, index) in wanted {
            let in_row = rows.get(*row).is_some_and(|r| *index < r.tokens.len());
            let packed = firsts.get(*row).map_or(0, |first| first + index);
            if !in_row || outputs.last().is_some_and(|last| *last >= packed) {
                let wrong = "is not in the batch, or not in rising order";
                let message = format!("token {index} of row {row} {wrong}");
                return Err(ExecutorError::of_plan(DEVICE, message));
            }
            outputs.push(packed);
        }
        let views: Vec<RowView<'_>> = rows.iter().map(RowView::of).collect();
        let logits = self
            .forward
            .run(&mut self.pool, &views, &outputs)
            .map_err(step_error)?;
        Ok(logits.to_vec())
    }

    /// Runs the rows and scores the tokens that the plan asks for, in portions spread over the
    /// threads.
    fn run_scoring(
        &mut self,
        plan: &StepPlan,
        views: &[RowView<'_>],
        outputs: &[usize],
        output: &mut StepOutput,
    ) -> Result<(), ExecutorError> {
        let (mut firsts, mut n_tokens) = (Vec::with_capacity(plan.rows.len()), 0);
        for row in &plan.rows {
            firsts.push(n_tokens);
            n_tokens += row.tokens.len();
        }
        let targets: Vec<Target> = plan.targets().collect();
        let scored: Vec<usize> = targets.iter().map(|t| firsts[t.row] + t.at).collect();
        let mut outcomes: Vec<_> = targets.iter().map(|target| (*target, None)).collect();
        let vocab = self.vocab;
        let mut score = |pool: &mut WorkerPool, first: usize, logits: &[f32]| {
            let portion = &mut outcomes[first..first + logits.len() / vocab];
            pool.for_each_mut(portion, &|i, (target, outcome)| {
                let logits = &logits[i * vocab..][..vocab];
                *outcome = Some(sampler::score(logits, target.token, target.n_top));
            })
            .map_err(KernelError::from)
        };
        self.forward
            .run_scoring(&mut self.pool, views, outputs, &scored, &mut score)
            .map_err(step_error)?;
        for (target, outcome) in outcomes {
            if let Some(outcome) = outcome {
                output.rows[target.row].push_score(outcome);
            }
        }
        Ok(())
    }

    /// Chooses a token for each of `chosen`, a row and how many of its drafts come before, whose
    /// logits the last run left in that order. They are spread over the threads; a failed row gets
    /// none.
    fn sample(
        &mut self,
        plan: &StepPlan,
        chosen: &[(usize, usize)],
        step: usize,
        output: &mut StepOutput,
    ) -> Result<(), ExecutorError> {
        let vocab = self.vocab;
        let logits = self.forward.logits();
        let choose = |i: usize, spec: &SampleSpec, made: &RowOutput, drafts: &[u32]| {
            let extra: Vec<u32> = if spec.params.needs_history() {
                let made = made.tokens.iter().map(|token| token.token);
                made.chain(drafts.iter().copied()).collect()
            } else {
                Vec::new()
            };
            let logits = &logits[i * vocab..][..vocab];
            let step = step + drafts.len();
            match self.sampling {
                Sampling::Selecting => sampler::sample(logits, spec, step, &extra),
                Sampling::Plain => sampler::plain::sample(logits, spec, step, &extra),
            }
        };
        let mut outcomes: Vec<_> = chosen.iter().map(|place| (*place, None)).collect();
        let rows = &output.rows;
        let choose_row = |i: usize, (place, outcome): &mut ((usize, usize), Option<_>)| {
            let (row, n_before) = *place;
            if let Some(spec) = plan.rows[row].sample.as_ref()
                && !rows[row].has_failed()
            {
                let drafts = &plan.rows[row].drafts()[..n_before];
                *outcome = Some(choose(i, spec, &rows[row], drafts));
            }
        };
        match self.sampling {
            Sampling::Selecting => self
                .pool
                .for_each_mut(&mut outcomes, &choose_row)
                .map_err(|error| step_error(KernelError::from(error)))?,
            Sampling::Plain => {
                for (i, outcome) in outcomes.iter_mut().enumerate() {
                    choose_row(i, outcome);
                }
            }
        }
        for ((row, n_before), outcome) in outcomes {
            let (made, plan) = (&mut output.rows[row], &plan.rows[row]);
            match outcome {
                Some(outcome) if plan.n_drafts > 0 => {
                    made.push_verified(plan.drafts(), n_before, outcome);
                }
                Some(outcome) => made.push(outcome),
                None => {}
            }
        }
        Ok(())
    }
}

impl Executor for CpuExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError> {
        super::check_plan(plan, DEVICE)?;
        let mut output = StepOutput {
            rows: vec![RowOutput::default(); plan.rows.len()],
        };
        if !plan.copies.is_empty() {
            self.forward
                .copy_pages(&mut self.pool, &plan.copies, &mut self.counts)
                .map_err(step_error)?;
            if let Some(eagle) = &mut self.eagle {
                let copied = eagle.copy_pages(&mut self.pool, &plan.copies);
                copied.map_err(step_error)?;
            }
        }
        if plan.rows.is_empty() {
            return Ok(output);
        }
        let (mut outputs, mut sampling) = (Vec::new(), Vec::new());
        let mut n_tokens = 0;
        for (i, row) in plan.rows.iter().enumerate() {
            n_tokens += row.tokens.len();
            if row.sample.is_some() {
                for n_before in 0..=row.n_drafts {
                    outputs.push(n_tokens - 1 - row.n_drafts + n_before);
                    sampling.push((i, n_before));
                }
            }
        }
        let views: Vec<RowView<'_>> = plan.rows.iter().map(RowView::of).collect();
        if plan.scores.is_empty() {
            self.forward
                .run(&mut self.pool, &views, &outputs)
                .map_err(step_error)?;
        } else {
            self.run_scoring(plan, &views, &outputs, &mut output)?;
        }
        self.sample(plan, &sampling, 0, &mut output)?;
        let made = plan.rows.iter().zip(&output.rows);
        self.observe(made.map(|(row, made)| (row, RowView::of(row), made.n_valid(row))))?;
        for step in 1..plan.n_steps {
            // Every row is a decode row here and continues from the token of the previous step. A
            // failed row has none and leaves the batch.
            let going_on: Vec<(usize, u32)> = output
                .rows
                .iter()
                .enumerate()
                .filter(|(_, made)| !made.has_failed())
                .filter_map(|(i, made)| Some((i, made.tokens.last()?.token)))
                .collect();
            if going_on.is_empty() {
                break;
            }
            let views: Vec<RowView<'_>> = going_on
                .iter()
                .map(|(i, token)| RowView {
                    tokens: std::slice::from_ref(token),
                    start: plan.rows[*i].start + step,
                    pages: &plan.rows[*i].pages,
                })
                .collect();
            let outputs: Vec<usize> = (0..going_on.len()).collect();
            let sampling: Vec<_> = going_on.iter().map(|(i, _)| (*i, 0)).collect();
            self.forward
                .run(&mut self.pool, &views, &outputs)
                .map_err(step_error)?;
            self.sample(plan, &sampling, step, &mut output)?;
            let made = going_on.iter().zip(views);
            self.observe(made.map(|((i, _), view)| {
                let n_valid = usize::from(!output.rows[*i].has_failed());
                (&plan.rows[*i], view, n_valid)
            }))?;
        }
        Ok(output)
    }

    fn draft(&mut self, asks: &[DraftAsk<'_>]) -> Result<Vec<Vec<u32>>, ExecutorError> {
        let Some(eagle) = &mut self.eagle else {
            return Ok(Vec::new());
        };
        let embedding = &self.forward.weights().embedding;
        eagle
            .draft(&mut self.pool, embedding, asks)
            .map_err(step_error)
    }

    fn counts(&self) -> ExecutorCounts {
        let of_head = self.eagle.as_ref().map_or(0, Eagle::n_kv_saturated);
        ExecutorCounts {
            kv_saturated_values: self.forward.n_kv_saturated() + of_head,
            ..self.counts
        }
    }

    fn watch(&mut self, stop: &StopFlag) {
        self.forward.watch(stop.clone());
    }

    fn sleep(
        self: Box<Self>,
    ) -> Result<Box<dyn SuspendedExecutor>, (Box<dyn Executor>, ExecutorError)> {
        super::cannot_sleep(self, DEVICE)
    }
}
