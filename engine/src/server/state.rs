//! State shared by all handlers: the HTTP settings from the start, each model once it is loaded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::config::HttpConfig;
use crate::errors::Code;
use crate::metrics::TrafficMetrics;
use crate::result_cache::ResultCache;
use crate::served_model::ServedModel;
use crate::server::error::ApiError;
use crate::server::kept_streams::KeptStreams;
use crate::server::models::{ModelEntry, Models, Open};
use crate::server::running::Running;
use crate::server::stored_responses::ResponseStore;
use crate::traces::{ExporterBuildError, Tracer};

/// Shared by all connections.
pub struct AppState {
    pub http: HttpConfig,
    pub traffic: Arc<TrafficMetrics>,
    pub result_cache: ResultCache,
    pub models: Models,
    /// Running requests, for `/abort_request`.
    pub running: Arc<Running>,
    /// Responses for `previous_response_id`.
    pub stored_responses: ResponseStore,
    /// Streams that clients can resume.
    pub kept_streams: Arc<KeptStreams>,
    /// Held while a model is loaded, unloaded, put to sleep or woken: one change at a time.
    pub changing: tokio::sync::Mutex<()>,
    /// How to load models that are added while the server runs.
    pub open: OnceLock<Open>,
    /// Begins the spans of requests, if they are sent.
    pub tracer: OnceLock<Tracer>,
    /// Whether all models of the start have been loaded.
    started: AtomicBool,
    stopping: AtomicBool,
}

impl AppState {
    pub fn new(http: HttpConfig) -> Self {
        Self {
            traffic: Arc::default(),
            result_cache: ResultCache::new(&http.result_cache),
            models: Models::default(),
            running: Arc::default(),
            stored_responses: ResponseStore::default(),
            kept_streams: Arc::new(KeptStreams::new(http.kept_streams)),
            changing: tokio::sync::Mutex::default(),
            open: OnceLock::new(),
            tracer: OnceLock::new(),
            started: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            http,
        }
    }

    /// Starts sending the spans of requests, if `--otlp-traces-endpoint` asks for it. Call it before
    /// serving.
    ///
    /// # Errors
    ///
    /// As [`Tracer::start`].
    pub fn start_traces(&self) -> Result<(), ExporterBuildError> {
        if let Some(config) = &self.http.traces {
            let tracer = Tracer::start(config, Arc::clone(&self.traffic))?;
            // It is set only here.
            let _ = self.tracer.set(tracer);
        }
        Ok(())
    }

    /// Makes the server ready with this model alone. A second model is returned as an error.
    ///
    /// # Errors
    ///
    /// The model itself, if the server has one already.
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
    pub(crate) fn check_started(&self) -> Result<(), ApiError> {
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
    pub(crate) fn model(&self, asked: Option<&str>) -> Result<Arc<ServedModel>, ApiError> {
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
