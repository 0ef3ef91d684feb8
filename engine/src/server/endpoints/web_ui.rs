//! `GET /`: the page for people, whose files are below `server/page/` and compiled in.
//!
//! The page is a client of the public API and has no endpoint of its own. Its files need no key;
//! its requests do. Its policy allows scripts, styles and requests of this server only, makes no
//! text into HTML, and lets no other page show it in a frame.

use std::sync::{Arc, LazyLock};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use crate::server::error::ApiError;
use crate::server::state::AppState;
use crate::source::digest;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

/// Path and text.
macro_rules! page_files {
    ($($name:literal),*) => {
        [("/", include_str!("../page/index.html")),
         $((concat!("/assets/", $name), include_str!(concat!("../page/", $name)))),*]
    };
}

const FILES: [(&str, &str); 14] = page_files![
    "page.css",
    "icon.svg",
    "page.js",
    "api.js",
    "chat.js",
    "conversations.js",
    "elements.js",
    "lab.js",
    "markdown.js",
    "metrics.js",
    "models.js",
    "settings.js",
    "words.js"
];

/// Digests of the texts.
static ETAGS: LazyLock<[String; FILES.len()]> =
    LazyLock::new(|| FILES.map(|(_, text)| format!("\"{}\"", digest::of_text(text))));

fn kind(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/html; charset=utf-8",
    }
}

fn position(path: &str) -> Option<usize> {
    FILES.iter().position(|(known, _)| *known == path)
}

/// Whether this is the path of one of the page's files.
pub(crate) fn has_file(path: &str) -> bool {
    position(path).is_some()
}

pub async fn file(
    State(state): State<Arc<AppState>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let path = uri.path();
    let found = position(path).filter(|_| state.http.has_web_ui);
    let found = found.ok_or_else(|| ApiError::unknown_path(path))?;
    let etag = ETAGS[found].as_str();
    let common = [
        (header::ETAG, etag),
        // A browser asks whether its copy is still the same, so a new version is seen at once.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    if has_copy(&headers, etag) {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    Ok((common, [(header::CONTENT_TYPE, kind(path))], FILES[found].1).into_response())
}

/// Whether `If-None-Match` names this version. A proxy that compresses marks its tag as weak.
fn has_copy(headers: &HeaderMap, etag: &str) -> bool {
    let sent = headers
        .get(header::IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok());
    let mut tags = sent.unwrap_or_default().split(',').map(str::trim);
    tags.any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_only_its_own_files_and_makes_no_html_of_texts() {
        let mut n_names = 0;
        for (path, text) in FILES {
            for start in ["from \"./", "=\"/assets/"] {
                for rest in text.split(start).skip(1) {
                    let name = rest.split('"').next().unwrap_or_default();
                    assert!(has_file(&format!("/assets/{name}")), "{path}: {name}");
                    n_names += 1;
                }
            }
            for refused in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "eval(",
                "https://",
            ] {
                assert!(!text.contains(refused), "{path} has {refused}");
            }
        }
        assert!(n_names > 20, "{n_names}");
    }
}
