//! The cache in Redis: one connection shared by all requests, and the behaviour without it.
//!
//! A request waits for Redis at most a quarter of a second, for connection and reply together, and
//! not at all while Redis is known to be down. A separate task connects; no lock is held meanwhile.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, FromRedisValue, RedisError, cmd};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::{CacheKey, CacheRead, Put};
use crate::config::RedisUrl;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Maximum time for a request to Redis.
const PATIENCE: Duration = Duration::from_millis(250);
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(1);
/// Prefix of all keys, so that one Redis can serve other programs too.
const PREFIX: &[u8] = b"engine:result:";

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct RedisStore(Arc<Store>);

struct Store {
    url: RedisUrl,
    ttl: Duration,
    max_bytes: u64,
    state: watch::Sender<State>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

enum State {
    Untried,
    /// The first attempt, which is worth waiting for.
    Connecting,
    Up(MultiplexedConnection),
    /// A task is trying to reach it.
    Down,
}

impl RedisStore {
    pub fn new(url: RedisUrl, ttl: Duration, max_bytes: u64) -> Self {
        Self(Arc::new(Store {
            url,
            ttl,
            max_bytes,
            state: watch::Sender::new(State::Untried),
        }))
    }

    pub async fn get(&self, key: &CacheKey) -> CacheRead {
        let mut command = cmd("GET");
        command.arg(name_of(key));
        match self.ask::<Option<Vec<u8>>>(&command).await {
            Some(Some(bytes)) => CacheRead::Answer(bytes.into()),
            Some(None) => CacheRead::Nothing,
            None => CacheRead::Unreachable,
        }
    }

    pub async fn put(&self, key: CacheKey, answer: Arc<[u8]>) -> Put {
        if answer.len() as u64 > self.0.max_bytes {
            return Put::TooLarge;
        }
        let mut command = cmd("SET");
        command.arg(name_of(&key)).arg(&*answer);
        command.arg("EX").arg(self.0.ttl.as_secs().max(1));
        match self.ask::<()>(&command).await {
            Some(()) => Put::Kept,
            None => Put::Unreachable,
        }
    }

    /// Removes every response, including those of other engines on the same Redis; returns false if
    /// it could not be reached.
    pub async fn clear(&self) -> bool {
        const BATCH: usize = 1000;
        let mut cursor: u64 = 0;
        loop {
            let mut scan = cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg([PREFIX, b"*"].concat());
            scan.arg("COUNT").arg(BATCH);
            let Some((next, names)) = self.ask::<(u64, Vec<Vec<u8>>)>(&scan).await else {
                return false;
            };
            if !names.is_empty() {
                let mut remove = cmd("DEL");
                remove.arg(names);
                if self.ask::<u64>(&remove).await.is_none() {
                    return false;
                }
            }
            if next == 0 {
                return true;
            }
            cursor = next;
        }
    }

    /// The reply, if it comes in time; otherwise the connection is dropped.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Option<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut connection = timeout_at(deadline, self.connection()).await.ok()??;
        let reason = match timeout_at(deadline, command.query_async(&mut connection)).await {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => what_failed(&error),
            Err(_) => format!("no answer within {} ms", PATIENCE.as_millis()),
        };
        Store::give_up(&self.0, &reason);
        None
    }

    /// The connection, if there is one or the first attempt is in progress.
    async fn connection(&self) -> Option<MultiplexedConnection> {
        let is_first = self.0.state.send_if_modified(|state| {
            let is_untried = matches!(state, State::Untried);
            if is_untried {
                *state = State::Connecting;
            }
            is_untried
        });
        if is_first {
            tokio::spawn(connect_first(Arc::clone(&self.0)));
        }
        let mut states = self.0.state.subscribe();
        let is_settled = |state: &State| !matches!(state, State::Connecting);
        match &*states.wait_for(is_settled).await.ok()? {
            State::Up(connection) => Some(connection.clone()),
            State::Untried | State::Connecting | State::Down => None,
        }
    }
}

impl Store {
    /// Logs the failure once; another request may have done so already.
    fn give_up(this: &Arc<Self>, reason: &str) {
        let is_news = this.state.send_if_modified(|state| {
            let is_news = !matches!(state, State::Down);
            *state = State::Down;
            is_news
        });
        if is_news {
            let url = &this.url;
            tracing::warn!(%url, reason, "the result cache cannot be reached; continuing without it");
            tokio::spawn(reconnect(Arc::downgrade(this)));
        }
    }
}

async fn connect_first(store: Arc<Store>) {
    match connect(&store.url).await {
        Ok(connection) => {
            store.state.send_replace(State::Up(connection));
        }
        Err(reason) => Store::give_up(&store, &reason),
    }
}

fn name_of(key: &CacheKey) -> Vec<u8> {
    let mut name = PREFIX.to_vec();
    for byte in key {
        name.extend(format!("{byte:02x}").bytes());
    }
    name
}

async fn connect(url: &RedisUrl) -> Result<MultiplexedConnection, String> {
    let client = Client::open(url.secret()).map_err(|error| what_failed(&error))?;
    let attempt = async {
        let mut connection = client.get_multiplexed_async_connection().await?;
        // A server that is loading its data accepts connections but refuses commands.
        cmd("PING").query_async::<()>(&mut connection).await?;
        Ok(connection)
    };
    match timeout(CONNECT_TIMEOUT, attempt).await {
        Ok(outcome) => outcome.map_err(|error: RedisError| what_failed(&error)),
        Err(_) => Err(format!(
            "no connection within {} ms",
            CONNECT_TIMEOUT.as_millis()
        )),
    }
}

/// Without the server's text, which may repeat what was sent, including the password.
fn what_failed(error: &RedisError) -> String {
    const KNOWN: [&str; 9] = [
        "BUSY",
        "ERR",
        "LOADING",
        "MISCONF",
        "NOAUTH",
        "NOPERM",
        "OOM",
        "READONLY",
        "WRONGPASS",
    ];
    if error.is_io_error() {
        // The operating system's message.
        return error.to_string();
    }
    let code = error.code().filter(|code| KNOWN.contains(code));
    match code {
        Some(code) => format!("{} ({code})", error.category()),
        None => error.category().to_owned(),
    }
}

/// Retries until it succeeds or the cache is dropped.
async fn reconnect(store: Weak<Store>) {
    loop {
        tokio::time::sleep(BETWEEN_ATTEMPTS).await;
        let Some(store) = store.upgrade() else { return };
        if let Ok(connection) = connect(&store.url).await {
            store.state.send_replace(State::Up(connection));
            tracing::info!(url = %store.url, "reconnected to the result cache");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A Redis that accepts connections but never replies.
    #[tokio::test]
    async fn no_request_waits_longer_than_its_patience_for_the_first_connection() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let url = RedisUrl::new(format!("redis://{address}"));
        let store = RedisStore::new(url, Duration::from_mins(1), 1 << 20);
        let begun = Instant::now();
        let asked: Vec<_> = (0..20)
            .map(|i| {
                let store = store.clone();
                tokio::spawn(async move {
                    let found = store.get(&[i; 32]).await;
                    (found, begun.elapsed())
                })
            })
            .collect();
        for asked in asked {
            let (found, waited) = asked.await.expect("an outcome");
            assert_eq!(found, CacheRead::Unreachable);
            // The attempt itself takes longer.
            assert!(waited < CONNECT_TIMEOUT, "{waited:?}");
        }
        // After that, requests do not wait at all.
        let mut states = store.0.state.subscribe();
        let is_down = |state: &State| matches!(state, State::Down);
        assert!(states.wait_for(is_down).await.is_ok());
        let begun = Instant::now();
        assert_eq!(store.get(&[0; 32]).await, CacheRead::Unreachable);
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    }

    /// A Redis that replies to each command with an error that repeats it.
    #[tokio::test]
    async fn what_a_server_repeats_is_not_told() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = [0; 1024];
                let n = stream.read(&mut asked).await.unwrap_or(0);
                let words = String::from_utf8_lossy(&asked[..n]).replace("\r\n", " ");
                // As a message, and as an error code.
                let answer = format!("-ERR you said {words}\r\n-s3cret {words}\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let url = RedisUrl::new(format!("redis://:s3cret@{address}"));
        let reason = connect(&url).await.map(|_| ()).expect_err("refused");
        assert!(!reason.is_empty() && !reason.contains("s3cret"), "{reason}");
    }
}
