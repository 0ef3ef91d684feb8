//! The position of one choice in its grammar, which decides the allowed next tokens.
//!
//! This module depends neither on the source of the grammar ([`crate::structured`] compiles it) nor
//! on the tokenizer: requests carry guides through the scheduler and the sampler.

mod ahead;
mod error;
mod forced;
pub(crate) mod limits;
mod mask;
mod workers;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use llguidance::Matcher;

use self::ahead::Ahead;
pub use self::error::GuideError;
use self::forced::Forced;
pub use self::mask::TokenMask;
pub(crate) use self::workers::MaskWorkers;

/// Masks that a step does not wait for: they are made beside its forward pass, in which they are
/// hidden where they take no longer than this together. What a mask takes is an average of the
/// grammar's last ones, so their number is bounded as well: a grammar that becomes costly from one
/// token to the next holds up one step by that many masks.
const MAX_AHEAD_US: u64 = 10_000;
const MAX_MASKS_AHEAD: usize = 32;

/// Shared by the request, its rows and the workers. Clones refer to the same guide.
#[derive(Clone)]
pub struct Guide {
    state: Arc<Mutex<State>>,
    /// The engine has waited for the next mask.
    is_late: Arc<AtomicBool>,
    /// The next step does not wait for its mask, which is made beside the forward pass.
    goes_ahead: Arc<AtomicBool>,
    /// Microseconds that a mask of this grammar takes, as a moving average.
    mask_us: Arc<AtomicU64>,
    grammar_id: u64,
    workers: Arc<MaskWorkers>,
}

struct State {
    matcher: Matcher,
    /// Number of output tokens so far.
    n_tokens: usize,
    /// The last of them, which the matcher has not consumed yet.
    unread: Vec<u32>,
    /// The mask of the next token.
    mask: Arc<TokenMask>,
    /// The mask is that of an earlier token.
    is_outdated: bool,
    /// The masks after drafts of the next tokens.
    ahead: Option<Ahead>,
    forced: Forced,
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
    pub(crate) fn new(
        matcher: Matcher,
        mask: Arc<TokenMask>,
        grammar_id: u64,
        mask_us: Arc<AtomicU64>,
        workers: Arc<MaskWorkers>,
    ) -> Self {
        let state = State {
            matcher,
            n_tokens: 0,
            unread: Vec::new(),
            mask,
            is_outdated: false,
            ahead: None,
            forced: Forced::default(),
            failure: None,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            is_late: Arc::default(),
            goes_ahead: Arc::default(),
            mask_us,
            grammar_id,
            workers,
        }
    }

    /// The mask for output token `output_index`, the next one or one after drafts; computed here if
    /// no worker has done it yet. `None` after a failure, which ends the request whatever token is
    /// chosen.
    pub fn mask(&self, output_index: usize) -> Option<Arc<TokenMask>> {
        let mut state = self.state();
        let was_late = self.is_late.swap(false, Ordering::Relaxed);
        self.workers.count(!state.is_outdated && !was_late);
        self.read(&mut state);
        let n_before = output_index.wrapping_sub(state.n_tokens);
        if state.failure.is_none()
            && n_before > 0
            && let Some(ahead) = &mut state.ahead
            && let Some(mask) = ahead.mask_after(n_before)
        {
            return Some(mask);
        }
        if state.failure.is_none() && n_before != 0 {
            let n_tokens = state.n_tokens;
            let message = format!("token {output_index} was asked for after {n_tokens} tokens");
            state.failure = Some(GuideError::Broken(message));
        }
        state.failure.is_none().then(|| Arc::clone(&state.mask))
    }

    /// Consumes output token `output_index`: a worker computes the next mask. A token that was
    /// consumed before has no effect.
    pub fn advance(&self, output_index: usize, token: u32) {
        self.advance_all(output_index, &[token]);
    }

    /// Consumes several output tokens, as [`Self::advance`] does one. The masks between them are not
    /// made: they were, if the tokens were drafts.
    pub fn advance_all(&self, output_index: usize, tokens: &[u32]) {
        let mut state = self.state();
        if state.n_tokens != output_index || state.failure.is_some() || tokens.is_empty() {
            return;
        }
        state.ahead = None;
        state.unread.extend_from_slice(tokens);
        state.is_outdated = true;
        state.n_tokens += tokens.len();
        drop(state);
        self.workers.prepare(self.clone());
    }

    /// Takes drafts of the output tokens from `output_index` on, and returns how many of them the
    /// grammar allows; the rest is no draft. A worker computes the masks after them. `left_us`: the
    /// time for masks that the step has left, from which theirs is taken; none are taken where it
    /// does not suffice. They are forgotten when the next token comes.
    pub fn take_drafts(&self, output_index: usize, drafts: &[u32], left_us: &mut u64) -> usize {
        let mask_us = self.mask_us.load(Ordering::Relaxed).max(1);
        let n_affordable = (*left_us / mask_us) as usize;
        let drafts = &drafts[..drafts.len().min(n_affordable)];
        let mut state = self.state();
        state.consume();
        state.ahead = None;
        if drafts.is_empty() || state.failure.is_some() || state.n_tokens != output_index {
            return 0;
        }
        let Some(ahead) = Ahead::new(&state.matcher, drafts) else {
            return 0;
        };
        let n_drafts = ahead.n_drafts();
        state.ahead = Some(ahead);
        drop(state);
        *left_us -= n_drafts as u64 * mask_us;
        self.workers.prepare(self.clone());
        n_drafts
    }

    /// Whether these are the drafts that it has taken.
    pub fn has_taken(&self, output_index: usize, drafts: &[u32]) -> bool {
        let state = self.state();
        let ahead = state.ahead.as_ref();
        state.n_tokens == output_index && ahead.is_some_and(|ahead| ahead.has_drafts(drafts))
    }

    /// Whether no mask could be made for output token `output_index`, which comes after drafts. The
    /// drafts before it count, but not that no token is allowed: the next step will show why.
    pub fn ends_drafts(&self, output_index: usize) -> bool {
        let state = self.state();
        let n_before = output_index.wrapping_sub(state.n_tokens);
        let ahead = state.ahead.as_ref();
        n_before > 0 && ahead.is_some_and(|ahead| ahead.fails_after(n_before))
    }

    /// The next tokens, if the grammar allows only one text there; empty otherwise. The model may
    /// split this text into other tokens. `left_us`: as for [`Self::take_drafts`].
    pub fn forced_tokens(&self, left_us: &mut u64) -> Vec<u32> {
        let mask_us = self.mask_us.load(Ordering::Relaxed).max(1);
        if !self.is_ready() {
            match left_us.checked_sub(mask_us) {
                Some(left) => *left_us = left,
                None => return Vec::new(),
            }
        }
        let mut state = self.state();
        self.read(&mut state);
        if state.failure.is_some() {
            return Vec::new();
        }
        let State {
            matcher,
            mask,
            forced,
            ..
        } = &mut *state;
        forced.tokens(matcher, mask)
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
            Ok(state) => !state.is_outdated,
            Err(TryLockError::Poisoned(state)) => !state.into_inner().is_outdated,
            Err(TryLockError::WouldBlock) => false,
        }
    }

    /// Decides which rows of the next step may start without their masks, since those will be ready
    /// when the forward pass ends, and waits for the other masks, for at most `limit` plus the mask
    /// in progress at that time. Computes masks itself meanwhile.
    pub fn await_masks<'a>(guides: impl Iterator<Item = &'a Self>, limit: Duration) {
        let begun = Instant::now();
        let (mut n_ahead, mut ahead_us) = (0, 0);
        for guide in guides.filter(|guide| !guide.is_ready()) {
            let mask_us = guide.mask_us.load(Ordering::Relaxed);
            let goes_ahead = n_ahead < MAX_MASKS_AHEAD && ahead_us + mask_us <= MAX_AHEAD_US;
            guide.goes_ahead.store(goes_ahead, Ordering::Relaxed);
            if goes_ahead {
                n_ahead += 1;
                ahead_us += mask_us;
                continue;
            }
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

    /// Whether the next step must leave this row out. Call it after [`Self::await_masks`].
    pub fn sits_out(&self) -> bool {
        !self.goes_ahead.load(Ordering::Relaxed) && !self.is_ready()
    }

    /// Computes the next mask and those after drafts if no other thread has done so.
    pub(crate) fn prepare(&self) {
        let mut state = self.state();
        self.read(&mut state);
        if let Some(ahead) = &mut state.ahead {
            ahead.make_masks();
        }
    }

    fn read(&self, state: &mut State) {
        let begun = Instant::now();
        if state.read() {
            let took_us = begun.elapsed().as_micros() as u64;
            // Two threads that do this at once lose one of two samples.
            let before_us = self.mask_us.load(Ordering::Relaxed);
            let average_us = (3 * before_us + took_us) / 4;
            self.mask_us.store(average_us, Ordering::Relaxed);
        }
    }

    pub(crate) fn grammar_id(&self) -> u64 {
        self.grammar_id
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The matcher catches its own panics and keeps them as its error.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Makes the mask, if it is not there. False: it was.
    fn read(&mut self) -> bool {
        self.consume();
        if !std::mem::take(&mut self.is_outdated) {
            return false;
        }
        if self.failure.is_none() {
            match self.matcher.compute_mask_or_eos() {
                Ok(mask) => self.mask = Arc::new(TokenMask::new(mask)),
                Err(error) => self.failure = Some(GuideError::of_parser(&error.to_string())),
            }
        }
        true
    }

    /// Gives the matcher the tokens that it has not seen.
    fn consume(&mut self) {
        for token in std::mem::take(&mut self.unread) {
            // After its end, a grammar only allows the end of the text.
            let has_ended = self.matcher.is_stopped() && !self.matcher.is_error();
            if self.failure.is_some() || has_ended {
                return;
            }
            self.forced.pass(&self.matcher, token);
            if let Err(error) = self.matcher.consume_token(token) {
                self.failure = Some(GuideError::of_parser(&error.to_string()));
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::structured::tests::grammar_of;

    #[test]
    fn masks_are_made_beside_a_step_as_far_as_they_are_cheap_and_few() {
        let grammar = grammar_of("[a-z]*");
        let guides: Vec<Guide> = (0..40).map(|_| grammar.guide()).collect();
        // As `advance` does, but no worker hears of it.
        for guide in &guides {
            let mut state = guide.state();
            state.unread = vec![b'a'.into()];
            state.is_outdated = true;
            state.n_tokens = 1;
        }
        for (mask_us, n_ahead) in [(0, 32), (1000, 10), (6000, 1), (10_001, 0)] {
            guides[0].mask_us.store(mask_us, Ordering::Relaxed);
            Guide::await_masks(guides.iter(), Duration::ZERO);
            let n_out = guides.iter().filter(|guide| guide.sits_out()).count();
            assert_eq!(guides.len() - n_out, n_ahead, "{mask_us} us");
        }
        guides.iter().for_each(Guide::prepare);
        assert!(guides.iter().all(|guide| !guide.sits_out()));
        let mask_us = guides[0].mask_us.load(Ordering::Relaxed);
        assert!(
            mask_us < 10_001,
            "{mask_us} us: an average of 40 cheap masks"
        );
    }
}
