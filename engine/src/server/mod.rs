//! The OpenAI-compatible HTTP server: the only place that knows HTTP and JSON.
//!
//! [`transport`] handles what is common to all requests: connections, keys, origins and path
//! normalisation. An endpoint ([`endpoints`]) reads a body field by field into a
//! [`Generation`](request::sampling_fields::Generation) and prompts that fit ([`request`]); each
//! choice runs as a [`Choice`](response::choice::Choice) over the engine's stream, and
//! [`RunningChoices`](response::answer::RunningChoices) return them whole or as server-sent events
//! ([`response`]). Every refusal is an [`error::ApiError`].
//!
//! Requests are routed to one of the [`models`] by name; [`endpoints::admin`] loads, unloads,
//! suspends and wakes models.
//!
//! When a client disconnects, its response is dropped, which drops the choices and cancels the
//! requests. Only a stream that its client asked to keep ([`kept_streams`]) outlives it.
//!
//! SGLang's and vLLM's own endpoints are [`endpoints::generate`], [`endpoints::native`],
//! [`endpoints::loads`], [`endpoints::flush`] and [`running`]; their unsupported fields are refused by name
//! ([`request::foreign_fields`]).
//!
//! [`endpoints::anthropic`] and [`endpoints::responses`] are other APIs over the same chats: their
//! requests are converted ([`request::converted`]), and a chat's output is written as blocks
//! ([`response::blocks`]).
//!
//! What the server answers to is one table ([`routes`]), which [`openapi`] describes; beside it,
//! [`endpoints::web_ui`] is the page for people at `/`.
//!
//! Deliberately absent: TLS (terminate it in a proxy), `/v1/embeddings` (refused), images and audio,
//! batches by file.

pub mod endpoints;
pub mod error;
pub mod kept_streams;
pub mod models;
mod openapi;
pub mod request;
pub mod response;
pub mod routes;
pub mod running;
pub mod state;
pub mod stored_responses;
pub mod transport;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{Method, Uri};
use tokio::net::TcpListener;

use self::error::ApiError;
use self::state::AppState;
use self::transport::connections::{LimitedListener, Peer};
use crate::config::{AllowedOrigins, HttpConfig};
use crate::errors::Code;

/// All routes, with what every request goes through.
pub fn router(state: Arc<AppState>) -> Router {
    let is_traced = state.tracer.get().is_some();
    let router = routes::router()
        .fallback(|uri: Uri| async move { ApiError::unknown_path(uri.path()) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            ApiError::wrong_method(method.as_str(), uri.path())
        })
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(&state),
            transport::auth::check_key,
        ))
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(&state),
            transport::web_pages::check,
        ))
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(&state),
            transport::cors::apply,
        ))
        .layer(axum::middleware::from_fn(
            transport::anthropic_errors::apply,
        ))
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(&state),
            transport::connections::track,
        ))
        .layer(axum::middleware::from_fn(transport::request_id::apply));
    let traced = axum::middleware::from_fn_with_state(Arc::clone(&state), transport::traces::apply);
    let router = if is_traced {
        router.layer(traced)
    } else {
        router
    };
    let router = router.with_state(state);
    // A router matches before its layers run, so layers that change the path wrap it.
    Router::new()
        .fallback_service(router)
        .layer(axum::middleware::from_fn(
            transport::paths::without_last_slash,
        ))
}

async fn embeddings() -> ApiError {
    ApiError::not_implemented("/v1/embeddings", "this server generates text only")
}

/// Why serving ended, other than on request.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("the engine has stopped after an internal error; see the log above")]
    EngineStopped,
}

impl ServeError {
    pub fn code(&self) -> Code {
        match self {
            Self::EngineStopped => Code::EngineStopped,
            Self::Io(_) => Code::System,
        }
    }
}

/// How long the answers that tell of a dead engine get to leave.
const ERROR_FLUSH_GRACE: Duration = Duration::from_secs(1);

/// How long the last requests' spans get to leave.
const LAST_SPANS_GRACE: Duration = Duration::from_secs(2);

/// Serves until `stop` is ready, then refuses new requests and lets running ones finish for at
/// most `--shutdown-grace-s`; the rest are cut off. Connections are accepted until the last request
/// has left the engine, so that a router that has not noticed yet is told where its requests stand.
/// Returns an error if the engine dies.
///
/// # Errors
///
/// [`ServeError::EngineStopped`] if an engine thread ended by itself, [`ServeError::Io`] if the
/// listener fails.
pub async fn serve(
    listener: TcpListener,
    state: Arc<AppState>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    warn_of_open_origins(&state.http);
    let grace = state.http.shutdown_grace;
    let (stopped, mut has_stopped) = tokio::sync::watch::channel(false);
    let stopping_state = Arc::clone(&state);
    let listener = LimitedListener::new(listener, &state);
    let service = router(Arc::clone(&state)).into_make_service_with_connect_info::<Peer>();
    let server = axum::serve(listener, service).with_graceful_shutdown(async move {
        stop.await;
        stopping_state.set_stopping();
        // The receiver lives until this function returns.
        let _ = stopped.send(true);
        drained(&stopping_state).await;
    });
    let cut_off = async move {
        // An error means that the server has already ended, so there is nothing to wait for.
        if has_stopped.wait_for(|stopped| *stopped).await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(grace).await;
    };
    let outcome = tokio::select! {
        outcome = server.into_future() => outcome.map_err(ServeError::from),
        () = engine_death(&state) => return Err(ServeError::EngineStopped),
        () = cut_off => {
            tracing::warn!(grace_s = grace.as_secs(), "requests still running are cut off");
            Ok(())
        }
    };
    for model in state.models.loaded() {
        // Requests have finished or used up their grace period.
        model.engine.shutdown(Duration::ZERO).await;
    }
    if state.tracer.get().is_some() {
        let stop = move || {
            state
                .tracer
                .get()
                .map(|tracer| tracer.stop(LAST_SPANS_GRACE))
        };
        // A panic there was reported already.
        let _ = tokio::task::spawn_blocking(stop).await;
    }
    outcome
}

/// Ready when no engine has a request. What is still being sent then is sent to its end. A dead
/// engine answers its requests as it dies, and counts none out.
async fn drained(state: &AppState) {
    const POLL_INTERVAL: Duration = Duration::from_millis(20);
    let has_requests = || {
        let models = state.models.loaded();
        let mut engines = models.iter().map(|model| &model.engine);
        engines.any(|engine| !engine.has_died() && engine.n_in_flight() > 0)
    };
    while has_requests() {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn warn_of_open_origins(http: &HttpConfig) {
    if http.allowed_origins == AllowedOrigins::Any && http.api_key.is_none() {
        tracing::warn!(
            "--allowed-origins * without --api-key: every web page that a browser on this network \
             shows can use this server and read its answers"
        );
    }
}

/// Ready when an engine has ended without being told to, and its clients have been answered. With
/// several models this stops the others too: they share a device whose state is unknown.
async fn engine_death(state: &AppState) {
    /// Models come and go, so there is no single future to await.
    const POLL_INTERVAL: Duration = Duration::from_millis(100);
    let has_dead = || {
        let models = state.models.loaded();
        models.iter().any(|model| model.engine.has_died())
    };
    while !has_dead() {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    if state.is_stopping() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(ERROR_FLUSH_GRACE).await;
}
