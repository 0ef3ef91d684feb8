//! Sends the last batches again to a subscriber that missed some.
//!
//! A request is the first number wanted, after an empty frame, as a REQ socket sends it. Each batch
//! is an answer of its own, and the number -1 with an empty batch ends them.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use zeromq::{RouterSendHalf, SocketSend, ZmqMessage};

const END: [u8; 8] = (-1_i64).to_be_bytes();
/// A client that does not read for so long gets no further batch.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers under way at a time; further requests are ignored.
const MAX_ANSWERS: usize = 16;

/// The last batches, oldest first.
pub(super) struct Buffer {
    batches: VecDeque<(u64, Bytes)>,
    limit: usize,
}

impl Buffer {
    pub fn new(limit: usize) -> Self {
        Self {
            batches: VecDeque::new(),
            limit,
        }
    }

    pub fn push(&mut self, number: u64, payload: Bytes) {
        if self.limit == 0 {
            return;
        }
        if self.batches.len() >= self.limit {
            self.batches.pop_front();
        }
        self.batches.push_back((number, payload));
    }

    fn since(&self, first: u64) -> Vec<(u64, Bytes)> {
        let start = self.batches.partition_point(|(number, _)| *number < first);
        self.batches.range(start..).cloned().collect()
    }
}

/// The answers under way.
pub(super) struct Answers {
    socket: RouterSendHalf,
    running: JoinSet<()>,
}

impl Answers {
    pub fn new(socket: RouterSendHalf) -> Self {
        Self {
            socket,
            running: JoinSet::new(),
        }
    }

    /// Answers a request concurrently.
    pub fn answer(&mut self, request: ZmqMessage, buffer: &Buffer) {
        while self.running.try_join_next().is_some() {}
        let frames = request.into_vec();
        let [client, empty, first] = frames.as_slice() else {
            tracing::warn!(n_frames = frames.len(), "a replay request has not 3 frames");
            return;
        };
        let Ok(first) = <[u8; 8]>::try_from(first.as_ref()) else {
            tracing::warn!(n_bytes = first.len(), "a replay request has not 8 bytes");
            return;
        };
        if !empty.is_empty() || self.running.len() >= MAX_ANSWERS {
            tracing::warn!(limit = MAX_ANSWERS, "a replay request is ignored");
            return;
        }
        let batches = buffer.since(u64::from_be_bytes(first));
        self.running
            .spawn(send(self.socket.clone(), client.clone(), batches));
    }
}

async fn send(mut socket: RouterSendHalf, client: Bytes, batches: Vec<(u64, Bytes)>) {
    let batches = batches
        .into_iter()
        .map(|(number, payload)| (number.to_be_bytes(), payload));
    for (number, payload) in batches.chain([(END, Bytes::new())]) {
        let number = Bytes::copy_from_slice(&number);
        let frames = vec![client.clone(), Bytes::new(), number, payload];
        let Ok(message) = ZmqMessage::try_from(frames) else {
            return;
        };
        match tokio::time::timeout(SEND_TIMEOUT, socket.send(message)).await {
            Ok(Ok(())) => {}
            // The client is gone or reads nothing.
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_has_the_last_batches() {
        let mut buffer = Buffer::new(3);
        for number in 0..5 {
            buffer.push(number, Bytes::from(vec![number as u8]));
        }
        let numbers = |first| -> Vec<u64> {
            let batches = buffer.since(first);
            batches.iter().map(|(number, _)| *number).collect()
        };
        assert_eq!(numbers(0), [2, 3, 4]);
        assert_eq!(numbers(4), [4]);
        assert!(numbers(5).is_empty());
        let mut none = Buffer::new(0);
        none.push(0, Bytes::new());
        assert!(none.since(0).is_empty());
    }
}
