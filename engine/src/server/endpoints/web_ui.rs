//! `GET /`: the page for people, whose files are below `server/page/` and compiled in.
//!
//! The page is one more client of the public API: it has no endpoint of its own. Its files need no
//! key, and its requests do. The policy lets it load scripts and styles of this server only, and
//! lets no other page show it in a frame. Deliberately absent: files outside the binary.

use std::sync::{Arc, LazyLock};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::server::error::ApiError;
use crate::server::state::AppState;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// `require-trusted-types-for`: no script turns a text into HTML.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

/// Path, content type, text.
type PageFile = (&'static str, &'static str, &'static str);

macro_rules! page_file {
    ($path:literal, $kind:ident, $name:literal) => {
        ($path, $kind, include_str!(concat!("../page/", $name)))
    };
}

const FILES: [PageFile; 14] = [
    page_file!("/", HTML, "index.html"),
    page_file!("/assets/page.css", CSS, "page.css"),
    page_file!("/assets/icon.svg", SVG, "icon.svg"),
    page_file!("/assets/page.js", SCRIPT, "page.js"),
    page_file!("/assets/api.js", SCRIPT, "api.js"),
    page_file!("/assets/chat.js", SCRIPT, "chat.js"),
    page_file!("/assets/conversations.js", SCRIPT, "conversations.js"),
    page_file!("/assets/elements.js", SCRIPT, "elements.js"),
    page_file!("/assets/lab.js", SCRIPT, "lab.js"),
    page_file!("/assets/markdown.js", SCRIPT, "markdown.js"),
    page_file!("/assets/metrics.js", SCRIPT, "metrics.js"),
    page_file!("/assets/models.js", SCRIPT, "models.js"),
    page_file!("/assets/settings.js", SCRIPT, "settings.js"),
    page_file!("/assets/words.js", SCRIPT, "words.js"),
];

/// One for each file: the digest of its text.
static ETAGS: LazyLock<[String; FILES.len()]> = LazyLock::new(|| {
    FILES.map(|(_, _, text)| {
        let digest = Sha256::digest(text);
        let hex: String = digest[..12].iter().map(|b| format!("{b:02x}")).collect();
        format!("\"{hex}\"")
    })
});

/// Whether this is the path of one of the page's files.
pub(crate) fn has_file(path: &str) -> bool {
    position(path).is_some()
}

fn position(path: &str) -> Option<usize> {
    FILES.iter().position(|(known, ..)| *known == path)
}

pub async fn file(
    State(state): State<Arc<AppState>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let found = position(uri.path()).filter(|_| state.http.has_web_ui);
    let found = found.ok_or_else(|| ApiError::unknown_path(uri.path()))?;
    let (_, kind, text) = FILES[found];
    let etag = ETAGS[found].as_str();
    let common = [
        (header::ETAG, etag),
        // A browser keeps a copy and asks whether it is still the same: a new version is seen at once.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    if has_copy(&headers, etag) {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    Ok((common, [(header::CONTENT_TYPE, kind)], text).into_response())
}

/// Whether `If-None-Match` names this version. A proxy that compresses marks its tag as weak.
fn has_copy(headers: &HeaderMap, etag: &str) -> bool {
    let sent = headers.get_all(header::IF_NONE_MATCH).iter();
    let texts = sent.filter_map(|value| value.to_str().ok());
    let mut tags = texts.flat_map(|text| text.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_only_files_that_are_served() {
        let mut n_names = 0;
        for (path, kind, text) in FILES {
            let start = if kind == SCRIPT {
                "from \"./"
            } else {
                "=\"/assets/"
            };
            for rest in text.split(start).skip(1) {
                let name = rest.split('"').next().unwrap_or_default();
                assert!(has_file(&format!("/assets/{name}")), "{path}: {name}");
                n_names += 1;
            }
            // One element kept as `.innerHTML` would make a model's text a part of the page.
            for way in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "eval(",
                "style=\"",
            ] {
                assert!(!text.contains(way), "{path} has {way}");
            }
            assert!(!text.contains("http://") || kind == SVG || path == "/assets/elements.js");
            assert!(!text.contains("https://"), "{path} names another server");
        }
        assert!(n_names > 20, "{n_names}");
    }

    #[test]
    fn a_copy_is_known_by_any_of_its_tags() {
        let has = |sent: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, sent.parse().expect("a value"));
            has_copy(&headers, "\"abc\"")
        };
        for same in ["\"abc\"", "W/\"abc\"", "\"x\", \"abc\"", "*"] {
            assert!(has(same), "{same}");
        }
        for other in ["\"abd\"", "abc", ""] {
            assert!(!has(other), "{other}");
        }
    }
}
