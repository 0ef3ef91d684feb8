//! Answers that are written at once, and heads of those that are written piece by piece. The end of the
//! connection is their end.

use std::io::{self, Write};

use serde_json::{Value, json};

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

    pub fn send(&self, to: &mut impl Write) -> io::Result<()> {
        let length = self.body.len().to_string();
        let own = [
            ("Content-Type", self.kind),
            ("Content-Security-Policy", self.policy),
            ("Content-Length", &length),
        ];
        let headers = own.into_iter().chain(HEADERS);
        send_head(
            to,
            self.status,
            headers.map(|(name, value)| (name, value.as_bytes())),
        )?;
        to.write_all(&self.body)?;
        to.flush()
    }
}

pub fn send_head<'a>(
    to: &mut impl Write,
    status: u16,
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} \r\nConnection: close\r\n").into_bytes();
    for (name, value) in headers {
        head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    head.extend(b"\r\n");
    to.write_all(&head)
}
