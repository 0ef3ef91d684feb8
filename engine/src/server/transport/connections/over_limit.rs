//! Connections over the limit: probes are served, all others are refused with the limit.
//!
//! The first line tells whether it is a probe; it must arrive within half a second. Only
//! [`MAX_LOOKED_AT`] connections are inspected at a time. If more arrive, the one that has been
//! silent for longest is refused, since a probe sends its request at once.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::Connection;
use crate::errors::Code;
use crate::metrics::TrafficMetrics;
use crate::server::error::ApiError;
use crate::server::transport::auth::OPEN_PATHS;

/// Connections inspected concurrently.
const MAX_LOOKED_AT: usize = 64;
const PROBE_SHOWS_WITHIN: Duration = Duration::from_millis(500);
/// Connections for probes above the limit, and how long one waits for its client.
pub(super) const PROBE_PLACES: usize = 16;
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Refusals in progress that wait for their client; beyond them the response is sent if the socket
/// takes it at once.
const MAX_REFUSALS: usize = 32;
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct OverLimit {
    limit: usize,
    looked_at: Arc<LookedAt>,
    refusals: Arc<Semaphore>,
    probe_places: Arc<Semaphore>,
    timeout: Duration,
    traffic: Arc<TrafficMetrics>,
    found: mpsc::Sender<(Connection, SocketAddr)>,
}

impl OverLimit {
    /// `found` receives the probes; `timeout` is that of other connections.
    pub fn new(
        limit: usize,
        timeout: Duration,
        traffic: &Arc<TrafficMetrics>,
        found: mpsc::Sender<(Connection, SocketAddr)>,
    ) -> Self {
        Self {
            limit,
            looked_at: Arc::default(),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            probe_places: Arc::new(Semaphore::new(PROBE_PLACES)),
            timeout: timeout.min(PROBE_TIMEOUT),
            traffic: Arc::clone(traffic),
            found,
        }
    }

    pub fn receive(&self, stream: TcpStream, address: SocketAddr) {
        let this = self.clone();
        let crowded_out = self.looked_at.begin();
        tokio::spawn(async move {
            if is_probe(&stream, crowded_out).await
                && let Ok(place) = Arc::clone(&this.probe_places).try_acquire_owned()
            {
                let connection = Connection::new(stream, place, this.timeout, this.traffic);
                // The listener is gone when the server stops.
                let _ = this.found.send((connection, address)).await;
                return;
            }
            this.traffic.record_error(Code::TooManyConnections);
            let answer = refusal(this.limit);
            // A client that does not read loses the response.
            if let Ok(_refusing) = this.refusals.try_acquire() {
                let _ = timeout(REFUSAL_TIMEOUT, say(stream, answer)).await;
            } else {
                let _ = say_at_once(&stream, &answer);
            }
        });
    }
}

/// The connections that are inspected, the longest first. A sender whose receiver is gone belongs to
/// an inspection that has ended.
#[derive(Default)]
struct LookedAt(Mutex<VecDeque<oneshot::Sender<()>>>);

impl LookedAt {
    /// Begins an inspection. The receiver ends when newer connections need its place.
    fn begin(&self) -> oneshot::Receiver<()> {
        let (newest, crowded_out) = oneshot::channel();
        // A list of senders is whole after a panic.
        let mut looked_at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        looked_at.retain(|sender| !sender.is_closed());
        if looked_at.len() >= MAX_LOOKED_AT {
            looked_at.pop_front();
        }
        looked_at.push_back(newest);
        crowded_out
    }
}

/// Whether the first request is a probe, as far as it arrives in time.
async fn is_probe(stream: &TcpStream, crowded_out: oneshot::Receiver<()>) -> bool {
    tokio::select! {
        // What has arrived counts, also where the place is needed.
        biased;
        looked = timeout(PROBE_SHOWS_WITHIN, shows_probe(stream)) => looked.unwrap_or(false),
        _ = crowded_out => false,
    }
}

/// Peeks; consumes nothing from the stream.
async fn shows_probe(stream: &TcpStream) -> bool {
    let mut head = [0; 128];
    loop {
        let n = stream.peek(&mut head).await.unwrap_or(0);
        match asks_for_probe(&head[..n]) {
            Some(is_probe) => return is_probe,
            None if n == 0 => return false,
            // The request line is incomplete.
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// `None` while the request line is too short to tell.
fn asks_for_probe(head: &[u8]) -> Option<bool> {
    let mut words = head.splitn(3, |byte| *byte == b' ');
    let (method, path) = (words.next()?, words.next());
    if !b"GET".starts_with(method) && !b"HEAD".starts_with(method) {
        return Some(false);
    }
    let path = path?;
    let is_whole = words.next().is_some();
    let path = path.split(|byte| *byte == b'?').next()?;
    if is_whole {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        return Some(OPEN_PATHS.iter().any(|open| open.as_bytes() == path));
    }
    let may_become = OPEN_PATHS
        .iter()
        .any(|open| open.as_bytes().starts_with(path));
    if may_become { None } else { Some(false) }
}

fn refusal(limit: usize) -> String {
    let message = format!(
        "the server has {limit} connections open, its limit (--max-connections); try again later"
    );
    let error = ApiError::new(Code::TooManyConnections, message);
    let body = error.body().to_string();
    format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\nretry-after: {}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        error.status(),
        error.code.entry().retry_after_s.unwrap_or(1),
        body.len()
    )
}

async fn say(mut stream: TcpStream, answer: String) -> io::Result<()> {
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing with unread input would make the client lose the response.
    let mut unread = [0; 4096];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

/// Like [`say`], without waiting: reads what has arrived, since unread input would make the client
/// lose the response.
fn say_at_once(stream: &TcpStream, answer: &str) -> io::Result<usize> {
    let mut unread = [0; 4096];
    while stream.try_read(&mut unread).is_ok_and(|n| n > 0) {}
    stream.try_write(answer.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_oldest_inspections_give_way() {
        let looked_at = LookedAt::default();
        let mut inspections: Vec<_> = (0..MAX_LOOKED_AT + 2).map(|_| looked_at.begin()).collect();
        let mut has_ended = |index: usize| {
            inspections[index]
                .try_recv()
                .is_err_and(|error| error == oneshot::error::TryRecvError::Closed)
        };
        assert!(has_ended(0) && has_ended(1));
        assert!((2..MAX_LOOKED_AT + 2).all(|index| !has_ended(index)));
        // An inspection that is over gives its place.
        drop(inspections.pop());
        let newest = looked_at.begin();
        assert_eq!(
            inspections[2].try_recv(),
            Err(oneshot::error::TryRecvError::Empty)
        );
        drop(newest);
    }

    #[test]
    fn a_probe_is_known_by_its_first_line() {
        for (head, expected) in [
            ("GET /health HTTP/1.1\r\n", Some(true)),
            ("HEAD /health HTTP/1.1\r\n", Some(true)),
            ("GET /health/ HTTP/1.1\r\n", Some(true)),
            ("GET /metrics?x=1 HTTP/1.1\r\n", Some(true)),
            ("GET /health", None),
            ("GET /hea", None),
            ("GE", None),
            ("", None),
            ("GET /healthy HTTP/1.1\r\n", Some(false)),
            ("GET /v1/models HTTP/1.1\r\n", Some(false)),
            ("GET /v", Some(false)),
            ("POST /health HTTP/1.1\r\n", Some(false)),
            ("POST", Some(false)),
            ("\u{16}\u{3}\u{1}", Some(false)),
        ] {
            assert_eq!(asks_for_probe(head.as_bytes()), expected, "{head:?}");
        }
    }
}
