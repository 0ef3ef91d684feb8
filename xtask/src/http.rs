//! One request to a server that a recipe has started.

use std::time::Duration;

use anyhow::{Context, Result};
use ureq::Agent;
use ureq::http::Response;

const TIMEOUT: Duration = Duration::from_mins(1);

pub struct HttpResponse {
    pub status: u16,
    pub body: String,
}

pub fn get(address: &str, path: &str) -> Result<HttpResponse> {
    let sent = agent(TIMEOUT).get(url(address, path)).call();
    read(sent).with_context(|| format!("GET {address}{path}"))
}

pub fn post_json(address: &str, path: &str, body: &str) -> Result<HttpResponse> {
    let request = agent(TIMEOUT).post(url(address, path));
    let sent = request
        .header("content-type", "application/json")
        .send(body);
    read(sent).with_context(|| format!("POST {address}{path}"))
}

/// One field of a form.
pub fn post_form(address: &str, path: &str, name: &str, value: &str) -> Result<HttpResponse> {
    let sent = agent(TIMEOUT)
        .post(url(address, path))
        .send_form([(name, value)]);
    read(sent).with_context(|| format!("POST {address}{path}"))
}

/// Any bytes, with headers that describe them.
pub fn post_bytes(
    address: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<HttpResponse> {
    let mut request = agent(TIMEOUT).post(url(address, path));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    read(request.send(body)).with_context(|| format!("POST {address}{path}"))
}

/// A connection for each request, never through a proxy; every status is an answer.
pub fn agent(timeout: Duration) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(timeout))
        .max_idle_connections(0)
        .build()
        .into()
}

pub fn url(address: &str, path: &str) -> String {
    format!("http://{address}{path}")
}

fn read(sent: Result<Response<ureq::Body>, ureq::Error>) -> Result<HttpResponse> {
    let mut response = sent?;
    Ok(HttpResponse {
        status: response.status().as_u16(),
        body: response.body_mut().read_to_string()?,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_refusal_is_an_answer_and_forms_are_encoded() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let asked = thread::spawn(move || {
            let (mut client, _) = listener.accept().expect("a client");
            let mut asked = String::new();
            let mut some = [0; 1000];
            while !asked.ends_with("%22%7D") {
                let n = client.read(&mut some).expect("a request");
                asked.push_str(std::str::from_utf8(&some[..n]).expect("a text"));
            }
            let answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno";
            client.write_all(answer).expect("answered");
            asked
        });
        let answer = post_form(&address, "/query", "query", "a{b=~\".*\"}").expect("an answer");
        assert_eq!((answer.status, answer.body.as_str()), (503, "no"));
        let asked = asked.join().expect("no panic");
        assert!(asked.starts_with("POST /query HTTP/1.1"), "{asked}");
        assert!(asked.contains("query=a%7Bb%3D"), "{asked}");
    }
}
