//! From a validated configuration to a running engine: fetches the model, reads its tokenizer and
//! chat template, chooses the executor, sizes the KV pool, starts the engine thread.
//!
//! [`model`] finds and opens the model, [`executor`] chooses the device, and [`devices`] is shared
//! by the models of a process.
//!
//! Deliberately absent: HTTP. `serve`, `generate` and `bench` all start here.

mod cpu_memory;
pub mod devices;
mod draft_model;
mod executor;
mod model;

use std::cell::RefCell;
use std::sync::Arc;

use serde_json::{Value, json};

use self::devices::Devices;
use self::draft_model::DraftHead;
pub use self::executor::load_executor;
use self::executor::{choose_device, load_cuda, log_executor};
use self::model::load_accepted;
pub use self::model::{LoadedModel, cache_dir, load_model, load_text};
use crate::config::inactive::inactive_flags;
use crate::config::typed::{Device, Quantization, SchedulePolicy, ToolCallParserName};
use crate::config::{EngineArgs, EngineConfig, HttpConfig};
use crate::engine_loop::{self, EngineLoopConfig, StartError};
use crate::errors::Code;
use crate::executor::cpu::CpuLoadError;
use crate::executor::cuda::CudaLoadError;
use crate::kv::PAGE_TOKENS;
use crate::kv_events::{KvEventPublisher, KvEventSockets, PublishError};
use crate::metrics::Metrics;
use crate::model::config::ModelConfig;
use crate::scheduler::{HostTierConfig, PolicyName, SchedulerConfig};
use crate::served_model::{Limits, ModelFingerprint, OutputParsers, ServedModel, ServedParts};
use crate::source::{Progress, ResolvedModel, SourceError};
use crate::text::{ChatTemplate, TextError, ToolCallFormat};
use crate::weights::WeightError;
use crate::weights::format::CheckpointFormat;

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("reading the weights: {0}")]
    Weights(#[from] WeightError),
    #[error("reading the tokenizer: {0}")]
    Text(#[from] TextError),
    #[error("--chat-template {file}: {problem}")]
    ChatTemplate { file: String, problem: String },
    #[error("{model} has no tokenizer, so it can be benchmarked but not served")]
    NoTokenizer { model: String },
    #[error("--quantization {asked}: the checkpoint's format is {found}")]
    Quantization {
        asked: Quantization,
        found: CheckpointFormat,
    },
    #[error("--device cuda: {reason}")]
    NoCuda { reason: String },
    #[error("--cpu-isa {asked}: {reason}")]
    Isa { asked: String, reason: String },
    #[error("--context-length {asked}: the model was made for {limit} tokens")]
    ContextLength { asked: usize, limit: usize },
    #[error("--speculative-draft-model-path {path}: {problem}")]
    DraftModel { path: String, problem: String },
    #[error("the model does not fit: {0}")]
    CpuMemory(String),
    #[error("loading the model onto the CPU: {0}")]
    Cpu(#[from] CpuLoadError),
    #[error("loading the model onto the GPU: {0}")]
    Cuda(#[from] CudaLoadError),
    #[error(transparent)]
    KvEvents(#[from] PublishError),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl LaunchError {
    pub fn code(&self) -> Code {
        match self {
            Self::Source(error) => error.code(),
            Self::Weights(error)
            | Self::Cpu(CpuLoadError::Weights(error))
            | Self::Cuda(CudaLoadError::Weights(error)) => error.code(),
            Self::Text(error) => error.code(),
            Self::ChatTemplate { .. } | Self::DraftModel { .. } => Code::BadFlag,
            Self::NoTokenizer { .. } => Code::NoTokenizer,
            Self::Quantization { .. } => Code::QuantizationMismatch,
            Self::NoCuda { .. } => Code::NoCuda,
            Self::Isa { .. } => Code::CpuIsa,
            Self::ContextLength { .. } => Code::ContextLength,
            Self::Cpu(CpuLoadError::Option { .. }) | Self::Cuda(CudaLoadError::Option { .. }) => {
                Code::BadFlag
            }
            Self::CpuMemory(_)
            | Self::Cuda(CudaLoadError::Memory(_))
            | Self::Cpu(CpuLoadError::HostTier(_)) => Code::DeviceMemory,
            Self::Cuda(CudaLoadError::ActOrder { .. }) => Code::UnsupportedQuantization,
            Self::Cuda(CudaLoadError::Experts(_)) => Code::UnsupportedArchitecture,
            Self::Cpu(_) | Self::Cuda(_) => Code::LoadFailed,
            Self::Start(StartError::PoolTooSmall { .. }) => Code::PoolTooSmall,
            Self::KvEvents(PublishError::Bind { .. }) => Code::Address,
            Self::KvEvents(PublishError::Thread(_)) | Self::Start(StartError::Thread(_)) => {
                Code::System
            }
        }
    }
}

/// The scheduler's settings for a pool of this size on `device`.
pub fn engine_loop_config(
    config: &EngineConfig,
    device: Device,
    kv_pool_tokens: usize,
) -> EngineLoopConfig {
    let pool_tokens = config
        .max_total_tokens
        .unwrap_or(kv_pool_tokens)
        .min(kv_pool_tokens);
    EngineLoopConfig {
        scheduler: SchedulerConfig {
            max_total_tokens: pool_tokens,
            // A sequence has at least one page; most have several, and preemption balances it.
            max_running_requests: config
                .max_running_requests
                .unwrap_or_else(|| (pool_tokens / (4 * PAGE_TOKENS)).clamp(1, 256)),
            max_prefill_tokens: config.max_prefill_tokens.on(device),
            chunked_prefill_size: config.chunked_prefill_size,
            mixed_chunk: config.enable_mixed_chunk,
            n_continuous_decode_steps: config.num_continuous_decode_steps,
            speculation: config.speculation,
            radix_cache: config.radix_cache,
            // Depends on the device, which is not known here.
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

/// The maximum sequence length and what limits it.
pub(crate) fn sequence_limit(
    config: &EngineConfig,
    model: &ModelConfig,
    pool_tokens: usize,
) -> Result<(usize, &'static str), LaunchError> {
    model::check_context_length(config, model)?;
    let context = match config.context_length {
        Some(asked) => (asked, "--context-length"),
        None => (model.context_length, "from its configuration"),
    };
    Ok(if pool_tokens < context.0 {
        (pool_tokens, "the KV pool")
    } else {
        context
    })
}

/// The operator's limits on a request, as opposed to the model's.
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

/// Starts a model from its configuration; it shares `devices` with others. `typed` and `flags` are
/// part of the record.
///
/// # Errors
///
/// If the model cannot be found, read or held in the device's memory, or a flag does not fit it.
pub fn launch(
    typed: &EngineArgs,
    config: &EngineConfig,
    names: Vec<String>,
    asked: AskLimits,
    flags: Value,
    devices: &Devices,
    progress: &dyn Fn(Progress),
) -> Result<ServedModel, LaunchError> {
    // A template that cannot be compiled is reported before the model is read.
    with_operators_template(config, ChatTemplate::new(&[], Vec::new()))?;
    let kv_sockets = config.kv_events.as_ref().map(KvEventSockets::open);
    let kv_sockets = kv_sockets.transpose()?;
    // Tokenizer, template and recommendations are small files too: read before the weights.
    let read = RefCell::new(None);
    let accept = |found: &ResolvedModel| {
        let sampling = model::recommendation(config, found)?;
        *read.borrow_mut() = Some((load_text(found)?, sampling));
        Ok(())
    };
    let model = load_accepted(config, &accept, progress)?;
    let ((tokenizer, chat_template), recommendation) = match read.into_inner() {
        Some(read) => read,
        None => (
            load_text(&model.resolved)?,
            model::recommendation(config, &model.resolved)?,
        ),
    };
    let chat_template = with_operators_template(config, chat_template)?;
    if let Some(problem) = chat_template.problem() {
        tracing::warn!("chat completions will be refused: {problem}");
    }
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
        Device::Cpu | Device::Auto => {
            let head = DraftHead::find(config, device, progress)?;
            devices.load_on_cpu(config, &model, head)?
        }
    };
    model.checkpoint.check_unchanged()?;
    let target = draft_model::Target {
        device,
        tokenizer: &tokenizer,
        vocab: model_config.vocab,
    };
    let executor = draft_model::add(config, executor, &target, devices, progress)?;
    let mut info = executor.info().clone();
    info.inactive_flags.extend(inactive_flags(typed, device));
    log_executor(&info);

    let mut loop_config = engine_loop_config(config, device, info.kv_pool_tokens);
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
    let metrics = Arc::new(Metrics::new(name));
    let start = |sockets| KvEventPublisher::start(sockets, Arc::clone(&metrics));
    let kv_events = kv_sockets.map(start).transpose()?;
    let engine = engine_loop::start_publishing(
        executor,
        loop_config.clone(),
        metrics,
        devices.arbiter(device),
        kv_events,
    )?;
    let fingerprint = ModelFingerprint {
        version: env!("CARGO_PKG_VERSION"),
        requested: &model.requested,
        used: &model.resolved.requested,
        sha256: &model.resolved.sha256,
        format: model.checkpoint.format(),
        config: &model_config,
        executor: &info.name,
        kernels: &info.kernels,
        engine: config,
        sampling_defaults: &recommendation.defaults,
    }
    .digest();
    let server_info = json!({
        "version": env!("CARGO_PKG_VERSION"),
        // Under SGLang's names, for its routers. They read `model` as a text, so no object may be
        // called that.
        "model_path": model.resolved.requested,
        "served_model_name": names.first(),
        "tp_size": 1,
        "dp_size": 1,
        "pp_size": 1,
        "context_length": max_sequence_tokens,
        "max_total_tokens": pool_tokens,
        "max_running_requests": loop_config.scheduler.max_running_requests,
        "max_prefill_tokens": loop_config.scheduler.max_prefill_tokens,
        "loaded_model": {
            "requested": model.requested,
            "used": model.resolved.requested,
            "name": model.resolved.display_name,
            "fallback_reason": model.fallback_reason,
            "sha256": model.resolved.sha256,
            "format": model.checkpoint.format().to_string(),
            "config": model_config,
        },
        "served_model_names": names,
        "executor": info,
        "engine": loop_config,
        "page_tokens": PAGE_TOKENS,
        "max_sequence_tokens": max_sequence_tokens,
        "sampling_defaults": recommendation.defaults,
        "sampling_defaults_dropped": recommendation.dropped,
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
        sampling_defaults: recommendation.defaults,
    };
    let parsers = output_parsers(config, &chat_template);
    Ok(ServedModel::new(ServedParts {
        names,
        tokenizer,
        chat_template,
        parsers,
        engine,
        limits,
        model_eos_ids: model_config.eos_token_ids,
        server_info,
        fingerprint,
        random_seed: config.random_seed,
    }))
}

/// The checkpoint's template, or the one of `--chat-template`.
fn with_operators_template(
    config: &EngineConfig,
    template: ChatTemplate,
) -> Result<ChatTemplate, LaunchError> {
    let Some(flag) = &config.chat_template else {
        return Ok(template);
    };
    template.with_source(&flag.source).map_err(|error| {
        let file = flag.file.as_ref().map(|file| file.display().to_string());
        LaunchError::ChatTemplate {
            file: file.unwrap_or_else(|| "(typed)".to_owned()),
            problem: error.to_string(),
        }
    })
}

fn output_parsers(config: &EngineConfig, chat_template: &ChatTemplate) -> OutputParsers {
    let tool_calls = match config.tool_call_parser {
        Some(ToolCallParserName::Qwen | ToolCallParserName::Hermes) => Some(ToolCallFormat::Hermes),
        Some(ToolCallParserName::Llama3Json) => Some(ToolCallFormat::Llama3Json),
        Some(ToolCallParserName::Qwen3Coder) => Some(ToolCallFormat::Qwen3Coder),
        None => chat_template.tool_calls(),
    };
    let reasoning = config.reasoning_parser.is_some();
    tracing::info!(?tool_calls, reasoning, "chat output parsers");
    OutputParsers {
        tool_calls,
        reasoning,
    }
}

/// The name as typed, which a client with the same launch line would use, and the short name.
fn default_names(model: &LoadedModel) -> Vec<String> {
    let short = model.resolved.display_name.clone();
    match model.requested.as_str() {
        "default" => vec![short, model.resolved.requested.clone()],
        typed if typed == short => vec![short],
        typed => vec![typed.to_owned(), short],
    }
}
