//! What every handler can see: the HTTP settings at once, each model when it is loaded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::error::ApiError;
use super::models::{Entry, Models, Open};
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
    /// Answers under way, which can be ended.
    pub running: Arc<Running>,
    /// Held while a model is loaded, unloaded, put to sleep or woken: one at a time.
    pub changing: tokio::sync::Mutex<()>,
    /// How models are loaded that come while the server runs.
    pub open: OnceLock<Open>,
    /// All models of the start have been loaded.
    started: AtomicBool,
    stopping: AtomicBool,
}

/// A model and its limits, from the moment it is loaded until it is unloaded.
pub struct ServedModel {
    /// What clients may call it; the first is what responses say.
    pub names: Vec<String>,
    /// Seconds since 1970, when it was loaded.
    pub created_s: u64,
    pub tokenizer: Arc<Tokenizer>,
    pub chat_template: Arc<ChatTemplate>,
    pub engine: EngineHandle,
    pub limits: Limits,
    /// Makes grammars for output that has to have a form.
    pub grammars: Arc<Grammars>,
    pub parsers: OutputParsers,
    /// Ids that end a sequence unless `ignore_eos`.
    pub eos_token_ids: Vec<u32>,
    /// Body of `/server_info`.
    pub server_info: Value,
    pub seeds: Seeds,
}

/// How a chat's output is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutputParsers {
    /// How the model calls tools; `None` leaves calls in the content.
    pub tool_calls: Option<ToolCallFormat>,
    /// Thoughts come in a field of their own.
    pub reasoning: bool,
}

/// What a request may ask for.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Prompt and output together: the context length or the KV pool, whichever is smaller.
    pub max_sequence_tokens: usize,
    /// Why it is that much, for errors.
    pub sequence_limit_name: &'static str,
    pub allow_auto_truncate: bool,
    pub max_stop_strings: usize,
    /// `--max-prompt-tokens`; `None`: what the longest sequence leaves.
    pub max_prompt_tokens: Option<usize>,
    /// `--max-output-tokens`, likewise.
    pub max_output_tokens: Option<usize>,
    pub vocab: usize,
    /// Of a JSON schema, a regular expression, a grammar, or the tools' parameters.
    pub max_schema_bytes: usize,
    /// What holds for requests that do not say how to sample.
    pub sampling_defaults: SamplingDefaults,
}

/// Seeds for requests that bring none.
pub struct Seeds {
    next: std::sync::Mutex<rand::rngs::StdRng>,
}

impl Seeds {
    /// Repeatable from `--random-seed`, else from the system's entropy.
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
        // A panic elsewhere cannot leave a random number generator half written.
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

    /// Makes the server ready with this model alone. A second one is refused by returning it.
    pub fn set_model(&self, model: ServedModel) -> Result<(), Arc<ServedModel>> {
        let model = Arc::new(model);
        if !self.models.list().is_empty() {
            return Err(model);
        }
        self.models
            .add(Entry::ready(Arc::clone(&model)))
            .map_err(|_| model)?;
        self.set_started();
        Ok(())
    }

    /// From here on `/health` says 200.
    pub fn set_started(&self) {
        self.started.store(true, Ordering::Release);
    }

    /// From here on `/health` says 503, so that load balancers turn away.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Refuses while not all models of the start are there, and while stopping.
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
