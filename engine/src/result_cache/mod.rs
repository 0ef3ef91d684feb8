//! Responses to deterministic requests, cached in memory or in Redis.
//!
//! Keys are digests of everything that a response depends on; values are bytes. If Redis is slow,
//! wrong or gone, requests are computed as without a cache, one warning is logged, and a task tries
//! to reconnect.
//! Deliberately absent: waiting for an identical request in progress, and the format of the values
//! (`server::cached` defines it).

mod memory;
mod redis_store;

use std::sync::Arc;

use self::memory::Memory;
use self::redis_store::RedisStore;
use crate::config::{ResultCacheConfig, ResultCachePlace};

/// Digest of everything that a response depends on.
pub type CacheKey = [u8; 32];

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheRead {
    Answer(Arc<[u8]>),
    Nothing,
    /// The cache could not be reached.
    Unreachable,
}

/// The outcome of storing a response.
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

    pub async fn get(&self, key: &CacheKey) -> CacheRead {
        match self {
            Self::Off => CacheRead::Nothing,
            Self::Memory(memory) => memory
                .get(key)
                .map_or(CacheRead::Nothing, CacheRead::Answer),
            Self::Redis(store) => store.get(key).await,
        }
    }

    /// Removes every cached response; returns false if the cache could not be reached.
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

    pub async fn put(&self, key: CacheKey, answer: Arc<[u8]>) -> Put {
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
        assert_eq!(cache.get(&[1; 32]).await, CacheRead::Nothing);
        assert_eq!(cache.put([1; 32], Arc::clone(&answer)).await, Put::Kept);
        assert_eq!(cache.get(&[1; 32]).await, CacheRead::Answer(answer));
        assert_eq!(cache.get(&[2; 32]).await, CacheRead::Nothing);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(cache.get(&[1; 32]).await, CacheRead::Nothing);
    }

    #[tokio::test]
    async fn what_was_cleared_is_not_found() {
        let cache = memory(Duration::from_mins(1), 1 << 20);
        cache.put([1; 32], b"x".as_slice().into()).await;
        assert!(cache.clear().await);
        assert_eq!(cache.get(&[1; 32]).await, CacheRead::Nothing);
        assert!(ResultCache::Off.clear().await, "nothing is kept");
    }

    #[tokio::test]
    async fn off_keeps_nothing() {
        let cache = ResultCache::new(&ResultCacheConfig::default());
        assert!(!cache.is_on());
        cache.put([1; 32], b"x".as_slice().into()).await;
        assert_eq!(cache.get(&[1; 32]).await, CacheRead::Nothing);
    }
}
