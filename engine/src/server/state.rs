//! State shared by all handlers: the HTTP settings from the start, each model once it is loaded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::error::ApiError;
use super::models::{ModelEntry, Models, Open};
use super::running::Running;
use crate::config::HttpConfig;
use crate::engine_loop::EngineHandle;
use crate::errors::Code;
use crate::metrics::TrafficMetrics;
use crate::model::sampling_defaults::SamplingDefaults;
use crate::result_cache::ResultCache;
use crate::structured::Grammars;
use crate::text::{ChatTemplate, Tokenizer, ToolCallFormat};

/// Shared by all connections.
pub struct AppState {
    pub http: HttpConfig,
    pub traffic: Arc<TrafficMetrics>,
    pub result_cache: ResultCache,
    pub models: Models,
    /// Running requests, for `/abort_request`.
    pub running: Arc<Running>,
    /// Held while a model is loaded, unloaded, put to sleep or woken: one change at a time.
    pub changing: tokio::sync::Mutex<()>,
    /// How to load models that are added while the server runs.
    pub open: OnceLock<Open>,
    /// Whether all models of the start have been loaded.
    started: AtomicBool,
    stopping: AtomicBool,
}

/// A model and its limits, from the moment it is loaded until it is unloaded.
pub struct ServedModel {
    /// The names that clients may use; responses carry the first.
    pub names: Vec<String>,
    /// When it was loaded, in seconds since 1970.
    pub created_s: u64,
    pub tokenizer: Arc<Tokenizer>,
    pub chat_template: Arc<ChatTemplate>,
    pub engine: EngineHandle,
    pub limits: Limits,
    /// Compiles grammars for constrained output.
    pub grammars: Arc<Grammars>,
    pub parsers: OutputParsers,
    /// Ids that end a sequence unless `ignore_eos`.
    pub eos_token_ids: Vec<u32>,
    /// Body of `/server_info`.
    pub server_info: Value,
    pub seeds: Seeds,
}

/// How a chat's output is parsed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutputParsers {
    /// The model's tool-call format; `None` leaves calls in the content.
    pub tool_calls: Option<ToolCallFormat>,
    /// Whether reasoning is returned in its own field.
    pub reasoning: bool,
}

/// Limits on what a request may ask for.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Limit on prompt and output together: the context length or the KV pool, whichever is
    /// smaller.
    pub max_sequence_tokens: usize,
    /// The origin of this limit, for error messages.
    pub sequence_limit_name: &'static str,
    pub allow_auto_truncate: bool,
    pub max_stop_strings: usize,
    /// `--max-prompt-tokens`; `None`: limited only by the sequence length.
    pub max_prompt_tokens: Option<usize>,
    /// `--max-output-tokens`, likewise.
    pub max_output_tokens: Option<usize>,
    pub vocab: usize,
    /// Limit on the size of a JSON schema, regular expression, grammar, or tool parameters.
    pub max_schema_bytes: usize,
    /// Sampling parameters of requests that do not set them.
    pub sampling_defaults: SamplingDefaults,
}

/// Seeds for requests without one.
pub struct Seeds {
    next: std::sync::Mutex<rand::rngs::StdRng>,
}

impl Seeds {
    /// Reproducible with `--random-seed`, otherwise from the system's entropy.
    pub fn new(random_seed: Option<u64>) -> Self {
        use rand::SeedableRng;
        let rng = match random_seed {
            Some(seed) => rand::rngs::StdRng::seed_from_u64(seed),
            None => rand::rngs::StdRng::from_os_rng(),
        };
        Self {
            next: std::sync::Mutex::new(rng),
        }
    }

    pub fn draw(&self) -> u64 {
        use rand::Rng;
        // A panic elsewhere cannot leave a random number generator half-written.
        self.next
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .random()
    }
}

impl AppState {
    pub fn new(http: HttpConfig) -> Self {
        Self {
            traffic: Arc::default(),
            result_cache: ResultCache::new(&http.result_cache),
            http,
            models: Models::default(),
            running: Arc::default(),
            changing: tokio::sync::Mutex::default(),
            open: OnceLock::new(),
            started: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        }
    }

    /// Makes the server ready with this model alone. A second model is returned as an error.
    pub fn set_model(&self, model: ServedModel) -> Result<(), Arc<ServedModel>> {
        let model = Arc::new(model);
        if !self.models.list().is_empty() {
            return Err(model);
        }
        self.models
            .add(ModelEntry::ready(Arc::clone(&model)))
            .map_err(|_| model)?;
        self.set_started();
        Ok(())
    }

    /// From here on `/health` returns 200.
    pub fn set_started(&self) {
        self.started.store(true, Ordering::Release);
    }

    /// From here on `/health` returns 503, so that load balancers stop sending requests.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Returns an error until all models of the start are loaded, and while stopping.
    pub fn check_started(&self) -> Result<(), ApiError> {
        self.check_not_stopping()?;
        if self.has_started() {
            Ok(())
        } else {
            Err(ApiError::loading())
        }
    }

    pub fn has_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// The model that a request names, if it can take requests now.
    pub fn model(&self, asked: Option<&str>) -> Result<Arc<ServedModel>, ApiError> {
        self.check_not_stopping()?;
        let entry = if self.http.strict_model_name {
            self.models.find(asked)
        } else {
            self.models.find_leniently(asked)
        };
        entry?.serving()
    }

    fn check_not_stopping(&self) -> Result<(), ApiError> {
        if self.is_stopping() {
            return Err(ApiError::new(
                Code::ShuttingDown,
                "the server is shutting down",
            ));
        }
        Ok(())
    }
}

impl ServedModel {
    pub fn name(&self) -> &str {
        self.names.first().map_or("default", String::as_str)
    }
}
