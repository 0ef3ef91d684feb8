//! API keys: `Authorization: Bearer <key>` or `X-Api-Key: <key>` on every path except those that
//! probes use and the files of the page at `/`. `/admin/…` has its own key; without one these paths
//! do not exist. Endpoints that empty caches or abort other clients' requests require the admin key
//! if there is one, otherwise the API key.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::config::HttpConfig;
use crate::server::endpoints::web_ui;
use crate::server::error::ApiError;
use crate::server::state::AppState;

/// Paths that need no key: load balancers and Prometheus have none.
pub(crate) const OPEN_PATHS: [&str; 6] = [
    "/health",
    "/health_generate",
    "/liveness",
    "/metrics",
    "/ping",
    "/readiness",
];

/// Paths that require the admin key.
const ADMIN: &str = "/admin";
/// Paths that require the admin key if there is one, otherwise the API key.
const OPERATORS_PATHS: [&str; 3] = ["/flush_cache", "/reset_prefix_cache", "/abort_request"];

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

pub(crate) fn is_admin(path: &str) -> bool {
    path == ADMIN || path.starts_with(&format!("{ADMIN}/"))
}

/// Whether a path needs no key. The page's files hold nothing secret; its requests need the key.
pub(crate) fn is_open(http: &HttpConfig, path: &str) -> bool {
    OPEN_PATHS.contains(&path) || (http.has_web_ui && web_ui::has_file(path))
}

pub async fn check_key(
    State(state): State<Arc<AppState>>,
    request: Request,
    next: Next,
) -> Response {
    match refusal(&state, &request) {
        Some(error) => error.into_response(),
        None => next.run(request).await,
    }
}

/// Which key a path requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Open,
    Key,
    /// The admin key if there is one, otherwise the API key.
    Operator,
    /// The admin key; without one the path does not exist.
    Admin,
}

pub fn access(path: &str) -> Access {
    if is_admin(path) {
        Access::Admin
    } else if OPERATORS_PATHS.contains(&path) {
        Access::Operator
    } else if OPEN_PATHS.contains(&path) {
        Access::Open
    } else {
        Access::Key
    }
}

fn refusal(state: &AppState, request: &Request) -> Option<ApiError> {
    let path = request.uri().path();
    let lacks = |key: &str| !has_sent(request.headers(), key);
    let admin_key = state.http.admin_api_key.as_deref();
    let access = if is_open(&state.http, path) {
        Access::Open
    } else {
        access(path)
    };
    match (access, admin_key) {
        (Access::Open, _) => None,
        (Access::Admin, None) => Some(ApiError::unknown_path(path)),
        (Access::Admin, Some(key)) => lacks(key).then(|| wrong_admin_key(ADMIN)),
        (Access::Operator, Some(key)) => lacks(key).then(|| wrong_admin_key(path)),
        (Access::Key | Access::Operator, _) => {
            let key = state.http.api_key.as_deref();
            key.filter(|key| lacks(key)).map(|_| ApiError::wrong_key())
        }
    }
}

/// Whether a request to an open path may see protected details: it carries a valid key, or no key
/// is set.
pub(crate) fn is_trusted(state: &AppState, headers: &HeaderMap) -> bool {
    let (user, admin) = (&state.http.api_key, &state.http.admin_api_key);
    let mut keys = user.iter().chain(admin);
    user.is_none() || keys.any(|key| has_sent(headers, key))
}

fn has_sent(headers: &HeaderMap, key: &str) -> bool {
    sent_keys(headers).any(|sent| is_same(&digest(sent), &digest(key.as_bytes())))
}

/// The keys that a request carries, as digests. What one client keeps here is for requests with a
/// key of that client's, or, if it sent none, for those without any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SentKeys(Vec<[u8; 32]>);

impl SentKeys {
    pub fn of(headers: &HeaderMap) -> Self {
        Self(sent_keys(headers).map(digest).collect())
    }

    pub fn share_one_with(&self, other: &Self) -> bool {
        let is_in_other = |key: &[u8; 32]| other.0.iter().any(|own| is_same(own, key));
        self.0.iter().any(is_in_other) || self.0.is_empty() && other.0.is_empty()
    }
}

fn wrong_admin_key(path: &str) -> ApiError {
    let mut error = ApiError::wrong_key();
    error.message = format!("{path} asks for the admin key as `Authorization: Bearer <key>`");
    error
}

/// Clients of other APIs send the key as `X-Api-Key`; some send both headers.
fn sent_keys(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
    });
    let plain = headers.get(X_API_KEY).map(HeaderValue::as_bytes);
    bearer.into_iter().chain(plain)
}

fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Compares digests in constant time, so that timing reveals nothing about the key.
fn is_same(sent: &[u8; 32], key: &[u8; 32]) -> bool {
    let difference = sent
        .iter()
        .zip(key.iter())
        .fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}
