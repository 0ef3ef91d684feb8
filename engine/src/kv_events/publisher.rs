//! The publisher's thread, and the engine thread's end of its queue.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_stream::StreamExt;
use zeromq::{
    PubSocket, RouterRecvHalf, RouterSocket, Socket, SocketEvent, SocketRecv, SocketSend,
    ZmqMessage,
};

use super::replay::{Answers, Buffer};
use super::{Endpoint, KvEventsConfig, wire};
use crate::kv::KvEvent;
use crate::metrics::Metrics;

/// How long the sockets stay open after the last batch: they do not say when it has left.
const LINGER: Duration = Duration::from_millis(100);
/// Pause after a connection that failed for a reason that may not pass.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("--kv-events-config: listening on {endpoint} ({field}): {error}")]
    Bind {
        field: &'static str,
        endpoint: Endpoint,
        error: std::io::Error,
    },
    #[error("starting the publisher of KV events: {0}")]
    Thread(std::io::Error),
}

/// Changes of the prefix cache that a step made.
struct Batch {
    at_s: f64,
    events: Vec<KvEvent>,
}

/// A publisher's ports, bound before anything slow is begun.
#[derive(Debug)]
pub struct KvEventSockets {
    config: KvEventsConfig,
    place: Place,
    replay: Option<TcpListener>,
}

impl KvEventSockets {
    /// # Errors
    ///
    /// [`PublishError::Bind`] if a port is taken or an address is not this machine's.
    pub fn open(config: &KvEventsConfig) -> Result<Self, PublishError> {
        let bind = |field, endpoint: &Endpoint| {
            let bound = endpoint.bind();
            bound.map_err(|error| PublishError::Bind {
                field,
                endpoint: endpoint.clone(),
                error,
            })
        };
        let place = if config.endpoint.is_bound() {
            Place::Bound(bind("endpoint", &config.endpoint)?)
        } else {
            Place::At(config.endpoint.to_string())
        };
        let replay = config.replay_endpoint.as_ref();
        let replay = replay.map(|endpoint| bind("replay_endpoint", endpoint));
        Ok(Self {
            config: config.clone(),
            place,
            replay: replay.transpose()?,
        })
    }

    /// The ports of the publisher and of replays, where they are bound here.
    pub fn ports(&self) -> [Option<u16>; 2] {
        let bound = match &self.place {
            Place::Bound(listener) => Some(listener),
            Place::At(_) => None,
        };
        [bound, self.replay.as_ref()].map(|listener| Some(listener?.local_addr().ok()?.port()))
    }
}

/// Publishes a model's events. When it is dropped, it says that all blocks are gone.
#[derive(Debug)]
pub struct KvEventPublisher {
    /// `None` once it ends.
    queue: Option<mpsc::Sender<Batch>>,
    thread: Option<JoinHandle<()>>,
    metrics: Arc<Metrics>,
    /// Whether a batch was dropped since routers were last told everything.
    has_lost_some: bool,
    has_warned: bool,
}

impl KvEventPublisher {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// [`PublishError::Thread`] if the thread cannot be started.
    pub fn start(sockets: KvEventSockets, metrics: Arc<Metrics>) -> Result<Self, PublishError> {
        let KvEventSockets {
            config,
            place,
            replay,
        } = sockets;
        let (queue, batches) = mpsc::channel(config.max_queue_size);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(PublishError::Thread)?;
        let topic = Bytes::from(config.topic.clone());
        let buffer = Buffer::new(replay.as_ref().map_or(0, |_| config.buffer_steps));
        let task_metrics = Arc::clone(&metrics);
        let thread = std::thread::Builder::new()
            .name("kv-events".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let outgoing = Outgoing {
                        topic,
                        number: 0,
                        buffer,
                        metrics: task_metrics,
                    };
                    if let Err(error) = publish(batches, place, replay, outgoing).await {
                        tracing::error!("KV events are not published any more: {error}");
                    }
                });
            })
            .map_err(PublishError::Thread)?;
        tracing::info!(
            endpoint = %config.endpoint,
            replay_endpoint = config.replay_endpoint.as_ref().map(ToString::to_string),
            topic = config.topic,
            "publishing KV events"
        );
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            metrics,
            has_lost_some: false,
            has_warned: false,
        })
    }

    /// Whether a batch was dropped and there is room to tell everything again.
    pub fn wants_everything(&self) -> bool {
        let has_room = |queue: &mpsc::Sender<Batch>| queue.capacity() > 0;
        self.has_lost_some && self.queue.as_ref().is_some_and(has_room)
    }

    /// Queues a step's events. Never waits: without room they are dropped and counted.
    pub fn publish(&mut self, events: Vec<KvEvent>) {
        if events.is_empty() {
            return;
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let at_s = since.map_or(0.0, |since| since.as_secs_f64());
        // Everything is told from the beginning as soon as there is room.
        let starts_over = events.first() == Some(&KvEvent::Cleared);
        let Some(queue) = &self.queue else {
            return;
        };
        let was_queued = if self.has_lost_some && !starts_over {
            false
        } else {
            match queue.try_send(Batch { at_s, events }) {
                Ok(()) => true,
                // It logged why it ended.
                Err(TrySendError::Full(_) | TrySendError::Closed(_)) => false,
            }
        };
        if was_queued {
            self.has_lost_some = false;
            return;
        }
        self.has_lost_some = true;
        self.metrics.kv_event_batches_dropped.add(1);
        if !self.has_warned {
            self.has_warned = true;
            tracing::warn!(
                max_queue_size = queue.max_capacity(),
                "KV events come faster than they are published: batches are dropped, and all blocks \
                 are told again once the queue has room; further ones are only counted"
            );
        }
    }
}

impl Drop for KvEventPublisher {
    fn drop(&mut self) {
        self.publish(vec![KvEvent::Cleared]);
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was reported already.
            let _ = thread.join();
        }
    }
}

/// Where subscribers are.
#[derive(Debug)]
enum Place {
    Bound(TcpListener),
    At(String),
}

/// What is sent, and what was.
struct Outgoing {
    topic: Bytes,
    number: u64,
    buffer: Buffer,
    metrics: Arc<Metrics>,
}

impl Outgoing {
    /// The next message, which is kept for replays.
    fn message(&mut self, batch: &Batch) -> Option<ZmqMessage> {
        let payload = match wire::encode(batch.at_s, &batch.events) {
            Ok(payload) => payload,
            Err(error) => {
                tracing::error!("a batch of KV events cannot be written: {error}");
                return None;
            }
        };
        let number = Bytes::copy_from_slice(&self.number.to_be_bytes());
        self.buffer.push(self.number, payload.clone());
        self.number += 1;
        self.metrics.kv_event_batches_published.add(1);
        ZmqMessage::try_from(vec![self.topic.clone(), number, payload]).ok()
    }
}

/// The batches as messages, and the answers to replay requests.
struct Source {
    batches: mpsc::Receiver<Batch>,
    outgoing: Outgoing,
    requests: Option<RouterRecvHalf>,
    answers: Option<Answers>,
}

impl Source {
    /// The next message; `None` once the queue is closed and empty. Replays are answered meanwhile.
    async fn next(&mut self) -> Option<ZmqMessage> {
        loop {
            tokio::select! {
                batch = self.batches.recv() => {
                    if let Some(message) = self.outgoing.message(&batch?) {
                        return Some(message);
                    }
                }
                request = next_request(self.requests.as_mut()) => match (request, &mut self.answers) {
                    (Ok(request), Some(answers)) => answers.answer(request, &self.outgoing.buffer),
                    (Ok(_), None) => {}
                    (Err(error), _) => tracing::warn!("a replay request failed: {error}"),
                },
            }
        }
    }
}

async fn next_request(
    requests: Option<&mut RouterRecvHalf>,
) -> Result<ZmqMessage, zeromq::ZmqError> {
    match requests {
        Some(requests) => requests.recv().await,
        None => std::future::pending().await,
    }
}

/// Until the queue is closed and empty.
async fn publish(
    batches: mpsc::Receiver<Batch>,
    place: Place,
    replay: Option<TcpListener>,
    outgoing: Outgoing,
) -> Result<(), zeromq::ZmqError> {
    let mut socket = PubSocket::new();
    let mut changes = socket.monitor();
    let peer = match place {
        Place::Bound(listener) => {
            socket.bind_listener(listener).await?;
            None
        }
        Place::At(peer) => Some(peer),
    };
    let mut source = Source {
        batches,
        outgoing,
        requests: None,
        answers: None,
    };
    if let Some(listener) = replay {
        let mut router = RouterSocket::new();
        router.bind_listener(listener).await?;
        let (sender, receiver) = router.split();
        source.requests = Some(receiver);
        source.answers = Some(Answers::new(sender));
    }
    let mut is_connected = false;
    loop {
        if let Some(peer) = peer.as_ref().filter(|_| !is_connected) {
            let mut connecting = std::pin::pin!(connect(&mut socket, peer));
            loop {
                tokio::select! {
                    () = &mut connecting => break,
                    // Without a subscriber it goes nowhere; it can be asked for again.
                    message = source.next() => if message.is_none() {
                        return Ok(());
                    },
                }
            }
            is_connected = true;
        }
        tokio::select! {
            message = source.next() => match message {
                Some(message) => socket.send(message).await?,
                None => break,
            },
            // The peer of a socket that connects is its only one.
            Some(change) = changes.next() => {
                is_connected &= !matches!(change, SocketEvent::Disconnected(_));
            }
        }
    }
    tokio::time::sleep(LINGER).await;
    Ok(())
}

/// Until it succeeds. A peer that is not there yet is no error.
async fn connect(socket: &mut PubSocket, peer: &str) {
    let mut has_warned = false;
    while let Err(error) = socket.connect(peer).await {
        if !has_warned {
            has_warned = true;
            tracing::warn!(
                peer,
                "connecting to publish KV events, again and again: {error}"
            );
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    tracing::info!(peer, "connected to publish KV events");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::Tier;

    #[test]
    fn a_full_queue_drops_counts_and_asks_for_everything_once_it_has_room() {
        let (queue, mut batches) = mpsc::channel(1);
        let metrics = Arc::new(Metrics::new("m"));
        let mut publisher = KvEventPublisher {
            queue: Some(queue),
            thread: None,
            metrics: Arc::clone(&metrics),
            has_lost_some: false,
            has_warned: false,
        };
        let change = || {
            vec![KvEvent::Removed {
                tier: Tier::Device,
                hashes: vec![1],
            }]
        };
        publisher.publish(Vec::new());
        assert!(batches.try_recv().is_err(), "no events are no batch");
        publisher.publish(change());
        publisher.publish(change());
        assert_eq!(metrics.kv_event_batches_dropped.get(), 1);
        assert!(!publisher.wants_everything(), "there is no room");
        assert_eq!(batches.try_recv().map(|b| b.events).ok(), Some(change()));
        assert!(publisher.wants_everything());
        // A change of what routers do not know would mislead them.
        publisher.publish(change());
        assert!(batches.try_recv().is_err());
        publisher.publish(vec![KvEvent::Cleared]);
        assert!(!publisher.wants_everything());
        assert_eq!(
            batches.try_recv().map(|b| b.events).ok(),
            Some(vec![KvEvent::Cleared])
        );
        assert_eq!(metrics.kv_event_batches_dropped.get(), 2);
    }

    #[test]
    fn a_taken_port_is_named_with_its_field() {
        let taken = Endpoint::parse("tcp://*:0").unwrap().bind().unwrap();
        let endpoint = format!("tcp://*:{}", taken.local_addr().unwrap().port());
        let config = KvEventsConfig {
            endpoint: Endpoint::parse("tcp://*:0").unwrap(),
            replay_endpoint: Some(Endpoint::parse(&endpoint).unwrap()),
            buffer_steps: 1,
            max_queue_size: 1,
            topic: String::new(),
        };
        let error = KvEventSockets::open(&config).unwrap_err().to_string();
        assert!(
            error.contains(&endpoint) && error.contains("replay_endpoint"),
            "{error}"
        );
    }
}
