//! The position of one choice in its grammar.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use llguidance::Matcher;

use super::guide_error::GuideError;
use super::mask::TokenMask;
use super::workers::MaskWorkers;

/// Shared by the request, its rows and the workers. Clones refer to the same guide.
#[derive(Clone)]
pub struct Guide {
    state: Arc<Mutex<State>>,
    /// The engine has waited for the next mask.
    is_late: Arc<AtomicBool>,
    grammar_id: u64,
    workers: Arc<MaskWorkers>,
}

struct State {
    matcher: Matcher,
    /// Number of output tokens so far.
    n_tokens: usize,
    /// The last of them, if the matcher has not consumed it yet.
    unread: Option<u32>,
    /// The mask of the next token; outdated while `unread` is set.
    mask: Arc<TokenMask>,
    failure: Option<GuideError>,
}

/// How often a mask was ready when it was needed, and how often not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MaskCounts {
    pub ready: u64,
    pub late: u64,
}

impl Guide {
    /// `grammar_id` is the same for all choices of one request.
    pub(super) fn new(
        matcher: Matcher,
        mask: Arc<TokenMask>,
        grammar_id: u64,
        workers: Arc<MaskWorkers>,
    ) -> Self {
        let state = State {
            matcher,
            n_tokens: 0,
            unread: None,
            mask,
            failure: None,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            is_late: Arc::default(),
            grammar_id,
            workers,
        }
    }

    /// The mask for output token `output_index`; computed here if no worker has done it yet. `None`
    /// after a failure, which ends the request whatever token is chosen.
    pub fn mask(&self, output_index: usize) -> Option<Arc<TokenMask>> {
        let mut state = self.state();
        let was_late = self.is_late.swap(false, Ordering::Relaxed);
        self.workers.count(state.unread.is_none() && !was_late);
        state.read();
        if state.failure.is_none() && state.n_tokens != output_index {
            let n_tokens = state.n_tokens;
            let message = format!("token {output_index} was asked for after {n_tokens} tokens");
            state.failure = Some(GuideError::Broken(message));
        }
        state.failure.is_none().then(|| Arc::clone(&state.mask))
    }

    /// Consumes output token `output_index`: a worker computes the next mask. A token that was
    /// consumed before has no effect.
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

    /// The counters of all guides of the model.
    pub fn mask_counts(&self) -> MaskCounts {
        self.workers.counts()
    }

    /// Why the output cannot continue, if so.
    pub fn failure(&self) -> Option<GuideError> {
        self.state().failure.clone()
    }

    /// Whether the next mask is ready. Never blocks: a mask in progress counts as not ready.
    pub fn is_ready(&self) -> bool {
        match self.state.try_lock() {
            Ok(state) => state.unread.is_none(),
            Err(TryLockError::Poisoned(state)) => state.into_inner().unread.is_none(),
            Err(TryLockError::WouldBlock) => false,
        }
    }

    /// Waits until all `guides` have their next mask, for at most `limit` plus the mask in progress
    /// at that time. Computes masks itself meanwhile.
    pub fn await_masks<'a>(guides: impl Iterator<Item = &'a Self>, limit: Duration) {
        let begun = Instant::now();
        for guide in guides.filter(|guide| !guide.is_ready()) {
            guide.is_late.store(true, Ordering::Relaxed);
            while !guide.is_ready() {
                let left = limit.saturating_sub(begun.elapsed());
                if left.is_zero() {
                    break;
                }
                if !guide.workers.help() {
                    guide.workers.wait(left, || !guide.is_ready());
                }
            }
        }
    }

    /// Computes the next mask if no other thread has done so.
    pub(super) fn prepare(&self) {
        self.state().read();
    }

    pub(super) fn grammar_id(&self) -> u64 {
        self.grammar_id
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The matcher catches its own panics and keeps them as its error.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn read(&mut self) {
        let Some(token) = self.unread.take() else {
            return;
        };
        // After its end, a grammar only allows the end of the text.
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

/// Compares identity, not position.
impl PartialEq for Guide {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.state.try_lock() {
            Ok(state) => write!(f, "Guide after {} tokens", state.n_tokens),
            Err(_) => f.write_str("Guide (locked)"),
        }
    }
}
