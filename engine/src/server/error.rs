//! Errors as OpenAI's clients expect them: `{"error": {message, type, param, code}}`.
//!
//! The message names the field, the value and the limit. Status, type and retry time come from the
//! code's entry in [the catalogue](crate::errors).

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine_loop::SubmitError;
use crate::errors::Code;
use crate::request::Failure;
use crate::server::request::fields::show;

/// One refused or failed HTTP request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: Code,
    pub message: String,
    /// The offending field as a path: `messages[0].role`.
    pub param: Option<String>,
}

impl ApiError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            param: None,
        }
    }

    /// An error about one field.
    pub fn of_field(code: Code, param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::new(code, message)
        }
    }

    /// The request cannot be served as given.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::of_field(Code::InvalidValue, param, message)
    }

    /// Like [`Self::invalid`], about the body as a whole.
    pub fn invalid_body(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidJson, message)
    }

    /// A field that is known but not supported.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::of_field(Code::UnsupportedParameter, param, message)
    }

    /// Prompt and output exceed the model's context.
    pub fn too_long(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::of_field(Code::ContextLengthExceeded, param, message)
    }

    pub fn unknown_model(name: &str, known: &[String]) -> Self {
        let message = format!(
            "the model {} does not exist; this server has: {}",
            show(&Value::from(name)),
            known.join(", ")
        );
        Self::of_field(Code::ModelNotFound, "model", message)
    }

    pub fn unknown_path(path: &str) -> Self {
        Self::new(Code::UnknownUrl, format!("there is nothing at {path}"))
    }

    /// An endpoint of OpenAI's that this server does not have.
    pub fn not_implemented(path: &str, instead: &str) -> Self {
        let message = format!("{path} is not implemented; {instead}");
        Self::new(Code::NotImplemented, message)
    }

    pub fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not answer to {method}");
        Self::new(Code::MethodNotAllowed, message)
    }

    pub fn body_too_large(limit_bytes: usize) -> Self {
        let message = format!("the request body is larger than the limit of {limit_bytes} bytes");
        Self::new(Code::BodyTooLarge, message)
    }

    /// A body with a content encoding.
    pub fn encoded_body(encoding: &str) -> Self {
        let message = format!(
            "the request's Content-Encoding is {}, which this server does not unpack; send the \
             JSON as it is, without that header",
            show(&Value::from(encoding))
        );
        Self::new(Code::UnsupportedEncoding, message)
    }

    pub fn slow_body(n_bytes: usize, limit: Duration) -> Self {
        let message = format!(
            "the body did not end within {} s, the limit (--client-timeout-s); {n_bytes} bytes came",
            limit.as_secs_f64()
        );
        Self::new(Code::SlowBody, message)
    }

    pub fn wrong_key() -> Self {
        let message = "this server asks for its API key as `Authorization: Bearer <key>` or \
                       `X-Api-Key: <key>`";
        Self::new(Code::InvalidApiKey, message)
    }

    pub fn queue_full(limit: usize) -> Self {
        let message =
            format!("the server holds {limit} requests already, its limit; try again later");
        Self::new(Code::QueueFull, message)
    }

    pub fn loading() -> Self {
        Self::new(Code::ModelLoading, "the model is still being loaded")
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::InternalError, message)
    }

    pub fn status(&self) -> StatusCode {
        // Every code that a request can get has a valid status; a test checks them all.
        let status = self.code.entry().status.unwrap_or(500);
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The JSON object that clients receive.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.code.entry().kind,
            "param": self.param,
            "code": self.code.word(),
        }})
    }
}

impl ApiError {
    /// The JSON object that Anthropic's clients receive.
    pub fn anthropic_body(&self) -> Value {
        let kind = match self.status().as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        json!({"type": "error", "error": {
            "type": kind,
            "message": self.message,
            "param": self.param,
            "code": self.code.word(),
        }})
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let code = match failure {
            Failure::Step { .. } => Code::StepFailed,
            Failure::Logits { .. } => Code::LogitsNotFinite,
            Failure::Sampling { .. } => Code::SamplingFailed,
            Failure::DeviceLost { .. } => Code::DeviceLost,
            Failure::QueueTimeout { .. } => Code::QueueTimeout,
            Failure::RequestTimeout { .. } => Code::RequestTimeout,
            Failure::ShuttingDown => Code::ShuttingDown,
            Failure::Suspended => Code::ModelAsleep,
            Failure::Form { .. } => Code::GrammarFailed,
            Failure::Stopped => Code::EngineStopped,
            Failure::Guide { .. } | Failure::Rejected { .. } => Code::InternalError,
        };
        Self::new(code, failure.to_string())
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::QueueFull { limit } => Self::queue_full(limit),
            // Lengths were checked before, so any other rejection is an internal error.
            SubmitError::Rejected(error) => Self::internal(error.to_string()),
            SubmitError::ShuttingDown => Self::new(Code::ShuttingDown, error.to_string()),
            SubmitError::Suspended => Self::new(Code::ModelAsleep, error.to_string()),
            SubmitError::Stopped => Self::new(Code::EngineStopped, error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.body())).into_response();
        if let Some(seconds) = self.code.entry().retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == Code::InvalidApiKey {
            let scheme = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        // Counted when the response is sent; some clients get another body.
        response.extensions_mut().insert(self.code);
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guide::GuideError;

    #[test]
    fn a_form_is_the_clients_and_what_breaks_while_it_is_followed_the_servers() {
        let what = "states";
        let large = Failure::from(GuideError::TooLarge { what, limit: 5 });
        let error = ApiError::from(large);
        assert_eq!(
            (error.status().as_u16(), error.code),
            (400, Code::GrammarFailed)
        );
        assert!(error.message.contains("more than 5 states"), "{error}");
        let dead_end = ApiError::from(Failure::from(GuideError::DeadEnd));
        assert_eq!(dead_end.code, Code::GrammarFailed);
        let broken = GuideError::Broken("panic: index out of bounds".to_owned());
        let error = ApiError::from(Failure::from(broken));
        assert_eq!(
            (error.status().as_u16(), error.code),
            (500, Code::InternalError)
        );
    }

    #[test]
    fn every_code_of_a_request_has_its_status() {
        for code in Code::ALL {
            if let Some(status) = code.entry().status {
                assert_eq!(
                    ApiError::new(*code, "x").status().as_u16(),
                    status,
                    "{code}"
                );
            }
        }
    }
}
