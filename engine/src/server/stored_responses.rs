//! Responses kept for `previous_response_id` and `GET /v1/responses/{id}`, in bounded memory.
//!
//! The least recently used one leaves first. A response refers to the one before it instead of
//! containing it, so using one uses all before it, and the first of a conversation stays as long as
//! its last. A response whose conversation does not fit is not kept. They are kept as JSON text, so that
//! their bytes are what they take. Nothing is kept beyond the process. Any client with a key that
//! knows a response's random id can read it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    pub responses: usize,
    pub bytes: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            responses: 4096,
            bytes: 64 << 20,
        }
    }
}

/// A response and the request's own input.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub response: Value,
    pub input: Vec<Value>,
    /// The id of the response that it continues.
    pub previous: Option<String>,
}

#[derive(Debug, Default)]
pub struct ResponseStore {
    limits: StoreLimits,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    entries: HashMap<String, Entry>,
    /// Ids by the time of their last use.
    by_use: BTreeMap<u64, String>,
    clock: u64,
    n_bytes: usize,
}

#[derive(Debug, Clone)]
struct Entry {
    /// Response and input, as JSON.
    json: Arc<[u8]>,
    previous: Option<String>,
    used: u64,
}

impl ResponseStore {
    pub fn new(limits: StoreLimits) -> Self {
        Self {
            limits,
            kept: Mutex::default(),
        }
    }

    /// Keeps a response; returns false if it and those before it are more than may be kept.
    pub fn put(&self, id: &str, stored: Stored) -> bool {
        let json = json!([stored.response, stored.input]).to_string();
        if json.len() > self.limits.bytes || self.limits.responses == 0 {
            return false;
        }
        let mut kept = self.lock();
        kept.remove(id);
        kept.n_bytes += json.len();
        let entry = Entry {
            json: json.into_bytes().into(),
            previous: stored.previous,
            used: 0,
        };
        kept.entries.insert(id.to_owned(), entry);
        kept.use_chain(id);
        while kept.n_bytes > self.limits.bytes || kept.entries.len() > self.limits.responses {
            let Some(oldest) = kept.by_use.first_key_value().map(|(_, id)| id.clone()) else {
                break;
            };
            kept.remove(&oldest);
        }
        kept.entries.contains_key(id)
    }

    pub fn get(&self, id: &str) -> Option<Stored> {
        let entry = {
            let mut kept = self.lock();
            kept.use_chain(id);
            kept.entries.get(id)?.clone()
        };
        entry.read()
    }

    /// A response with all before it, the first one first.
    ///
    /// # Errors
    ///
    /// The id that is not kept, or no longer.
    pub fn chain(&self, id: &str) -> Result<Vec<Stored>, String> {
        let mut chain = Vec::new();
        {
            let mut kept = self.lock();
            kept.use_chain(id);
            let mut next = Some(id.to_owned());
            while let Some(id) = next.take() {
                let Some(entry) = kept.entries.get(&id) else {
                    return Err(id);
                };
                next.clone_from(&entry.previous);
                chain.push(entry.clone());
            }
        }
        Ok(chain.iter().rev().filter_map(Entry::read).collect())
    }

    /// Returns whether it was there.
    pub fn remove(&self, id: &str) -> bool {
        self.lock().remove(id)
    }

    /// No method panics between two related changes.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// `None` cannot happen: the text is this module's own.
    fn read(&self) -> Option<Stored> {
        let (response, input) = serde_json::from_slice(&self.json).ok()?;
        Some(Stored {
            response,
            input,
            previous: self.previous.clone(),
        })
    }
}

impl Kept {
    /// Makes a response and those before it the last used ones, the first of them the very last.
    fn use_chain(&mut self, id: &str) {
        let mut next = Some(id.to_owned());
        while let Some(id) = next.take() {
            let Some(entry) = self.entries.get_mut(&id) else {
                return;
            };
            self.by_use.remove(&entry.used);
            self.clock += 1;
            entry.used = self.clock;
            next.clone_from(&entry.previous);
            self.by_use.insert(self.clock, id);
        }
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some(entry) = self.entries.remove(id) else {
            return false;
        };
        self.by_use.remove(&entry.used);
        self.n_bytes -= entry.json.len();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(text: &str, previous: Option<&str>) -> Stored {
        Stored {
            response: json!({"text": text}),
            input: vec![json!("in")],
            previous: previous.map(str::to_owned),
        }
    }

    #[test]
    fn the_least_recently_used_leaves() {
        let store = ResponseStore::new(StoreLimits {
            responses: 2,
            bytes: 1000,
        });
        for id in ["a", "b"] {
            assert!(store.put(id, stored(id, None)));
        }
        assert_eq!(store.get("a"), Some(stored("a", None)));
        assert!(store.put("c", stored("c", None)));
        assert_eq!(store.get("b"), None);
        assert!(store.remove("a") && !store.remove("a"));
        let kept = store.lock();
        assert_eq!((kept.entries.len(), kept.by_use.len()), (1, 1));
        assert_eq!(kept.n_bytes, kept.entries["c"].json.len());
    }

    #[test]
    fn bytes_are_bounded_and_what_is_too_large_is_not_kept() {
        let limits = StoreLimits {
            responses: 100,
            bytes: 400,
        };
        let store = ResponseStore::new(limits);
        for i in 0..50 {
            assert!(store.put(&i.to_string(), stored(&"x".repeat(100), None)));
            assert!(store.lock().n_bytes <= limits.bytes);
        }
        assert_eq!(store.lock().entries.len(), 3);
        assert!(!store.put("large", stored(&"x".repeat(400), None)));
        assert_eq!(store.lock().entries.len(), 3);
    }

    #[test]
    fn a_conversation_stays_as_a_whole() {
        let store = ResponseStore::new(StoreLimits {
            responses: 3,
            bytes: 1000,
        });
        store.put("1", stored("1", None));
        store.put("other", stored("x", None));
        store.put("2", stored("2", Some("1")));
        store.put("3", stored("3", Some("2")));
        let chain = store.chain("3").expect("all are there");
        let texts: Vec<&Value> = chain.iter().map(|one| &one.response["text"]).collect();
        assert_eq!(texts, ["1", "2", "3"]);
        assert_eq!(store.get("other"), None);
        assert!(!store.put("4", stored("4", Some("3"))), "the limit is 3");
        assert_eq!(store.chain("4"), Err("4".to_owned()));
        assert_eq!(store.chain("2").map(|chain| chain.len()), Ok(2));
        store.remove("1");
        assert_eq!(store.chain("2"), Err("1".to_owned()));
    }
}
