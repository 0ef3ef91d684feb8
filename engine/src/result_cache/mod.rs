//! Answers of deterministic requests, kept in memory or in Redis for the next one that is the same.
//!
//! Keys are digests of everything that an answer depends on; what is kept is bytes. Redis may be
//! slow, wrong or gone: then answers are made as without a cache, one warning says so, and a
//! task tries to reach it again.
//! Deliberately absent: waiting for an equal request that is being answered, and what an answer
//! looks like (`server::cached` knows that).

mod memory;
mod redis_store;

use std::sync::Arc;

use self::memory::Memory;
use self::redis_store::RedisStore;
use crate::config::{ResultCacheConfig, ResultCachePlace};

/// What an answer depends on.
pub type Key = [u8; 32];

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Answer(Arc<[u8]>),
    Nothing,
    /// The cache could not be asked.
    Unreachable,
}

/// What became of an answer that was to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    Kept,
    /// Larger than `--result-cache-max-bytes`.
    TooLarge,
    Unreachable,
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub enum ResultCache {
    Off,
    Memory(Arc<Memory>),
    Redis(RedisStore),
}

impl ResultCache {
    pub fn new(config: &ResultCacheConfig) -> Self {
        match &config.place {
            ResultCachePlace::Off => Self::Off,
            ResultCachePlace::Memory => {
                Self::Memory(Arc::new(Memory::new(config.ttl, config.max_bytes)))
            }
            ResultCachePlace::Redis(url) => {
                Self::Redis(RedisStore::new(url.clone(), config.ttl, config.max_bytes))
            }
        }
    }

    pub fn is_on(&self) -> bool {
        !matches!(self, Self::Off)
    }

    pub async fn get(&self, key: &Key) -> Found {
        match self {
            Self::Off => Found::Nothing,
            Self::Memory(memory) => memory.get(key).map_or(Found::Nothing, Found::Answer),
            Self::Redis(store) => store.get(key).await,
        }
    }

    /// Forgets every answer that is kept; false where the cache could not be reached.
    pub async fn clear(&self) -> bool {
        match self {
            Self::Off => true,
            Self::Memory(memory) => {
                memory.clear();
                true
            }
            Self::Redis(store) => store.clear().await,
        }
    }

    pub async fn put(&self, key: Key, answer: Arc<[u8]>) -> Put {
        match self {
            Self::Off => Put::Unreachable,
            Self::Memory(memory) => memory.put(key, answer),
            Self::Redis(store) => store.put(key, answer).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn memory(ttl: Duration, max_bytes: u64) -> ResultCache {
        ResultCache::new(&ResultCacheConfig {
            place: ResultCachePlace::Memory,
            ttl,
            max_bytes,
        })
    }

    #[tokio::test]
    async fn what_was_put_is_found_until_its_time_is_over() {
        let cache = memory(Duration::from_millis(150), 1 << 20);
        let answer: Arc<[u8]> = b"text".as_slice().into();
        assert_eq!(cache.get(&[1; 32]).await, Found::Nothing);
        assert_eq!(cache.put([1; 32], Arc::clone(&answer)).await, Put::Kept);
        assert_eq!(cache.get(&[1; 32]).await, Found::Answer(answer));
        assert_eq!(cache.get(&[2; 32]).await, Found::Nothing);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(cache.get(&[1; 32]).await, Found::Nothing);
    }

    #[tokio::test]
    async fn what_was_cleared_is_not_found() {
        let cache = memory(Duration::from_mins(1), 1 << 20);
        cache.put([1; 32], b"x".as_slice().into()).await;
        assert!(cache.clear().await);
        assert_eq!(cache.get(&[1; 32]).await, Found::Nothing);
        assert!(ResultCache::Off.clear().await, "nothing is kept");
    }

    #[tokio::test]
    async fn off_keeps_nothing() {
        let cache = ResultCache::new(&ResultCacheConfig::default());
        assert!(!cache.is_on());
        cache.put([1; 32], b"x".as_slice().into()).await;
        assert_eq!(cache.get(&[1; 32]).await, Found::Nothing);
    }
}
