//! Cross-origin requests of web pages: which pages may read a response, and the browser's
//! preflight.
//!
//! The preflight (`OPTIONS`) carries no key, so it is answered before keys are checked. Cookies and
//! other browser credentials are never allowed; a key is a header that the page itself sets.
//! Nothing is allowed below `/admin`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::config::{AllowedOrigins, HttpConfig};
use crate::server::state::AppState;
use crate::server::transport::auth::{is_admin, is_open};

/// Seconds that a browser may cache the preflight's response.
const MAX_AGE_S: &str = "600";
const METHODS: &str = "GET, POST, DELETE, OPTIONS";
/// Response headers that a page may read besides the safelisted ones.
const EXPOSED: &str = "x-request-id, x-result-cache, retry-after, x-should-retry";

pub async fn apply(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = &state.http.allowed_origins;
    let granted = origin.and_then(|origin| grant(&state.http, &origin, request.uri().path()));
    let Some(granted) = granted else {
        let mut response = next.run(request).await;
        note_dependence(allowed, response.headers_mut());
        return response;
    };
    let is_question = request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if is_question {
        preflight(request.headers())
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, granted);
    if !is_question {
        insert(headers, header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
    note_dependence(allowed, headers);
    response
}

/// The value of `access-control-allow-origin`, if this page may read this path's response.
fn grant(http: &HttpConfig, origin: &HeaderValue, path: &str) -> Option<HeaderValue> {
    if is_admin(path) {
        return None;
    }
    match &http.allowed_origins {
        AllowedOrigins::None => None,
        AllowedOrigins::AnyWithKey if is_open(http, path) => None,
        AllowedOrigins::AnyWithKey | AllowedOrigins::Any => Some(HeaderValue::from_static("*")),
        AllowedOrigins::These(origins) => {
            let sent = origin.to_str().ok()?;
            let is_listed = origins.iter().any(|known| known.eq_ignore_ascii_case(sent));
            is_listed.then(|| origin.clone())
        }
    }
}

fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    insert(headers, header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    insert(headers, header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_S);
    // Allows every header that the page wants to send: the key, and what its client library adds.
    if let Some(names) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    response
}

/// A cache must not serve one page a response made for another.
fn note_dependence(allowed: &AllowedOrigins, headers: &mut HeaderMap) {
    if matches!(allowed, AllowedOrigins::These(_)) {
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &'static str) {
    headers.insert(name, HeaderValue::from_static(value));
}
