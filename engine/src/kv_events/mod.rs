//! Publishes what the prefix cache holds over ZeroMQ, in the form of vLLM and SGLang, so that their
//! routers can follow it.
//!
//! A PUB socket sends one message a batch: topic, sequence number (8 bytes, big-endian), MessagePack
//! ([`wire`]). A ROUTER socket sends the last batches again from a given number on ([`replay`]). The
//! engine thread hands batches over through a bounded queue and never waits; [`publisher`] has a
//! thread of its own. If the queue was full, routers are told the whole contents once it has room.
//!
//! The sockets are the `zeromq` crate's: it speaks with libzmq's sockets in both directions, and
//! needs no C++ library. Its queue for a subscriber is fixed at [`HWM`] messages, so another `hwm`
//! has no effect. `ipc://` and `inproc://` are refused.
//!
//! Deliberately absent: one socket for several models. Each has its own, with its own numbers.

mod endpoint;
mod publisher;
mod replay;
mod wire;

pub use self::endpoint::{Endpoint, EndpointError};
pub use self::publisher::{KvEventPublisher, KvEventSockets, PublishError};

/// Messages that wait for one subscriber; further ones are lost to it, which it sees by their
/// numbers.
pub const HWM: usize = 100_000;

/// Where and how a model's events are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvEventsConfig {
    pub endpoint: Endpoint,
    pub replay_endpoint: Option<Endpoint>,
    /// Batches that can be sent again.
    pub buffer_steps: usize,
    /// Batches that wait to be published.
    pub max_queue_size: usize,
    pub topic: String,
}
