//! From a validated configuration to a running engine: fetch the model, read its text side,
//! choose the executor, size the KV pool, start the engine thread.
//!
//! [`devices`] is what several models of a process share.
//!
//! Deliberately absent: HTTP. `serve`, `generate` and `bench` all start here.

mod cpu_memory;
pub mod devices;

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use self::devices::Devices;
use crate::config::inactive::inactive_flags;
use crate::config::resolved::CudaGraph;
use crate::config::typed::{
    self, AttentionBackend, Device, Dtype, KvCacheDtype, Quantization, SamplingBackend,
    SchedulePolicy, ToolCallParserName,
};
use crate::config::{EngineArgs, EngineConfig, HttpConfig};
use crate::engine_loop::{self, EngineHandle, EngineLoopConfig, StartError};
use crate::executor::cpu::{
    self, ActivationType, Attention, CpuExecutor, CpuLoadError, CpuOptions, Sampling,
};
use crate::executor::cuda::{
    self, CudaExecutor, CudaLoadError, CudaOptions, Element, GraphSizes, KvFormat, Sampler,
    TuningOptions,
};
use crate::executor::{Executor, ExecutorInfo, HostTierOptions, HostTierSize, host_memory};
use crate::kv::PAGE_TOKENS;
use crate::metrics::Metrics;
use crate::model::config::ModelConfig;
use crate::scheduler::{HostTierConfig, PolicyName, SchedulerConfig};
use crate::server::answer::now_s;
use crate::server::state::{Limits, OutputParsers, Seeds, ServedModel};
use crate::source::{self, ModelFiles, ModelSource, Progress, ResolvedModel, SourceError};
use crate::structured::Grammars;
use crate::text::{ChatTemplate, TextError, Tokenizer, ToolCallFormat};
use crate::weights::{self, Checkpoint, ElementFormat, LoadFormat, MatrixId, WeightError};

/// The KV pool takes at most this share of the memory that is free, and at most this much,
/// unless `--max-total-tokens` says otherwise.
const POOL_SHARE_OF_FREE_MEMORY: u64 = 4;
const MAX_DEFAULT_POOL_BYTES: u64 = 1 << 30;
/// Where the system does not say what is free.
const ASSUMED_FREE_BYTES: u64 = 2 << 30;

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("reading the weights: {0}")]
    Weights(#[from] WeightError),
    #[error("reading the tokenizer: {0}")]
    Text(#[from] TextError),
    #[error("{model} has no tokenizer, so it can be benchmarked but not served")]
    NoTokenizer { model: String },
    #[error("--quantization {asked}: the checkpoint's format is {found}")]
    Quantization { asked: Quantization, found: String },
    #[error("--device cuda: {reason}")]
    NoCuda { reason: String },
    #[error("--cpu-isa {asked}: {reason}")]
    Isa { asked: String, reason: String },
    #[error("--context-length {asked}: the model was made for {limit} tokens")]
    ContextLength { asked: usize, limit: usize },
    #[error("the model does not fit: {0}")]
    CpuMemory(String),
    #[error("loading the model onto the CPU: {0}")]
    Cpu(#[from] CpuLoadError),
    #[error("loading the model onto the GPU: {0}")]
    Cuda(#[from] CudaLoadError),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl LaunchError {
    /// True where the command line is at fault, and not what it led to.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Source(SourceError::Parse { .. })
                | Self::Quantization { .. }
                | Self::NoCuda { .. }
                | Self::Isa { .. }
                | Self::ContextLength { .. }
                | Self::CpuMemory(_)
                | Self::Start(StartError::PoolTooSmall { .. })
        )
    }
}

/// A checkpoint that was found and opened.
pub struct LoadedModel {
    /// As asked for; `default` where nothing was.
    pub requested: String,
    /// Why something else than the default is used, if so.
    pub fallback_reason: Option<String>,
    pub resolved: ResolvedModel,
    pub checkpoint: Box<dyn Checkpoint>,
}

/// Where fetched models are kept.
pub fn cache_dir(typed: Option<&PathBuf>) -> Result<PathBuf, SourceError> {
    match typed {
        Some(dir) => Ok(dir.clone()),
        None => source::default_cache_dir(),
    }
}

/// Fetches and opens the model.
pub fn load_model(
    config: &EngineConfig,
    progress: &dyn Fn(Progress),
) -> Result<LoadedModel, LaunchError> {
    let cache_dir = cache_dir(config.cache_dir.as_ref())?;
    let (requested, resolved, fallback_reason) = if let Some(path) = &config.model_path {
        let source = ModelSource::parse(path)?;
        let resolved = match config.load_format {
            typed::LoadFormat::Dummy => {
                source::resolve_without_weights(&source, &cache_dir, progress)?
            }
            _ => source::resolve(&source, &cache_dir, progress)?,
        };
        (path.clone(), resolved, None)
    } else {
        let default = source::resolve_default(&cache_dir, progress)?;
        ("default".to_owned(), default.model, default.fallback_reason)
    };
    if let Some(reason) = &fallback_reason {
        let used = &resolved.requested;
        tracing::warn!("!!! the default model is not available: {reason}");
        tracing::warn!("!!! serving {used} instead: seeded random weights, its text means nothing");
    }
    let checkpoint = open(config, &resolved)?;
    check_quantization(config.quantization, &checkpoint.format_name())?;
    tracing::info!(
        model = resolved.display_name,
        source = resolved.requested,
        format = checkpoint.format_name(),
        sha256 = resolved.sha256,
        "checkpoint opened"
    );
    Ok(LoadedModel {
        requested,
        fallback_reason,
        resolved,
        checkpoint,
    })
}

fn open(
    config: &EngineConfig,
    resolved: &ResolvedModel,
) -> Result<Box<dyn Checkpoint>, WeightError> {
    let load_format = match config.load_format {
        typed::LoadFormat::Auto => LoadFormat::Auto,
        typed::LoadFormat::Safetensors => LoadFormat::Safetensors,
        typed::LoadFormat::Gguf => LoadFormat::Gguf,
        typed::LoadFormat::Dummy => LoadFormat::Dummy,
    };
    weights::open(resolved, load_format, config.random_seed.unwrap_or(0))
}

fn check_quantization(asked: Option<Quantization>, format: &str) -> Result<(), LaunchError> {
    let Some(asked) = asked else { return Ok(()) };
    let wanted = match asked {
        Quantization::Awq | Quantization::AwqMarlin => "awq",
        Quantization::Gguf => "gguf",
    };
    if format.to_ascii_lowercase().contains(wanted) {
        return Ok(());
    }
    Err(LaunchError::Quantization {
        asked,
        found: format.to_owned(),
    })
}

/// Tokenizer and chat template of a model.
pub fn load_text(model: &ResolvedModel) -> Result<(Tokenizer, ChatTemplate), LaunchError> {
    let (tokenizer, template) = match (&model.tokenizer_dir, &model.files) {
        (Some(dir), _) => (
            Tokenizer::from_folder(dir)?,
            ChatTemplate::from_folder(dir)?,
        ),
        (None, ModelFiles::Gguf(file)) => {
            (Tokenizer::from_gguf(file)?, ChatTemplate::from_gguf(file)?)
        }
        (None, ModelFiles::Folder(_) | ModelFiles::Synthetic(_)) => {
            return Err(LaunchError::NoTokenizer {
                model: model.display_name.clone(),
            });
        }
    };
    if let Some(problem) = template.problem() {
        tracing::warn!("chat completions will be refused: {problem}");
    }
    Ok((tokenizer, template))
}

/// Chooses where the model runs, says why, and loads it there.
pub fn load_executor(
    config: &EngineConfig,
    checkpoint: &dyn Checkpoint,
) -> Result<Box<dyn Executor>, LaunchError> {
    match choose_device(config) {
        Device::Cuda => load_cuda(config, checkpoint),
        Device::Cpu | Device::Auto => load_cpu(config, checkpoint, 0),
    }
}

/// `Cpu` or `Cuda`.
fn choose_device(config: &EngineConfig) -> Device {
    let reason = match config.device {
        Device::Cpu => "--device cpu".to_owned(),
        Device::Cuda => return Device::Cuda,
        Device::Auto => match CudaExecutor::unavailable() {
            None => {
                tracing::info!(reason = "a CUDA device is there", "running on the GPU");
                return Device::Cuda;
            }
            Some(reason) => reason,
        },
    };
    tracing::info!(reason, "running on the CPU");
    Device::Cpu
}

fn load_cuda(
    config: &EngineConfig,
    checkpoint: &dyn Checkpoint,
) -> Result<Box<dyn Executor>, LaunchError> {
    if let Some(reason) = CudaExecutor::unavailable() {
        return Err(LaunchError::NoCuda { reason });
    }
    let element = element(config.dtype, checkpoint)?;
    let options = CudaOptions {
        ordinal: 0,
        memory_limit_bytes: config.device_memory_limit_bytes,
        mem_fraction_static: config.mem_fraction_static,
        max_total_tokens: config.max_total_tokens,
        context_length: config.context_length,
        element,
        kv_format: match config.kv_cache_dtype {
            KvCacheDtype::Auto => KvFormat::of(element),
            KvCacheDtype::Fp8E4m3 => KvFormat::Fp8E4m3,
        },
        attention_backend: match config.attention_backend {
            Some(AttentionBackend::Triton) | None => cuda::AttentionBackend::Split,
            Some(AttentionBackend::Flashinfer) => cuda::AttentionBackend::Packed,
            Some(AttentionBackend::TorchNative) => cuda::AttentionBackend::Plain,
        },
        host_tier: host_tier(config),
        n_kv_splits: config.num_kv_splits,
        reduce_in_fp32: config.reduce_in_fp32,
        graphs: match &config.cuda_graph {
            CudaGraph::Off => GraphSizes::Off,
            CudaGraph::Auto { max_bs } => GraphSizes::UpTo(max_bs.unwrap_or(usize::MAX)),
            CudaGraph::Sizes(sizes) => GraphSizes::Exactly(sizes.clone()),
        },
        tuning: match config.torch_compile_max_bs {
            Some(max_rows) => Some(TuningOptions {
                max_rows,
                cache_dir: Some(cache_dir(config.cache_dir.as_ref())?),
            }),
            None => None,
        },
        sampler: match config.sampling_backend {
            SamplingBackend::Flashinfer => Sampler::Device,
            SamplingBackend::Pytorch => Sampler::Host,
        },
        run_ahead: config.overlap_schedule,
        two_batch_overlap: config.two_batch_overlap,
    };
    Ok(Box::new(CudaExecutor::load(checkpoint, &options)?))
}

/// `--dtype` for this checkpoint. A checkpoint of bf16 matrices need not fit the range of fp16;
/// AWQ's scales are fp16, and quantised blocks of GGUF have fp16 scales too.
fn element(asked: Dtype, checkpoint: &dyn Checkpoint) -> Result<Element, WeightError> {
    let is_bf16 = match asked {
        Dtype::Float16 => false,
        Dtype::Bfloat16 => true,
        Dtype::Auto => {
            let stored = checkpoint.storage(MatrixId::Q(0))?.format;
            stored == ElementFormat::BF16.name()
        }
    };
    Ok(if is_bf16 { Element::Bf16 } else { Element::F16 })
}

/// `in_use`: bytes of `--device-memory-limit` that other models have.
fn load_cpu(
    config: &EngineConfig,
    checkpoint: &dyn Checkpoint,
    in_use: u64,
) -> Result<Box<dyn Executor>, LaunchError> {
    let isa = match &config.cpu_isa {
        None => None,
        Some(asked) => {
            Some(
                asked
                    .parse()
                    .map_err(|error: kernels::KernelError| LaunchError::Isa {
                        asked: asked.clone(),
                        reason: error.to_string(),
                    })?,
            )
        }
    };
    let options = CpuOptions {
        n_threads: config.n_threads,
        kv_pool_tokens: cpu_pool_tokens(config, checkpoint, in_use)?,
        kv_format: cpu_kv_format(config),
        host_tier: host_tier(config),
        attention: match config.attention_backend {
            Some(AttentionBackend::TorchNative) => Attention::Reference,
            // One kernel does what both of these are for.
            Some(AttentionBackend::Triton | AttentionBackend::Flashinfer) | None => {
                Attention::Vectorised
            }
        },
        sampling: match config.sampling_backend {
            SamplingBackend::Flashinfer => Sampling::Selecting,
            SamplingBackend::Pytorch => Sampling::Plain,
        },
        isa,
        activations: match config.cpu_activations {
            typed::CpuActivations::F32 => ActivationType::F32,
            typed::CpuActivations::Int8 => ActivationType::Int8,
        },
        ..CpuOptions::default()
    };
    Ok(Box::new(CpuExecutor::load(checkpoint, options)?))
}

fn host_tier(config: &EngineConfig) -> Option<HostTierOptions> {
    let size = HostTierSize::from(config.hierarchical_cache?);
    let free_bytes = host_memory::free_bytes().unwrap_or(ASSUMED_FREE_BYTES);
    Some(HostTierOptions { size, free_bytes })
}

fn cpu_kv_format(config: &EngineConfig) -> cpu::KvFormat {
    match config.kv_cache_dtype {
        KvCacheDtype::Auto => cpu::KvFormat::F16,
        KvCacheDtype::Fp8E4m3 => cpu::KvFormat::Fp8E4m3,
    }
}

/// `--max-total-tokens`, else as many tokens as fit the share of memory that the pool may have by
/// default, but no more than 16 sequences of the model's full length could use. With
/// `--device-memory-limit` no more than fit the model's fraction of it.
fn cpu_pool_tokens(
    config: &EngineConfig,
    checkpoint: &dyn Checkpoint,
    in_use: u64,
) -> Result<usize, LaunchError> {
    let model = checkpoint.config();
    let n_values = 2 * model.n_layers * model.n_kv_heads * model.head_dim;
    let token_bytes = (n_values * cpu_kv_format(config).bytes_per_value()) as u64;
    let by_default = || {
        let free = host_memory::free_bytes().unwrap_or(ASSUMED_FREE_BYTES);
        let budget = (free / POOL_SHARE_OF_FREE_MEMORY).min(MAX_DEFAULT_POOL_BYTES);
        let fits = (budget / token_bytes.max(1)) as usize;
        fits.min(model.context_length.saturating_mul(16))
            .max(PAGE_TOKENS)
    };
    let Some(limit) = config.device_memory_limit_bytes else {
        return Ok(config.max_total_tokens.unwrap_or_else(by_default));
    };
    let demand = cpu_memory::Demand {
        limit,
        in_use,
        mem_fraction_static: config.mem_fraction_static,
        weights: cpu_memory::weight_bytes(checkpoint)?,
        page: token_bytes * PAGE_TOKENS as u64,
        max_total_tokens: config.max_total_tokens,
    };
    let fits = cpu_memory::pool_tokens(&demand).map_err(LaunchError::CpuMemory)?;
    Ok(config
        .max_total_tokens
        .unwrap_or_else(|| fits.min(by_default())))
}

/// How the scheduler runs on a pool of this size.
pub fn engine_loop_config(config: &EngineConfig, kv_pool_tokens: usize) -> EngineLoopConfig {
    let pool_tokens = config
        .max_total_tokens
        .unwrap_or(kv_pool_tokens)
        .min(kv_pool_tokens);
    EngineLoopConfig {
        scheduler: SchedulerConfig {
            max_total_tokens: pool_tokens,
            // A sequence has at least one page; most have several, and preemption evens out.
            max_running_requests: config
                .max_running_requests
                .unwrap_or_else(|| (pool_tokens / (4 * PAGE_TOKENS)).clamp(1, 256)),
            max_prefill_tokens: config.max_prefill_tokens,
            chunked_prefill_size: config.chunked_prefill_size,
            mixed_chunk: config.enable_mixed_chunk,
            n_continuous_decode_steps: config.num_continuous_decode_steps,
            radix_cache: config.radix_cache,
            // Of the device, which is not known here.
            run_ahead: false,
            host_tier: None,
            policy: match config.schedule_policy {
                SchedulePolicy::Fcfs => PolicyName::Fcfs,
                SchedulePolicy::Lpm => PolicyName::Lpm,
                SchedulePolicy::DfsWeight => PolicyName::DfsWeight,
                SchedulePolicy::Lof => PolicyName::Lof,
                SchedulePolicy::LongestOutputFirst => PolicyName::LongestOutputFirst,
                SchedulePolicy::Random => PolicyName::Random,
                SchedulePolicy::Priority => PolicyName::Priority,
            },
            policy_seed: config.random_seed.unwrap_or(0),
        },
        max_queued_requests: config.max_queued_requests,
        decode_log_interval: config.decode_log_interval as u64,
        time_limits: config.time_limits,
    }
}

/// The longest sequence and what bounds it.
pub(crate) fn sequence_limit(
    config: &EngineConfig,
    model: &ModelConfig,
    pool_tokens: usize,
) -> Result<(usize, &'static str), LaunchError> {
    let limit = model.context_length;
    let context = match config.context_length {
        Some(asked) if asked > limit => return Err(LaunchError::ContextLength { asked, limit }),
        Some(asked) => (asked, "--context-length"),
        None => (limit, "the model's context length"),
    };
    Ok(if pool_tokens < context.0 {
        (pool_tokens, "the KV pool")
    } else {
        context
    })
}

/// What one request may ask for, as far as the operator and not the model says.
#[derive(Debug, Clone, Copy, Default)]
pub struct AskLimits {
    pub max_stop_strings: usize,
    pub max_prompt_tokens: Option<usize>,
    pub max_output_tokens: Option<usize>,
}

impl From<&HttpConfig> for AskLimits {
    fn from(http: &HttpConfig) -> Self {
        Self {
            max_stop_strings: http.max_stop_strings,
            max_prompt_tokens: http.max_prompt_tokens,
            max_output_tokens: http.max_output_tokens,
        }
    }
}

/// Everything from the command line to a model that takes requests, and shares `devices` with
/// others. `typed` and `flags` go into the record.
pub fn launch(
    typed: &EngineArgs,
    config: &EngineConfig,
    names: Vec<String>,
    asked: AskLimits,
    flags: Value,
    devices: &Devices,
    progress: &dyn Fn(Progress),
) -> Result<ServedModel, LaunchError> {
    let model = load_model(config, progress)?;
    let (tokenizer, chat_template) = load_text(&model.resolved)?;
    let model_config = model.checkpoint.config().clone();
    if tokenizer.vocab_size() > model_config.vocab {
        let (n_ids, n_rows) = (tokenizer.vocab_size(), model_config.vocab);
        tracing::warn!(
            n_ids,
            n_rows,
            "the tokenizer has more ids than the model has embeddings"
        );
    }
    let device = choose_device(config);
    let executor = match device {
        Device::Cuda => load_cuda(config, model.checkpoint.as_ref())?,
        Device::Cpu | Device::Auto => devices.load_on_cpu(config, &model)?,
    };
    let mut info = executor.info().clone();
    info.inactive_flags.extend(inactive_flags(typed, device));
    log_executor(&info);

    let mut loop_config = engine_loop_config(config, info.kv_pool_tokens);
    loop_config.scheduler.run_ahead = device == Device::Cuda && config.overlap_schedule;
    loop_config.scheduler.host_tier = info.host_tier.map(HostTierConfig::from);
    let pool_tokens = loop_config.scheduler.pool_tokens();
    let (max_sequence_tokens, sequence_limit_name) =
        sequence_limit(config, &model_config, pool_tokens)?;
    let names = if names.is_empty() {
        default_names(&model)
    } else {
        names
    };
    let name = names.first().cloned().unwrap_or_default();
    let engine = engine_loop::start_sharing(
        executor,
        loop_config.clone(),
        Arc::new(Metrics::new(name)),
        devices.turns(device),
    )?;
    let server_info = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": {
            "requested": model.requested,
            "used": model.resolved.requested,
            "name": model.resolved.display_name,
            "fallback_reason": model.fallback_reason,
            "sha256": model.resolved.sha256,
            "format": model.checkpoint.format_name(),
            "config": model_config,
        },
        "served_model_names": names,
        "executor": info,
        "engine": loop_config,
        "page_tokens": PAGE_TOKENS,
        "max_sequence_tokens": max_sequence_tokens,
        "flags": flags,
    });
    let limits = Limits {
        max_sequence_tokens,
        sequence_limit_name,
        allow_auto_truncate: config.allow_auto_truncate,
        max_stop_strings: asked.max_stop_strings,
        max_prompt_tokens: asked.max_prompt_tokens,
        max_output_tokens: asked.max_output_tokens,
        vocab: model_config.vocab,
        max_schema_bytes: config.max_schema_bytes,
    };
    let parsers = output_parsers(config, &chat_template);
    Ok(served_model(ServedParts {
        names,
        tokenizer,
        chat_template,
        parsers,
        engine,
        limits,
        model_eos_ids: model_config.eos_token_ids,
        server_info,
        random_seed: config.random_seed,
    }))
}

fn output_parsers(config: &EngineConfig, chat_template: &ChatTemplate) -> OutputParsers {
    let tool_calls = match config.tool_call_parser {
        Some(ToolCallParserName::Qwen | ToolCallParserName::Hermes) => Some(ToolCallFormat::Hermes),
        Some(ToolCallParserName::Llama3Json) => Some(ToolCallFormat::Llama3Json),
        None => chat_template.tool_calls(),
    };
    let reasoning = config.reasoning_parser.is_some();
    tracing::info!(?tool_calls, reasoning, "how chats are read");
    OutputParsers {
        tool_calls,
        reasoning,
    }
}

/// What a [`ServedModel`] is made of.
pub struct ServedParts {
    pub names: Vec<String>,
    pub tokenizer: Tokenizer,
    pub chat_template: ChatTemplate,
    pub parsers: OutputParsers,
    pub engine: EngineHandle,
    pub limits: Limits,
    pub model_eos_ids: Vec<u32>,
    pub server_info: Value,
    pub random_seed: Option<u64>,
}

pub fn served_model(parts: ServedParts) -> ServedModel {
    let mut eos_token_ids = parts.model_eos_ids;
    eos_token_ids.extend(parts.tokenizer.eos_ids());
    eos_token_ids.sort_unstable();
    eos_token_ids.dedup();
    let tokenizer = Arc::new(parts.tokenizer);
    let (vocab, max_bytes) = (parts.limits.vocab, parts.limits.max_schema_bytes);
    let grammars = Grammars::new(Arc::clone(&tokenizer), vocab, &eos_token_ids, max_bytes);
    ServedModel {
        names: parts.names,
        created_s: now_s(),
        tokenizer,
        grammars: Arc::new(grammars),
        parsers: parts.parsers,
        chat_template: Arc::new(parts.chat_template),
        engine: parts.engine,
        limits: parts.limits,
        eos_token_ids,
        server_info: parts.server_info,
        seeds: Seeds::new(parts.random_seed),
    }
}

/// As typed, which is what a client of the same launch line would ask for, and the short name.
fn default_names(model: &LoadedModel) -> Vec<String> {
    let short = model.resolved.display_name.clone();
    match model.requested.as_str() {
        "default" => vec![short, model.resolved.requested.clone()],
        typed if typed == short => vec![short],
        typed => vec![typed.to_owned(), short],
    }
}

fn log_executor(info: &ExecutorInfo) {
    let kernels: Vec<String> = info
        .kernels
        .iter()
        .map(|(role, name)| format!("{role}={name}"))
        .collect();
    tracing::info!(
        executor = info.name,
        device = info.device,
        kernels = kernels.join(" "),
        kv_pool_tokens = info.kv_pool_tokens,
        kv_pool_bytes = info.kv_pool_bytes,
        weight_bytes = info.weight_bytes,
        "executor ready"
    );
    for (flag, reason) in &info.inactive_flags {
        tracing::info!(flag, reason, "flag has no effect");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::Family;
    use crate::weights::fixture::{self, FolderFormat};
    use crate::weights::safetensors::SafetensorsCheckpoint;
    use crate::weights::synthetic::{SyntheticCheckpoint, SyntheticFormat};

    fn dummy(format: SyntheticFormat) -> SyntheticCheckpoint {
        SyntheticCheckpoint::new(fixture::wide_config(Family::Qwen3), format, 0)
    }

    #[test]
    fn activations_are_bf16_where_the_matrices_are_or_where_it_is_asked() {
        let awq = dummy(SyntheticFormat::Awq { group_size: 128 });
        let f16 = dummy(SyntheticFormat::Rows(ElementFormat::F16));
        let bf16 = dummy(SyntheticFormat::Rows(ElementFormat::BF16));
        let chosen = |asked, checkpoint| element(asked, checkpoint).expect("known");
        for (checkpoint, auto) in [
            (&awq, Element::F16),
            (&f16, Element::F16),
            (&bf16, Element::Bf16),
        ] {
            assert_eq!(chosen(Dtype::Auto, checkpoint), auto);
            assert_eq!(chosen(Dtype::Float16, checkpoint), Element::F16);
            assert_eq!(chosen(Dtype::Bfloat16, checkpoint), Element::Bf16);
        }
    }

    #[test]
    fn a_folder_says_by_its_tensors_what_activations_are() {
        for (format, auto) in [
            (FolderFormat::BF16, Element::Bf16),
            (FolderFormat::F16, Element::F16),
            (FolderFormat::F32, Element::F16),
            (FolderFormat::Awq { group_size: 32 }, Element::F16),
        ] {
            let dir = tempfile::tempdir().expect("a folder");
            let config = fixture::wide_config(Family::Llama);
            fixture::write_folder(dir.path(), &config, format, 7, 1).expect("written");
            let checkpoint = SafetensorsCheckpoint::open(dir.path()).expect("opens");
            assert_eq!(
                element(Dtype::Auto, &checkpoint).expect("known"),
                auto,
                "{format:?}"
            );
        }
    }
}
