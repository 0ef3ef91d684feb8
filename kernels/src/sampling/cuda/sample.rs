//! Sampling with every parameter of the engine's CPU sampler, and log-probabilities.

use gpu::{BufferView, CudaError, Device, DevicePtr, Kernel, LaunchConfig, Stream};

use super::{AdvanceParams, AdvanceState, advance_params};
use crate::cuda::ClusterLaunch;
use crate::cuda::shape::ShapeCheck;
use crate::shared_with_device::{device_structs, shared_constants};

const CHECK: ShapeCheck = ShapeCheck("sample");
pub const MAX_TOP_LOGPROBS: usize = 20;
const THREADS: u32 = 1024;
/// Blocks that share a row, if the device can hold a cluster of that size and those of all rows are
/// at most one and a half for each multiprocessor (version 3 of `NOTES.md`); otherwise one block
/// processes the row.
const RANKS: u32 = 8;
/// The kernel's static share of a block's shared memory.
const STATIC_SHARED_BYTES: usize = 18 << 10;

shared_constants! {
    in "sampling/sample.cu" { THREADS, RANKS as MAX_RANKS, MAX_TOP_LOGPROBS as MAX_TOP }
    in "sampling/advance.cuh" { NOT_FINITE, ALL_MASKED, LIST_FULL }
}

device_structs! {
    /// How one row chooses, as it lies on the device. The caller has checked the ranges:
    /// temperature >= 0, top_p in (0, 1], min_p in [0, 1], repetition_penalty > 0, all finite.
    #[derive(Debug, PartialEq)]
    pub struct SamplingRow as SamplingRow in "sampling/sample.cu" {
        pub seed: u64,
        /// Of the token to choose; the kernel moves it on.
        pub output_index: u64,
        /// 0 is greedy.
        pub temperature: f32,
        /// 0 keeps all.
        pub top_k: i32,
        pub top_p: f32,
        pub min_p: f32,
        pub repetition_penalty: f32,
        pub presence_penalty: f32,
        pub frequency_penalty: f32,
        /// Likeliest tokens to report beside the chosen one; -1 for no log-probabilities.
        pub n_logprobs: i32,
        /// Entries of the row's list of [`PenalizedToken`]; the kernel appends to it.
        pub n_penalized: i32,
        /// 1 where chosen tokens enter the list, as penalties need it; 0 otherwise.
        pub tracks_output: i32,
    }

    /// A token of the row's prompt or output, or with a bias. No token is in a list twice.
    #[derive(Debug, PartialEq)]
    pub struct PenalizedToken as PenalizedToken in "sampling/sample.cu" {
        pub token: i32,
        /// How often it was generated; 0: it is in the prompt only; -1: it has a bias only.
        pub n_generated: i32,
        /// Added to the logit.
        pub bias: f32,
        /// Written by the kernel: the logit as the model gave it.
        pub logit: f32,
    }

    struct Params as SampleParams in "sampling/sample.cu" {
        logits: DevicePtr<f32>,
        n: i32,
        stride: i32,
        to: AdvanceParams,
        rows: DevicePtr<SamplingRow>,
        penalized: DevicePtr<PenalizedToken>,
        logprob: DevicePtr<f32>,
        top_ids: DevicePtr<i32>,
        top_logprob: DevicePtr<f32>,
        max_penalized: i32,
        max_top: i32,
        cached: i32,
        padding: i32,
    }
}

impl SamplingRow {
    /// Plainly greedy; also used for padding rows.
    pub const GREEDY: Self = Self {
        seed: 0,
        output_index: 0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        n_logprobs: -1,
        n_penalized: 0,
        tracks_output: 0,
    };
}

/// What `history` holds instead of a token: the numbers of `advance.cuh`, for both kernels that choose
/// tokens.
const NOT_FINITE: i32 = -1;
const ALL_MASKED: i32 = -2;
const LIST_FULL: i32 = -3;

/// Why a row has no token. It concerns its row alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// A logit is NaN or +inf.
    #[error("a logit is NaN or infinite; the model's output is broken")]
    NotFinite,
    #[error("every logit is -inf: no token can be chosen")]
    AllMasked,
    /// Of [`Sample`] alone.
    #[error("the row's list of penalised tokens is full")]
    ListFull,
    #[error("unknown token {0} from the device")]
    Unknown(i32),
}

impl TokenError {
    /// The token in an entry of `history`.
    ///
    /// # Errors
    ///
    /// Why the kernel chose none: the logits are not finite, all tokens are masked, the list of
    /// penalized tokens is full, or the entry is none that it writes.
    pub fn token(entry: i32) -> Result<u32, Self> {
        match entry {
            NOT_FINITE => Err(Self::NotFinite),
            ALL_MASKED => Err(Self::AllMasked),
            LIST_FULL => Err(Self::ListFull),
            entry => u32::try_from(entry).map_err(|_| Self::Unknown(entry)),
        }
    }
}

/// Log-probabilities, from the logits before bias and penalties.
#[derive(Debug, Clone, Copy)]
pub struct LogprobOutputs<'a> {
    /// `[n_steps, n_rows]`: of the chosen token, if the row asks for it.
    pub logprob: BufferView<'a, f32>,
    /// `[n_steps, n_rows, max_top]`: the most likely tokens, best first; -1 if there are fewer.
    pub top_ids: BufferView<'a, i32>,
    /// `[n_steps, n_rows, max_top]`
    pub top_logprob: BufferView<'a, f32>,
    /// Up to [`MAX_TOP_LOGPROBS`]; a row gets `n_logprobs` of them.
    pub max_top: usize,
}

#[derive(Debug, Clone, Copy)]
pub struct SampleArgs<'a> {
    /// `[n_rows, stride]`, of which `vocab` values are used; may be modified. -inf masks a token.
    pub logits: BufferView<'a, f32>,
    pub vocab: usize,
    pub stride: usize,
    /// `[n_rows]`
    pub rows: BufferView<'a, SamplingRow>,
    /// `[n_rows, max_penalized]`. A row that tracks its output needs room for it.
    pub penalized: BufferView<'a, PenalizedToken>,
    pub max_penalized: usize,
    /// `[n_rows]`: written, the input of the next step.
    pub next_ids: BufferView<'a, i32>,
    /// `[n_steps, n_rows]`: row `*step` is written, if it is inside. See [`TokenError::token`].
    pub history: BufferView<'a, i32>,
    /// `[1]`: which row of `history`; `None` is row 0.
    pub step: Option<BufferView<'a, i32>>,
    pub n_rows: usize,
    /// The rows' state to advance; `None` leaves that to the host.
    pub advance: Option<AdvanceState<'a>>,
    pub logprobs: Option<LogprobOutputs<'a>>,
}

#[derive(Debug)]
pub struct Sample {
    kernel: Kernel,
    /// Blocks that share a row.
    n_ranks: usize,
    /// Most logits that a block keeps in shared memory.
    max_cached: usize,
}

impl Sample {
    /// # Errors
    ///
    /// If the binary has no such kernel for this device.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        let kernel = device.kernel("sampling/sample", "sample")?;
        kernel.set_shared_carveout(100)?;
        let limit = device.properties().shared_bytes_per_block;
        let max_cached = limit.saturating_sub(STATIC_SHARED_BYTES) / size_of::<f32>();
        let shared_bytes = max_cached * size_of::<f32>();
        kernel.set_max_dynamic_shared(shared_bytes)?;
        let n_ranks = kernel.largest_cluster(&LaunchConfig {
            cluster: RANKS,
            shared_bytes,
            ..LaunchConfig::new(RANKS, THREADS)
        })? as usize;
        Ok(Self {
            kernel,
            n_ranks,
            max_cached,
        })
    }

    /// The launch in clusters with the most shared memory that it takes, and which of them the
    /// device holds.
    ///
    /// # Errors
    ///
    /// If the driver cannot say it.
    pub fn cluster_launch(&self) -> Result<ClusterLaunch, CudaError> {
        let config = LaunchConfig {
            shared_bytes: self.max_cached * size_of::<f32>(),
            ..LaunchConfig::new(1, THREADS)
        };
        ClusterLaunch::of(&self.kernel, &config, RANKS, self.n_ranks as u32)
    }

    /// # Errors
    ///
    /// If a view is shorter than its shape, a size is 0 or above 2^31 − 1, or `stream` is of
    /// another device.
    pub fn launch(&self, stream: &Stream, args: &SampleArgs<'_>) -> Result<(), CudaError> {
        let n_rows = args.n_rows;
        CHECK.at_least("vocab", args.vocab, 1)?;
        CHECK.rows(
            "length of logits",
            args.logits,
            n_rows,
            args.stride,
            args.vocab,
        )?;
        CHECK.at_least("length of rows", args.rows.len(), n_rows)?;
        let n_entries = n_rows.saturating_mul(args.max_penalized);
        CHECK.at_least("length of penalized", args.penalized.len(), n_entries)?;
        if n_rows == 0 {
            return Ok(());
        }
        let to = advance_params(
            CHECK,
            args.next_ids,
            args.history,
            args.step,
            n_rows,
            args.advance,
        )?;
        let mut params = Params {
            logits: args.logits.ptr(),
            n: CHECK.int("vocab", args.vocab)?,
            stride: CHECK.int("stride", args.stride)?,
            to,
            rows: args.rows.ptr(),
            penalized: args.penalized.ptr(),
            logprob: DevicePtr::null(),
            top_ids: DevicePtr::null(),
            top_logprob: DevicePtr::null(),
            max_penalized: CHECK.int("max_penalized", args.max_penalized)?,
            max_top: 0,
            cached: 0,
            padding: 0,
        };
        let n_sms = self.kernel.device().properties().n_multiprocessors;
        let n_ranks = if 2 * n_rows * self.n_ranks <= 3 * n_sms {
            self.n_ranks
        } else {
            1
        };
        let part = args.vocab.div_ceil(n_ranks);
        let n_cached = if part <= self.max_cached { part } else { 0 };
        params.cached = n_cached as i32;
        if let Some(outputs) = args.logprobs {
            let n_steps = to.n_steps as usize;
            CHECK.at_most("max_top", outputs.max_top, MAX_TOP_LOGPROBS)?;
            CHECK.at_least("length of logprob", outputs.logprob.len(), n_steps * n_rows)?;
            let n_top = n_steps * n_rows * outputs.max_top;
            CHECK.at_least("length of top_ids", outputs.top_ids.len(), n_top)?;
            CHECK.at_least("length of top_logprob", outputs.top_logprob.len(), n_top)?;
            params.logprob = outputs.logprob.ptr();
            params.top_ids = outputs.top_ids.ptr();
            params.top_logprob = outputs.top_logprob.ptr();
            params.max_top = outputs.max_top as i32;
        }
        let config = LaunchConfig {
            cluster: n_ranks as u32,
            shared_bytes: n_cached * size_of::<f32>(),
            dependent: true,
            ..LaunchConfig::new(params.to.m as u32 * n_ranks as u32, THREADS)
        };
        // SAFETY: a cluster has one row of every array; the kernel holds the step, list lengths and
        // token ids inside; the lengths were checked above.
        unsafe { self.kernel.launch(stream, &config, &params) }
    }
}
