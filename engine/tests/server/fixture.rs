//! A server on a free port with a mock executor and a byte tokenizer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use engine::config::{AllowedOrigins, HttpConfig, KeptStreamLimits, ResultCacheConfig};
use engine::engine_loop::device_arbiter::DeviceArbiter;
use engine::engine_loop::{self, EngineLoopConfig, TimeLimits};
use engine::executor::mock::{MockConfig, MockExecutor};
use engine::kv::PAGE_TOKENS;
use engine::kv_events::{KvEventPublisher, KvEventSockets};
use engine::metrics::Metrics;
use engine::scheduler::{PolicyName, SchedulerConfig};
use engine::served_model::{Limits, OutputParsers, ServedModel, ServedParts};
use engine::server::state::AppState;
use engine::server::{self, ServeError};
use engine::speculation::SpeculationConfig;
use engine::text::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::client;

pub const IM_START: u32 = 256;
pub const IM_END: u32 = 257;
/// 256 bytes and two special tokens.
pub const VOCAB: usize = 258;

const CHAT_TEMPLATE: &str = "{% if tools %}tools {{ tools | tojson }}\n{% endif %}\
    {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
    {% for c in m.tool_calls or [] %}<call>{{ c.function.name }} \
    {{ c.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n\
    {% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}\
    {% endif %}";

/// A test's server.
pub struct TestConfig {
    pub mock: MockConfig,
    pub http: HttpConfig,
    pub max_queued_requests: usize,
    pub max_running_requests: usize,
    pub n_decode_steps: usize,
    pub mixed_chunk: bool,
    pub context_length: usize,
    pub allow_auto_truncate: bool,
    pub parsers: OutputParsers,
    pub max_schema_bytes: usize,
    pub time_limits: TimeLimits,
    /// Instead of the fixture's own.
    pub chat_template: Option<&'static str>,
    pub policy: PolicyName,
    pub speculation: Option<SpeculationConfig>,
    pub kv_sockets: Option<KvEventSockets>,
}

impl Default for TestConfig {
    fn default() -> Self {
        Self {
            mock: MockConfig {
                n_pages: 64,
                tokens: 97..123,
                ..MockConfig::default()
            },
            http: HttpConfig {
                host: "127.0.0.1".to_owned(),
                port: 0,
                api_key: None,
                admin_api_key: None,
                served_model_name: None,
                strict_model_name: false,
                allowed_origins: AllowedOrigins::None,
                has_web_ui: true,
                stream_interval: 1,
                max_body_bytes: 64 << 10,
                max_stop_strings: 4,
                max_prompt_tokens: None,
                max_output_tokens: None,
                max_connections: 4096,
                client_timeout: Duration::from_mins(1),
                result_cache: ResultCacheConfig::default(),
                kept_streams: KeptStreamLimits::default(),
                shutdown_grace: Duration::from_secs(10),
                traces: None,
            },
            max_queued_requests: 64,
            max_running_requests: 16,
            n_decode_steps: 1,
            mixed_chunk: false,
            context_length: 512,
            allow_auto_truncate: false,
            parsers: OutputParsers::default(),
            max_schema_bytes: 4096,
            time_limits: TimeLimits::default(),
            chat_template: None,
            policy: PolicyName::Fcfs,
            speculation: None,
            kv_sockets: None,
        }
    }
}

impl TestConfig {
    /// Every output is `text`, one token a byte, from its start and over again.
    pub fn saying(text: &str) -> Self {
        Self::emitting(text.bytes().map(u32::from).collect())
    }

    pub fn emitting(ids: Vec<u32>) -> Self {
        let mut config = Self::default();
        config.mock.script = Some(ids.into());
        config
    }

    /// Each step takes this long, so that a test can interrupt it.
    pub fn slowly(mut self, step_delay: Duration) -> Self {
        self.mock.step_delay = step_delay;
        self
    }
}

pub struct TestServer {
    pub address: SocketAddr,
    pub state: Arc<AppState>,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<(), ServeError>>,
}

impl TestServer {
    pub async fn start(config: TestConfig) -> Self {
        let server = Self::start_unloaded(config.http.clone()).await;
        assert!(server.state.set_model(model(config)).is_ok(), "one model");
        server
    }

    /// Listens, without a model yet.
    pub async fn start_unloaded(http: HttpConfig) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(AppState::new(http));
        state.start_traces().expect("traces");
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(server::serve(listener, Arc::clone(&state), async {
            // A test that ends without stopping drops the sender, which is a stop too.
            let _ = stopped.await;
        }));
        Self {
            address,
            state,
            stop: Some(stop),
            served,
        }
    }

    /// What SIGTERM does.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).expect("the server is there");
        }
    }

    /// Waits until the server has ended by itself.
    pub async fn ended(self) {
        self.outcome().await.expect("the server ended well");
    }

    /// Waits until the server has ended, well or not.
    pub async fn outcome(self) -> Result<(), ServeError> {
        self.served.await.expect("the server did not panic")
    }

    pub async fn get(&self, path: &str) -> client::Answer {
        client::get(self.address, path).await
    }

    pub async fn post(&self, path: &str, body: Value) -> client::Answer {
        client::post(self.address, path, &body).await
    }

    /// The response to a request that must succeed.
    pub async fn ok(&self, path: &str, body: Value) -> Value {
        let answer = self.post(path, body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// As [`client::metric`].
    pub async fn metric(&self, series: &str) -> f64 {
        client::metric(self.address, series).await
    }

    /// Until a request is in the engine's steps.
    pub async fn runs(&self) {
        let is_running = async || self.metric("vllm:num_requests_running").await > 0.0;
        until("a request runs", LIMIT, is_running).await;
    }

    /// A client that leaves a stream after its first byte takes its request with it.
    pub async fn assert_cancels_abandoned(&self, path: &str, body: &Value) {
        let sent = body.to_string();
        let mut stream = client::open(self.address, "POST", path, &[], sent.as_bytes()).await;
        let mut first = [0; 1];
        stream.read_exact(&mut first).await.expect("an answer");
        drop(stream);
        self.assert_empties().await;
    }

    /// As [`assert_empties`].
    pub async fn assert_empties(&self) {
        assert_empties(self.address).await;
    }
}

/// Limit for what takes milliseconds on an idle machine.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Polls until the condition holds; fails after the limit, naming what was waited for.
pub async fn until(what: &str, limit: Duration, mut is_so: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = tokio::time::timeout(limit, looking).await;
    assert!(in_time.is_ok(), "{limit:?} later it is not so: {what}");
}

/// Waits until no request is in the engine of a server and no page is in use.
pub async fn assert_empties(address: SocketAddr) {
    let is_empty = async || {
        let metrics = client::get(address, "/metrics").await;
        let busy = [
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "engine_kv_pages_used",
        ];
        busy.iter().all(|series| metrics.metric(series) == 0.0)
    };
    until("no request and no page is left", LIMIT, is_empty).await;
}

/// A body with additional or overridden fields.
pub fn merged(mut body: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else {
        panic!("fields are an object: {fields}")
    };
    body.as_object_mut().expect("an object").extend(fields);
    body
}

pub fn model(config: TestConfig) -> ServedModel {
    model_of_many(config, &["mock", "org/mock"], &Arc::default())
}

/// One of several models that share a device.
pub fn model_of_many(
    config: TestConfig,
    names: &[&str],
    arbiter: &Arc<DeviceArbiter>,
) -> ServedModel {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_tokenizer(folder.path());
    let pool_tokens = config.mock.n_pages * PAGE_TOKENS;
    let loop_config = EngineLoopConfig {
        scheduler: SchedulerConfig {
            max_total_tokens: pool_tokens,
            max_running_requests: config.max_running_requests,
            max_prefill_tokens: 256,
            chunked_prefill_size: Some(64),
            n_continuous_decode_steps: config.n_decode_steps,
            policy: config.policy,
            speculation: config.speculation,
            mixed_chunk: config.mixed_chunk,
            ..SchedulerConfig::default()
        },
        max_queued_requests: config.max_queued_requests,
        decode_log_interval: 0,
        time_limits: config.time_limits,
    };
    let mut chat_template = ChatTemplate::from_folder(folder.path()).expect("a template");
    if let Some(source) = config.chat_template {
        chat_template = chat_template.with_source(source).expect("a template");
    }
    let executor = Box::new(MockExecutor::new(config.mock));
    let metrics = Arc::new(Metrics::new(names[0]));
    let publisher = config.kv_sockets.map(|sockets| {
        KvEventPublisher::start(sockets, Arc::clone(&metrics)).expect("a publisher")
    });
    let engine = engine_loop::start_publishing(executor, loop_config, metrics, arbiter, publisher);
    let engine = engine.expect("an engine");
    let (max_sequence_tokens, sequence_limit_name) = if pool_tokens < config.context_length {
        (pool_tokens, "the KV pool")
    } else {
        (config.context_length, "from its configuration")
    };
    ServedModel::new(ServedParts {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        tokenizer: Tokenizer::from_folder(folder.path()).expect("a tokenizer"),
        chat_template,
        engine,
        limits: Limits {
            max_sequence_tokens,
            sequence_limit_name,
            allow_auto_truncate: config.allow_auto_truncate,
            max_stop_strings: config.http.max_stop_strings,
            max_prompt_tokens: config.http.max_prompt_tokens,
            max_output_tokens: config.http.max_output_tokens,
            vocab: VOCAB,
            max_schema_bytes: config.max_schema_bytes,
            sampling_defaults: engine::request::sampling_defaults::SamplingDefaults::default(),
        },
        parsers: config.parsers,
        model_eos_ids: vec![IM_END],
        server_info: json!({"version": "test"}),
        fingerprint: [0; 32],
        random_seed: Some(7),
    })
}

/// Byte-level BPE without merges: a token's id is its byte.
pub fn write_tokenizer(folder: &std::path::Path) {
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        })
    };
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let vocab: Map<String, Value> = (0..=255u8)
        .map(|byte| (byte_character(byte).to_string(), json!(byte)))
        .collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(IM_START, "<|im_start|>"), special(IM_END, "<|im_end|>")],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": [],
        },
    });
    let config = json!({"eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE});
    for (name, content) in [
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", config),
    ] {
        std::fs::write(folder.join(name), content.to_string()).expect("the fixture is written");
    }
}

/// The character that stands for a byte in byte-level vocabularies: printable ones for
/// themselves, the others from U+0100 on, in order.
fn byte_character(byte: u8) -> char {
    let is_printable = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if is_printable(&byte) {
        return char::from(byte);
    }
    let n_before = (0..byte).filter(|byte| !is_printable(byte)).count() as u32;
    char::from_u32(256 + n_before).expect("a character")
}

/// Checks a JSON value against a stored one; ids and times are masked.
macro_rules! assert_answer {
    ($name:literal, $value:expr) => {
        let text = serde_json::to_string_pretty(&$value).expect("JSON");
        insta::with_settings!({
            filters => vec![
                (r#""(cmpl|chatcmpl)-[0-9a-f]{32}""#, r#""$1-[id]""#),
                (r#""created": \d+"#, r#""created": "[time]""#),
            ],
            omit_expression => true,
        }, {
            insta::assert_snapshot!($name, text);
        });
    };
}
pub(crate) use assert_answer;
