//! The in-memory cache: the least recently used entries are evicted first, expired ones are not
//! returned.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{CacheKey, Put};

/// Approximate overhead of an entry besides the bytes of its response.
const ENTRY_OVERHEAD_BYTES: u64 = 200;

#[derive(Debug)]
pub struct Memory {
    ttl: Duration,
    max_bytes: u64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    entries: HashMap<CacheKey, Entry>,
    /// Keys by time of last use.
    order: BTreeMap<u64, CacheKey>,
    n_uses: u64,
    n_bytes: u64,
}

#[derive(Debug)]
struct Entry {
    answer: Arc<[u8]>,
    stored: Instant,
    last_use: u64,
}

impl Memory {
    pub fn new(ttl: Duration, max_bytes: u64) -> Self {
        Self {
            ttl,
            max_bytes,
            kept: Mutex::default(),
        }
    }

    pub fn get(&self, key: &CacheKey) -> Option<Arc<[u8]>> {
        let mut kept = self.lock();
        if kept.entries.get(key)?.stored.elapsed() >= self.ttl {
            kept.remove(key);
            return None;
        }
        kept.touch(key)
    }

    pub fn put(&self, key: CacheKey, answer: Arc<[u8]>) -> Put {
        let n_bytes = weight(&answer);
        if n_bytes > self.max_bytes {
            return Put::TooLarge;
        }
        let mut kept = self.lock();
        kept.remove(&key);
        while kept.n_bytes + n_bytes > self.max_bytes {
            let Some((_, oldest)) = kept.order.first_key_value() else {
                break;
            };
            let oldest = *oldest;
            kept.remove(&oldest);
        }
        kept.insert(key, answer);
        Put::Kept
    }

    pub fn clear(&self) {
        *self.lock() = Kept::default();
    }

    /// No method panics between two related changes.
    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn touch(&mut self, key: &CacheKey) -> Option<Arc<[u8]>> {
        let entry = self.entries.get_mut(key)?;
        self.order.remove(&entry.last_use);
        self.n_uses += 1;
        entry.last_use = self.n_uses;
        self.order.insert(entry.last_use, *key);
        Some(Arc::clone(&entry.answer))
    }

    fn insert(&mut self, key: CacheKey, answer: Arc<[u8]>) {
        self.n_uses += 1;
        self.n_bytes += weight(&answer);
        self.order.insert(self.n_uses, key);
        let entry = Entry {
            answer,
            stored: Instant::now(),
            last_use: self.n_uses,
        };
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &CacheKey) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.last_use);
            self.n_bytes -= weight(&entry.answer);
        }
    }
}

fn weight(answer: &[u8]) -> u64 {
    answer.len() as u64 + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(n_bytes: usize) -> Arc<[u8]> {
        vec![7; n_bytes].into()
    }

    #[test]
    fn memory_stays_within_its_limit_and_keeps_what_is_used() {
        let memory = Memory::new(Duration::from_mins(1), 10_000);
        let put = memory.put([255; 32], answer(10_000));
        assert_eq!(put, Put::TooLarge, "with the overhead");
        for i in 0..200 {
            assert_eq!(memory.put([i; 32], answer(1000)), Put::Kept);
            assert!(memory.get(&[0; 32]).is_some(), "used all the time");
            let kept = memory.lock();
            assert!(kept.n_bytes <= 10_000, "{}", kept.n_bytes);
            assert_eq!(kept.entries.len(), kept.order.len());
        }
        assert_eq!(memory.lock().entries.len(), 8, "of 1200 bytes each");
        assert!(memory.get(&[1; 32]).is_none() && memory.get(&[199; 32]).is_some());
    }

    #[test]
    fn the_same_key_again_replaces() {
        let memory = Memory::new(Duration::from_mins(1), 10_000);
        for n_bytes in [100, 300, 200] {
            memory.put([1; 32], answer(n_bytes));
        }
        assert_eq!(memory.lock().n_bytes, 200 + ENTRY_OVERHEAD_BYTES);
        assert_eq!(memory.get(&[1; 32]).map(|found| found.len()), Some(200));
    }
}
