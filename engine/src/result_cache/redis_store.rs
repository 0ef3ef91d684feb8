//! The cache in Redis: one connection that all requests share, and what happens without it.
//!
//! A request waits for Redis a quarter of a second at most, and not at all while it is known to
//! be gone.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, RedisError, cmd};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{Found, Key, Put};
use crate::config::RedisUrl;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const COMMAND_TIMEOUT: Duration = Duration::from_millis(250);
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(1);
/// Of all keys, so that one Redis may serve others too.
const PREFIX: &[u8] = b"engine:result:";

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct RedisStore(Arc<Store>);

struct Store {
    url: RedisUrl,
    ttl: Duration,
    max_bytes: u64,
    state: Mutex<State>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

enum State {
    Untried,
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
            state: Mutex::new(State::Untried),
        }))
    }

    pub async fn get(&self, key: &Key) -> Found {
        let Some(mut connection) = self.connection().await else {
            return Found::Unreachable;
        };
        let mut command = cmd("GET");
        command.arg(name_of(key));
        let answer = command.query_async::<Option<Vec<u8>>>(&mut connection);
        match self.checked(timeout(COMMAND_TIMEOUT, answer).await).await {
            Some(Some(bytes)) => Found::Answer(bytes.into()),
            Some(None) => Found::Nothing,
            None => Found::Unreachable,
        }
    }

    pub async fn put(&self, key: Key, answer: Arc<[u8]>) -> Put {
        if answer.len() as u64 > self.0.max_bytes {
            return Put::TooLarge;
        }
        let Some(mut connection) = self.connection().await else {
            return Put::Unreachable;
        };
        let mut command = cmd("SET");
        command.arg(name_of(&key)).arg(&*answer);
        command.arg("EX").arg(self.0.ttl.as_secs().max(1));
        let stored = command.query_async::<()>(&mut connection);
        match self.checked(timeout(COMMAND_TIMEOUT, stored).await).await {
            Some(()) => Put::Kept,
            None => Put::Unreachable,
        }
    }

    async fn connection(&self) -> Option<MultiplexedConnection> {
        let mut state = self.0.state.lock().await;
        match &*state {
            State::Up(connection) => Some(connection.clone()),
            State::Down => None,
            State::Untried => match connect(&self.0.url).await {
                Ok(connection) => {
                    *state = State::Up(connection.clone());
                    Some(connection)
                }
                Err(reason) => {
                    self.give_up(&mut state, &reason);
                    None
                }
            },
        }
    }

    /// The answer of a command that came in time; otherwise the connection is given up.
    async fn checked<T>(
        &self,
        outcome: Result<Result<T, RedisError>, tokio::time::error::Elapsed>,
    ) -> Option<T> {
        let reason = match outcome {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} ms", COMMAND_TIMEOUT.as_millis()),
        };
        let mut state = self.0.state.lock().await;
        // Others may have said so already, or even be connected again.
        if matches!(*state, State::Up(_)) {
            self.give_up(&mut state, &reason);
        }
        None
    }

    fn give_up(&self, state: &mut State, reason: &str) {
        let url = &self.0.url;
        tracing::warn!(%url, reason, "the result cache cannot be reached; answers are made without it");
        *state = State::Down;
        tokio::spawn(reconnect(Arc::downgrade(&self.0)));
    }
}

fn name_of(key: &Key) -> Vec<u8> {
    let mut name = PREFIX.to_vec();
    for byte in key {
        name.extend(format!("{byte:02x}").bytes());
    }
    name
}

async fn connect(url: &RedisUrl) -> Result<MultiplexedConnection, String> {
    let client = Client::open(url.secret()).map_err(|error| error.to_string())?;
    let attempt = async {
        let mut connection = client.get_multiplexed_async_connection().await?;
        // A server that is loading its data accepts connections and refuses commands.
        cmd("PING").query_async::<()>(&mut connection).await?;
        Ok(connection)
    };
    match timeout(CONNECT_TIMEOUT, attempt).await {
        Ok(outcome) => outcome.map_err(|error: RedisError| error.to_string()),
        Err(_) => Err(format!(
            "no connection within {} ms",
            CONNECT_TIMEOUT.as_millis()
        )),
    }
}

/// Tries until it succeeds or nobody wants the cache any more.
async fn reconnect(store: Weak<Store>) {
    loop {
        tokio::time::sleep(BETWEEN_ATTEMPTS).await;
        let Some(store) = store.upgrade() else { return };
        if let Ok(connection) = connect(&store.url).await {
            *store.state.lock().await = State::Up(connection);
            tracing::info!(url = %store.url, "the result cache is back");
            return;
        }
    }
}
