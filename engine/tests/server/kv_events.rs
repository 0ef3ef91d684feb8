//! A router that follows `--kv-events-config`: a subscriber that knows ZeroMQ and MessagePack alone.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use engine::kv::PAGE_TOKENS;
use engine::kv_events::{Endpoint, KvEventSockets, KvEventsConfig};
use serde_json::{Value, json};
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

use crate::fixture::{LIMIT, TestConfig, TestServer, merged, until};

const TOPIC: &str = "kv@test@mock";

fn sockets(endpoint: &str, buffer_steps: usize) -> KvEventSockets {
    let parse = |text: &str| Endpoint::parse(text).expect("an endpoint");
    let config = KvEventsConfig {
        endpoint: parse(endpoint),
        replay_endpoint: Some(parse("tcp://127.0.0.1:0")),
        buffer_steps,
        max_queue_size: 1000,
        topic: TOPIC.to_owned(),
    };
    KvEventSockets::open(&config).expect("free ports")
}

/// A router's copy of one model's cache.
struct Router {
    events: SubSocket,
    replays: DealerSocket,
    /// Of the next batch.
    number: u64,
    /// Block → its tokens and the block before.
    blocks: BTreeMap<u64, (Vec<u64>, Option<u64>)>,
    n_cleared: usize,
}

fn number_of(frame: &[u8]) -> i64 {
    i64::from_be_bytes(frame.try_into().expect("8 bytes"))
}

fn integers(value: &Value) -> Vec<u64> {
    let values = value.as_array().expect("an array").iter();
    values
        .map(|value| value.as_u64().expect("an integer"))
        .collect()
}

impl Router {
    async fn new(mut events: SubSocket, replay_port: u16) -> Self {
        events.subscribe("kv@").await.expect("subscribed");
        let mut replays = DealerSocket::new();
        let replay_endpoint = format!("tcp://127.0.0.1:{replay_port}");
        replays.connect(&replay_endpoint).await.expect("connected");
        Self {
            events,
            replays,
            number: 0,
            blocks: BTreeMap::new(),
            n_cleared: 0,
        }
    }

    /// Takes a message if one comes soon, and asks for those that it missed before it.
    async fn follow(&mut self) {
        let soon = Duration::from_millis(50);
        let Ok(message) = tokio::time::timeout(soon, self.events.recv()).await else {
            return;
        };
        let frames = message.expect("a message").into_vec();
        let [topic, number, payload] = frames.as_slice() else {
            panic!("{} frames", frames.len());
        };
        assert_eq!(topic.as_ref(), TOPIC.as_bytes());
        let number = number_of(number) as u64;
        if number > self.number {
            self.replay().await;
        }
        // It may have been among them.
        if number == self.number {
            self.apply(payload);
        }
    }

    /// Asks for everything from the next number on.
    async fn replay(&mut self) {
        for (number, payload) in self.answers(self.number).await {
            assert_eq!(number, self.number, "a batch is missing");
            self.apply(&payload);
        }
    }

    /// The batches from `first` on that are there again.
    async fn answers(&mut self, first: u64) -> Vec<(u64, Bytes)> {
        let first = Bytes::copy_from_slice(&first.to_be_bytes());
        let request = ZmqMessage::try_from(vec![Bytes::new(), first]).expect("frames");
        self.replays.send(request).await.expect("sent");
        let mut batches = Vec::new();
        loop {
            let answer = tokio::time::timeout(LIMIT, self.replays.recv()).await;
            let frames = answer.expect("in time").expect("an answer").into_vec();
            let [empty, number, payload] = frames.as_slice() else {
                panic!("{} frames", frames.len());
            };
            assert!(empty.is_empty());
            let number = number_of(number);
            if number == -1 {
                assert!(payload.is_empty());
                return batches;
            }
            batches.push((number as u64, payload.clone()));
        }
    }

    fn apply(&mut self, payload: &[u8]) {
        self.number += 1;
        let batch: Value = rmp_serde::from_slice(payload).expect("MessagePack");
        assert!(batch[0].as_f64().expect("a time") > 1.7e9);
        assert_eq!(batch[2], 0, "the data-parallel rank");
        for event in batch[1].as_array().expect("events") {
            match event[0].as_str() {
                Some("BlockStored") => {
                    assert_eq!(event[4], PAGE_TOKENS);
                    assert_eq!(
                        (&event[5], &event[6], &event[7]),
                        (&Value::Null, &json!("GPU"), &Value::Null)
                    );
                    let mut parent = event[2].as_u64();
                    let tokens = integers(&event[3]);
                    for (hash, page) in integers(&event[1])
                        .into_iter()
                        .zip(tokens.chunks(PAGE_TOKENS))
                    {
                        self.blocks.insert(hash, (page.to_vec(), parent));
                        parent = Some(hash);
                    }
                }
                Some("BlockRemoved") => {
                    assert_eq!(event[2], "GPU");
                    for hash in integers(&event[1]) {
                        assert!(self.blocks.remove(&hash).is_some(), "{hash} is unknown");
                    }
                }
                Some("AllBlocksCleared") => {
                    self.blocks.clear();
                    self.n_cleared += 1;
                }
                other => panic!("an event called {other:?}"),
            }
        }
    }

    async fn follows_until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        until(what, LIMIT, async || {
            self.follow().await;
            is_so(self)
        })
        .await;
    }

    /// The prefixes that are cached, as their tokens.
    fn prefixes(&self) -> Vec<Vec<u64>> {
        let prefix_of = |hash: &u64| {
            let mut pages = Vec::new();
            let mut next = Some(*hash);
            while let Some(hash) = next {
                let (tokens, parent) = self.blocks.get(&hash).expect("a known parent");
                pages.push(tokens.clone());
                next = *parent;
            }
            pages.reverse();
            pages.concat()
        };
        self.blocks.keys().map(prefix_of).collect()
    }
}

async fn bound(port: Option<u16>) -> SubSocket {
    let mut socket = SubSocket::new();
    let endpoint = format!("tcp://127.0.0.1:{}", port.expect("a bound port"));
    socket.connect(&endpoint).await.expect("connected");
    socket
}

fn completion(first: u32, fields: Value) -> Value {
    let prompt: Vec<u32> = (0..40).map(|i| (first + i) % 250).collect();
    merged(json!({"prompt": prompt, "max_tokens": 12}), fields)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_knows_what_is_cached_also_after_missing_messages_and_a_flush() {
    let sockets = sockets("tcp://*:0", 100);
    let [events, replays] = sockets.ports();
    let config = TestConfig {
        kv_sockets: Some(sockets),
        ..TestConfig::default()
    };
    let server = TestServer::start(config).await;
    // There is no subscriber yet: these messages are missed.
    server.ok("/v1/completions", completion(0, json!({}))).await;
    server
        .ok("/v1/completions", completion(100, json!({})))
        .await;
    let mut router = Router::new(bound(events).await, replays.expect("a port")).await;
    let mut first = 1;
    until("a message comes", LIMIT, async || {
        server
            .ok("/v1/completions", completion(first, json!({})))
            .await;
        first += 1;
        router.follow().await;
        router.number > 0
    })
    .await;
    let n_cached = server.metric("engine_kv_pages_cached").await as usize;
    let knows_all = |router: &Router| router.blocks.len() == n_cached;
    router
        .follows_until("the router knows all", knows_all)
        .await;
    let expected: Vec<u64> = (100..132).collect();
    assert!(router.prefixes().contains(&expected), "a missed prompt");

    // The same tokens with a salt are other blocks.
    let before = router.blocks.len();
    let salted = completion(0, json!({"cache_salt": "s"}));
    server.ok("/v1/completions", salted).await;
    let grew = |router: &Router| router.blocks.len() >= before + 3;
    router.follows_until("salted blocks", grew).await;

    let flushed = server.post("/flush_cache", json!({})).await;
    assert_eq!(flushed.status, 200, "{}", flushed.text());
    let is_empty = |router: &Router| router.n_cleared == 1;
    router
        .follows_until("all blocks are cleared", is_empty)
        .await;
    assert!(router.blocks.is_empty());
    let published = server.metric("engine_kv_event_batches_total").await;
    assert_eq!(published as u64, router.number, "none was dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn evictions_are_told_and_replays_begin_where_they_are_asked_to() {
    const BUFFER_STEPS: usize = 30;
    let sockets = sockets("tcp://*:0", BUFFER_STEPS);
    let [events, replays] = sockets.ports();
    let mut config = TestConfig {
        kv_sockets: Some(sockets),
        ..TestConfig::default()
    };
    config.mock.n_pages = 8;
    let server = TestServer::start(config).await;
    let mut router = Router::new(bound(events).await, replays.expect("a port")).await;
    let mut first = 0;
    let published = async || server.metric("engine_kv_event_batches_total").await as u64;
    until("enough has been published", LIMIT, async || {
        server
            .ok("/v1/completions", completion(first, json!({})))
            .await;
        first += 1;
        published().await >= 10
    })
    .await;
    router.replay().await;
    let n_cached = server.metric("engine_kv_pages_cached").await as usize;
    assert!(0 < n_cached && n_cached <= 8);
    let knows_all = |router: &Router| router.blocks.len() == n_cached;
    router
        .follows_until("the router knows all", knows_all)
        .await;
    let number = router.number;
    until("more than the buffer has", LIMIT, async || {
        server
            .ok("/v1/completions", completion(first, json!({})))
            .await;
        first += 1;
        published().await > number + BUFFER_STEPS as u64
    })
    .await;
    let numbers: Vec<u64> = router.answers(0).await.iter().map(|(n, _)| *n).collect();
    assert_eq!(numbers.len(), BUFFER_STEPS);
    assert!(numbers.is_sorted() && numbers[0] > 0, "{numbers:?}");
    let last = numbers[BUFFER_STEPS - 1];
    assert_eq!(router.answers(last).await.len(), 1);
    assert!(
        router.answers(last + 1).await.is_empty(),
        "nothing is that new"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_connects_comes_back_to_a_router_that_restarts() {
    let mut events = SubSocket::new();
    let endpoint = events
        .bind("tcp://127.0.0.1:0")
        .await
        .expect("bound")
        .to_string();
    let sockets = sockets(&endpoint, 1000);
    let [None, Some(replays)] = sockets.ports() else {
        panic!("it connects, and replays are bound");
    };
    let config = TestConfig {
        kv_sockets: Some(sockets),
        ..TestConfig::default()
    };
    let server = TestServer::start(config).await;
    let mut first = 0;
    for _ in 0..2 {
        let mut router = Router::new(events, replays).await;
        until("a message comes", LIMIT, async || {
            server
                .ok("/v1/completions", completion(first, json!({})))
                .await;
            first += 1;
            router.follow().await;
            router.number > 0
        })
        .await;
        assert!(!router.blocks.is_empty());
        drop(router);
        events = SubSocket::new();
        let mut is_bound = false;
        until("the port is free again", LIMIT, async || {
            is_bound = events.bind(&endpoint).await.is_ok();
            is_bound
        })
        .await;
    }
}
