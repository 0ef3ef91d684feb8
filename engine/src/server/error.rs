//! Errors as OpenAI's clients expect them: `{"error": {message, type, param, code}}`.
//!
//! The message names the field, the value and the limit; the status says whose fault it is.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// One refused or failed HTTP request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// OpenAI's `type`: a class of errors.
    pub kind: &'static str,
    /// The field at fault, as a path: `messages[0].role`.
    pub param: Option<String>,
    /// OpenAI's `code`: one word for programs.
    pub code: Option<&'static str>,
    /// Seconds after which a retry may succeed.
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            status,
            message,
            kind,
            param: None,
            code: None,
            retry_after_s: None,
        }
    }

    /// The request cannot be served as it is.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            message.into(),
        );
        error.param = Some(param.into());
        error.code = Some("invalid_value");
        error
    }

    /// As [`Self::invalid`], about the body as a whole.
    pub fn invalid_body(message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        error.code = Some("invalid_json");
        error
    }

    /// A field that we know and do not do.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::invalid(param, message);
        error.code = Some("unsupported_parameter");
        error
    }

    /// Prompt and output do not fit.
    pub fn too_long(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::invalid(param, message);
        error.code = Some("context_length_exceeded");
        error
    }

    pub fn unknown_model(name: &str, known: &[String]) -> Self {
        let message = format!(
            "the model {name:?} does not exist; this server has: {}",
            known.join(", ")
        );
        let mut error = Self::new(StatusCode::NOT_FOUND, "not_found_error", message);
        error.param = Some("model".to_owned());
        error.code = Some("model_not_found");
        error
    }

    pub fn unknown_path(path: &str) -> Self {
        let message = format!("there is nothing at {path}");
        let mut error = Self::new(StatusCode::NOT_FOUND, "not_found_error", message);
        error.code = Some("unknown_url");
        error
    }

    /// An endpoint of OpenAI's that this server does not have.
    pub fn not_implemented(path: &str, instead: &str) -> Self {
        let message = format!("{path} is not implemented; {instead}");
        let mut error = Self::new(
            StatusCode::NOT_IMPLEMENTED,
            "invalid_request_error",
            message,
        );
        error.code = Some("not_implemented");
        error
    }

    pub fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not answer to {method}");
        let mut error = Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            message,
        );
        error.code = Some("method_not_allowed");
        error
    }

    pub fn body_too_large(limit_bytes: usize) -> Self {
        let message = format!("the request body is larger than the limit of {limit_bytes} bytes");
        let mut error = Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            message,
        );
        error.code = Some("body_too_large");
        error
    }

    pub fn wrong_key() -> Self {
        let message = "this server asks for its API key as `Authorization: Bearer <key>`";
        let mut error = Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message);
        error.code = Some("invalid_api_key");
        error
    }

    pub fn queue_full(limit: usize) -> Self {
        let message =
            format!("the server holds {limit} requests already, its limit; try again later");
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        error.code = Some("queue_full");
        error.retry_after_s = Some(1);
        error
    }

    /// Still loading, or shutting down.
    pub fn unavailable(message: impl Into<String>) -> Self {
        let mut error = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "service_unavailable_error",
            message,
        );
        error.code = Some("unavailable");
        error.retry_after_s = Some(1);
        error
    }

    pub fn internal(message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message);
        error.code = Some("internal_error");
        error
    }

    /// The JSON object that clients get.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
