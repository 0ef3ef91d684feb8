//! What every handler can see: the HTTP settings at once, the model when it is loaded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::error::ApiError;
use crate::config::HttpConfig;
use crate::engine_loop::EngineHandle;
use crate::errors::Code;
use crate::metrics::TrafficMetrics;
use crate::result_cache::ResultCache;
use crate::text::{ChatTemplate, Tokenizer};

/// Shared by all connections.
pub struct AppState {
    pub http: HttpConfig,
    pub traffic: Arc<TrafficMetrics>,
    pub result_cache: ResultCache,
    model: OnceLock<Arc<ServedModel>>,
    stopping: AtomicBool,
}

/// The model and its limits; there is one, from the moment it is loaded until the end.
pub struct ServedModel {
    /// What clients may call it; the first is what responses say.
    pub names: Vec<String>,
    /// Seconds since 1970, when it was loaded.
    pub created_s: u64,
    pub tokenizer: Arc<Tokenizer>,
    pub chat_template: Arc<ChatTemplate>,
    pub engine: EngineHandle,
    pub limits: Limits,
    /// Ids that end a sequence unless `ignore_eos`.
    pub eos_token_ids: Vec<u32>,
    /// Body of `/server_info`.
    pub server_info: Value,
    pub seeds: Seeds,
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
            model: OnceLock::new(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Makes the server ready. A second model is refused by returning it.
    pub fn set_model(&self, model: ServedModel) -> Result<(), Arc<ServedModel>> {
        self.model.set(Arc::new(model))
    }

    /// From here on `/health` says 503, so that load balancers turn away.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The model, if it can take requests now.
    pub fn model(&self) -> Result<&Arc<ServedModel>, ApiError> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(ApiError::new(
                Code::ShuttingDown,
                "the server is shutting down",
            ));
        }
        self.loaded_model()
    }

    /// The model, also while shutting down.
    pub fn loaded_model(&self) -> Result<&Arc<ServedModel>, ApiError> {
        self.model
            .get()
            .ok_or_else(|| ApiError::new(Code::Loading, "the model is still being loaded"))
    }
}

impl ServedModel {
    /// Refuses a name that is not ours. No name at all is fine: there is only one model.
    pub fn check_name(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(name) if name != "default" && !self.names.iter().any(|known| known == name) => {
                Err(ApiError::unknown_model(name, &self.names))
            }
            _ => Ok(()),
        }
    }

    pub fn name(&self) -> &str {
        self.names.first().map_or("default", String::as_str)
    }
}
