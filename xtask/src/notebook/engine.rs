//! Passes requests on to the engine, whose page uses absolute paths.
//!
//! `Host` and `Origin` stay as the browser sent them, so that the engine's own checks of foreign pages
//! hold. Streams arrive piece by piece; a client that disconnects ends the engine's answer, too.

use std::io::{self, Read, Write};
use std::time::Duration;

use ureq::Agent;
use ureq::http;

use super::reply::{Reply, send_head};
use super::request::HttpRequest;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// They concern one connection alone, or are set anew.
const OF_CONNECTION: [&str; 7] = [
    "connection",
    "expect",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

pub fn pass_on(request: &HttpRequest, engine: &str, to: &mut impl Write) -> io::Result<()> {
    let mut answer = match ask(request, engine) {
        Ok(answer) => answer,
        Err(error) => {
            let message = format!(
                "the engine at {engine} cannot be asked ({error}); start one, or name it: --engine \
                 HOST:PORT. The notebook's page is /notebook/"
            );
            return Reply::error(502, message).send(to);
        }
    };
    let headers = answer.headers().iter();
    let headers = headers.map(|(name, value)| (name.as_str(), value.as_bytes()));
    let headers = headers.filter(|(name, _)| !is_of_connection(name));
    send_head(to, answer.status().as_u16(), headers)?;
    let mut reader = answer.body_mut().as_reader();
    let mut some = vec![0; 16 << 10];
    loop {
        to.flush()?;
        match reader.read(&mut some)? {
            0 => return Ok(()),
            n => to.write_all(&some[..n])?,
        }
    }
}

fn ask(request: &HttpRequest, engine: &str) -> Result<http::Response<ureq::Body>, ureq::Error> {
    let mut asked = http::Request::builder()
        .method(request.method.as_str())
        .uri(format!("http://{engine}{}", request.target));
    for (name, value) in &request.headers {
        if !is_of_connection(name) && !name.eq_ignore_ascii_case("content-length") {
            asked = asked.header(name, value);
        }
    }
    if request.body.is_empty() {
        agent().run(asked.body(())?)
    } else {
        agent().run(asked.body(request.body.as_slice())?)
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
