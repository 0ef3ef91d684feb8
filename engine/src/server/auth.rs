//! The keys: `Authorization: Bearer <key>` on every path but the ones that probes use. `/admin/…` has
//! a key of its own, which opens nothing else, and without one there is no such path.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::state::AppState;

/// Paths that need no key: load balancers and Prometheus have none.
pub(super) const OPEN_PATHS: [&str; 2] = ["/health", "/metrics"];

/// What the admin key opens.
const ADMIN: &str = "/admin";

pub async fn check_key(
    State(state): State<Arc<AppState>>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    if path == ADMIN || path.starts_with(&format!("{ADMIN}/")) {
        return match &state.http.admin_api_key {
            None => ApiError::unknown_path(path).into_response(),
            Some(key) if sent_key(&request).is_some_and(|sent| is_same(sent, key.as_bytes())) => {
                next.run(request).await
            }
            Some(_) => wrong_admin_key().into_response(),
        };
    }
    if let Some(key) = &state.http.api_key
        && !OPEN_PATHS.contains(&request.uri().path())
        && !sent_key(&request).is_some_and(|sent| is_same(sent, key.as_bytes()))
    {
        return ApiError::wrong_key().into_response();
    }
    next.run(request).await
}

fn wrong_admin_key() -> ApiError {
    let mut error = ApiError::wrong_key();
    "/admin asks for the admin key as `Authorization: Bearer <key>`".clone_into(&mut error.message);
    error
}

fn sent_key(request: &Request) -> Option<&[u8]> {
    let value = request.headers().get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
}

/// Compares digests, all bytes of them, so that the time taken says nothing about the key.
fn is_same(sent: &[u8], key: &[u8]) -> bool {
    let (sent, key) = (Sha256::digest(sent), Sha256::digest(key));
    let difference = sent
        .iter()
        .zip(key.iter())
        .fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}
