//! `x-request-id` on every response: the client's own if it sends one, otherwise a generated one.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
const MAX_BYTES: usize = 128;

pub async fn apply(request: Request, next: Next) -> Response {
    let sent = request.headers().get(&HEADER);
    let id = sent.filter(|id| is_plain(id)).cloned().or_else(made);
    let mut response = next.run(request).await;
    if let Some(id) = id {
        response.headers_mut().insert(HEADER, id);
    }
    response
}

/// Whether the id is safe to echo.
fn is_plain(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    !bytes.is_empty() && bytes.len() <= MAX_BYTES && bytes.iter().all(u8::is_ascii_graphic)
}

fn made() -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("req_{:032x}", rand::random::<u128>())).ok()
}
