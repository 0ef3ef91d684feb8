//! Errors below `/v1/messages` in Anthropic's form, from every layer.

use axum::Json;
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::server::error::ApiError;

pub async fn apply(request: Request, next: Next) -> Response {
    let is_theirs = is_messages(request.uri().path());
    let response = next.run(request).await;
    let error = response.extensions().get::<ApiError>().cloned();
    let Some(error) = error.filter(|_| is_theirs) else {
        return response;
    };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    let body = Json(error.anthropic_body()).into_response().into_body();
    Response::from_parts(parts, body)
}

/// Whether a path is one of Anthropic's API.
pub fn is_messages(path: &str) -> bool {
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let rest = path.strip_prefix("/messages");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
