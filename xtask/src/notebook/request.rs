//! One request of a connection, which is closed after its answer: a browser's many connections then need
//! no pool of threads.

use std::io::{self, Read};
use std::net::TcpStream;
use std::time::Duration;

use httparse::Status;

const MAX_HEAD_BYTES: usize = 32 << 10;
const MAX_BODY_BYTES: usize = 64 << 20;
const MAX_HEADERS: usize = 64;
/// A client that sends nothing for this long is left.
const READ_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Default, PartialEq)]
pub struct HttpRequest {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl HttpRequest {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The request, or the status and the message with which it is refused.
    ///
    /// # Errors
    ///
    /// If the client has gone, or sends nothing.
    pub fn receive(stream: &TcpStream) -> io::Result<Result<Self, (u16, String)>> {
        stream.set_read_timeout(Some(READ_LIMIT))?;
        read(stream)
    }
}

fn read(mut from: impl Read) -> io::Result<Result<HttpRequest, (u16, String)>> {
    let (mut bytes, mut some) = (Vec::new(), [0; 8192]);
    let (mut request, n_head) = loop {
        let n = from.read(&mut some)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&some[..n]);
        match head(&bytes) {
            Ok(Some(parsed)) => break parsed,
            Ok(None) if bytes.len() <= MAX_HEAD_BYTES => {}
            Ok(None) => {
                return Ok(Err((
                    431,
                    format!("a head has at most {MAX_HEAD_BYTES} bytes"),
                )));
            }
            Err(error) => return Ok(Err((400, format!("this is no HTTP request: {error}")))),
        }
    };
    if request.header("transfer-encoding").is_some() {
        return Ok(Err((411, "a body needs a Content-Length".to_owned())));
    }
    let length = request.header("content-length").map_or(Ok(0), str::parse);
    let Some(n_body) = length.ok().filter(|n| *n <= MAX_BODY_BYTES) else {
        return Ok(Err((
            413,
            format!("a body has at most {MAX_BODY_BYTES} bytes"),
        )));
    };
    request.body = bytes.split_off(n_head);
    request.body.truncate(n_body);
    let n_left = (n_body - request.body.len()) as u64;
    from.take(n_left).read_to_end(&mut request.body)?;
    if request.body.len() < n_body {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Ok(request))
}

/// The request without its body, and where that begins; `None` if the head is not whole.
fn head(bytes: &[u8]) -> Result<Option<(HttpRequest, usize)>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let Status::Complete(n_head) = parsed.parse(bytes)? else {
        return Ok(None);
    };
    let headers = parsed.headers.iter().map(|header| {
        let value = String::from_utf8_lossy(header.value).into_owned();
        (header.name.to_owned(), value)
    });
    let request = HttpRequest {
        headers: headers.collect(),
        method: parsed.method.unwrap_or_default().to_owned(),
        target: parsed.path.unwrap_or_default().to_owned(),
        body: Vec::new(),
    };
    Ok(Some((request, n_head)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_in_pieces_and_within_limits() {
        let text = "POST /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nxyz and more";
        // One byte at a time, as a slow client sends them.
        let slow = text.bytes().map(|byte| [byte]).collect::<Vec<_>>();
        let slow = slow
            .iter()
            .fold(Box::new(io::empty()) as Box<dyn Read>, |all, one| {
                Box::new(all.chain(one.as_slice()))
            });
        for from in [Box::new(text.as_bytes()) as Box<dyn Read>, slow] {
            let request = read(from).expect("read").expect("a request");
            assert_eq!(
                (request.path(), request.body.as_slice()),
                ("/a", b"xyz".as_slice())
            );
            assert_eq!(request.header("HOST"), Some("h"));
        }
        let status = |text: &str| read(text.as_bytes()).expect("read").expect_err("refused").0;
        assert_eq!(status("what?\r\n\r\n"), 400);
        assert_eq!(
            status("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"),
            411
        );
        for length in ["99999999999", "-1", "x"] {
            assert_eq!(
                status(&format!(
                    "POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"
                )),
                413
            );
        }
        assert_eq!(
            status(&format!("GET / HTTP/1.1\r\na: {}", "x".repeat(50_000))),
            431
        );
        assert!(read(&b"GET / HTTP/1.1\r\n"[..]).is_err());
    }
}
