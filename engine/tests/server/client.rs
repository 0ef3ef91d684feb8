//! A small HTTP/1.1 client that can disconnect in the middle of a response.

use std::fmt::Write;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One response, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// A number of `/metrics`: of one full series name, or the sum over a metric's series.
    pub fn metric(&self, series: &str) -> f64 {
        let values = self.text().lines().filter_map(|line| {
            let rest = line.strip_prefix(series)?;
            if !rest.starts_with(['{', ' ']) {
                return None;
            }
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        });
        let sum = values.reduce(|sum, value| sum + value);
        sum.unwrap_or_else(|| panic!("no metric {series} in {}", self.text()))
    }

    /// The data of every server-sent event.
    pub fn events(&self) -> Vec<String> {
        self.text()
            .split("\n\n")
            .filter(|event| !event.is_empty())
            .map(|event| {
                event
                    .strip_prefix("data: ")
                    .expect("an event has data")
                    .to_owned()
            })
            .collect()
    }

    /// Events that are named by their type, without that of keeping the connection alive.
    pub fn typed_events(&self) -> Vec<Value> {
        let events = self.text().split("\n\n").filter(|event| !event.is_empty());
        events
            .map(|event| {
                let (name, data) = event.split_once('\n').expect("a name and data");
                let name = name.strip_prefix("event: ").expect("a name");
                let data = data.strip_prefix("data: ").expect("data");
                let data: Value = serde_json::from_str(data).expect("an event is JSON");
                assert_eq!(data["type"], name);
                data
            })
            .collect()
    }

    /// Every event as JSON; checks that the last one is `[DONE]`.
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        events
            .iter()
            .map(|event| serde_json::from_str(event).expect("an event is JSON"))
            .collect()
    }
}

pub async fn get(address: SocketAddr, path: &str) -> Answer {
    send(address, "GET", path, &[], b"").await
}

pub async fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    send(address, "POST", path, &[], body.to_string().as_bytes()).await
}

/// Like [`get`]; `None` if the server closes the connection before its response is complete.
pub async fn try_get(address: SocketAddr, path: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.ok()?;
    (!bytes.is_empty()).then(|| parse(&bytes))
}

/// A number that `/metrics` shows now.
pub async fn metric(address: SocketAddr, series: &str) -> f64 {
    get(address, "/metrics").await.metric(series)
}

/// An action of the admin API.
pub async fn admin(address: SocketAddr, key: &str, action: &str, body: &Value) -> Answer {
    let path = format!("/admin/models/{action}");
    let key = format!("Bearer {key}");
    let headers = [("Authorization", key.as_str())];
    send(
        address,
        "POST",
        &path,
        &headers,
        body.to_string().as_bytes(),
    )
    .await
}

pub async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut stream = open(address, method, path, headers, body).await;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("an answer");
    parse(&bytes)
}

/// Sends a request and leaves its response unread; dropping the stream disconnects.
pub async fn open(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").expect("a string grows");
    }
    head.push_str("\r\n");
    stream
        .write_all(head.as_bytes())
        .await
        .expect("the head was sent");
    stream.write_all(body).await.expect("the body was sent");
    stream
}

fn parse(bytes: &[u8]) -> Answer {
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("a head");
    let head = std::str::from_utf8(&bytes[..end]).expect("the head is text");
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .expect("a status line");
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").expect("a header"))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let is_chunked = headers
        .iter()
        .any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let rest = &bytes[end + 4..];
    let body = if is_chunked {
        dechunk(rest)
    } else {
        rest.to_vec()
    };
    Answer {
        status: status.parse().expect("a status"),
        headers,
        body,
    }
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest
            .windows(2)
            .position(|window| window == b"\r\n")
            .expect("a chunk's size");
        let size = std::str::from_utf8(&rest[..end]).expect("a chunk's size is text");
        let size = usize::from_str_radix(size, 16).expect("a chunk's size is hexadecimal");
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
    }
}
