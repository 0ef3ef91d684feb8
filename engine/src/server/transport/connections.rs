//! Connection limits: at most `--max-connections` at once, and none may keep the server waiting for
//! longer than `--client-timeout-s`, neither for a request nor for reading its response.
//!
//! The data buffered for a slow reader is bounded: a few pieces of text for each choice, the tokens
//! that the request may have, and HTTP's write buffer. A connection over the limit is inspected
//! briefly ([`over_limit`]): a probe gets one of a few reserved slots, so that clients who hold all
//! other connections do not make a healthy server look dead. All others are refused, as far as that
//! is possible within a second. A new connection that sends nothing is closed early.
//! Deliberately absent: limits by address (a proxy's business).

mod over_limit;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep};

use self::over_limit::OverLimit;
use crate::errors::Code;
use crate::metrics::{Dropped, TrafficMetrics};
use crate::server::state::AppState;
use crate::server::transport::open_files;

/// Maximum time from accepting a connection to its first byte.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept; also the minimum interval between log lines about it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BETWEEN_COMPLAINTS: Duration = Duration::from_mins(1);

/// A listener with a connection limit.
pub struct LimitedListener {
    inner: TcpListener,
    places: Arc<Semaphore>,
    over: OverLimit,
    /// Probes found among the connections over the limit.
    probes: mpsc::Receiver<(Connection, SocketAddr)>,
    timeout: Duration,
    traffic: Arc<TrafficMetrics>,
    last_complaint: Option<Instant>,
}

impl LimitedListener {
    pub fn new(inner: TcpListener, state: &AppState) -> Self {
        let limit = state.http.max_connections;
        let (found, probes) = mpsc::channel(over_limit::PROBE_PLACES);
        let timeout = state.http.client_timeout;
        Self {
            inner,
            places: Arc::new(Semaphore::new(limit)),
            over: OverLimit::new(limit, timeout, &state.traffic, found),
            probes,
            timeout,
            traffic: Arc::clone(&state.traffic),
            last_complaint: None,
        }
    }

    /// Logs the failure at intervals and waits, so that the missing resource (a file, for example)
    /// can become available.
    async fn accept_failed(&mut self, error: io::Error) {
        let is_the_clients = matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
        );
        if is_the_clients {
            return;
        }
        let is_due = |last: Instant| last.elapsed() >= BETWEEN_COMPLAINTS;
        if self.last_complaint.is_none_or(is_due) {
            self.last_complaint = Some(Instant::now());
            tracing::error!(
                %error,
                n_connections = self.traffic.n_connections(),
                max_open_files = ?open_files::limit(),
                "a connection cannot be accepted; it stays in the kernel's queue"
            );
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

impl Listener for LimitedListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            let accepted = tokio::select! {
                // The sender lives as long as this listener.
                Some(probe) = self.probes.recv() => return probe,
                accepted = self.inner.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.accept_failed(error).await;
                    continue;
                }
            };
            match Arc::clone(&self.places).try_acquire_owned() {
                Ok(place) => {
                    let traffic = Arc::clone(&self.traffic);
                    let connection = Connection::new(stream, place, self.timeout, traffic);
                    return (connection, address);
                }
                Err(_) => self.over.receive(stream, address),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// State that a connection shares with the requests on it.
#[derive(Debug, Clone)]
pub struct Peer(Arc<Service>);

#[derive(Debug)]
struct Service {
    /// Requests whose response is not complete yet.
    n_in_service: AtomicUsize,
    last_activity: Mutex<Instant>,
}

impl Service {
    fn touch(&self) {
        // An `Instant` cannot be left half-written by a panic.
        *self
            .last_activity
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last_activity(&self) -> Instant {
        *self
            .last_activity
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in service. The connection does not count as idle meanwhile, however long the model
/// takes.
struct InService(Arc<Service>);

impl InService {
    fn begin(peer: &Peer) -> Self {
        peer.0.n_in_service.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(&peer.0))
    }
}

impl Drop for InService {
    fn drop(&mut self) {
        self.0.touch();
        self.0.n_in_service.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Marks the connection as busy until the last byte of the response is produced, and counts errors
/// by code. While the server stops, the response is the connection's last.
pub async fn track(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    let in_service = peer.map(|ConnectInfo(peer)| InService::begin(peer));
    let mut response = next.run(request).await;
    if state.is_stopping() {
        // The client's next request opens a connection, to another server if there is one.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    if let Some(code) = response.extensions().get::<Code>() {
        state.traffic.record_error(*code);
    }
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    // For a stream, the handler returns before the response is complete.
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &in_service;
            frame
        }))
    })
}

impl Connected<IncomingStream<'_, LimitedListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, LimitedListener>) -> Self {
        Self(Arc::clone(&stream.io().service))
    }
}

/// A TCP stream that times out clients that are too slow.
pub struct Connection {
    stream: TcpStream,
    service: Arc<Service>,
    timeout: Duration,
    traffic: Arc<TrafficMetrics>,
    reading: Pin<Box<Sleep>>,
    writing: Pin<Box<Sleep>>,
    is_write_blocked: bool,
    /// Whether the client has sent anything.
    has_begun: bool,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn new(
        stream: TcpStream,
        place: OwnedSemaphorePermit,
        timeout: Duration,
        traffic: Arc<TrafficMetrics>,
    ) -> Self {
        traffic.record_opened();
        let service = Service {
            n_in_service: AtomicUsize::new(0),
            last_activity: Mutex::new(Instant::now()),
        };
        Self {
            stream,
            service: Arc::new(service),
            timeout,
            traffic,
            reading: Box::pin(tokio::time::sleep(timeout)),
            writing: Box::pin(tokio::time::sleep(timeout)),
            is_write_blocked: false,
            has_begun: false,
            _place: place,
        }
    }

    /// Decides what happens to a read that has to wait.
    fn wait_for_request(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.service.n_in_service.load(Ordering::Acquire) > 0 {
            return Poll::Pending;
        }
        let timeout = if self.has_begun {
            self.timeout
        } else {
            self.timeout.min(FIRST_BYTE_TIMEOUT)
        };
        let deadline = self.service.last_activity() + timeout;
        if self.reading.deadline() != deadline {
            self.reading.as_mut().reset(deadline);
        }
        match self.reading.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            // Checked again, since a request may have started while the timer ran.
            Poll::Ready(()) if self.service.n_in_service.load(Ordering::Acquire) > 0 => {
                Poll::Pending
            }
            Poll::Ready(()) => {
                self.traffic.record_dropped(Dropped::Idle);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// Decides what happens to a write: progress restarts the timer.
    fn after_write<T>(
        &mut self,
        outcome: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.is_write_blocked = false;
            self.service.touch();
            return outcome;
        }
        if !self.is_write_blocked {
            self.is_write_blocked = true;
            let deadline = Instant::now() + self.timeout;
            self.writing.as_mut().reset(deadline);
        }
        match self.writing.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                self.traffic.record_dropped(Dropped::SlowReader);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.traffic.record_closed();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Pending => self.wait_for_request(cx),
            ready @ Poll::Ready(_) => {
                self.has_begun = true;
                ready
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.after_write(outcome, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.after_write(outcome, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
