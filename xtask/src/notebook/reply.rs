//! Answers that are written at once, and streams that are written piece by piece.

use std::io::{self, Write};

use serde_json::{Value, json};
use tiny_http::{Header, Request, Response};

/// What every answer of the notebook has; the engine's own answers have their own.
const HEADERS: [(&str, &str); 3] = [
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
];
/// The page runs its own files only, and no page may frame it.
pub const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A whole answer.
#[derive(Debug, PartialEq)]
pub struct Reply {
    pub status: u16,
    pub kind: &'static str,
    pub policy: &'static str,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn new(kind: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            kind,
            policy: PAGE_POLICY,
            body: body.into(),
        }
    }

    pub fn json(status: u16, value: &Value) -> Self {
        Self {
            status,
            ..Self::new("application/json", value.to_string())
        }
    }

    pub fn error(status: u16, message: impl Into<String>) -> Self {
        Self::json(status, &json!({"error": message.into()}))
    }

    pub fn send(self, request: Request) -> io::Result<()> {
        let mut response = Response::from_data(self.body).with_status_code(self.status);
        let own = [
            ("Content-Type", self.kind),
            ("Content-Security-Policy", self.policy),
        ];
        for (name, value) in own.into_iter().chain(HEADERS) {
            response.add_header(header(name, value)?);
        }
        request.respond(response)
    }
}

pub fn refuse(request: Request, status: u16, message: &str) {
    // The client may have gone.
    let _ = Reply::error(status, message).send(request);
}

pub fn header(name: &str, value: &str) -> io::Result<Header> {
    Header::from_bytes(name, value)
        .map_err(|()| io::Error::other(format!("{name} cannot be a header")))
}

/// A body of unknown length: every piece is sent as soon as it is written.
pub struct Pieces(Box<dyn Write + Send>);

impl Pieces {
    pub fn start<'a>(
        request: Request,
        status: u16,
        headers: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> io::Result<Self> {
        let mut writer = request.into_writer();
        let mut head = format!("HTTP/1.1 {status} \r\nTransfer-Encoding: chunked\r\n").into_bytes();
        for (name, value) in headers {
            head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        head.extend(b"\r\n");
        writer.write_all(&head)?;
        writer.flush()?;
        Ok(Self(writer))
    }

    pub fn send(&mut self, piece: &[u8]) -> io::Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        write!(self.0, "{:x}\r\n", piece.len())?;
        self.0.write_all(piece)?;
        self.0.write_all(b"\r\n")?;
        self.0.flush()
    }

    pub fn end(mut self) -> io::Result<()> {
        self.0.write_all(b"0\r\n\r\n")?;
        self.0.flush()
    }
}
