//! A hub on the loopback interface: the two routes that the client uses, with byte ranges.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::source::digest;
use crate::source::hub::HubSettings;

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request to the server: path, `Range` and `Authorization`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) range: Option<String>,
    pub(super) token: Option<String>,
}

pub(super) struct Hub {
    pub(super) address: String,
    pub(super) asked: Arc<Mutex<Vec<Asked>>>,
}

/// How the server misbehaves.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Manner {
    Honest,
    /// Closes the connection in the middle of each first answer longer than 1000 bytes.
    Breaks,
    /// Sends other bytes than the digest in the etag.
    Corrupts,
    /// Answers 401 without this token.
    Private(&'static str),
    /// Serves the files at another address.
    Elsewhere(&'static str),
    /// Serves the files under another name, with its own token.
    Renamed(&'static str),
}

impl Hub {
    pub(super) fn start(files: &[(&str, Vec<u8>)], manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let files: HashMap<String, Vec<u8>> = files
            .iter()
            .map(|(name, bytes)| ((*name).to_string(), bytes.clone()))
            .collect();
        let log = Arc::clone(&asked);
        // Lives as long as the test process; each connection carries one request.
        std::thread::spawn(move || {
            let mut has_broken = false;
            for stream in listener.incoming().flatten() {
                // Some tests disconnect the client.
                let _ = answer(&stream, &files, manner, &log, &mut has_broken);
            }
        });
        Self { address, asked }
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }

    pub(super) fn settings(&self, cache: &Path) -> HubSettings {
        HubSettings {
            endpoint: Some(self.address.clone()),
            token: None,
            cache: cache.to_path_buf(),
            offline: false,
            digests: cache.join("engine"),
        }
    }
}

pub(super) fn answer(
    stream: &TcpStream,
    files: &HashMap<String, Vec<u8>>,
    manner: Manner,
    log: &Mutex<Vec<Asked>>,
    has_broken: &mut bool,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        lines.push(line.trim().to_string());
    }
    let header = |name: &str| {
        let found = lines.iter().filter_map(|line| line.split_once(": "));
        found
            .into_iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.to_string())
    };
    let path = lines
        .first()
        .and_then(|l| l.split(' ').nth(1))
        .unwrap_or("")
        .to_string();
    let (range, token) = (header("range"), header("authorization"));
    log.lock().expect("no panic").push(Asked {
        path: path.clone(),
        range: range.clone(),
        token: token.clone(),
    });
    let mut out = stream;
    if let Manner::Private(wanted) | Manner::Renamed(wanted) = manner
        && token.as_deref() != Some(&format!("Bearer {wanted}"))
    {
        return out.write_all(
            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    }
    if path.starts_with("/api/models/org/name/revision/") {
        let siblings: Vec<_> = files
            .keys()
            .map(|name| serde_json::json!({ "rfilename": name }))
            .collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        let n = body.len();
        return write!(
            out,
            "HTTP/1.1 200 OK\r\nContent-Length: {n}\r\nConnection: close\r\n\r\n{body}"
        );
    }
    let at = |repo: &str| path.strip_prefix(&format!("/{repo}/resolve/{COMMIT}/"));
    let leads_to = match manner {
        Manner::Elsewhere(address) => at("org/name").map(|_| format!("{address}{path}")),
        Manner::Renamed(_) => {
            at("org/name").map(|name| format!("/org/new/resolve/{COMMIT}/{name}"))
        }
        _ => None,
    };
    if let Some(location) = leads_to {
        let bytes = at("org/name").and_then(|name| files.get(name));
        let etag = bytes.map_or_else(String::new, |bytes| sha256_of(bytes));
        return write!(
            out,
            "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: {location}\r\n\
             X-Linked-Etag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n"
        );
    }
    let resolved = at("org/name").or_else(|| at("org/new"));
    let Some(bytes) = resolved.and_then(|name| files.get(name)) else {
        return out.write_all(
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    };
    let etag = sha256_of(bytes);
    let (first, last) = match range.as_deref().and_then(|r| r.strip_prefix("bytes=")) {
        Some("0-0") => (0, 0),
        Some(range) if !range.ends_with('-') => {
            let last = range
                .split_once('-')
                .and_then(|(_, last)| last.parse().ok());
            (0, last.unwrap_or(0).min(bytes.len() - 1))
        }
        Some(from) => (
            from.trim_end_matches('-').parse().unwrap_or(0),
            bytes.len() - 1,
        ),
        None => (0, bytes.len() - 1),
    };
    let mut body = bytes.get(first..=last).unwrap_or_default().to_vec();
    if manner == Manner::Corrupts && body.len() > 1 {
        body.fill(b'x');
    }
    write!(
        out,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{last}/{}\r\n\
         ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n",
        body.len(),
        bytes.len()
    )?;
    if manner == Manner::Breaks && !*has_broken && body.len() > 1000 {
        *has_broken = true;
        return out.write_all(&body[..body.len() / 2]);
    }
    out.write_all(&body)
}

pub(super) fn sha256_of(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), bytes).expect("written");
    digest::compute(file.path(), &|_| ()).expect("hashed")
}
