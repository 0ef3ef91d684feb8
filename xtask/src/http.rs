//! A minimal HTTP client for recipes and the servers that they start.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};

const TIMEOUT: Duration = Duration::from_mins(1);

pub struct HttpResponse {
    pub status: u16,
    pub body: String,
}

pub fn get(address: &str, path: &str) -> Result<HttpResponse> {
    send(address, "GET", path, "Content-Type: text/plain\r\n", b"")
}

pub fn post_json(address: &str, path: &str, body: &str) -> Result<HttpResponse> {
    let head = "Content-Type: application/json\r\n";
    send(address, "POST", path, head, body.as_bytes())
}

/// One field of a form.
pub fn post_form(address: &str, path: &str, name: &str, value: &str) -> Result<HttpResponse> {
    let body = format!("{name}={}", percent_encoded(value));
    let head = "Content-Type: application/x-www-form-urlencoded\r\n";
    send(address, "POST", path, head, body.as_bytes())
}

/// Any bytes; `head` has whole lines that describe them.
pub fn post_bytes(address: &str, path: &str, head: &str, body: &[u8]) -> Result<HttpResponse> {
    send(address, "POST", path, head, body)
}

/// HTTP 1.0, so that the response ends with the connection.
fn send(address: &str, method: &str, path: &str, head: &str, body: &[u8]) -> Result<HttpResponse> {
    let mut stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\n{head}Content-Length: {}\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .with_context(|| format!("{method} {path}"))?;
    parse(&text).with_context(|| format!("{method} {path}: no HTTP answer in {text:?}"))
}

fn parse(text: &str) -> Option<HttpResponse> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = body.to_owned();
    Some(HttpResponse { status, body })
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart_and_forms_put_together() {
        let answer =
            parse("HTTP/1.0 503 Service Unavailable\r\nA: b\r\n\r\nno").expect("an answer");
        assert_eq!((answer.status, answer.body.as_str()), (503, "no"));
        assert!(parse("nothing").is_none());
        assert_eq!(percent_encoded("a{b=~\".*\"}"), "a%7Bb%3D~%22.%2A%22%7D");
    }
}
