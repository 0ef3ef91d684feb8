//! From a validated configuration to a running engine: fetch the model, read its text side,
//! choose the executor, size the KV pool, start the engine thread.
//!
//! [`model`] finds and opens the model, [`executor`] decides where it runs, and [`devices`] is what
//! several models of a process share.
//!
//! Deliberately absent: HTTP. `serve`, `generate` and `bench` all start here.

mod cpu_memory;
pub mod devices;
mod executor;
mod model;

use std::cell::RefCell;
use std::sync::Arc;

use serde_json::{Value, json};

use self::devices::Devices;
pub use self::executor::load_executor;
use self::executor::{choose_device, load_cuda, log_executor};
use self::model::load_accepted;
pub use self::model::{LoadedModel, cache_dir, load_model, load_text};
use crate::config::inactive::inactive_flags;
use crate::config::typed::{Device, Quantization, SchedulePolicy, ToolCallParserName};
use crate::config::{EngineArgs, EngineConfig, HttpConfig};
use crate::engine_loop::{self, EngineHandle, EngineLoopConfig, StartError};
use crate::executor::cpu::CpuLoadError;
use crate::executor::cuda::CudaLoadError;
use crate::kv::PAGE_TOKENS;
use crate::metrics::Metrics;
use crate::model::config::ModelConfig;
use crate::scheduler::{HostTierConfig, PolicyName, SchedulerConfig};
use crate::server::answer::now_s;
use crate::server::state::{Limits, OutputParsers, Seeds, ServedModel};
use crate::source::{Progress, ResolvedModel, SourceError};
use crate::structured::Grammars;
use crate::text::{ChatTemplate, TextError, Tokenizer, ToolCallFormat};
use crate::weights::WeightError;

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

/// How the scheduler runs on a pool of this size on `device`.
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
            // A sequence has at least one page; most have several, and preemption evens out.
            max_running_requests: config
                .max_running_requests
                .unwrap_or_else(|| (pool_tokens / (4 * PAGE_TOKENS)).clamp(1, 256)),
            max_prefill_tokens: config.max_prefill_tokens.on(device),
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
    // A template that cannot be compiled is found before a model is read.
    with_operators_template(config, ChatTemplate::new(&[], Vec::new()))?;
    // The text side and the recommendations are small files, too: read before the weights.
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
        Device::Cpu | Device::Auto => devices.load_on_cpu(config, &model)?,
    };
    model.checkpoint.check_unchanged()?;
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

/// The checkpoint's template, or that of `--chat-template`.
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
