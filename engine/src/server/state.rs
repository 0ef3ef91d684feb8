//! What every handler can see: the HTTP settings at once, each model when it is loaded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::config::HttpConfig;
use crate::errors::Code;
use crate::metrics::TrafficMetrics;
use crate::result_cache::ResultCache;
use crate::served_model::ServedModel;
use crate::server::error::ApiError;
use crate::server::models::{Entry, Models, Open};
use crate::server::running::Running;

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
