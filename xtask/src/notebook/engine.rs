//! Passes requests on to the engine, whose page uses absolute paths.
//!
//! `Host` and `Origin` stay as the browser sent them, so that the engine's own checks of foreign pages
//! hold. Streams arrive piece by piece; a client that disconnects ends the engine's answer, too.

use std::io::{self, Read};
use std::time::Duration;

use tiny_http::{Request, Response};
use ureq::Agent;
use ureq::http;

use super::reply::{Pieces, Reply, header};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const MAX_BODY_BYTES: u64 = 64 << 20;
/// They concern one connection alone, or are set anew.
const OF_CONNECTION: [&str; 8] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

pub fn pass_on(mut request: Request, engine: &str) -> io::Result<()> {
    let mut body = Vec::new();
    let mut limited = request.as_reader().take(MAX_BODY_BYTES + 1);
    limited.read_to_end(&mut body)?;
    if body.len() as u64 > MAX_BODY_BYTES {
        let message = format!("a body passed on has at most {MAX_BODY_BYTES} bytes");
        return Reply::error(413, message).send(request);
    }
    let answer = match ask(&request, engine, &body) {
        Ok(answer) => answer,
        Err(error) => {
            let message = format!(
                "the engine at {engine} cannot be asked ({error}); start one, or name it: --engine \
                 HOST:PORT. The notebook's page is /notebook/"
            );
            return Reply::error(502, message).send(request);
        }
    };
    give_back(request, answer)
}

fn ask(
    request: &Request,
    engine: &str,
    body: &[u8],
) -> Result<http::Response<ureq::Body>, ureq::Error> {
    let mut asked = http::Request::builder()
        .method(request.method().as_str())
        .uri(format!("http://{engine}{}", request.url()));
    for one in request.headers() {
        let name = one.field.as_str().as_str();
        if !is_of_connection(name) {
            asked = asked.header(name, one.value.as_str());
        }
    }
    if body.is_empty() {
        agent().run(asked.body(())?)
    } else {
        agent().run(asked.body(body)?)
    }
}

fn give_back(request: Request, mut answer: http::Response<ureq::Body>) -> io::Result<()> {
    let status = answer.status().as_u16();
    let headers: Vec<(String, Vec<u8>)> = answer
        .headers()
        .iter()
        .filter(|(name, _)| !is_of_connection(name.as_str()))
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
        .collect();
    if status < 200 || [204, 304].contains(&status) || request.method().as_str() == "HEAD" {
        let mut empty = Response::empty(status);
        for (name, value) in &headers {
            empty.add_header(header(name, &String::from_utf8_lossy(value))?);
        }
        return request.respond(empty);
    }
    let shown = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_slice()));
    let mut pieces = Pieces::start(request, status, shown)?;
    let mut reader = answer.body_mut().as_reader();
    let mut some = vec![0; 16 << 10];
    loop {
        match reader.read(&mut some)? {
            0 => return pieces.end(),
            n => pieces.send(&some[..n])?,
        }
    }
}

fn is_of_connection(name: &str) -> bool {
    OF_CONNECTION
        .iter()
        .any(|own| own.eq_ignore_ascii_case(name))
}

/// Without a limit of time: an answer may stream for long. Redirects are the browser's.
fn agent() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_connect(Some(CONNECT_LIMIT))
        .max_idle_connections(0)
        .build()
        .into()
}
