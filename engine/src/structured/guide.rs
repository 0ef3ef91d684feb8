//! One choice's place in its grammar.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llguidance::Matcher;

use super::guide_error::GuideError;
use super::mask::TokenMask;
use super::workers::MaskWorkers;

/// Shared by the request, its rows and the workers. Clones are the same guide.
#[derive(Clone)]
pub struct Guide {
    state: Arc<Mutex<State>>,
    workers: Arc<MaskWorkers>,
}

struct State {
    matcher: Matcher,
    /// Output tokens that came.
    n_tokens: usize,
    /// The last of them, if the matcher does not know it yet.
    unread: Option<u32>,
    /// Of the next token; outdated while `unread` is set.
    mask: Arc<TokenMask>,
    failure: Option<GuideError>,
}

/// How often a mask was there when it was asked for, and how often not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MaskCounts {
    pub ready: u64,
    pub late: u64,
}

impl Guide {
    pub(super) fn new(matcher: Matcher, mask: Arc<TokenMask>, workers: Arc<MaskWorkers>) -> Self {
        let state = State {
            matcher,
            n_tokens: 0,
            unread: None,
            mask,
            failure: None,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            workers,
        }
    }

    /// What may come as output token `output_index`; made here if no worker has yet. `None` after
    /// a failure, which ends the request whatever is chosen.
    pub fn mask(&self, output_index: usize) -> Option<Arc<TokenMask>> {
        let mut state = self.state();
        self.workers.count(state.unread.is_none());
        state.read();
        if state.failure.is_none() && state.n_tokens != output_index {
            let n_tokens = state.n_tokens;
            let message = format!("token {output_index} was asked for after {n_tokens} tokens");
            state.failure = Some(GuideError::Broken(message));
        }
        state.failure.is_none().then(|| Arc::clone(&state.mask))
    }

    /// Output token `output_index` came: a worker makes the next mask. A token that came before
    /// changes nothing.
    pub fn advance(&self, output_index: usize, token: u32) {
        let mut state = self.state();
        if state.n_tokens != output_index || state.failure.is_some() {
            return;
        }
        state.read();
        state.unread = Some(token);
        state.n_tokens += 1;
        drop(state);
        self.workers.prepare(self.clone());
    }

    /// Of all guides of the model.
    pub fn mask_counts(&self) -> MaskCounts {
        self.workers.counts()
    }

    /// Why the output cannot go on, if so.
    pub fn failure(&self) -> Option<GuideError> {
        self.state().failure.clone()
    }

    /// The next token's mask is there.
    #[cfg(test)]
    pub(super) fn is_ready(&self) -> bool {
        self.state().unread.is_none()
    }

    /// Makes the next token's mask, if nobody has.
    pub(super) fn prepare(&self) {
        self.state().read();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The matcher catches panics of its own and keeps them as its error.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn read(&mut self) {
        let Some(token) = self.unread.take() else {
            return;
        };
        // Behind its end a grammar only lets the text end.
        if self.matcher.is_stopped() && !self.matcher.is_error() {
            return;
        }
        let read = self
            .matcher
            .consume_token(token)
            .and_then(|()| self.matcher.compute_mask_or_eos());
        match read {
            Ok(mask) => self.mask = Arc::new(TokenMask::new(mask)),
            Err(error) => self.failure = Some(GuideError::of_parser(&error.to_string())),
        }
    }
}

/// The same guide, not one at the same place.
impl PartialEq for Guide {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.state.try_lock() {
            Ok(state) => write!(f, "Guide behind {} tokens", state.n_tokens),
            Err(_) => f.write_str("Guide at work"),
        }
    }
}
