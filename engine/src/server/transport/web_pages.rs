//! Protects a server without a key on the loopback interface from web pages, since any page open in
//! a browser on the same machine can reach it.
//!
//! A page can send a POST without reading the response; the browser then names the page in
//! `Origin`, and a foreign origin is refused. With DNS rebinding, a page's own name resolves to
//! this machine, so its browser treats the server as the page's; then `Host` has that name, and
//! only names that cannot be registered are accepted. Other programs send no `Origin`, and
//! `localhost` or an address as `Host`.
//! Deliberately absent: this check if a key is required (a page has none), and if the server
//! listens on other interfaces (a warning was logged).

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::config::{AllowedOrigins, HttpConfig, is_loopback};
use crate::errors::Code;
use crate::server::error::ApiError;
use crate::server::request::fields::show;
use crate::server::state::AppState;

/// Paths whose GET has an effect.
const GETS_WITH_EFFECT: [&str; 2] = ["/flush_cache", "/reset_prefix_cache"];
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

pub async fn check(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    if is_checked(&state.http)
        && let Err(error) = check_request(&request, &state.http.allowed_origins)
    {
        return error.into_response();
    }
    next.run(request).await
}

fn is_checked(http: &HttpConfig) -> bool {
    http.api_key.is_none() && is_loopback(&http.host)
}

fn check_request(request: &Request, allowed: &AllowedOrigins) -> Result<(), ApiError> {
    let headers = request.headers();
    let authority = request
        .uri()
        .authority()
        .map(axum::http::uri::Authority::as_str);
    let host = authority.or_else(|| text(headers, &header::HOST));
    if let Some(host) = host.map(host_of)
        && !is_local_name(host)
    {
        return Err(refusal(format!(
            "Host is {}; without --api-key a server on the loopback interface answers to localhost, \
             addresses and local names only",
            show(&host.into())
        )));
    }
    // A browser does not let a page read a response that does not allow it; requests with an effect
    // are POSTs.
    let is_reading = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    if !is_reading
        && let Some(origin) = text(headers, &header::ORIGIN)
        && !is_local_origin(origin, host)
        && !is_allowed(origin, allowed)
    {
        return Err(refusal(format!(
            "Origin is {}; without --api-key a server on the loopback interface takes no requests \
             from foreign web pages",
            show(&origin.into())
        )));
    }
    // A page's image or link sends a GET without `Origin`; browsers report its site separately.
    let path = request.uri().path().trim_end_matches('/');
    if is_reading
        && GETS_WITH_EFFECT.iter().any(|end| path.ends_with(end))
        && matches!(
            text(headers, &SEC_FETCH_SITE),
            Some("cross-site" | "same-site")
        )
    {
        return Err(refusal(format!(
            "{path} was asked for by a foreign web page; without --api-key a server on the loopback \
             interface does not do it for one"
        )));
    }
    Ok(())
}

/// Whether `--allowed-origins` permits this origin.
fn is_allowed(origin: &str, allowed: &AllowedOrigins) -> bool {
    match allowed {
        AllowedOrigins::Any => true,
        AllowedOrigins::These(origins) => origins.iter().any(|o| o.eq_ignore_ascii_case(origin)),
        AllowedOrigins::None | AllowedOrigins::AnyWithKey => false,
    }
}

fn refusal(message: String) -> ApiError {
    ApiError::new(Code::ForeignWebPage, message)
}

/// A header that is not text counts as foreign too.
fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    let value = headers.get(name)?;
    Some(value.to_str().unwrap_or("(no text)"))
}

/// Removes the port.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    // An IPv6 address without brackets has several colons.
    match authority.split_once(':') {
        Some((host, port)) if !port.contains(':') => host,
        _ => authority,
    }
}

/// An address, or a name that cannot be registered in the public DNS.
fn is_local_name(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let ends = [".localhost", ".local", ".internal"];
    host.parse::<IpAddr>().is_ok()
        || !host.contains(['.', ' ', '(', ':'])
        || ends.iter().any(|end| host.ends_with(end))
}

/// The origin of a page served by this machine, or of a program that displays its own pages.
fn is_local_origin(origin: &str, host: Option<&str>) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else {
        // `null`: a page in a sandbox, whose origin is hidden.
        return false;
    };
    if !["http", "https"].contains(&scheme) {
        return true;
    }
    host == Some(authority) || is_loopback(host_of(authority)) || {
        let name = host_of(authority).to_ascii_lowercase();
        name.ends_with(".localhost")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(method: &str, headers: &[(&str, &str)]) -> Option<Code> {
        let mut request = axum::http::Request::builder().method(method).uri("/x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(axum::body::Body::empty()).expect("a request");
        check_request(&request, &AllowedOrigins::None)
            .err()
            .map(|error| error.code)
    }

    #[test]
    fn hosts_are_local_names_and_addresses() {
        for host in [
            "localhost",
            "localhost:30000",
            "LOCALHOST:30000",
            "127.0.0.1:30000",
            "[::1]:30000",
            "192.168.0.7",
            "engine:30000",
            "a.localhost",
            "my-box.local",
            "host.docker.internal:30000",
            "",
        ] {
            assert_eq!(code("POST", &[("host", host)]), None, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:30000",
            "localhost.evil.com",
            "127.0.0.1.nip.io",
        ] {
            let foreign = Some(Code::ForeignWebPage);
            assert_eq!(code("GET", &[("host", host)]), foreign, "{host}");
        }
        assert_eq!(code("GET", &[]), None);
    }

    #[test]
    fn foreign_pages_send_nothing_that_has_an_effect() {
        let host = ("host", "localhost:30000");
        for origin in [
            "http://localhost:3000",
            "https://127.0.0.1",
            "http://[::1]:8080",
            "http://app.localhost",
            "http://localhost:30000",
            "tauri://localhost",
            "vscode-webview://x",
            "chrome-extension://abc",
        ] {
            assert_eq!(code("POST", &[host, ("origin", origin)]), None, "{origin}");
        }
        for origin in [
            "https://evil.example",
            "null",
            "http://localhost.evil.com",
            "http://10.0.0.1",
        ] {
            let foreign = Some(Code::ForeignWebPage);
            assert_eq!(
                code("POST", &[host, ("origin", origin)]),
                foreign,
                "{origin}"
            );
            assert_eq!(code("GET", &[host, ("origin", origin)]), None, "{origin}");
            assert_eq!(
                code("OPTIONS", &[host, ("origin", origin)]),
                None,
                "{origin}"
            );
        }
    }
}
