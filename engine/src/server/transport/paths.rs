//! Normalises paths: a trailing slash is ignored.
//!
//! Runs before authentication and routing, so both see one spelling.

use axum::extract::Request;
use axum::http::Uri;
use axum::http::uri::PathAndQuery;
use axum::middleware::Next;
use axum::response::Response;

pub async fn without_last_slash(mut request: Request, next: Next) -> Response {
    if let Some(uri) = shortened(request.uri()) {
        *request.uri_mut() = uri;
    }
    next.run(request).await
}

fn shortened(uri: &Uri) -> Option<Uri> {
    let path = uri.path().strip_suffix('/')?;
    if path.is_empty() || path.ends_with('/') {
        return None;
    }
    let query = uri.query().map(|query| format!("?{query}"));
    let text = format!("{path}{}", query.unwrap_or_default());
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(text.parse::<PathAndQuery>().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slash_at_the_end_goes_and_nothing_else() {
        for (path, expected) in [
            ("/v1/models/", Some("/v1/models")),
            ("/v1/models/?a=b/", Some("/v1/models?a=b/")),
            ("/v1/models/org/name/", Some("/v1/models/org/name")),
            ("http://host/v1/", Some("http://host/v1")),
            ("/v1/models", None),
            ("/v1/models?a=/", None),
            ("/", None),
            ("//", None),
            ("/v1//", None),
            ("*", None),
        ] {
            let uri: Uri = path.parse().expect("a URI");
            let found = shortened(&uri).map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), expected, "{path}");
        }
    }
}
