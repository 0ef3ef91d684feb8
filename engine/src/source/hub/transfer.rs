//! Requests to the hub. Redirects are followed here, so that the token is sent only to the hub's
//! own origin (scheme, host and port): elsewhere, the redirect's URL itself carries the
//! authorisation.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use ureq::http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderName, LOCATION, RANGE,
};
use ureq::http::uri::{Authority, Scheme};
use ureq::http::{Response, StatusCode, Uri};
use ureq::{Agent, Body};

const MAX_REDIRECTS: usize = 10;
/// Retries after a broken connection; each resumes where the last one stopped.
const MAX_RETRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(300);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const BUFFER_BYTES: usize = 64 << 10;
/// The etag of a redirect's target.
const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");

#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error("request error: {0}")]
    Request(#[from] Box<ureq::Error>),
    #[error("the answer {0}")]
    Answer(String),
    #[error("I/O error {0}")]
    Io(#[from] std::io::Error),
    #[error("{0:?} is no address")]
    Address(String),
}

impl TransferError {
    /// Whether a retry may succeed.
    fn is_passing(&self) -> bool {
        match self {
            Self::Request(error) => match **error {
                ureq::Error::StatusCode(status) => status == 429 || status >= 500,
                _ => true,
            },
            Self::Answer(_) | Self::Io(_) => true,
            Self::Address(_) => false,
        }
    }
}

/// The hub's description of a file.
pub(super) struct Described {
    pub etag: String,
    pub n_bytes: u64,
}

pub(super) struct Transfer {
    agent: Agent,
    endpoint: Uri,
    token: Option<String>,
}

/// The response after all redirects.
struct Answer {
    response: Response<Body>,
    /// The file's etag in the hub's last response.
    etag: Option<String>,
}

impl Transfer {
    pub fn new(endpoint: &str, token: Option<String>) -> Result<Self, TransferError> {
        let agent = Agent::config_builder().max_redirects(0).build().into();
        Ok(Self {
            agent,
            endpoint: address(endpoint)?,
            token,
        })
    }

    /// A JSON document from the hub.
    pub fn json(&self, url: &str, max_bytes: u64) -> Result<serde_json::Value, TransferError> {
        let body = self.get(url, None, None)?.response.into_body();
        let reader = body.into_reader().take(max_bytes);
        serde_json::from_reader(std::io::BufReader::new(reader))
            .map_err(|error| TransferError::Answer(format!("is not the JSON expected: {error}")))
    }

    pub fn describe(&self, url: &str) -> Result<Described, TransferError> {
        let answer = self.get(url, Some("bytes=0-0"), None)?;
        let lacks = |what: &str| TransferError::Answer(format!("has no {what}"));
        let n_bytes = n_bytes_of(&answer.response).ok_or_else(|| lacks("content-range"))?;
        let etag = answer.etag.ok_or_else(|| lacks("etag"))?;
        let etag = etag.trim_start_matches("W/").replace('"', "");
        Ok(Described { etag, n_bytes })
    }

    /// The first `max_bytes` of a file or all of it, and its size.
    pub fn beginning(
        &self,
        url: &str,
        max_bytes: u64,
        patience: Duration,
    ) -> Result<(Vec<u8>, u64), TransferError> {
        let range = format!("bytes=0-{}", max_bytes - 1);
        let answer = self.get(url, Some(&range), Some(patience))?;
        let n_bytes = n_bytes_of(&answer.response)
            .ok_or_else(|| TransferError::Answer("has no range".to_owned()))?;
        let mut beginning = Vec::new();
        let body = answer.response.into_body().into_reader();
        body.take(max_bytes).read_to_end(&mut beginning)?;
        Ok((beginning, n_bytes))
    }

    /// Appends the rest of the file to `part`, up to `n_bytes`. `report` gets the number of bytes
    /// present.
    pub fn complete(
        &self,
        url: &str,
        part: &Path,
        n_bytes: u64,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), TransferError> {
        let mut pause = FIRST_PAUSE;
        let mut n_failed = 0;
        loop {
            match self.append(url, part, n_bytes, report) {
                Ok(()) => return Ok(()),
                Err(error) if n_failed < MAX_RETRIES && error.is_passing() => {
                    tracing::debug!(url, %error, "tried again");
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    n_failed += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn append(
        &self,
        url: &str,
        part: &Path,
        n_bytes: u64,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), TransferError> {
        let mut file = OpenOptions::new().append(true).create(true).open(part)?;
        let mut n_done = file.metadata()?.len();
        report(n_done);
        if n_done >= n_bytes {
            return Ok(());
        }
        let answer = self.get(url, Some(&format!("bytes={n_done}-")), None)?;
        if n_done > 0 && first_byte_of(&answer.response) != Some(n_done) {
            // The server sends the whole file.
            file.set_len(0)?;
            n_done = 0;
        }
        let mut body = answer.response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        while n_done < n_bytes {
            let n_left = usize::try_from(n_bytes - n_done).unwrap_or(usize::MAX);
            let n_wanted = n_left.min(BUFFER_BYTES);
            let n_read = body.read(&mut buffer[..n_wanted])?;
            if n_read == 0 {
                let message = format!("ended after {n_done} of {n_bytes} bytes");
                return Err(TransferError::Answer(message));
            }
            file.write_all(&buffer[..n_read])?;
            n_done += n_read as u64;
            report(n_done);
        }
        Ok(())
    }

    fn get(
        &self,
        url: &str,
        range: Option<&str>,
        patience: Option<Duration>,
    ) -> Result<Answer, TransferError> {
        let mut url = address(url)?;
        let mut etag = None;
        for _ in 0..=MAX_REDIRECTS {
            let is_hubs_own = is_same_origin(&url, &self.endpoint);
            let mut request = self.agent.get(&url).header(ACCEPT_ENCODING, "identity");
            if let Some(range) = range {
                request = request.header(RANGE, range);
            }
            if let Some(token) = self.token.as_ref().filter(|_| is_hubs_own) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let request = request.config().timeout_global(patience).build();
            let response = request.call().map_err(Box::new)?;
            if is_hubs_own || etag.is_none() {
                etag = text(&response, &LINKED_ETAG)
                    .or_else(|| text(&response, &ETAG))
                    .or(etag);
            }
            if !response.status().is_redirection() {
                return Ok(Answer { response, etag });
            }
            let location = text(&response, &LOCATION)
                .ok_or_else(|| TransferError::Answer("leads nowhere".to_owned()))?;
            url = resolved(&url, &location)?;
        }
        let message = format!("leads on after {MAX_REDIRECTS} redirects");
        Err(TransferError::Answer(message))
    }
}

fn address(text: &str) -> Result<Uri, TransferError> {
    let parsed = text.parse::<Uri>().ok();
    let is_absolute = |uri: &Uri| uri.scheme().is_some() && uri.authority().is_some();
    parsed
        .filter(is_absolute)
        .ok_or_else(|| TransferError::Address(text.to_owned()))
}

fn text(response: &Response<Body>, name: &HeaderName) -> Option<String> {
    let value = response.headers().get(name)?;
    value.to_str().ok().map(str::to_owned)
}

/// Size of the whole file, after the slash of the range.
fn n_bytes_of(response: &Response<Body>) -> Option<u64> {
    let range = text(response, &CONTENT_RANGE)?;
    range.rsplit('/').next()?.parse().ok()
}

/// Offset of a partial response in the file; `None` for a whole one.
fn first_byte_of(response: &Response<Body>) -> Option<u64> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return None;
    }
    let range = text(response, &CONTENT_RANGE)?;
    let bytes = range.strip_prefix("bytes ")?;
    bytes.split('-').next()?.parse().ok()
}

/// The target of a redirect of `base`.
fn resolved(base: &Uri, location: &str) -> Result<Uri, TransferError> {
    let scheme = base.scheme_str().unwrap_or("https");
    if location.starts_with("//") {
        return address(&format!("{scheme}:{location}"));
    }
    if let Ok(uri) = address(location) {
        return Ok(uri);
    }
    let authority = base.authority().map_or("", Authority::as_str);
    if location.starts_with('/') {
        return address(&format!("{scheme}://{authority}{location}"));
    }
    let folder = base
        .path()
        .rsplit_once('/')
        .map_or("", |(folder, _)| folder);
    address(&format!("{scheme}://{authority}{folder}/{location}"))
}

fn is_same_origin(one: &Uri, other: &Uri) -> bool {
    let origin = |uri: &Uri| {
        let default = if uri.scheme() == Some(&Scheme::HTTP) {
            80
        } else {
            443
        };
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        (
            uri.scheme().cloned(),
            host,
            uri.port_u16().unwrap_or(default),
        )
    };
    origin(one) == origin(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_scheme_host_and_port() {
        let same = |one: &str, other: &str| {
            is_same_origin(&address(one).expect(one), &address(other).expect(other))
        };
        assert!(same("https://hub.co/a", "https://HUB.co:443/b?c"));
        assert!(same("http://127.0.0.1:8000/a", "http://127.0.0.1:8000"));
        assert!(!same("http://127.0.0.1:8000/a", "http://127.0.0.1:8001/a"));
        assert!(!same("https://hub.co/a", "http://hub.co/a"));
        assert!(!same("https://hub.co/a", "https://cdn.hub.co/a"));
    }

    #[test]
    fn redirects_lead_where_a_browser_would_go() {
        let base = address("https://hub.co:8443/org/name/x").expect("an address");
        for (location, expected) in [
            ("https://cdn.co/y?k=1", "https://cdn.co/y?k=1"),
            ("//cdn.co/y", "https://cdn.co/y"),
            ("/other/y", "https://hub.co:8443/other/y"),
            ("y", "https://hub.co:8443/org/name/y"),
        ] {
            let found = resolved(&base, location).expect(location);
            assert_eq!(found.to_string(), expected);
        }
    }
}
