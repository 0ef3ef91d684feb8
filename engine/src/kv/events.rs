//! What the prefix cache stores and gives up, in order, for routers that follow its contents.

use super::Tier;

/// A change of the prefix cache. Blocks are pages, named by their chain hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvEvent {
    /// Consecutive blocks of one prefix.
    Stored {
        tier: Tier,
        /// The block before the first one; `None` at the beginning of a prompt.
        parent: Option<u64>,
        hashes: Vec<u64>,
        /// Those of all these blocks.
        tokens: Vec<u32>,
    },
    Removed {
        tier: Tier,
        hashes: Vec<u64>,
    },
    /// All blocks of both tiers are gone.
    Cleared,
}

/// Events since they were last taken. Neighbours that fit into one event are one.
#[derive(Debug, Default)]
pub(super) struct EventLog(Vec<KvEvent>);

impl EventLog {
    /// A log that says that nothing is cached.
    pub fn cleared() -> Self {
        Self(vec![KvEvent::Cleared])
    }

    pub fn stored(&mut self, tier: Tier, parent: Option<u64>, hash: u64, tokens: &[u32]) {
        if let Some(KvEvent::Stored {
            tier: last,
            hashes,
            tokens: known,
            ..
        }) = self.0.last_mut()
            && *last == tier
            && parent.is_some()
            && hashes.last().copied() == parent
        {
            hashes.push(hash);
            known.extend_from_slice(tokens);
            return;
        }
        self.0.push(KvEvent::Stored {
            tier,
            parent,
            hashes: vec![hash],
            tokens: tokens.to_vec(),
        });
    }

    pub fn removed(&mut self, tier: Tier, hash: u64) {
        match self.0.last_mut() {
            Some(KvEvent::Removed { tier: last, hashes }) if *last == tier => hashes.push(hash),
            _ => self.0.push(KvEvent::Removed {
                tier,
                hashes: vec![hash],
            }),
        }
    }

    /// Everything before it is void.
    pub fn clear(&mut self) {
        *self = Self::cleared();
    }

    pub fn take(&mut self) -> Vec<KvEvent> {
        std::mem::take(&mut self.0)
    }
}
