//! The server span of a request that generates text, from its head to the end of its response.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};

use crate::server::error::ApiError;
use crate::server::state::AppState;
use crate::traces::RequestTrace;

const HEADER: HeaderName = HeaderName::from_static("traceparent");

/// `error.type` of a request whose client left before the end of the response.
const ABANDONED: &str = "client_disconnected";

pub async fn apply(
    State(state): State<Arc<AppState>>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let operation = operation_of(path).filter(|_| request.method() == Method::POST);
    let (Some(tracer), Some(operation)) = (state.tracer.get(), operation) else {
        return next.run(request).await;
    };
    let begun = tracer.begin(request.headers(), operation, path);
    let open = begun.trace.map(|trace| {
        request.extensions_mut().insert(Arc::clone(&trace));
        Open {
            trace,
            is_whole: false,
        }
    });
    let mut response = next.run(request).await;
    let traceparent = begun.traceparent.as_deref().map(HeaderValue::from_str);
    if let Some(Ok(traceparent)) = traceparent {
        response.headers_mut().insert(HEADER, traceparent);
    }
    let Some(mut open) = open else {
        return response;
    };
    open.trace.answered(response.status().as_u16());
    if let Some(error) = response.extensions().get::<ApiError>() {
        let is_ours = error.status().is_server_error();
        open.trace.failed(error.code.word(), is_ours);
    }
    open.is_whole = response.body().is_end_stream();
    response.map(|body| Body::new(TracedBody { body, open }))
}

/// OpenTelemetry's word for what a path does; `None` for one that generates nothing.
fn operation_of(path: &str) -> Option<&'static str> {
    match path.strip_prefix("/v1").unwrap_or(path) {
        "/chat/completions" | "/messages" | "/responses" => Some("chat"),
        "/completions" => Some("text_completion"),
        "/generate" if path == "/generate" => Some("text_completion"),
        _ => None,
    }
}

/// A request whose response has not ended. Dropped, it has.
struct Open {
    trace: Arc<RequestTrace>,
    is_whole: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.is_whole {
            self.trace.failed(ABANDONED, false);
        }
        self.trace.close();
    }
}

struct TracedBody {
    body: Body,
    open: Open,
}

impl HttpBody for TracedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        // The server does not ask a body that has ended for its end.
        self.open.is_whole |= frame.is_none() || self.body.is_end_stream();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
