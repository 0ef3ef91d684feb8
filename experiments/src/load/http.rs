//! HTTP to one server: an address, and a connection per request.
//!
//! A connection is opened before the request's clock starts, so a slow accept queue shows up
//! as waiting (`sent_s - scheduled_s`) and not as time to first token. Deliberately absent:
//! TLS, redirects, proxies: what is measured is a server, not the way to it.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Enough for `/metrics` and error messages.
const MAX_BODY_BYTES: usize = 8 << 20;

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("base URL `{url}`: {problem}; it looks like http://127.0.0.1:8000/v1")]
    BaseUrl { url: String, problem: String },
    #[error("{address} cannot be reached: {source}")]
    Connect {
        address: String,
        source: std::io::Error,
    },
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    #[error("no answer within {0} s")]
    TimedOut(f64),
    #[error("status {status}: {body}")]
    Status { status: u16, body: String },
    #[error("the request cannot be written: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("the answer cannot be read: {0}")]
    Body(String),
}

/// Where an OpenAI-compatible server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    host: String,
    port: u16,
    /// Prefix of `/completions`, `/models`: `/v1`.
    api_path: String,
    /// Prefix of `/health`, `/metrics`: the API's without `/v1`.
    root_path: String,
    pub api_key: Option<String>,
}

impl BaseUrl {
    /// As the OpenAI clients take it: `http://host:port/v1`. A bare `http://host:port` gets
    /// the `/v1`; any other path is taken as it is.
    ///
    /// # Errors
    ///
    /// [`HttpError::BaseUrl`] if it is no URL, its scheme is not `http`, or it has a query, a
    /// user, no host, or a port that is no number.
    pub fn parse(url: &str, api_key: Option<String>) -> Result<Self, HttpError> {
        let refuse = |problem: String| HttpError::BaseUrl {
            url: without_user(url),
            problem,
        };
        let uri: Uri = url
            .parse()
            .map_err(|error: hyper::http::uri::InvalidUri| refuse(error.to_string()))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(scheme) => return Err(refuse(format!("`{scheme}` is not supported, http is"))),
            None => return Err(refuse("it has no scheme".into())),
        }
        if uri.query().is_some() {
            return Err(refuse("it has a query".into()));
        }
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err(refuse(
                "it names a user; a key for the server goes into OPENAI_API_KEY".into(),
            ));
        }
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .ok_or_else(|| refuse("it has no host".into()))?;
        let port = match authority.get(host.len()..).unwrap_or_default() {
            "" => 80,
            typed => typed
                .trim_start_matches(':')
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| refuse(format!("port `{}`: must be 1 to 65535", &typed[1..])))?,
        };
        let api_path = match uri.path().trim_end_matches('/') {
            "" => "/v1",
            path => path,
        };
        Ok(Self {
            host: host.into(),
            port,
            root_path: api_path.strip_suffix("/v1").unwrap_or(api_path).into(),
            api_path: api_path.into(),
            api_key,
        })
    }

    /// Whether anything listens there, asked for until `limit`: a server may be about to start.
    pub(crate) async fn probe(&self, limit: Duration) -> Result<(), HttpError> {
        const PAUSE: Duration = Duration::from_millis(250);
        let deadline = Instant::now() + limit;
        loop {
            let attempt = timeout(limit, TcpStream::connect((self.host_name(), self.port))).await;
            let source = match attempt {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(source)) => source,
                Err(_) => std::io::Error::from(std::io::ErrorKind::TimedOut),
            };
            if Instant::now() + PAUSE >= deadline {
                return Err(HttpError::Connect {
                    address: self.address(),
                    source,
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub fn loopback(port: u16) -> Self {
        Self {
            host: "127.0.0.1".into(),
            port,
            api_path: "/v1".into(),
            root_path: String::new(),
            api_key: None,
        }
    }

    /// Brackets belong to an IPv6 address in a URL, not in a host name.
    fn host_name(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub fn display(&self) -> String {
        format!("http://{}{}", self.address(), self.api_path)
    }

    /// `GET` of a path beside the API (`/health`, `/metrics`, `/server_info`).
    pub(crate) async fn get_root(&self, path: &str, limit: Duration) -> Result<Bytes, HttpError> {
        self.get(&format!("{}{path}", self.root_path), limit).await
    }

    /// `GET` of a path of the API (`/models`).
    pub(crate) async fn get_api(&self, path: &str, limit: Duration) -> Result<Bytes, HttpError> {
        self.get(&format!("{}{path}", self.api_path), limit).await
    }

    /// `POST` of JSON to a path of the API, answered in one piece.
    pub(crate) async fn ask_api(
        &self,
        path: &str,
        json: &Value,
        limit: Duration,
    ) -> Result<Bytes, HttpError> {
        let request = self.post(path, Bytes::from(json.to_string()))?;
        self.exchange(request, limit).await
    }

    /// `POST` of JSON to a path beside the API (`/tokenize`).
    pub(crate) async fn ask_root(
        &self,
        path: &str,
        json: &Value,
        limit: Duration,
    ) -> Result<Bytes, HttpError> {
        let path = format!("{}{path}", self.root_path);
        let request = self.request(Method::POST, &path, Bytes::from(json.to_string()))?;
        self.exchange(request, limit).await
    }

    async fn get(&self, path: &str, limit: Duration) -> Result<Bytes, HttpError> {
        let request = self.request(Method::GET, path, Bytes::new())?;
        self.exchange(request, limit).await
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        limit: Duration,
    ) -> Result<Bytes, HttpError> {
        let exchange = async {
            let mut connection = self.connect().await?;
            read_whole(connection.send_request(request).await?).await
        };
        timeout(limit, exchange)
            .await
            .map_err(|_| HttpError::TimedOut(limit.as_secs_f64()))?
    }

    pub(crate) async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, HttpError> {
        let unreachable = |source| HttpError::Connect {
            address: self.address(),
            source,
        };
        let stream = TcpStream::connect((self.host_name(), self.port))
            .await
            .map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the exchange; an error there reaches the caller through the body.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// A JSON request to a path of the API.
    pub(crate) fn post(&self, path: &str, json: Bytes) -> Result<Request<Full<Bytes>>, HttpError> {
        self.request(Method::POST, &format!("{}{path}", self.api_path), json)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, HttpError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address());
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(key) = &self.api_key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        Ok(request.body(Full::new(body))?)
    }
}

/// For a message: a password does not belong into one.
fn without_user(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    match url[start..end].rfind('@') {
        Some(at) => format!("{}…{}", &url[..start], &url[start + at..]),
        None => url.into(),
    }
}

/// The body of a response that succeeded; any other status is an error that carries it.
async fn read_whole(response: Response<Incoming>) -> Result<Bytes, HttpError> {
    if !response.status().is_success() {
        return Err(status_error(response).await);
    }
    read_body(response.into_body()).await
}

/// A response with an error status as the error it is.
pub async fn status_error(response: Response<Incoming>) -> HttpError {
    let status = response.status().as_u16();
    match read_body(response.into_body()).await {
        Ok(body) => HttpError::Status {
            status,
            body: excerpt(&body),
        },
        Err(error) => HttpError::Status {
            status,
            body: error.to_string(),
        },
    }
}

async fn read_body(body: Incoming) -> Result<Bytes, HttpError> {
    let whole = Limited::new(body, MAX_BODY_BYTES).collect().await;
    Ok(whole
        .map_err(|error| HttpError::Body(error.to_string()))?
        .to_bytes())
}

/// The start of a body, for a message.
fn excerpt(body: &[u8]) -> String {
    const MAX_CHARS: usize = 500;
    let text = String::from_utf8_lossy(body);
    let mut start: String = text.trim().chars().take(MAX_CHARS).collect();
    if start.len() < text.trim().len() {
        start.push('…');
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_as_the_openai_clients_take_them() {
        let parse = |url: &str| {
            BaseUrl::parse(url, None).map(|base| (base.address(), base.api_path, base.root_path))
        };
        let parts = |address: &str, api: &str, root: &str| {
            (address.to_string(), api.to_string(), root.to_string())
        };
        assert_eq!(
            parse("http://127.0.0.1:8000").ok(),
            Some(parts("127.0.0.1:8000", "/v1", ""))
        );
        assert_eq!(parse("http://h:1/v1/").ok(), Some(parts("h:1", "/v1", "")));
        assert_eq!(
            parse("http://h/gpu0/v1").ok(),
            Some(parts("h:80", "/gpu0/v1", "/gpu0"))
        );
        assert_eq!(
            parse("http://h/openai").ok(),
            Some(parts("h:80", "/openai", "/openai"))
        );
        assert_eq!(
            parse("http://[::1]:9/v1").ok(),
            Some(parts("[::1]:9", "/v1", ""))
        );
    }

    #[test]
    fn refused_base_urls_are_named() {
        for (url, problem) in [
            ("https://h/v1", "`https` is not supported"),
            ("h:80", "scheme"),
            ("http://h/v1?a=b", "query"),
            ("http://h:99999/v1", "port `99999`: must be 1 to 65535"),
            ("http://h:0/v1", "port `0`"),
            ("http://[::1]:70000", "port `70000`"),
        ] {
            let error = BaseUrl::parse(url, None)
                .expect_err("not a base URL")
                .to_string();
            assert!(error.contains(url) && error.contains(problem), "{error}");
        }
        let error = BaseUrl::parse("http://me:secret@h:1/v1", None)
            .expect_err("a user")
            .to_string();
        assert!(
            error.contains("http://…@h:1/v1") && error.contains("OPENAI_API_KEY"),
            "{error}"
        );
    }
}
