//! The exporter's HTTP client: the one that fetches models. It blocks, on the exporter's own thread.

use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};

/// As OTLP's exporters wait by default.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_RESPONSE_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct BlockingClient(ureq::Agent);

impl BlockingClient {
    pub fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            .build();
        Self(config.into())
    }
}

#[async_trait]
impl HttpClient for BlockingClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let response = self.0.run(request.map(|body| body.to_vec()))?;
        let (parts, mut body) = response.into_parts();
        let limited = body.with_config().limit(MAX_RESPONSE_BYTES);
        let bytes = Bytes::from(limited.read_to_vec()?);
        Ok(Response::from_parts(parts, bytes))
    }
}
