//! Validated values, as the rest of the engine reads them.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::kept_streams::KeptStreamLimits;
use super::keys::KeyFlags;
use super::origins::AllowedOrigins;
use super::result_cache::{RedisUrl, ResultCacheConfig, ResultCachePlace, redacted_url, scheme_of};
use super::template::ChatTemplateFlag;
use super::typed::{
    ActivationQuantization, AttentionBackend, CpuActivations, Device, Dtype, EngineArgs, HttpArgs,
    KvCacheDtype, LoadFormat, Quantization, ReasoningParserName, SamplingBackend,
    SamplingDefaultsName, SchedulePolicy, ServeArgs, ToolCallParserName,
};
use crate::engine_loop::TimeLimits;
use crate::executor::HostTierSize;
use crate::executor::cuda::CardProfile;
use crate::kv::PAGE_TOKENS;
use crate::kv_events::KvEventsConfig;
use crate::speculation::SpeculationConfig;
use crate::traces::TracesConfig;

/// `--mem-fraction-static` of a single model; several models without their own fraction share it.
pub(super) const DEFAULT_FRACTION: f64 = 0.88;

/// Default number of prompt tokens in one step (`--max-prefill-tokens`). Running streams wait for a
/// step, so it must be short on every device: 16,384 tokens take tens of milliseconds on a GPU and
/// minutes on a CPU, where 512 are two passes through the layers. (A 135M model on two cores: half
/// the largest gap of 1,024, and prompts finish as early.)
const MAX_PREFILL_TOKENS_ON_CUDA: usize = 16_384;
const MAX_PREFILL_TOKENS_ON_CPU: usize = 512;

/// `--max-queue-s`: as long as `OpenAI`'s clients wait by default.
const DEFAULT_MAX_QUEUE_S: u64 = 600;

/// A value that its flag allows but the rest of the command line does not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{flag} {value}: {limit}")]
pub struct ConfigError {
    pub flag: &'static str,
    pub value: String,
    /// The allowed values.
    pub limit: String,
}

impl ConfigError {
    pub(super) fn new(flag: &'static str, value: impl ToString, limit: impl Into<String>) -> Self {
        Self {
            flag,
            value: value.to_string(),
            limit: limit.into(),
        }
    }
}

/// The validated configuration of `engine serve`.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    pub engine: EngineConfig,
    pub http: HttpConfig,
    /// Flag → value as typed, for the record.
    pub typed: serde_json::Value,
}

/// The configuration of a model.
#[derive(Debug, Clone, Serialize)]
pub struct EngineConfig {
    /// `None`: the default model.
    pub model_path: Option<String>,
    pub quantization: Option<Quantization>,
    pub load_format: LoadFormat,
    pub device: Device,
    pub dtype: Dtype,
    pub n_threads: usize,
    pub cpu_isa: Option<String>,
    pub cpu_activations: CpuActivations,
    pub activation_quantization: ActivationQuantization,
    pub attention_backend: Option<AttentionBackend>,
    pub sampling_backend: SamplingBackend,
    pub disable_flashinfer: bool,
    pub max_total_tokens: Option<usize>,
    pub mem_fraction_static: f64,
    pub device_memory_limit_bytes: Option<u64>,
    /// Of weights that stay in the host's memory.
    pub cpu_offload_bytes: u64,
    pub max_prefill_tokens: PrefillTokens,
    /// `None`: a prompt is computed in one piece.
    pub chunked_prefill_size: Option<usize>,
    pub enable_mixed_chunk: bool,
    pub schedule_policy: SchedulePolicy,
    pub num_continuous_decode_steps: usize,
    pub speculation: Option<SpeculationConfig>,
    /// The model or head that guesses, if [the algorithm](crate::speculation::Algorithm) has one.
    pub draft_model_path: Option<String>,
    pub max_running_requests: Option<usize>,
    pub max_queued_requests: usize,
    pub time_limits: TimeLimits,
    pub num_kv_splits: usize,
    pub reduce_in_fp32: bool,
    /// Largest batch size that is autotuned; `None`: no autotuning.
    pub torch_compile_max_bs: Option<usize>,
    pub cuda_graph: CudaGraph,
    pub radix_cache: bool,
    pub hierarchical_cache: Option<HierarchicalCache>,
    pub kv_cache_dtype: KvCacheDtype,
    /// Changes no answer, so it is not part of the model's fingerprint.
    #[serde(skip)]
    pub kv_events: Option<KvEventsConfig>,
    pub two_batch_overlap: bool,
    /// The chip that the GPU is treated as.
    pub card_profile: Option<CardProfile>,
    /// Whether a decode step may begin while the host still processes the previous one.
    pub overlap_schedule: bool,
    pub allow_auto_truncate: bool,
    /// `None`: the checkpoint's own.
    pub chat_template: Option<ChatTemplateFlag>,
    pub sampling_defaults: SamplingDefaultsName,
    /// `None`: the format is taken from the chat template.
    pub tool_call_parser: Option<ToolCallParserName>,
    pub reasoning_parser: Option<ReasoningParserName>,
    pub max_schema_bytes: usize,
    /// `None`: the model's own.
    pub context_length: Option<usize>,
    pub random_seed: Option<u64>,
    pub decode_log_interval: usize,
    pub cache_dir: Option<PathBuf>,
}

/// Maximum prompt tokens in one step, for each kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PrefillTokens {
    pub cuda: usize,
    pub cpu: usize,
}

/// Which decode batches replay a captured graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CudaGraph {
    Off,
    /// Sizes chosen by memory, up to `max_bs` if given.
    Auto {
        max_bs: Option<usize>,
    },
    /// Exactly these, ascending.
    Sizes(Vec<usize>),
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HierarchicalCache {
    /// Host pool as a multiple of the device pool.
    Ratio(f64),
    /// Host pool in bytes.
    Bytes(u64),
}

impl From<HierarchicalCache> for HostTierSize {
    fn from(cache: HierarchicalCache) -> Self {
        match cache {
            HierarchicalCache::Ratio(ratio) => Self::Ratio(ratio),
            HierarchicalCache::Bytes(bytes) => Self::Bytes(bytes),
        }
    }
}

/// The configuration of the HTTP server.
#[derive(Debug, Clone, Serialize)]
pub struct HttpConfig {
    pub host: String,
    pub port: u16,
    #[serde(skip)]
    pub api_key: Option<String>,
    #[serde(skip)]
    pub admin_api_key: Option<String>,
    pub served_model_name: Option<String>,
    /// Whether an unknown model name is refused even with a single model.
    pub strict_model_name: bool,
    pub allowed_origins: AllowedOrigins,
    /// Whether `/` is a page for people.
    pub has_web_ui: bool,
    /// Tokens per streamed chunk.
    pub stream_interval: usize,
    pub max_body_bytes: usize,
    pub max_stop_strings: usize,
    pub max_prompt_tokens: Option<usize>,
    pub max_output_tokens: Option<usize>,
    pub max_connections: usize,
    pub client_timeout: Duration,
    pub result_cache: ResultCacheConfig,
    pub kept_streams: KeptStreamLimits,
    pub shutdown_grace: Duration,
    /// `None`: requests have no spans.
    pub traces: Option<TracesConfig>,
}

impl PrefillTokens {
    /// The value for the chosen device.
    pub fn on(self, device: Device) -> usize {
        match device {
            Device::Cuda => self.cuda,
            Device::Cpu | Device::Auto => self.cpu,
        }
    }
}

impl ServeArgs {
    /// Checks all values and fills in the defaults.
    ///
    /// # Errors
    ///
    /// The first flag whose value is out of its range or not allowed together with another, and
    /// the limit.
    pub fn resolve(&self) -> Result<ServeConfig, ConfigError> {
        Ok(ServeConfig {
            engine: self.engine.resolve()?,
            http: self.http.resolve()?,
            typed: self.typed_flags(),
        })
    }
}

impl EngineArgs {
    /// Checks all values and fills in the defaults.
    ///
    /// # Errors
    ///
    /// The first flag whose value is out of its range or not allowed together with another, and
    /// the limit.
    pub fn resolve(&self) -> Result<EngineConfig, ConfigError> {
        if let Some(limit) = self.max_total_tokens.filter(|&limit| limit < PAGE_TOKENS) {
            let least = format!("at least one page, which is {PAGE_TOKENS} tokens");
            return Err(ConfigError::new("--max-total-tokens", limit, least));
        }
        if self.disable_flashinfer {
            let clash = "not allowed together with --disable-flashinfer";
            if self.attention_backend == Some(AttentionBackend::PackedMma) {
                let value = "packed-mma (flashinfer)";
                return Err(ConfigError::new("--attention-backend", value, clash));
            }
            if self.sampling_backend == Some(SamplingBackend::Device) {
                let value = "device (flashinfer)";
                return Err(ConfigError::new("--sampling-backend", value, clash));
            }
        }
        if self.quantization == Some(Quantization::Gguf)
            && self.load_format == Some(LoadFormat::Safetensors)
        {
            let clash = "not allowed together with --load-format safetensors";
            return Err(ConfigError::new("--quantization", "gguf", clash));
        }
        let chunked_prefill_size = self.resolve_chunk()?;
        if self.enable_mixed_chunk && chunked_prefill_size.is_none() {
            let clash = "needs chunked prefill, which --chunked-prefill-size -1 turned off";
            return Err(ConfigError::new("--enable-mixed-chunk", "on", clash));
        }
        let speculation = self.resolve_speculation()?;
        Ok(EngineConfig {
            model_path: self.resolve_model_path()?,
            quantization: self.quantization,
            load_format: self.load_format.unwrap_or(LoadFormat::Auto),
            device: self.device.unwrap_or(Device::Auto),
            dtype: self.dtype.unwrap_or(Dtype::Auto),
            n_threads: self.n_threads.unwrap_or_else(available_threads),
            cpu_isa: self.cpu_isa.clone(),
            cpu_activations: self.cpu_activations.unwrap_or(CpuActivations::Int8),
            activation_quantization: self
                .activation_quantization
                .unwrap_or(ActivationQuantization::None),
            attention_backend: self.attention_backend,
            sampling_backend: self.sampling_backend.unwrap_or(if self.disable_flashinfer {
                SamplingBackend::Host
            } else {
                SamplingBackend::Device
            }),
            disable_flashinfer: self.disable_flashinfer,
            max_total_tokens: self.max_total_tokens,
            mem_fraction_static: self.resolve_mem_fraction()?,
            device_memory_limit_bytes: self.resolve_device_memory_limit()?,
            cpu_offload_bytes: self.resolve_cpu_offload()?,
            max_prefill_tokens: self.resolve_max_prefill_tokens(),
            chunked_prefill_size,
            enable_mixed_chunk: self.enable_mixed_chunk,
            schedule_policy: self.schedule_policy.unwrap_or(SchedulePolicy::Fcfs),
            num_continuous_decode_steps: self.num_continuous_decode_steps.unwrap_or(1),
            speculation: speculation.as_ref().map(|resolved| resolved.config),
            draft_model_path: speculation.and_then(|resolved| resolved.draft_model),
            max_running_requests: self.max_running_requests,
            max_queued_requests: self.max_queued_requests.unwrap_or(1024),
            time_limits: TimeLimits {
                queue: match self.max_queue_s.unwrap_or(DEFAULT_MAX_QUEUE_S) {
                    0 => None,
                    seconds => Some(Duration::from_secs(seconds)),
                },
                total: self.max_request_s.map(Duration::from_secs),
            },
            num_kv_splits: self.triton_attention_num_kv_splits.unwrap_or(8),
            reduce_in_fp32: self.triton_attention_reduce_in_fp32,
            torch_compile_max_bs: self
                .enable_torch_compile
                .then(|| self.torch_compile_max_bs.unwrap_or(32)),
            cuda_graph: self.resolve_cuda_graph()?,
            radix_cache: !self.disable_radix_cache,
            hierarchical_cache: self.resolve_hierarchical_cache()?,
            kv_events: self.resolve_kv_events()?,
            kv_cache_dtype: self.kv_cache_dtype.unwrap_or(KvCacheDtype::Auto),
            two_batch_overlap: self.enable_two_batch_overlap,
            card_profile: self.card_profile,
            overlap_schedule: !self.disable_overlap_schedule,
            allow_auto_truncate: self.allow_auto_truncate,
            chat_template: self
                .chat_template
                .as_deref()
                .map(ChatTemplateFlag::read)
                .transpose()?,
            sampling_defaults: self
                .sampling_defaults
                .unwrap_or(SamplingDefaultsName::Model),
            tool_call_parser: self.tool_call_parser,
            reasoning_parser: self.reasoning_parser,
            max_schema_bytes: self.resolve_max_schema_bytes()?,
            context_length: self.context_length,
            random_seed: self.random_seed,
            decode_log_interval: self.decode_log_interval.unwrap_or(40),
            cache_dir: self.cache_dir.clone(),
        })
    }

    fn resolve_model_path(&self) -> Result<Option<String>, ConfigError> {
        match self.model_path.as_deref().map(str::trim) {
            Some("") => Err(ConfigError::new(
                "--model-path",
                "\"\"",
                "a folder, a file, a model id, pypi:…, synthetic:… or default",
            )),
            None | Some("default") => Ok(None),
            // The operating system's limit on paths.
            Some(path) if path.len() > 4096 => {
                let limit = format!("is the limit of bytes, this one has {}", path.len());
                Err(ConfigError::new("--model-path", 4096, limit))
            }
            Some(path) => {
                check_printable("--model-path", path)?;
                Ok(Some(path.to_owned()))
            }
        }
    }

    fn resolve_mem_fraction(&self) -> Result<f64, ConfigError> {
        let fraction = self.mem_fraction_static.unwrap_or(DEFAULT_FRACTION);
        if fraction > 0.0 && fraction < 1.0 {
            Ok(fraction)
        } else {
            Err(ConfigError::new(
                "--mem-fraction-static",
                fraction,
                "must be above 0 and below 1",
            ))
        }
    }

    fn resolve_cpu_offload(&self) -> Result<u64, ConfigError> {
        /// More than any host has.
        const MOST_GIB: f64 = 65_536.0;
        let gib = self.cpu_offload_gb.unwrap_or(0.0);
        if (0.0..=MOST_GIB).contains(&gib) {
            return Ok((gib * f64::from(1 << 30)) as u64);
        }
        let limit = "must be from 0 to 65536";
        Err(ConfigError::new("--cpu-offload-gb", gib, limit))
    }

    /// A number without a unit means bytes, which is hardly intended here.
    fn resolve_device_memory_limit(&self) -> Result<Option<u64>, ConfigError> {
        const LEAST: u64 = 1 << 10;
        match self.device_memory_limit {
            Some(n_bytes) if n_bytes < LEAST => {
                let limit =
                    format!("is {n_bytes} bytes; with a unit, such as {n_bytes}GiB, it is more");
                Err(ConfigError::new("--device-memory-limit", n_bytes, limit))
            }
            limit => Ok(limit),
        }
    }

    fn resolve_max_schema_bytes(&self) -> Result<usize, ConfigError> {
        let size = self.max_schema_bytes.unwrap_or(64 << 10);
        if (1..=16 << 20).contains(&size) {
            return Ok(size as usize);
        }
        let limit = "must be between 1 byte and 16MiB";
        Err(ConfigError::new("--max-schema-bytes", size, limit))
    }

    /// An explicit chunk size must fit in a step on either device.
    fn resolve_max_prefill_tokens(&self) -> PrefillTokens {
        if let Some(typed) = self.max_prefill_tokens {
            return PrefillTokens {
                cuda: typed,
                cpu: typed,
            };
        }
        let chunk = self.chunked_prefill_size.unwrap_or(0).max(0) as usize;
        PrefillTokens {
            cuda: MAX_PREFILL_TOKENS_ON_CUDA,
            cpu: MAX_PREFILL_TOKENS_ON_CPU.max(chunk),
        }
    }

    fn resolve_chunk(&self) -> Result<Option<usize>, ConfigError> {
        const FLAG: &str = "--chunked-prefill-size";
        let max_prefill_tokens = self
            .max_prefill_tokens
            .unwrap_or(MAX_PREFILL_TOKENS_ON_CUDA);
        match self.chunked_prefill_size {
            None => Ok(Some(max_prefill_tokens.min(2048))),
            Some(-1) => Ok(None),
            Some(size) if size < 1 => Err(ConfigError::new(
                FLAG,
                size,
                "must be -1 (off) or at least 1",
            )),
            Some(size) if size as u64 > max_prefill_tokens as u64 => Err(ConfigError::new(
                FLAG,
                size,
                format!("must not exceed --max-prefill-tokens, which is {max_prefill_tokens}"),
            )),
            Some(size) => Ok(Some(size as usize)),
        }
    }

    fn resolve_cuda_graph(&self) -> Result<CudaGraph, ConfigError> {
        if self.disable_cuda_graph {
            let clash = "not allowed together with --disable-cuda-graph";
            if !self.cuda_graph_bs.is_empty() {
                let sizes = format!("{:?}", self.cuda_graph_bs);
                return Err(ConfigError::new("--cuda-graph-bs", sizes, clash));
            }
            if let Some(max_bs) = self.cuda_graph_max_bs {
                return Err(ConfigError::new("--cuda-graph-max-bs", max_bs, clash));
            }
            return Ok(CudaGraph::Off);
        }
        if self.cuda_graph_bs.is_empty() {
            return Ok(CudaGraph::Auto {
                max_bs: self.cuda_graph_max_bs,
            });
        }
        let mut sizes = self.cuda_graph_bs.clone();
        sizes.sort_unstable();
        sizes.dedup();
        if let (Some(&largest), Some(max_bs)) = (sizes.last(), self.cuda_graph_max_bs)
            && largest > max_bs
        {
            let limit = format!("must not exceed --cuda-graph-max-bs, which is {max_bs}");
            return Err(ConfigError::new("--cuda-graph-bs", largest, limit));
        }
        Ok(CudaGraph::Sizes(sizes))
    }

    fn resolve_hierarchical_cache(&self) -> Result<Option<HierarchicalCache>, ConfigError> {
        let ratio = self.hicache_ratio.unwrap_or(2.0);
        if !(ratio > 0.0 && ratio <= 1000.0) {
            let limit = "must be above 0 and at most 1000";
            return Err(ConfigError::new("--hicache-ratio", ratio, limit));
        }
        if !self.enable_hierarchical_cache {
            return Ok(None);
        }
        if self.disable_radix_cache {
            let clash = "keeps prefixes, so it is not allowed together with --disable-radix-cache";
            return Err(ConfigError::new("--enable-hierarchical-cache", "on", clash));
        }
        Ok(Some(match self.hicache_size {
            Some(size_gb) => HierarchicalCache::Bytes(size_gb as u64 * 1_000_000_000),
            None => HierarchicalCache::Ratio(ratio),
        }))
    }
}

impl HttpArgs {
    /// Checks all values, reads the keys' files and fills in the defaults.
    ///
    /// # Errors
    ///
    /// The first flag whose value is out of its range, or whose file cannot be read, and the
    /// limit.
    pub fn resolve(&self) -> Result<HttpConfig, ConfigError> {
        let api_key = KeyFlags {
            flag: "--api-key",
            key: self.api_key.as_deref(),
            file_flag: "--api-key-file",
            file: self.api_key_file.as_deref(),
        };
        let admin_api_key = KeyFlags {
            flag: "--admin-api-key",
            key: self.admin_api_key.as_deref(),
            file_flag: "--admin-api-key-file",
            file: self.admin_api_key_file.as_deref(),
        };
        let host = not_empty("--host", self.host.as_deref())?;
        let max_body_bytes = self.max_body_bytes.unwrap_or(4 << 20);
        if !(1024..=1 << 30).contains(&max_body_bytes) {
            let limit = "must be between 1KiB and 1GiB";
            return Err(ConfigError::new("--max-body-bytes", max_body_bytes, limit));
        }
        let api_key = api_key.resolve()?;
        Ok(HttpConfig {
            allowed_origins: AllowedOrigins::resolve(&self.allowed_origins, api_key.is_some())?,
            strict_model_name: self.strict_model_name,
            has_web_ui: !self.disable_web_ui,
            host: host.unwrap_or_else(|| "127.0.0.1".to_owned()),
            port: self.port.unwrap_or(30_000),
            api_key,
            admin_api_key: admin_api_key.resolve()?,
            served_model_name: self.resolve_served_model_name()?,
            stream_interval: self.stream_interval.unwrap_or(1),
            max_body_bytes: max_body_bytes as usize,
            max_stop_strings: self.max_stop_strings.unwrap_or(16),
            max_prompt_tokens: self.max_prompt_tokens,
            max_output_tokens: self.max_output_tokens,
            max_connections: self.max_connections.unwrap_or(4096),
            client_timeout: Duration::from_secs(self.client_timeout_s.unwrap_or(60)),
            result_cache: self.resolve_result_cache()?,
            kept_streams: self.resolve_kept_streams()?,
            shutdown_grace: Duration::from_secs(self.shutdown_grace_s.unwrap_or(30)),
            traces: self.resolve_traces()?,
        })
    }
}

impl HttpArgs {
    pub(super) fn resolve_served_model_name(&self) -> Result<Option<String>, ConfigError> {
        /// Names are in every response and label every metric.
        const MAX_CHARS: usize = 256;
        const FLAG: &str = "--served-model-name";
        let name = not_empty(FLAG, self.served_model_name.as_deref())?;
        if let Some(name) = &name {
            let n_chars = name.chars().count();
            if n_chars > MAX_CHARS {
                let shown = format!("{}…", name.chars().take(40).collect::<String>());
                let limit = format!("has {n_chars} characters, the limit is {MAX_CHARS}");
                return Err(ConfigError::new(FLAG, shown, limit));
            }
            check_printable(FLAG, name)?;
        }
        Ok(name)
    }

    fn resolve_result_cache(&self) -> Result<ResultCacheConfig, ConfigError> {
        let place = match self.result_cache.as_deref() {
            None | Some("off") => ResultCachePlace::Off,
            Some("memory") => ResultCachePlace::Memory,
            Some(url) if url.starts_with("redis://") || url.starts_with("redis+unix://") => {
                // Validated by the client library. Its message may contain the password, so it is
                // left out.
                if redis::Client::open(url).is_err() {
                    let shown = format!("{}(withheld)", scheme_of(url));
                    let limit = "is not an address that the Redis client accepts";
                    return Err(ConfigError::new("--result-cache", shown, limit));
                }
                ResultCachePlace::Redis(RedisUrl::new(url))
            }
            Some(other) => {
                let limit = "must be off, memory, redis://host:port or redis+unix:///path";
                return Err(ConfigError::new(
                    "--result-cache",
                    redacted_url(other),
                    limit,
                ));
            }
        };
        let max_bytes = self.result_cache_max_bytes.unwrap_or(64 << 20);
        if max_bytes < 1024 {
            let limit = "must be at least 1KiB";
            return Err(ConfigError::new(
                "--result-cache-max-bytes",
                max_bytes,
                limit,
            ));
        }
        Ok(ResultCacheConfig {
            place,
            ttl: Duration::from_secs(self.result_cache_ttl_s.unwrap_or(3600)),
            max_bytes,
        })
    }
}

fn not_empty(flag: &'static str, value: Option<&str>) -> Result<Option<String>, ConfigError> {
    match value {
        Some(text) if text.trim().is_empty() => {
            Err(ConfigError::new(flag, "\"\"", "must not be empty"))
        }
        value => Ok(value.map(str::to_owned)),
    }
}

/// Names are used in logs, responses and metrics.
fn check_printable(flag: &'static str, text: &str) -> Result<(), ConfigError> {
    match text.chars().find(|c| c.is_control()) {
        Some(c) => {
            let limit = format!("has the control character {}", c.escape_unicode());
            Err(ConfigError::new(flag, text.escape_debug(), limit))
        }
        None => Ok(()),
    }
}

/// Number of CPUs available to this process; 1 if the system does not report it.
fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
