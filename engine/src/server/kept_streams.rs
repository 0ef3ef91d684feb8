//! Streams that outlive their connection, in bounded memory: a client that lost its connection
//! reads on from the event after the last one it has.
//!
//! Only requests that ask for it are kept ([`KeepStream`]). A task of their own drives their answers
//! to the end, and every connection reads what it has written. A stream without a reader goes on for
//! a while and is then cancelled; one that has ended is forgotten as late. Beyond the limits those
//! that ended first leave; if none has ended, a further stream is refused, and a running one loses
//! its first events. Deliberately absent: a list, which every client with the key could read.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};

use crate::config::KeptStreamLimits;
use crate::errors::Code;
use crate::metrics::KeptStreamMetrics;
use crate::server::error::ApiError;
use crate::server::response::sent_event::SentEvent;
use crate::server::transport::auth::SentKeys;

/// The header by which a client asks for a stream that it can resume, as in llama.cpp's server.
pub const CONVERSATION_ID: &str = "X-Conversation-Id";

/// What a request says about keeping its stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeepStream {
    /// The client's id; `None`: the answer's own.
    pub id: Option<String>,
    pub keys: SentKeys,
}

#[derive(Debug)]
pub struct KeptStreams {
    limits: KeptStreamLimits,
    metrics: KeptStreamMetrics,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    streams: HashMap<String, KeptStream>,
    /// In the order in which they ended.
    ended: VecDeque<(String, u64)>,
    n_opened: u64,
    n_bytes: usize,
}

#[derive(Debug)]
struct KeptStream {
    /// Tells streams apart that had the same id.
    serial: u64,
    keys: SentKeys,
    events: VecDeque<Arc<SentEvent>>,
    /// The number of the first event that is still there.
    first: u64,
    n_bytes: usize,
    has_ended: bool,
    n_readers: watch::Sender<usize>,
    /// Changes with every event and at the end. Dropped with the stream, which readers notice.
    grown: watch::Sender<()>,
}

/// A stream that may be gone.
#[derive(Debug)]
struct Named {
    store: Arc<KeptStreams>,
    id: String,
    serial: u64,
}

/// One connection's place in a stream.
#[derive(Debug)]
pub struct Reader {
    stream: Named,
    next: u64,
    grown: watch::Receiver<()>,
}

impl KeptStreams {
    pub fn new(limits: KeptStreamLimits) -> Self {
        Self {
            limits,
            metrics: KeptStreamMetrics::default(),
            kept: Mutex::default(),
        }
    }

    /// Prometheus text.
    pub fn render(&self) -> String {
        let kept = self.lock();
        self.metrics.render(kept.streams.len(), kept.n_bytes)
    }

    /// Keeps an answer and responds with it. An earlier stream of the client with this id is
    /// cancelled; the id of another client is refused.
    pub(crate) fn keep(
        self: &Arc<Self>,
        id: &str,
        keys: SentKeys,
        events: impl Stream<Item = SentEvent> + Send + 'static,
    ) -> Result<Response, ApiError> {
        let (reader, n_readers) = self.open(id, keys)?;
        let writer = reader.stream.again();
        tokio::spawn(writer.drive(events, n_readers));
        Ok(reader.respond())
    }

    fn open(
        self: &Arc<Self>,
        id: &str,
        keys: SentKeys,
    ) -> Result<(Reader, watch::Receiver<usize>), ApiError> {
        let most = self.limits.streams;
        if most == 0 {
            let message = "this server keeps no streams (--max-kept-streams 0); leave \
                           X-Conversation-Id and background out";
            return Err(ApiError::unsupported(CONVERSATION_ID, message));
        }
        let mut kept = self.lock();
        if let Some(other) = kept.streams.get(id) {
            if !other.keys.share_one_with(&keys) {
                let message = format!("{CONVERSATION_ID} is {id:?}, which is another client's");
                return Err(ApiError::invalid(CONVERSATION_ID, message));
            }
            kept.remove(id);
        }
        while kept.streams.len() >= most {
            if !kept.remove_first_ended() {
                let message = format!(
                    "{most} streams that can be resumed are running, the limit (--max-kept-streams)"
                );
                return Err(ApiError::new(Code::TooManyKeptStreams, message));
            }
        }
        kept.n_opened += 1;
        let (n_readers, n_readers_seen) = watch::channel(0);
        let stream = KeptStream {
            serial: kept.n_opened,
            keys,
            events: VecDeque::new(),
            first: 0,
            n_bytes: 0,
            has_ended: false,
            n_readers,
            grown: watch::channel(()).0,
        };
        let reader = stream.reader(self, id, 0);
        kept.streams.insert(id.to_owned(), stream);
        self.metrics.record_kept();
        Ok((reader, n_readers_seen))
    }

    /// Reads on after an event, or from the start.
    ///
    /// # Errors
    ///
    /// [`Code::StreamNotFound`] if no stream of this id is kept for these keys, or not from there
    /// on; [`Code::InvalidValue`] if there is no such event yet. `param` is what named the event.
    pub fn resume(
        self: &Arc<Self>,
        id: &str,
        keys: &SentKeys,
        after: Option<u64>,
        param: &str,
    ) -> Result<Reader, ApiError> {
        let kept = self.lock();
        let stream = kept.of_client(id, keys).ok_or_else(|| not_kept(id))?;
        let first = stream.first;
        let end = first + stream.events.len() as u64;
        let next = after.map_or(0, |after| after.saturating_add(1));
        if next > end {
            let said = match end {
                0 => "no event yet".to_owned(),
                _ => format!("no event after {}", end - 1),
            };
            let message = format!("{param} is {}, but the stream has {said}", next - 1);
            return Err(ApiError::invalid(param, message));
        }
        if next < first {
            let message = format!(
                "event {next} of the stream {id:?} is not kept any more: the first one that is has \
                 the number {first}"
            );
            return Err(ApiError::of_field(Code::StreamNotFound, param, message));
        }
        self.metrics.record_resumed();
        Ok(stream.reader(self, id, next))
    }

    /// The first event of a stream that has not ended.
    pub(crate) fn first_of_running(&self, id: &str, keys: &SentKeys) -> Option<Arc<SentEvent>> {
        let kept = self.lock();
        let stream = kept.of_client(id, keys)?;
        let is_whole = !stream.has_ended && stream.first == 0;
        stream.events.front().filter(|_| is_whole).cloned()
    }

    /// Cancels and forgets a stream; returns whether it was there.
    pub fn remove(&self, id: &str, keys: &SentKeys) -> bool {
        let mut kept = self.lock();
        kept.of_client(id, keys).is_some() && kept.remove(id)
    }

    /// No method panics between two related changes.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn not_kept(id: &str) -> ApiError {
    let message = format!(
        "no stream {id:?} is kept here for this key: it was not asked for with {CONVERSATION_ID} or \
         background, was cancelled, or has been forgotten"
    );
    ApiError::of_field(Code::StreamNotFound, "stream_id", message)
}

impl Kept {
    /// A stream that these keys may read.
    fn of_client(&self, id: &str, keys: &SentKeys) -> Option<&KeptStream> {
        let stream = self.streams.get(id)?;
        stream.keys.share_one_with(keys).then_some(stream)
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some(stream) = self.streams.remove(id) else {
            return false;
        };
        self.ended.retain(|(_, serial)| *serial != stream.serial);
        self.n_bytes -= stream.n_bytes;
        true
    }

    fn remove_first_ended(&mut self) -> bool {
        let first = self.ended.front().map(|(id, _)| id.clone());
        first.is_some_and(|id| self.remove(&id))
    }

    /// Returns false if the stream is gone.
    fn push(&mut self, id: &str, serial: u64, event: SentEvent, most_bytes: usize) -> bool {
        let n_bytes = event.n_bytes();
        while self.n_bytes + n_bytes > most_bytes && self.remove_first_ended() {}
        let stream = self.streams.get_mut(id);
        let Some(stream) = stream.filter(|stream| stream.serial == serial) else {
            return false;
        };
        while self.n_bytes + n_bytes > most_bytes
            && let Some(oldest) = stream.events.pop_front()
        {
            stream.first += 1;
            stream.n_bytes -= oldest.n_bytes();
            self.n_bytes -= oldest.n_bytes();
        }
        if self.n_bytes + n_bytes > most_bytes {
            // Other running streams have the rest; no reader can go on over this event.
            stream.first += 1;
        } else {
            stream.events.push_back(Arc::new(event));
            stream.n_bytes += n_bytes;
            self.n_bytes += n_bytes;
        }
        stream.grown.send_replace(());
        true
    }
}

impl KeptStream {
    fn reader(&self, store: &Arc<KeptStreams>, id: &str, next: u64) -> Reader {
        self.n_readers.send_modify(|n| *n += 1);
        let (store, id, serial) = (Arc::clone(store), id.to_owned(), self.serial);
        Reader {
            stream: Named { store, id, serial },
            next,
            grown: self.grown.subscribe(),
        }
    }
}

impl Named {
    fn again(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            id: self.id.clone(),
            serial: self.serial,
        }
    }

    /// `None` if the stream is gone.
    fn with<T>(&self, act: impl FnOnce(&mut Kept) -> T) -> Option<T> {
        let mut kept = self.store.lock();
        let stream = kept.streams.get(&self.id)?;
        (stream.serial == self.serial).then(|| act(&mut kept))
    }

    fn push(&self, event: SentEvent) -> bool {
        let most_bytes = self.store.limits.bytes;
        let push = |kept: &mut Kept| kept.push(&self.id, self.serial, event, most_bytes);
        self.with(push) == Some(true)
    }

    fn end(&self) {
        self.with(|kept| {
            kept.ended.push_back((self.id.clone(), self.serial));
            if let Some(stream) = kept.streams.get_mut(&self.id) {
                stream.has_ended = true;
                stream.grown.send_replace(());
            }
        });
    }

    /// Writes an answer to its end. Dropping the events cancels it: when the stream is removed, and
    /// when it had no reader for too long.
    async fn drive(
        self,
        events: impl Stream<Item = SentEvent> + Send + 'static,
        n_readers: watch::Receiver<usize>,
    ) {
        let period = self.store.limits.period;
        let mut events = Box::pin(events);
        let mut unread = Box::pin(unread_for(n_readers, period));
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = &mut unread => {
                    if self.with(|kept| kept.remove(&self.id)).is_some() {
                        self.store.metrics.record_abandoned();
                        tracing::info!(stream = self.id, "a stream without a reader is cancelled");
                    }
                    return;
                }
            };
            let Some(event) = event else { break };
            if !self.push(event) {
                return;
            }
        }
        drop(events);
        self.end();
        tokio::time::sleep(period).await;
        self.with(|kept| kept.remove(&self.id));
    }
}

/// Ready when there was no reader for this long, or when the stream has been removed.
async fn unread_for(mut n_readers: watch::Receiver<usize>, period: Duration) {
    while n_readers.wait_for(|n| *n == 0).await.is_ok() {
        let next_reader = n_readers.wait_for(|n| *n > 0);
        let next_reader = tokio::time::timeout(period, next_reader).await;
        if !next_reader.is_ok_and(|reader| reader.is_ok()) {
            return;
        }
    }
}

impl Reader {
    /// Server-sent events, each with its number as its id.
    pub fn respond(mut self) -> Response {
        const MAX_AHEAD: usize = 16;
        let (sender, events) = mpsc::channel::<Result<Event, Infallible>>(MAX_AHEAD);
        tokio::spawn(async move {
            let sending = async {
                while let Some(event) = self.next().await {
                    if sender.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = sending => {}
                // The client has left, perhaps while nothing is generated.
                () = sender.closed() => {}
            }
        });
        Sse::new(ReceiverStream::new(events))
            .keep_alive(KeepAlive::default())
            .into_response()
    }

    /// `None` at the end, and where events have left.
    async fn next(&mut self) -> Option<Event> {
        loop {
            self.grown.mark_unchanged();
            let (event, has_ended) = self.stream.with(|kept| {
                let stream = kept.streams.get(&self.stream.id)?;
                let place = usize::try_from(self.next.checked_sub(stream.first)?).ok()?;
                Some((stream.events.get(place).cloned(), stream.has_ended))
            })??;
            if let Some(event) = event {
                let event = event.to_sse().id(self.next.to_string());
                self.next += 1;
                return Some(event);
            }
            if has_ended {
                return None;
            }
            self.grown.changed().await.ok()?;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let stream = &self.stream;
        stream.with(|kept| {
            let stream = kept.streams.get(&stream.id);
            stream.inspect(|stream| stream.n_readers.send_modify(|n| *n -= 1));
        });
    }
}

#[cfg(test)]
mod tests;
